"""Read groups whose runs have one budget each: mean curves over training, own costs to a target, or ends alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from reuse_algos.compare.estimates.interval import Speedup
from reuse_algos.compare.estimates.within_runs import (
    Hit,
    MeanCurves,
    crossing_of,
    own_crossing,
    speedup_of_curves,
    speedup_of_runs,
)
from reuse_algos.compare.kinds.reader import Reading
from reuse_algos.compare.outcomes import Outcome, Outcomes
from reuse_algos.compare.question import Axis, Mode, Question
from reuse_algos.compare.result import CostToTarget

TimeAxis = Literal["steps", "train_seconds", "cost_seconds"]
Runs = Sequence[Outcome]
_COSTS = ("steps", "epochs", "samples", "train_seconds", "cost_seconds")


def shared_steps(group: Runs) -> npt.NDArray[np.int64]:
    """Return the steps [K] at which all runs of a group were evaluated, ascending; K may be 0 if budgets differ."""
    steps = group[0].curve.steps
    for outcome in group[1:]:
        steps = np.intersect1d(steps, outcome.curve.steps)
    return steps


def mean_curves(group: Runs, mode: Mode, axis: TimeAxis) -> tuple[MeanCurves, npt.NDArray[np.int64]]:
    """Return the group's runs on the steps that all of them evaluated, larger being better, and these steps [K].

    Args:
        group: Runs that share at least one evaluation.
        mode: Whether more or less of the metric is better.
        axis: How cost is counted.

    Raises:
        ValueError: The runs have no evaluation in common.
    """
    steps = shared_steps(group)
    rows = [np.searchsorted(outcome.curve.steps, steps) for outcome in group]
    sign = 1.0 if mode == "max" else -1.0
    values_RK = np.stack([sign * o.curve.values[row] for o, row in zip(group, rows, strict=True)])
    costs_RK = np.stack([getattr(o.curve, axis)[row].astype(np.float64) for o, row in zip(group, rows, strict=True)])
    start_R = np.array([o.upfront_seconds if axis == "cost_seconds" else 0.0 for o in group])
    return MeanCurves(values_RK, costs_RK, start_R), steps


def has_seconds(group: Runs) -> bool:
    """Return whether the training time of every run is known at every evaluation."""
    return all(np.isfinite(o.curve.train_seconds).all() and o.curve.train_seconds[-1] > 0 for o in group)


def pairs_by_seed(baseline: Runs, group: Runs, question: Question) -> bool:
    """Return whether the runs pair: both sides have the same seeds (or :attr:`Outcome.pair`), each once, in order.

    Raises:
        CompareError: They do not, though the question insists on it.
    """
    ours, theirs = [o.pair_key for o in baseline], [o.pair_key for o in group]
    # A seed that stands twice does not say which run pairs with which.
    fits = ours == theirs and None not in ours and len(set(ours)) == len(ours)
    return question.paired(fits, f"the baseline has the seeds {ours}, group {group[0].group!r} has {theirs}")


class WithinRuns:
    """The reader of a question over training.

    Args:
        outcomes: All runs.
        question: What is asked, checked against them.
        baseline: The baseline's runs, sorted by seed.
    """

    def __init__(self, outcomes: Outcomes, question: Question, baseline: Runs) -> None:
        self.mode: Mode = outcomes.mode
        self.confidence = question.confidence
        self._outcomes, self._question, self._baseline = outcomes, question, baseline
        self.method: Literal["curves", "runs"] = "curves" if question.target is None else "runs"
        self.target = float(np.mean([o.final for o in baseline]) if question.target is None else question.target)

    def read(self, group: Runs) -> Reading:
        """Read one group.

        Args:
            group: Its runs, sorted by seed; the baseline's own for the baseline.
        """
        own = group is self._baseline
        paired = None if own else pairs_by_seed(self._baseline, group, self._question)
        to_runs = [self._to_target(outcome) for outcome in group]
        if self.method == "curves":
            to_target = self._own_crossing(group) if own else self._crossing(group)
        else:
            # Runs that did not get there count at their total: a lower bound, never dropped.
            to_target = _mean_cost(to_runs)
        speedups: dict[Axis, Speedup] = {}
        if not own:
            speedups["steps"] = self._speedup(group, "steps", paired=bool(paired))
            if has_seconds(group) and has_seconds(self._baseline):
                speedups["cost_seconds"] = self._speedup(group, "cost_seconds", paired=bool(paired))
        return Reading(
            runs=group,
            basis=f"n = {len(group)}"
            if own or len(group) == len(self._baseline)
            else f"n = {len(group)} against {len(self._baseline)}",
            paired=paired,
            bound="" if to_target.reached else ">=",
            speedups=speedups,
            to_runs=to_runs,
            to_target=to_target,
            prior_seconds=self._outcomes.prior_training(sorted({i for o in group for i in o.prior_run_ids})),
        )

    def _speedup(self, group: Runs, axis: TimeAxis, *, paired: bool) -> Speedup:
        if self.method == "curves":
            ours, theirs = (mean_curves(side, self.mode, axis)[0] for side in (group, self._baseline))
            return speedup_of_curves(theirs, ours, paired=paired, confidence=self.confidence)
        ours, theirs = ([self._hit(outcome, axis) for outcome in side] for side in (group, self._baseline))
        return speedup_of_runs(theirs, ours, paired=paired, confidence=self.confidence)

    def _hit(self, outcome: Outcome, axis: TimeAxis) -> Hit:
        costs = getattr(outcome.curve, axis).astype(np.float64)
        k = outcome.curve.first_at(self.target, self.mode)
        if k is None:
            return Hit(before=float(costs[-1]), at=float(costs[-1]), reached=False)
        # Set-up and harvests are paid before the first step.
        start = 0.0 if axis == "steps" else outcome.upfront_seconds
        return Hit(before=float(costs[k - 1]) if k else start, at=float(costs[k]), reached=True)

    def _to_target(self, outcome: Outcome) -> CostToTarget:
        k = outcome.curve.first_at(self.target, self.mode)
        return _at(outcome, -1 if k is None else k, reached=k is not None)

    def _own_crossing(self, group: Runs) -> CostToTarget:
        curves, steps = mean_curves(group, self.mode, "steps")
        return _mean_at_step(group, int(steps[own_crossing(curves)]), reached=True)

    def _crossing(self, group: Runs) -> CostToTarget:
        curves, steps = mean_curves(group, self.mode, "steps")
        k = crossing_of(mean_curves(self._baseline, self.mode, "steps")[0], curves, paired=False).estimate
        reached = k < len(steps)
        return _mean_at_step(group, int(steps[k if reached else -1]), reached=reached)


class Ends:
    """The reader of a question over ends: last values alone, without a target and costs.

    Args:
        question: What is asked.
        baseline: The baseline's runs.
    """

    method: Literal["ends"] = "ends"
    target = math.nan

    def __init__(self, question: Question, baseline: Runs) -> None:
        self._question, self._baseline = question, baseline

    def read(self, group: Runs) -> Reading:
        """Read one group; the baseline's own runs for the baseline."""
        paired = None if group is self._baseline else pairs_by_seed(self._baseline, group, self._question)
        return Reading(runs=group, basis=f"n = {len(group)}", paired=paired, bound="", speedups={})


def _at(outcome: Outcome, k: int, *, reached: bool) -> CostToTarget:
    return CostToTarget(reached=reached, **{axis: float(getattr(outcome.curve, axis)[k]) for axis in _COSTS})


def _mean_cost(costs: Sequence[CostToTarget]) -> CostToTarget:
    means = {axis: float(np.mean([getattr(cost, axis) for cost in costs])) for axis in _COSTS}
    return CostToTarget(reached=all(cost.reached for cost in costs), **means)


def _mean_at_step(group: Runs, step: int, *, reached: bool) -> CostToTarget:
    return _mean_cost([_at(o, int(np.searchsorted(o.curve.steps, step)), reached=reached) for o in group])
