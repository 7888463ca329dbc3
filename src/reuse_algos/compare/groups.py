"""One group of runs against the baseline: from outcomes to a :class:`GroupResult`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from reuse_algos.compare.curves import MeanCurves, crossing_of, own_crossing, speedup_of_curves
from reuse_algos.compare.outcomes import Mode, RunOutcome
from reuse_algos.compare.results import BreakEven, CostToTarget, GroupResult, Method, RunResult
from reuse_algos.compare.statistics import Speedup, difference_interval, mean_interval, speedup_of_runs
from reuse_algos.errors import ReuseAlgosError

if TYPE_CHECKING:
    from reuse_algos.archive import RunArchive

__all__ = ["Question", "baseline_result", "group_result", "mean_curves", "shared_steps"]

Axis = Literal["steps", "cost"]


@dataclass(frozen=True)
class Question:
    """What is asked of every group: which target, which way is better, and how it is answered."""

    target: float
    mode: Mode
    method: Method
    confidence: float


def shared_steps(group: Sequence[RunOutcome]) -> npt.NDArray[np.int64]:
    """Steps [K] at which all runs of a group were evaluated, ascending; K may be 0 if their budgets differ."""
    steps = group[0].steps
    for outcome in group[1:]:
        steps = np.intersect1d(steps, outcome.steps)
    return steps


def mean_curves(group: Sequence[RunOutcome], mode: Mode, axis: Axis) -> tuple[MeanCurves, npt.NDArray[np.int64]]:
    """The group's runs on the steps that all of them evaluated, larger being better, and these steps [K].

    Runs of one budget share at least their last evaluation.

    Raises:
        ValueError: the runs share no evaluation.
    """
    steps = shared_steps(group)
    rows = [np.searchsorted(outcome.steps, steps) for outcome in group]
    sign = 1.0 if mode == "max" else -1.0
    values_RK = np.stack([sign * o.values[row] for o, row in zip(group, rows, strict=True)])
    if axis == "steps":
        costs_RK, start_R = np.stack([steps.astype(np.float64)] * len(group)), np.zeros(len(group))
    else:
        costs_RK = np.stack([o.cost_seconds[row] for o, row in zip(group, rows, strict=True)])
        start_R = np.array([o.upfront_seconds for o in group])
    return MeanCurves(values_RK, costs_RK, start_R), steps


def baseline_result(name: str, baseline: Sequence[RunOutcome], question: Question) -> GroupResult:
    """The baseline's own row: its cost to the target, and nothing to compare with."""
    runs = [_run_result(outcome, question) for outcome in baseline]
    if question.method == "curves":
        curves, steps = mean_curves(baseline, question.mode, "steps")
        to_target = _mean_at_step(baseline, int(steps[own_crossing(curves)]), reached=True)
    else:
        to_target = _mean_cost([run.to_target for run in runs])
    reached = sum(run.to_target.reached for run in runs)
    return GroupResult(
        name=name,
        is_baseline=True,
        n=len(runs),
        runs=runs,
        final=mean_interval([o.final for o in baseline], question.confidence),
        final_difference=None,
        paired=None,
        reached=reached,
        censored=len(runs) - reached,
        to_target=to_target,
        speedup_steps=None,
        speedup_cost=None,
        verdict="baseline",
        setup_seconds=float(np.mean([o.setup_seconds for o in baseline])),
        harvest_seconds=float(np.mean([o.harvest_seconds for o in baseline])),
        break_even=None,
    )


def group_result(
    archive: RunArchive,
    name: str,
    group: Sequence[RunOutcome],
    baseline: Sequence[RunOutcome],
    baseline_row: GroupResult,
    question: Question,
    *,
    paired: bool,
) -> GroupResult:
    """The row of a group that is compared with the baseline.

    Args:
        archive: to look up the cost of prior runs.
        name: of the group.
        group: its runs, sorted by seed.
        baseline: the baseline's runs, sorted by seed.
        baseline_row: the result of :func:`baseline_result`.
        question: the target and the method.
        paired: the runs pair by seed.
    """
    runs = [_run_result(outcome, question) for outcome in group]
    if question.method == "curves":
        to_target = _crossing(group, baseline, question.mode)
    else:
        to_target = _mean_cost([run.to_target for run in runs])
    in_steps = _speedup(baseline, group, "steps", question, paired=paired)
    in_seconds: Speedup | None = None
    if _has_seconds(group) and _has_seconds(baseline):
        in_seconds = _speedup(baseline, group, "cost", question, paired=paired)
    break_even = None
    if any(outcome.prior_run_ids for outcome in group):
        break_even = _break_even(archive, group, baseline_row.to_target, in_seconds)
    reached = sum(run.to_target.reached for run in runs)
    return GroupResult(
        name=name,
        is_baseline=False,
        n=len(runs),
        runs=runs,
        final=mean_interval([o.final for o in group], question.confidence),
        final_difference=difference_interval(
            [o.final for o in group], [o.final for o in baseline], paired=paired, confidence=question.confidence
        ),
        paired=paired,
        reached=reached,
        censored=len(runs) - reached,
        to_target=to_target,
        speedup_steps=in_steps,
        speedup_cost=in_seconds,
        verdict=(in_seconds or in_steps).verdict,
        setup_seconds=float(np.mean([o.setup_seconds for o in group])),
        harvest_seconds=float(np.mean([o.harvest_seconds for o in group])),
        break_even=break_even,
    )


