"""``benchmarks/goals.py``: what is said of a goal follows from the raw values."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from compare.budget_records import records

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import goals


def write_study(folder: Path, speeds: dict[str, float], study: str = goals.STUDY) -> None:
    """A study in which each method is so many times as quick as plain training, exactly in the mean."""
    lines = []
    for method, speed in speeds.items():
        for run in records(method, (5, 10, 20, 40), speed):
            lines.append(
                {
                    "study": study, "method": method, "role": None, "control_of": None, "metric": "accuracy",
                    "mode": "max", "seed": run.seed, "budget": run.budget, "steps": run.steps, "samples": run.samples,
                    "final": run.final, "train_seconds": run.train_seconds, "setup_seconds": 0.0, "recipe": {},
                    "harvest_seconds": 0.0, "flops_per_example": None, "prior_runs": [], "run_id": run.run_id,
                    "health": "ok",
                }
            )  # fmt: skip
    (folder / f"{study.replace('-', '_')}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def search(rate: dict[str, float], chosen: str, share: float) -> dict[str, Any]:
    """One search of eight runs: final values by rate without reuse, and what was chosen with it."""
    best = max(rate, key=lambda key: rate[key])
    hopeless = {f"{number}.0": 0.1 for number in range(goals.SEARCH_RUNS - len(rate))}
    candidates = [{"value": key, "final": {"estimate": value}} for key, value in {**rate, **hopeless}.items()]
    arms = [
        {"arm": "without", "candidates": candidates, "winner": best},
        {"arm": "reuse", "candidates": candidates, "winner": chosen},
    ]
    shares = {"steps": share, "cost_seconds": share + 0.05}
    report = {
        "arms": [{"name": "without", "share": None}, {"name": "reuse", "share": shares}],
        "search": {"arms": arms},
    }
    return {"sequence": goals.SEARCH, "overrides": [], "report": report}


def test_speedups_are_held_against_the_goals(tmp_path: Path) -> None:
    write_study(tmp_path, {"plain": 1.0, "distilled": 3.9, "distilled-kl": 2.0, "grown-warm": 2.0})
    same, tuned, grown, _, sequence, other, searched, pruned, robust = goals.goals(tmp_path)
    lines = same.splitlines()
    assert lines[0].startswith("(a)")
    assert lines[1].startswith("    distilled: 3.88 [")
    assert lines[1].endswith("times fewer examples: met")
    assert "distilled-kl: 2.00" in lines[2]
    assert lines[2].endswith("MISSED, 1.50 times short")
    assert grown.splitlines()[1].endswith("MISSED, 2.00 times short")
    assert "not measured" in tuned
    assert "not measured" in other
    assert all("not measured" in one for one in (sequence, searched, pruned, robust))


def test_another_architecture_has_a_study_and_a_baseline_of_its_own(tmp_path: Path) -> None:
    write_study(tmp_path, {"plain": 1.0, "distilled": 2.0})
    write_study(tmp_path, {"plain": 1.0, "distilled-half": 4.0}, goals.OTHER_ARCHITECTURE_STUDY)
    same, _, _, _, _, other, *_ = goals.goals(tmp_path)
    assert same.endswith("MISSED, 1.50 times short")
    (line,) = other.splitlines()[1:]
    assert line.startswith("    distilled-half: 4.00")
    assert line.endswith("times fewer examples: met")


def test_an_arm_of_other_batches_is_held_against_plain_training_with_these_too(tmp_path: Path) -> None:
    write_study(tmp_path, {"plain": 1.0, "plain-batch-32": 2.0, "distilled-half-batch-32": 4.0})
    lines = goals.goals(tmp_path)[0].splitlines()[1:]
    assert len(lines) == 3
    assert lines[0].startswith("    distilled-half-batch-32: 4.00 [")
    (own,) = [line for line in lines if "over plain-batch-32" in line]
    assert own.startswith("    distilled-half-batch-32 over plain-batch-32: 2.0")
    assert own.endswith("MISSED, 1.50 times short")


def test_a_goal_within_the_limits_is_not_decided(tmp_path: Path) -> None:
    write_study(tmp_path, {"plain": 1.0, "distilled": 3.02})
    assert goals.goals(tmp_path)[0].endswith("not decided: the goal lies within the limits")


@pytest.mark.parametrize(
    ("chosen", "shares", "said"),
    [
        (
            ["0.1", "0.1", "0.1"],
            [0.30, 0.31, 0.32],
            ["0.310", "of the steps, 3 searches: met", "3 of 3 chose the same"],
        ),
        (["0.01", "0.01", "0.01"], [0.5, 0.51, 0.52], ["of the steps, 3 searches: MISSED", "a WORSE choice"]),
        (["0.1", "0.03", "0.1"], [0.34, 0.35, 0.36], ["not decided", "not told apart", "0.1 and 0.03"]),
    ],
)
def test_searches(tmp_path: Path, chosen: list[str], shares: list[float], said: list[str]) -> None:
    rates = [{"0.1": 0.95, "0.03": 0.94 + noise, "0.01": 0.80 + noise} for noise in (0.0, 0.001, 0.002)]
    lines = [search(rate, one, share) for rate, one, share in zip(rates, chosen, shares, strict=True)]
    (tmp_path / "sequence_cost.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = goals.goals(tmp_path)[6]
    for words in said:
        assert words in text
    if "a WORSE choice" in said:
        assert "loses 14.90" in text  # 0.95 - (0.80 + 0.001)


@pytest.mark.parametrize(
    ("kept", "lost", "said"),
    [(60, 0.002, "40.0 % saved, -0.20 [-0.22, -0.18] points, 3 seeds: met"), (60, 0.004, "MISSED"), (70, 0, "MISSED")],
)
def test_pruning_has_to_save_and_to_hold(tmp_path: Path, kept: int, lost: float, said: str) -> None:
    lines = [
        {"study": goals.PRUNED_STUDY, "method": method, "seed": seed, "samples": samples, "final": 0.9 - loss}
        for seed in (-1, 0, 1)
        for method, samples, loss in (("plain", 100, 0.0), ("pruned", kept, lost + seed * 8e-5))
    ]
    (tmp_path / "pruning_long_digits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert said in goals.goals(tmp_path)[7]


def test_whole_sequences_have_to_save_and_their_last_run_to_hold(tmp_path: Path) -> None:
    lines = []
    for end in (0.97, 0.98, 0.96):
        plain = {"share": None, "steps": [{"final": 0.9}, {"final": 0.95}]}
        reuse = {"share": {"steps": 0.2}, "steps": [{"final": 0.9}, {"final": end}]}
        lines.append({"sequence": goals.GROWN_SEQUENCE, "overrides": ["a=1"], "report": {"arms": [plain, reuse]}})
    (tmp_path / "sequence_cost.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = goals.goals(tmp_path)[4]
    assert "5.00 times fewer steps, 3 sequences; last run +2.00 [-0.48, 4.48] points, all of them +1.00" in text
    assert text.endswith("not decided")
