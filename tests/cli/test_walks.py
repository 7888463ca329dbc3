"""What users of the command line met on their way: each is one kind of fault, on archives of made-up runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from composer import Callback, State
from composer.loggers import Logger

from cli.test_cli import call, refused
from compare.synthetic_runs import noisy, write_run
from reuse_algos.archive import RunArchive
from reuse_algos.cli import main
from reuse_algos.recipe.building.progress_lines import ProgressLines
from toy import blobs, epoch_loader, mlp, trainer

X = np.arange(1, 11) / 10
_SHORT = (
    *(
        "data.train_examples=60",
        "data.augment=crop",
        "data.num_views=0",
        "max_duration=20ba",
        "progress_bar=false",
        "log_to_console=false",
    ),
    "callbacks.run_recorder={weights: [last]}",
)


def test_a_recipe_by_name_and_overrides_behind_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "train", "digits/grown/baseline", "--check", f"archive={tmp_path}", "seed=31")
    assert code == 0
    assert re.search(r"│ seed: 31 +│", out)
    assert "data: digits, 500 examples to train" in out
    code, _, err = call(
        capsys, "train", "digits/baseline", "--check", "data.train_examples=9999", f"archive={tmp_path}"
    )
    assert (code, "9999" in err) == (2, True), "training would refuse it, and so does the check"
    assert "Did you mean 'digits/baseline' or" in call(capsys, "train", "digits/baselin")[2]
    assert "unrecognized arguments: seed=3" in refused(capsys, "runs", str(tmp_path), "--all", "seed=3")
    assert "unrecognized arguments: --chekc" in refused(capsys, "train", "digits/baseline", "--chekc", "seed=3")


def test_a_dry_run_looks_at_the_data_of_every_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"name: mine\narchive: {tmp_path / 'archive'}\nfolder: {tmp_path / 'runs'}\nrecipe: digits/baseline\n"
        "arms:\n  without: {}\n  more: {overrides: {data.train_examples: 9999}}\n"
    )
    code, _, err = call(capsys, "sequence", str(file), "--dry-run")
    assert code == 2
    assert "1 data sections cannot be loaded" in err
    assert "more/" in err
    code, out, _ = call(capsys, "sequence", str(file), "--dry-run", "arms.more.overrides={data.train_examples: 70}")
    assert code == 0
    assert "data: digits, 70 examples to train" in out


def test_an_id_is_never_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    name = "a-name-that-says-the-data-and-the-model-and-the-method-and-the-learning-rate-of-it"
    ids = [write_run(archive, name, seed, 0.5 * X, tags={"study": "one-with-a-long-name"}) for seed in range(2)]
    code, out, _ = call(capsys, "runs", str(archive.root))
    assert code == 0
    for run_id in ids:
        assert len(run_id) > 70
        assert [line.split()[0] for line in out.splitlines() if line.startswith(run_id)] == [run_id]


def test_advice_is_a_command_line_that_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "nowhere")
    error = refused(capsys, "runs", nowhere)
    assert "create=True" not in error
    assert f"`reuse-algos train digits/baseline archive={nowhere}`" in error


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An archive, whose path has a space in it, and its run of a recipe with random augmentation."""
    archive = str(tmp_path_factory.mktemp("walks") / "an archive")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["train", "digits/baseline", *_SHORT, f"archive={archive}"]) == 0
    torch.set_num_threads(threads)
    (run,) = RunArchive(archive).runs()
    return archive, run.id


@pytest.mark.parametrize(("score", "signal"), [("margin", "logits"), ("grand_last_layer", "grand_last_layer")])
def test_the_harvest_that_an_error_names_works(
    trained: tuple[str, str], capsys: pytest.CaptureFixture[str], score: str, signal: str
) -> None:
    archive, run_id = trained
    error = refused(capsys, "scores", archive, run_id, "--score", score)
    (command,) = re.findall(r"`reuse-algos (harvest .*?)`", error)
    assert f"--signals {signal}" in command
    assert main(shlex.split(command)) == 0
    code, out, _ = call(capsys, "scores", archive, run_id, "--score", score)
    assert (code, "60 examples; higher is harder" in out) == (0, True)


def test_the_recipe_of_a_run_trains_to_the_same_weights(
    trained: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, run_id = trained
    code, text, _ = call(capsys, "show", archive, run_id, "--recipe")
    assert code == 0
    (tmp_path / "again.yaml").write_text(text)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["train", str(tmp_path / "again.yaml"), f"archive={tmp_path / 'archive'}"]) == 0
    torch.set_num_threads(threads)
    (again,) = RunArchive(tmp_path / "archive").runs()
    first = RunArchive(archive).run(run_id)
    assert again.run_name == first.run_name
    assert again.final_metric() == first.final_metric()
    theirs, ours = first.weights("last"), again.weights("last")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    capsys.readouterr()
    # What is shown beside the rest is what differs from the defaults.
    shown = call(capsys, "show", archive, run_id)[1]
    assert "max_duration: 20ba" in shown
    assert "fsdp" not in shown
    assert len(shown.splitlines()) < 70


def test_a_log_file_shows_the_loss_while_training(capsys: pytest.CaptureFixture[str]) -> None:
    """Some lines in place of a bar, each with the loss of its batch."""

    class Losses(Callback):
        found: list[float]

        def batch_end(self, state: State, logger: Logger) -> None:
            self.found.append(float(state.total_loss_dict["loss/train/total"]))

    losses = Losses()
    losses.found = []
    one = trainer(epoch_loader(blobs()), mlp(1), callbacks=[losses, ProgressLines(lines=4)], max_duration="4ep")
    one.fit()
    one.close()
    lines = re.findall(r"epoch (\d+), batch (\d+) of 4ep, loss ([\d.]+)", capsys.readouterr().err)
    assert len(losses.found) == 16
    assert [batch for _, batch, _ in lines] == ["1", "4", "8", "12", "16"]
    assert [float(loss) for *_, loss in lines] == pytest.approx([losses.found[k] for k in (0, 3, 7, 11, 15)], abs=1e-4)


def test_a_run_of_a_script_has_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    run_id = write_run(archive, "script", 0, 0.5 * X)
    assert f"run {run_id} has no recipe" in refused(capsys, "show", str(archive.root), run_id, "--recipe")


def test_one_number_under_each_heading_of_a_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    steps = np.arange(1, 41)
    for seed in range(3):
        write_run(archive, "run", seed, 1.0 / steps + 0.1 + 0.01 * seed, metric="loss/train/total", every=10)
    code, out, _ = call(capsys, "predict", "loss-curve", str(archive.root))
    assert code == 0
    assert not set("┃│┏") & set(out), "a table looks as all others do"
    heads = [line for line in out.splitlines() if line.startswith("fraction")]
    rows = [line for line in out.splitlines() if re.match(r" +0\.\d+ ", line)]
    assert (len(heads), len(rows)) == (1, 3)
    assert heads[0].split().count("median") == heads[0].split().count("p90") == 4
    for row in rows:  # the methods are a name and a number each
        cells = re.sub(r"[a-z]+ \d+,? ?", "", row).split()
        assert len(cells) == 2 + 8 + 1
        assert all(re.fullmatch(r"[\d.e-]+|nan", cell) for cell in cells)


def test_short_names_of_metrics_mean_the_evaluation_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    rng = np.random.default_rng(0)
    run_id = write_run(archive, "baseline", 0, noisy(rng, 0.5 * X))
    found = archive.run(run_id)
    (full,) = [name for name in found.metric_names if name.startswith("metrics/eval/")]
    assert found.metric(full.rpartition("/")[2]).value.tolist() == found.metric(full).value.tolist()
