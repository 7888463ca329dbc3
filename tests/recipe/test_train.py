"""The launcher's module, as a command."""

import os
from pathlib import Path

import pytest

from forked_python import launch
from reuse_algos import train
from reuse_algos.archive import RunArchive

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "yamls/digits"
TINY = ["data.train_examples=256", "model.width=4", "scheduler.t_warmup=1ba"]


def test_help_has_examples(capsys):
    assert train.main(["--help"]) == 0
    assert (
        "composer -n 1 -m reuse_algos.train yamls/digits/baseline.yaml seed=18 optimizer.lr=0.05"
        in capsys.readouterr().out
    )


def test_check_prints_the_recipe_and_trains_nothing(capsys, on_cpu, tmp_path):
    assert train.main([str(DIGITS / "baseline.yaml"), "--check", *on_cpu, "optimizer.lr=0.25"]) == 0
    out = capsys.readouterr().out
    assert "lr: 0.25" in out
    assert "digits-baseline-1" in out
    assert list(tmp_path.iterdir()) == []


def test_overrides_may_stand_on_both_sides_of_options(capsys, on_cpu):
    assert train.main([str(DIGITS / "baseline.yaml"), "seed=5", "--check", "optimizer.lr=0.25", *on_cpu]) == 0
    assert "digits-baseline-5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["seed=1", "x.yaml"], "error: the recipe's file comes first, before 'seed=1'"),
        (["nowhere.yaml"], "error: nowhere.yaml: 1 error in the recipe\n  there is no such file."),
        ([str(DIGITS / "baseline.yaml"), "sead=1"], "sead: there is no such key. Did you mean 'seed'?"),
        ([str(DIGITS / "baseline.yaml"), "archive=null"], "archive: missing. callbacks.run_recorder needs it."),
        ([str(DIGITS / "baseline.yaml"), "data.name=npz", "data.path=none.npz", "callbacks=null"], "none.npz"),
    ],
)
def test_errors_are_one_message_and_status_2(capsys, arguments, text):
    assert train.main(arguments) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert "Traceback" not in captured.err + captured.out


def test_unknown_option_is_status_2(capsys):
    assert train.main(["x.yaml", "--chek"]) == 2
    assert "--chek" in capsys.readouterr().err


def test_the_loop_of_the_digits_study(capsys, on_cpu, tmp_path):
    for name, length in (("baseline", "2ep"), ("distilled", "1ep"), ("short", "1ep")):
        assert train.main([str(DIGITS / f"{name}.yaml"), *on_cpu, *TINY, f"max_duration={length}"]) == 0
        assert f"finished digits-{name}-1: {length[0]} epochs" in " ".join(capsys.readouterr().out.split())
    archive = RunArchive(tmp_path / "archive", create=True)
    runs = {run.tags["method"]: run for run in archive.runs()}
    assert runs.keys() == {"baseline", "distilled", "short"}
    assert [use.run_id for use in runs["distilled"].manifest.prior_runs] == [runs["baseline"].id]
    assert runs["short"].manifest.recipe["max_duration"] == "1ep"
    assert runs["short"].manifest.seed == 1


def test_autoresume_of_a_finished_run_has_nothing_to_do(capsys, on_cpu, tmp_path):
    arguments = [str(DIGITS / "short.yaml"), *on_cpu, *TINY, "max_duration=1ep", "autoresume=true"]
    arguments += [f"save_folder={tmp_path / 'checkpoints'}", "callbacks=null"]
    assert train.main(arguments) == 0
    assert "finished" in capsys.readouterr().out
    assert train.main(arguments) == 0
    assert "nothing is left to do" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_autoresume_beside_wandb_that_is_not_online(capsys, on_cpu, tmp_path, monkeypatch, mode):
    """Composer asks W&B for a checkpoint, too, which has none to give then."""
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    arguments = [str(DIGITS / "short.yaml"), *on_cpu, *TINY, "max_duration=1ep", "autoresume=true", "callbacks=null"]
    arguments += [f"save_folder={tmp_path / 'checkpoints'}", "loggers={wandb: {project: reuse}}"]
    assert train.main(arguments) == 0
    assert "finished" in capsys.readouterr().out


@pytest.mark.ranks
def test_two_ranks_through_the_launcher_say_an_error_once(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    recipe = [str(DIGITS / "baseline.yaml"), "data.batch_size=63", "bogus"]
    done = launch(2, "-m", "reuse_algos.train", *recipe, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("'bogus': is not a key=value override") == 1
    assert "Traceback" not in done.stdout + done.stderr
