"""The main job as a user runs it: Composer's launcher, then the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from forked_python import launch, python
from reuse_algos.archive import RunArchive
from reuse_algos.demo import run_demo, saving
from reuse_algos.demo import runs as demo_runs
from reuse_algos.demo.runs import quiet_run
from reuse_algos.errors import ArchiveConflictError, DataError

ROOT = Path(__file__).parents[1]
SMALL = ["data.train_examples=256", "data.batch_size=64", "max_duration=2ep", "progress_bar=false", "device=cpu"]


def _launch(ranks: int, recipe: str, *overrides: str, fork: bool = True) -> subprocess.CompletedProcess[str]:
    training = ["-m", "reuse_algos.train", str(ROOT / recipe), *SMALL, *overrides]
    if fork:
        return launch(ranks, *training)
    # The launcher imports Composer, too, and starts its ranks with what it takes for Python.
    code = "import sys; from composer.cli.launcher import main; sys.executable = sys.argv.pop(1); main()"
    return python("-c", code, sys.executable, "-n", str(ranks), *training)


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2])
def test_record_distil_compare(tmp_path: Path, ranks: int) -> None:
    archive = f"archive={tmp_path / 'archive'}"
    seeds = (1, 2) if ranks == 1 else (1,)
    for seed in seeds:
        for method in ("baseline", "distilled"):
            # One training as the user starts it: ranks that import everything, and hash texts, by themselves.
            fork = (ranks, method) != (2, "baseline")
            done = _launch(ranks, f"yamls/digits/{method}.yaml", archive, f"seed={seed}", fork=fork)
            assert done.returncode == 0, done.stdout + done.stderr
    runs = RunArchive(tmp_path / "archive").runs(order="first")
    assert [run.tags["method"] for run in runs] == ["baseline", "distilled"] * len(seeds)
    assert [run.manifest.seed for run in runs] == [seed for seed in seeds for _ in range(2)]
    assert [use.run_id for use in runs[1].manifest.prior_runs] == [runs[0].id]
    hardware = runs[0].manifest.environment
    assert hardware is not None
    assert hardware.hardware["world_size"] == ranks
    # 256 examples in global batches of 64: every example in every epoch, whatever the number of ranks.
    signal = runs[0].signal("logits")
    assert int(signal.seen(0).sum()) == 256
    compared = python("-m", "reuse_algos.cli", "compare", str(tmp_path / "archive"), "--json")
    assert compared.returncode == 0, compared.stderr
    groups = {group["name"]: group for group in json.loads(compared.stdout)["groups"]}
    assert groups["distilled"]["n"] == len(seeds)
    verified = python("-m", "reuse_algos.cli", "verify", str(tmp_path / "archive"), "--json")
    assert (verified.returncode, json.loads(verified.stdout)["problems"]) == (0, [])


def test_faults_of_a_recipe_are_told_at_once(tmp_path: Path) -> None:
    done = _launch(1, "yamls/digits/baseline.yaml", "optimizer.learning_rate=1", "dat.name=digits")
    assert done.returncode == 2
    assert "optimizer.learning_rate" in done.stderr
    assert "data" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_prior_run_is_told(tmp_path: Path) -> None:
    done = _launch(1, "yamls/digits/distilled.yaml", f"archive={tmp_path / 'archive'}")
    assert done.returncode == 2
    assert "no finished run in" in done.stderr
    assert "Traceback" not in done.stderr
    assert RunArchive(tmp_path / "archive").run_ids() == []


def test_demo_shows_a_saving(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few images: what is trained, tagged, compared and printed, not how good it is."""
    images = {"digits/grown/before": 40}
    monkeypatch.setattr(
        saving,
        "quiet_run",
        lambda recipe, archive, *own: quiet_run(
            recipe, archive, *own, f"data.train_examples={images.get(recipe, 200)}"
        ),
    )
    assert run_demo(tmp_path / "demo", seeds=2) == 0
    done = capsys.readouterr()
    archive = RunArchive(tmp_path / "demo" / "archive")
    trained = {(run.tags["method"], run.manifest.progress.epoch, run.manifest.seed): run for run in archive.runs()}
    arms = {("baseline", 2), ("baseline", 4), ("warm-start", 2), ("warm-start", 4), ("same-rate", 4)}
    assert trained.keys() == {("before", 24, 1)} | {(*arm, seed) for arm in arms for seed in (1, 2)}
    before = trained["before", 24, 1]
    assert before.tags["role"] == "prior", "it takes no part in the comparison"
    for (method, epochs, _), run in trained.items():
        assert run.tags.get("control_of") == ("warm-start" if method == "same-rate" else None)
        assert [use.run_id for use in run.manifest.prior_runs] == ([before.id] if method == "warm-start" else [])
        assert f"{run.final_metric():.4f}" in done.out, (method, epochs)
    assert "s left" in done.out
    assert "same-rate (control of warm-start)" in done.out
    rates = {method: run.manifest.recipe["optimizer"]["lr"] for (method, _, _), run in trained.items()}
    assert rates["same-rate"] == rates["warm-start"] < rates["baseline"]
    assert "reuse_algos: archived run" not in done.err, "one screen of result, without a line for each run"
    assert (tmp_path / "demo" / "report.html").read_text().lower().startswith("<!doctype html>")
    assert run_demo(tmp_path / "demo", seeds=1, keep=True) == 0
    assert len(RunArchive(tmp_path / "demo" / "archive").runs(tags={"method": "before"})) == 1
    assert len(RunArchive(tmp_path / "demo" / "archive").runs(tags={"method": "baseline"})) == 6