def _speedup(
    baseline: Sequence[RunOutcome], group: Sequence[RunOutcome], axis: Axis, question: Question, *, paired: bool
) -> Speedup:
    if question.method == "curves":
        ours, _ = mean_curves(group, question.mode, axis)
        theirs, _ = mean_curves(baseline, question.mode, axis)
        return speedup_of_curves(theirs, ours, paired=paired, confidence=question.confidence)
    ours_hits = [outcome.hit(question.target, question.mode, axis) for outcome in group]
    their_hits = [outcome.hit(question.target, question.mode, axis) for outcome in baseline]
    return speedup_of_runs(their_hits, ours_hits, paired=paired, confidence=question.confidence)


def _has_seconds(group: Sequence[RunOutcome]) -> bool:
    return all(np.isfinite(o.train_seconds).all() and o.train_seconds[-1] > 0 for o in group)


def _at(outcome: RunOutcome, k: int, *, reached: bool) -> CostToTarget:
    return CostToTarget(
        reached=reached,
        steps=float(outcome.steps[k]),
        epochs=float(outcome.epochs[k]),
        samples=float(outcome.samples[k]),
        train_seconds=float(outcome.train_seconds[k]),
        cost_seconds=float(outcome.cost_seconds[k]),
    )


def _run_result(outcome: RunOutcome, question: Question) -> RunResult:
    k = outcome.first_at(question.target, question.mode)
    return RunResult(
        run_id=outcome.run_id,
        seed=outcome.seed,
        health=outcome.health,
        budget_steps=outcome.budget,
        final=outcome.final,
        to_target=_at(outcome, -1 if k is None else k, reached=k is not None),
        setup_seconds=outcome.setup_seconds,
        harvest_seconds=outcome.harvest_seconds,
    )


def _mean_cost(costs: Sequence[CostToTarget]) -> CostToTarget:
    def mean(axis: str) -> float:
        return float(np.mean([getattr(cost, axis) for cost in costs]))

    return CostToTarget(
        reached=all(cost.reached for cost in costs),
        steps=mean("steps"),
        epochs=mean("epochs"),
        samples=mean("samples"),
        train_seconds=mean("train_seconds"),
        cost_seconds=mean("cost_seconds"),
    )


def _mean_at_step(group: Sequence[RunOutcome], step: int, *, reached: bool) -> CostToTarget:
    return _mean_cost([_at(o, int(np.searchsorted(o.steps, step)), reached=reached) for o in group])


def _crossing(group: Sequence[RunOutcome], baseline: Sequence[RunOutcome], mode: Mode) -> CostToTarget:
    curves, steps = mean_curves(group, mode, "steps")
    k = crossing_of(mean_curves(baseline, mode, "steps")[0], curves, paired=False).estimate
    reached = k < len(steps)
    return _mean_at_step(group, int(steps[k if reached else -1]), reached=reached)


def _break_even(
    archive: RunArchive,
    group: Sequence[RunOutcome],
    theirs: CostToTarget,
    in_seconds: Speedup | None,
) -> BreakEven:
    harvest = float(np.mean([outcome.harvest_seconds for outcome in group]))
    prior = 0.0
    for run_id in sorted({run_id for outcome in group for run_id in outcome.prior_run_ids}):
        try:
            cost = archive.run(run_id).manifest.cost
        except ReuseAlgosError:  # deleted since, or in another archive
            prior = math.nan
            break
        prior += cost.train_seconds + cost.setup_seconds
    return BreakEven.of(harvest, prior, theirs.cost_seconds, in_seconds)
