"""``reuse-algos sequence`` on small sequences, its steps trained in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from made_sequences import Here, sequence
from reuse_algos.cli import main
from reuse_algos.commands.common import seconds_of


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reuse_algos.sequence.running.driver.LocalLauncher", lambda threads: Here())


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["sequence", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_dry_run_writes_nothing_and_lists_the_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(sequence(tmp_path))
    code, out, err = call(capsys, path, "grid.seed=[3]", "--dry-run")
    assert (code, err) == (0, "")
    assert "without/seed-3" in out
    assert "prior_run_distillation" not in out  # the first step of the arm goes without
    assert "2 of 2 steps are still to be trained" in out
    code, out, _ = call(capsys, path, "--dry-run", "--json", "--archive", str(tmp_path / "elsewhere"))
    listed = json.loads(out)
    assert listed["archive"] == str(tmp_path / "elsewhere")
    assert [step["state"] for step in listed["steps"]] == ["to do"] * 4
    assert listed["steps"][3]["algorithms"] == ["prior_run_distillation"]
    assert [found.name for found in tmp_path.iterdir()] == ["sequence.yaml"]


@pytest.mark.usefixtures("quick")
def test_train_report_and_report_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(sequence(tmp_path))
    archive = ["--archive", str(tmp_path / "mine")]
    code, out, _ = call(capsys, path, *archive)
    assert code == 0
    assert "[4/4] reuse/seed-2: MulticlassAccuracy" in out
    assert "without (baseline)" in out
    assert "of without" in out
    code, out, err = call(capsys, path, *archive, "--json")
    report = json.loads(out)
    assert code == 0
    assert "finished before" in err
    assert (report["archive"], report["baseline"]) == (str(tmp_path / "mine"), "without")
    assert [step["cost"]["epochs"] for step in report["arms"][1]["steps"]] == [2, 1]
    assert report["arms"][1]["share"]["epochs"] == 0.75
    code, out, _ = call(capsys, path, *archive, "--dry-run")
    assert "0 of 4 steps are still to be trained" in out
    code, out, err = call(capsys, path, "overrides.optimizer.lr=0.2", *archive, "--dry-run")
    assert (code, out) == (2, "")
    assert "optimizer.lr was 0.1 and is now 0.2" in err


def test_bad_input_is_two_with_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(sequence(tmp_path))
    for argv, message in (
        ([path, "grid.sed=[1]", "overrides.optimizer.lrr=1"], "optimizer.lrr: SGD has no such option"),
        ([path, "nonsense"], "is not a key=value override"),
        (["sequences/five_sedes"], "Did you mean 'sequences/five_seeds'"),
        ([str(tmp_path / "none.yaml")], "there is no such file"),
        ([path, f"folder={path}"], "cannot be the folder of the sequence"),
        ([path, "--archive", path], path),
    ):
        code, out, err = call(capsys, *argv)
        assert (code, out) == (2, ""), argv
        assert message in err
        assert "Traceback" not in err


@pytest.mark.usefixtures("quick")
def test_time_limit_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(sequence(tmp_path))
    code, out, _ = call(capsys, path, "--time-limit", "0s")
    assert (code, out) == (3, "4 of 4 steps are left; the same command goes on with them\n")
    code, _, err = call(capsys, path, "--time-limit", "9 weeks")
    assert code == 2
    assert "'9 weeks' is not a time: write for example 90s, 9m or 1.5h" in err


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("9m", 540.0), ("1.5h", 5400.0)])
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert "examples:\n  reuse-algos sequence" in out
    assert max(len(line) for line in out.splitlines()) <= 100
