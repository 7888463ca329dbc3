"""Costs, shares and winners of made-up runs, counted by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import scipy.stats
from rich.console import Console

from made_sequences import made_up, planned
from reuse_algos.archive import HarvestRecord, ModelRecord, PriorUse
from reuse_algos.errors import CompareError, SequenceError
from reuse_algos.sequence import StepState, print_report, sequence_report
from reuse_algos.sequence.reporting.search import Tried, search_result

VALUES = {
    "without": {"seed-1": [0.2, 0.4, 0.6], "seed-2": [0.3, 0.7, 0.5]},
    "reuse": {"seed-1": [0.2, 0.4, 0.6], "seed-2": [0.4, 0.6]},
}


def test_totals_shares_and_differences(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    archive, states = made_up(plan, VALUES)
    report = sequence_report(plan.config, states, archive)
    without, reuse = report.arms
    assert (report.metric, report.mode, report.baseline) == ("metrics/eval/MulticlassAccuracy", "max", "without")
    assert [step.cost.steps for step in without.steps] == [300, 300]
    assert (without.total.steps, reuse.total.steps) == (600, 500)
    assert (without.total.epochs, reuse.total.epochs) == (6, 5)
    assert without.total.train_seconds == pytest.approx(60.0)
    assert reuse.share["cost_seconds"] == pytest.approx(50 / 60)
    assert reuse.share["steps"] == pytest.approx(5 / 6)
    assert (reuse.share["flops"], reuse.share["harvest_seconds"]) == (None, None)
    assert [(step.final, step.best) for step in without.steps] == [(0.6, 0.6), (0.5, 0.7)]
    assert (without.best, without.best_step) == (0.6, "seed-1")
    assert reuse.paired
    assert reuse.final_difference is not None
    assert reuse.final_difference.estimate == pytest.approx(0.05)
    oracle = scipy.stats.ttest_rel([0.6, 0.6], [0.6, 0.5]).confidence_interval(0.95)
    assert (reuse.final_difference.low, reuse.final_difference.high) == pytest.approx((oracle.low, oracle.high))
    assert (without.is_baseline, without.share, without.final_difference) == (True, {}, None)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["arms"][1]["total"]["steps"] == 500
    assert plain["arms"][1]["steps"][1]["point"] == {"seed": 2}


def test_a_harvest_counts_once(tmp_path: Path) -> None:
    seeds = {"seed": [1, 2, 3, 4]}
    values = {arm: {f"seed-{seed}": [0.5] for seed in range(1, 5)} for arm in ("without", "reuse")}
    harvests = [HarvestRecord(signal="logits", views=[0, 1], weights="last", seconds=6.0, hardware="abacus")]
    _, states = made_up(planned(tmp_path, grid=seeds), values, **{"reuse/seed-1": {"harvests": harvests}})
    teacher = next(found.run for found in states if found.step.title == "reuse/seed-1")
    assert teacher is not None
    use = PriorUse(run_id=teacher.id, algorithm="prior_run_distillation", signals=["logits"], harvest_seconds=4.0)
    plan = planned(tmp_path, name="again", grid=seeds)
    archive, states = made_up(plan, values, **{f"reuse/seed-{seed}": {"prior_runs": [use]} for seed in (2, 3, 4)})
    report = sequence_report(plan.config, states, archive)
    # 4 s of it are used first, then the 2 s that are left, and never more than the 6 s that it took.
    assert [step.cost.harvest_seconds for step in report.arms[1].steps] == [0.0, 4.0, 2.0, 0.0]
    assert report.arms[1].total.cost_seconds == pytest.approx(4 * 10.0 + 6.0)
    assert any("reused 1 runs that are not its own" in note and teacher.id in note for note in report.notes)


def test_notes_say_what_is_odd(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    values = {**VALUES, "reuse": {"seed-1": [0.2], "seed-2": [float("nan")]}}
    archive, states = made_up(plan, values, **{"reuse/seed-2": {"health": "diverged"}})
    report = sequence_report(plan.config, states, archive)
    notes = "\n".join(report.notes)
    assert "reuse: seed-2 diverged; their cost counts." in notes
    assert "reuse reused nothing" in notes
    assert "have no interval" in notes
    assert report.to_dict()["arms"][1]["final"]["estimate"] is None
    out = io.StringIO()
    print_report(report, Console(file=out, width=100))
    assert "reuse/seed-2 (diverged)" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 100


def test_notes_say_where_totals_and_flops_are_not_what_they_seem(tmp_path: Path) -> None:
    frozen = {"overrides": {"algorithms": {"freezing": {"freeze": "backbone"}}}}
    plan = planned(tmp_path, arms={"without": {}, "frozen": frozen, "short": {"steps": [{"name": "only"}], "grid": {}}})
    counted = {"model": ModelRecord(name="digits_cnn", flops_per_example=1000)}
    values = {"without": {"seed-1": [0.5], "seed-2": [0.5]}, "short": {"only": [0.5]}}
    values["frozen"] = values["without"]
    archive, states = made_up(
        plan,
        values,
        **{f"{arm}/seed-{seed}": counted for arm in ("without", "frozen") for seed in (1, 2)},
        **{"short/only": {**counted, "extra_flops": 7.0}},
    )
    report = sequence_report(plan.config, states, archive)
    notes = {note for note in report.notes if "FLOPs" in note or "unlike" in note}
    assert notes == {
        "short has 1 steps and without has 2: totals of unlike amounts of work, so their share is not a saving.",
        "frozen: FLOPs count backward passes through what is frozen, too, which were not made; seconds do not.",
    }
    flops = {arm.name: arm.total.flops for arm in report.arms}
    assert flops == {"without": 3000.0 * 6400, "frozen": 3000.0 * 6400, "short": 3000.0 * 3200 + 7.0}


def test_an_unfinished_sequence_and_an_unknown_metric_are_refused(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    archive, states = made_up(plan, VALUES)
    with pytest.raises(SequenceError, match="1 steps are not finished yet: reuse/seed-2"):
        sequence_report(plan.config, [*states[:-1], StepState(states[-1].step, "to do")], archive)
    plan.config.metric = "F1"
    with pytest.raises(CompareError, match="the runs have no metric 'F1'"):
        sequence_report(plan.config, states, archive)


def points(**finals: list[float]) -> list[Tried]:
    return [
        Tried({"seed": seed, "lr": float(name[1:].replace("_", "."))}, final)
        for name, values in finals.items()
        for seed, final in enumerate(values)
    ]


def test_winners_and_whether_they_agree() -> None:
    without = points(x0_1=[0.70, 0.74, 0.72], x0_3=[0.71, 0.73, 0.70], x1=[0.10, 0.20, 0.15])
    found = search_result(
        "lr",
        {
            "without": without,
            "same": points(x0_1=[0.7], x0_3=[0.6], x1=[0.5]),
            "equal": points(x0_1=[0.6, 0.6], x0_3=[0.8, 0.8], x1=[0.1, 0.1]),
            "wrong": points(x0_1=[0.6, 0.6], x0_3=[0.6, 0.6], x1=[0.7, 0.7]),
            "lost": points(x0_1=[float("nan")], x0_3=[float("inf")], x1=[float("nan")]),
            "other": points(x0_1=[0.9]),
        },
        "without",
        "max",
    )
    assert [arm.winner for arm in found.arms] == [0.1, 0.1, 0.3, 1.0, None, 0.1]
    verdicts = {agreement.arm: agreement.verdict for agreement in found.agreements}
    assert verdicts == {
        "same": "same winner", "equal": "statistically equal", "wrong": "another winner", "lost": "no winner",
    }  # fmt: skip
    difference = found.agreements[1].difference
    oracle = scipy.stats.ttest_rel([0.70, 0.74, 0.72], [0.71, 0.73, 0.70]).confidence_interval(0.95)
    assert difference is not None
    assert (difference.low, difference.high) == pytest.approx((oracle.low, oracle.high))
    assert found.arms[0].candidates[0].final.estimate == pytest.approx(0.72)


def test_of_a_loss_the_least_wins_and_one_run_each_is_not_enough() -> None:
    arms = {"without": points(x0_1=[0.5], x0_3=[0.4]), "reuse": points(x0_1=[0.3], x0_3=[0.4])}
    found = search_result("lr", arms, "without", "min")
    assert [arm.winner for arm in found.arms] == [0.3, 0.1]
    assert found.agreements[0].verdict == "not enough runs"
    assert search_result("lr", arms, None, "min").agreements == []


def test_a_first_step_that_was_trained_otherwise_does_not_decide_a_search(tmp_path: Path) -> None:
    grid = {"seed": [1, 2], "optimizer.lr": [0.1, 0.2]}
    plan = planned(tmp_path, grid=grid, search="optimizer.lr")
    of_lr = {"lr-0.1": [0.5], "lr-0.2": [0.6]}
    values = {
        arm: {f"seed-{seed}_{name}": value for seed in (1, 2) for name, value in of_lr.items()}
        for arm in ("without", "reuse")
    }
    values["reuse"]["seed-1_lr-0.1"] = [0.9]
    archive, states = made_up(plan, values)
    report = sequence_report(plan.config, states, archive)
    assert report.search is not None
    assert [arm.winner for arm in report.search.arms] == [0.2, 0.2]
    assert [candidate.n for candidate in report.search.arms[1].candidates] == [1, 2]
    assert any("does not count in the search" in note for note in report.notes)
    out = io.StringIO()
    print_report(report, Console(file=out, width=100))
    assert "Winner of reuse: optimizer.lr=0.2" in out.getvalue()
    assert "reuse against the baseline: same winner" in out.getvalue()