def test_demo_names_the_extra_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_runs, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'reuse-algos\[demo\]'"):
        run_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_demo_of_every_technique(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(tmp_path / "demo", seeds=1, everything=True) == 0
    printed = capsys.readouterr().out
    archive = RunArchive(tmp_path / "demo" / "archive", create=True)
    by_method = {run.tags["method"]: run for run in archive.runs()}
    arms = {"baseline", "short", "distilled", "warm-start", "dynamic-pruned", "adversarial-replay"}
    assert set(by_method) == {*arms, "half"}
    for method, run in by_method.items():
        assert f"accuracy {run.final_metric():.4f} after {run.manifest.progress.epoch} epochs" in printed
        assert any(line.startswith(method) for line in printed.split("Target:")[1].splitlines()) == (method in arms)
        if method == "half":
            continue
        assert f"{run.final_metric('PGDAccuracy'):.4f}" in printed.split("Robustness:")[1]
    assert by_method["short"].manifest.progress == by_method["distilled"].manifest.progress
    assert by_method["short"].manifest.progress == by_method["warm-start"].manifest.progress
    (use,) = by_method["warm-start"].manifest.prior_runs
    assert use.run_id == by_method["half"].id
    assert "metrics/eval/robust/PGDAccuracy" in by_method["half"].metric_names  # all runs compare by the same metrics
    half = by_method["half"].manifest.dataset
    assert half is not None
    assert half.num_examples == 250
    for method in ("distilled", "dynamic-pruned", "adversarial-replay"):
        assert [use.run_id for use in by_method[method].manifest.prior_runs] == [by_method["baseline"].id]
    (use,) = by_method["adversarial-replay"].manifest.prior_runs
    (harvest,) = by_method["baseline"].manifest.harvests
    assert use.harvest_seconds == pytest.approx(harvest.seconds), "the attack is counted"
    pruned, full = (by_method[method].manifest.progress for method in ("dynamic-pruned", "baseline"))
    assert (pruned.epoch, full.epoch) == (30, 30)
    assert pruned.sample < 0.8 * full.sample
    assert (tmp_path / "demo" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "not enough runs" in printed
    assert archive.verify().ok


def test_demo_deletes_nothing_of_others(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ArchiveConflictError, match="name another folder"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
