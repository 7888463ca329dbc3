"""``benchmarks/sequence_cost.py``: what is averaged was measured alike, and what is measured is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import sequence_cost

from made_sequences import Here


def report(share: float) -> dict[str, Any]:
    """A report of two arms of two steps."""
    shares = dict.fromkeys(sequence_cost.SHARES, share)
    arms = [
        {"name": "without", "steps": [{}, {}], "final": {"estimate": 0.8}, "share": {}},
        {"name": "reuse", "steps": [{}, {}], "final": {"estimate": 0.9}, "share": shares},
    ]
    return {"arms": arms, "baseline": "without", "search": None}


def row(overrides: list[str], repetition: int, share: float) -> dict[str, Any]:
    return {"sequence": "one", "overrides": overrides, "repetition": repetition, "report": report(share)}


def test_repetitions_with_other_overrides_are_not_pooled(capsys: pytest.CaptureFixture[str]) -> None:
    short = ["max_duration=2ep", "grid.seed=[1]"]
    rows = [row([], 0, 0.5), row(short, 0, 0.9), row([], 1, 0.6)]
    sequence_cost.summarise(rows)
    out = capsys.readouterr().out
    assert "one: 2 steps in each arm, 2 repetitions;" in out
    assert "one max_duration=2ep grid.seed=[1]: 2 steps in each arm, 1 repetitions;" in out
    assert "steps over those of without: 0.5500 [" in out
    assert "steps over those of without: 0.9000\n" in out


def test_what_fails_loses_only_its_own_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    asked: list[int] = []

    def measure(name: str, overrides: list[str], repetition: int) -> dict[str, Any]:
        asked.append(repetition)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return report(0.5)

    monkeypatch.setattr(sequence_cost, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["sequence_cost.py", "one"])
    with pytest.raises(KeyboardInterrupt):
        sequence_cost.main(["one", "--out", str(out)])
    assert sequence_cost.main(["one", "--out", str(out)]) == 0
    assert asked == [0, 1, 1, 2]
    assert [json.loads(line)["repetition"] for line in out.read_text().splitlines()] == [0, 1, 2]
    assert "3 repetitions" in capsys.readouterr().out


def test_a_measurement_counts_what_both_arms_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reuse_algos.sequence.running.driver.LocalLauncher", lambda threads: Here())
    overrides = ["overrides.data.train_examples=60", "overrides.max_duration=2ep", "overrides.eval_interval=1dur",
                 "arms.reuse.overrides.max_duration=1ep", "grid.seed=[1,2]", "overrides.device=cpu",
                 "overrides.scheduler=null"]  # fmt: skip
    found = sequence_cost.measure("sequences/five_seeds", overrides, 3)
    without, reuse = found["arms"]
    assert [step["point"]["seed"] for step in without["steps"]] == [301, 302]
    assert [len(step["prior_runs"]) for step in reuse["steps"]] == [0, 1]
    assert [arm["total"]["steps"] for arm in found["arms"]] == [12, 9]
    assert (without["total"]["setup_seconds"], reuse["total"]["setup_seconds"] > 0) == (0.0, True)
    for arm in found["arms"]:
        total = arm["total"]
        parts = [total[f"{what}_seconds"] for what in ("train", "setup", "harvest")]
        assert total["cost_seconds"] == pytest.approx(sum(parts))
    assert reuse["share"]["cost_seconds"] == pytest.approx(
        reuse["total"]["cost_seconds"] / without["total"]["cost_seconds"]
    )
    assert "archive" not in found
