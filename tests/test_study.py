"""Studies: the files that are there can be planned, and one that is killed gives the table of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from reuse_algos.sequence import load_sequence, plan_sequence
from sequences import in_process

ROOT = Path(__file__).parents[1]
STUDIES = sorted((ROOT / "benchmarks/studies").glob("*.yaml"))
DRIVER = ROOT / "benchmarks/study.py"
OF_THE_CLOCK = ("train_seconds", "setup_seconds", "harvest_seconds", "finished", "run_id", "prior_runs", "command")

sys.path.insert(0, str(ROOT / "benchmarks"))
import study  # noqa: E402
from study_summary import advice, compare_records  # noqa: E402


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_can_be_planned_and_names_what_its_controls_control(path: Path) -> None:
    config = load_sequence(path, ["folder=elsewhere"])
    plan = plan_sequence(config)
    assert config.baseline in config.arms
    assert config.name == path.stem.replace("_", "-")
    for name, arm in config.arms.items():
        assert arm.tags.get("control_of", name) in config.arms
        budgets = {step.point.get("max_duration") for step in plan.of_arm(name)}
        assert (arm.tags.get("role") == "prior") == (budgets == {None}) or "origin" in name
    assert f"# Run:     python benchmarks/study.py benchmarks/studies/{path.name} " in path.read_text()


def tiny(here: Path) -> list[str]:
    """A study of one prior run and two methods on 60 digits; arguments of the driver."""
    query = {"run_name": "${name}-prior-seed-10\\${seed}"}
    teach = {"prior_run_distillation": {"runs": query, "source": "cached", "loss": "mse", "weight": 0.5}}
    values = {
        "name": "tiny-study",
        "folder": str(here / "work"),
        "recipe": "digits/baseline",
        "baseline": "plain",
        "overrides": {"data.train_examples": 60, "scheduler": None, "device": "cpu", "eval_interval": "1dur"},
        "grid": {"max_duration": ["40ep"], "seed": [1]},
        "arms": {
            "prior": {"grid": {"seed": [101]}, "tags": {"role": "prior"}, "overrides": {"max_duration": "40ep"}},
            "plain": {},
            "distilled": {"overrides": {"algorithms": teach}},
        },
    }
    path = here / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return [str(path), "--archive", str(here / "archive"), "--out", str(here / "results.jsonl")]


def rows(here: Path) -> list[dict[str, Any]]:
    """The results without what the clock and chance decide."""
    records = [json.loads(line) for line in (here / "results.jsonl").read_text().splitlines()]
    for one in records:
        one["prior_count"] = len(one["prior_runs"])
        for key in OF_THE_CLOCK:
            del one[key]
    return sorted(records, key=lambda one: one["step"] + one["method"])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes")
def test_killed_at_random_and_restarted_gives_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    draw = random.Random(7)
    command = [sys.executable, str(DRIVER), *tiny(killed), "--jobs", "2"]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if "starts" in line or "goes on" in line:
                break
        checkpoints, until = draw.random() < 0.5, time.monotonic() + 60
        while checkpoints and not list(killed.rglob("*.pt")) and time.monotonic() < until and process.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.uniform(0.0, 2.0))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 runs are finished" in done.stdout

    monkeypatch.setattr("reuse_algos.sequence.running.step_process", in_process)
    assert study.main(tiny(straight)) == 0
    assert rows(killed) == rows(straight)
    assert [(one["method"], one["prior_count"]) for one in rows(straight)] == [
        ("distilled", 1),
        ("plain", 0),
        ("prior", 0),
    ]
    # Another call trains nothing and writes nothing; the summary is made from the lines alone.
    before = (straight / "results.jsonl").read_bytes()
    assert study.main(tiny(straight)) == 0
    assert (straight / "results.jsonl").read_bytes() == before
    capsys.readouterr()
    assert study.main([*tiny(straight), "--summary"]) == 0
    records = [json.loads(line) for line in before.decode().splitlines()]
    comparison = compare_records(records, "plain")
    assert [group.name for group in comparison.groups] == ["plain", "distilled"]
    plain = next(one for one in records if one["method"] == "plain")
    assert comparison.groups[0].points[0].values == [plain["final"]]
    assert f"{plain['final']:.4f}" in capsys.readouterr().out


def test_time_limit_and_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = tiny(tmp_path)
    assert study.main([*arguments, "--time-limit", "0s"]) == 3
    out = capsys.readouterr().out
    assert "0 of 3 runs are finished" in out
    assert "left of prior: 1 (seed-101)" in out
    assert study.main([*arguments, "--arms", "plane"]) == 2
    assert "has no arm plane. Did you mean 'plain'" in capsys.readouterr().err
    assert study.main([*arguments, "--summary"]) == 2
    assert "has no run of these methods yet" in capsys.readouterr().err
    assert not (tmp_path / "results.jsonl").exists()


def made_up() -> list[dict[str, Any]]:
    """Lines of a results file: distilled runs are 2.5 times as quick as plain ones, to within 0.002."""
    from compare.budget_records import records as quick_as

    lines = []
    for method, speed in (("plain", 1.0), ("distilled", 2.5)):
        for run in quick_as(method, (5, 10, 20, 40), speed):
            lines.append(
                {
                    "method": method, "role": None, "metric": "accuracy", "mode": "max", "seed": run.seed,
                    "budget": run.budget, "steps": run.steps, "samples": run.samples, "final": run.final,
                    "train_seconds": run.train_seconds, "setup_seconds": 0.0, "harvest_seconds": 0.0,
                    "flops_per_example": 10, "prior_runs": [], "run_id": run.run_id, "control_of": None, "health": "ok",
                }
            )  # fmt: skip
    return lines


def test_summary_recovers_the_speed_up_and_gives_advice_for_each_level() -> None:
    comparison = compare_records(made_up(), "plain", judge_by="steps")
    found = comparison.group("distilled").speedups
    assert found["steps"].low < 2.5 < found["steps"].high
    assert found["steps"].verdict == "faster"
    assert found["flops"].estimate == pytest.approx(found["steps"].estimate)
    assert comparison.groups[0].points[0].costs["flops"] == 3 * 10 * 5 * 20 * 32
    lines = advice(made_up(), "plain")
    assert [line.split(" (")[0] for line in lines] == [f"To be as good as plain after {n}ep" for n in (5, 10, 20, 40)]
    assert "Train distilled for about" in lines[2]
    assert "times fewer steps than plain" in lines[2]
    assert [one.name for one in compare_records(made_up(), "plain", ["plain"]).groups] == ["plain"]


def test_the_results_page_is_what_the_raw_files_say() -> None:
    import results_page

    assert results_page.PAGE.read_text() == results_page.page()
