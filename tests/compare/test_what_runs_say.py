"""What runs themselves say: their baseline, their controls, what a printed target is, and where plain is better."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from compare.asking import compare_budgets, recommend_runs
from compare.budget_records import level, records
from reuse_algos.compare import Comparison, Outcome
from reuse_algos.errors import CompareError

BASELINE = records("baseline", (10, 20, 40, 80))
QUICK = records("quick", (5, 10, 20, 40), 2.0)
BUDGETS = (10, 20, 40, 80)


def compare(*groups: list[Outcome], **asked: Any) -> Comparison:
    return compare_budgets([run for group in groups for run in group], metric="metrics/eval/Acc", mode="max", **asked)


def renamed(runs: list[Outcome], **fields: Any) -> list[Outcome]:
    return [dataclasses.replace(run, **fields) for run in runs]


def test_a_technique_over_its_control() -> None:
    """A control that is 1.25 times as quick as plain leaves 2 / 1.25 of the technique's 2."""
    control = records("control", BUDGETS, 1.25, control_of="quick")
    comparison = compare(BASELINE, records("quick", BUDGETS, 2.0), control, judge_by="steps")
    (over,) = comparison.group("quick").over_controls
    assert over.control == "control"
    # Both curves are read between budgets, where a line is a little below a concave curve.
    assert over.speedups["steps"].estimate == pytest.approx(2.0 / 1.25, rel=0.03)
    assert over.speedups["steps"].low > 1.0
    assert over.sentence.startswith("Over its control: quick needs 1.")
    assert "fewer steps than control to be as good as baseline" in over.sentence
    assert comparison.group("control").over_controls == comparison.group("baseline").over_controls == []


def test_a_control_that_is_best_of_all_is_said() -> None:
    control = records("control", BUDGETS, 3.0, control_of="quick")
    notes = " ".join(compare(BASELINE, QUICK, control).notes)
    assert "The best of all is control, a control of quick" in notes
    weak = records("control", BUDGETS, 1.1, control_of="quick")
    assert "The best of all" not in " ".join(compare(BASELINE, QUICK, weak).notes)


def test_budgets_at_which_a_technique_is_below_plain_are_named() -> None:
    mixed = [
        dataclasses.replace(run, group="mixed", final=run.final + (-0.05 if run.budget == "10ep" else 0.05))
        for run in BASELINE
    ]
    (note,) = [one for one in compare(BASELINE, mixed).notes if "is worse than baseline at the same budget" in one]
    assert note == "mixed is worse than baseline at the same budget: 10ep (-0.0500, not clearly)."
    lower = [dataclasses.replace(run, final=-run.final) for run in (*BASELINE, *mixed)]
    notes = compare_budgets(lower, metric="loss", mode="min").notes
    assert any("mixed is worse than baseline at the same budget: 10ep (+0.0500, not clearly)." in one for one in notes)


def test_the_end_of_a_control_that_did_not_get_there_is_shown() -> None:
    """'No difference' would read as: as good as the baseline."""
    poor = [dataclasses.replace(run, group="poor", final=0.3 + 0.25 * (run.seed or 0)) for run in BASELINE]
    group = compare(BASELINE, poor).group("poor")
    assert group.verdict == "no difference"
    wanted = "poor does not reach Acc 0.6494, which it needs to be as good as baseline: it ends at 0.5500 ["
    assert group.sentence.startswith(wanted)


def test_a_target_as_a_table_prints_it_is_met() -> None:
    exact = level(40)  # 0.607698..., printed as 0.6077
    assert f"{exact:.4f}" == "0.6077" > str(exact)
    asked = {"metric": "acc", "mode": "max"}
    by_table = recommend_runs([*BASELINE, *QUICK], target=0.6077, **asked)
    by_value = recommend_runs([*BASELINE, *QUICK], target=by_table.target, **asked)
    assert by_table.target < exact + 1e-12
    assert by_table.choice == by_value.choice == "quick"
    assert by_table.candidates[0].bound == ""
    last = compare(renamed(BASELINE, final=0.846267), target=0.8463)
    assert last.groups[0].target_bound == "<=", "the mean that is printed as 0.8463 has reached it"
    assert compare(renamed(BASELINE, final=0.8461), target=0.8463).groups[0].target_bound == ">="


def test_the_runs_say_which_group_is_the_baseline() -> None:
    plain = renamed(BASELINE, group="plain", role="baseline")
    comparison = compare(plain, QUICK)
    assert comparison.baseline == "plain"
    assert recommend_runs([*plain, *QUICK], metric="acc", mode="max", target=level(40)).baseline == "plain"
    assert compare(plain, QUICK, baseline="quick").baseline == "quick", "what is asked for wins"
    with pytest.raises(CompareError, match="--baseline GROUP.*role: baseline"):
        compare(renamed(BASELINE, group="plain"), QUICK)
