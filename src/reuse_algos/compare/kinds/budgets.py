"""Read groups whose runs were trained at several budgets each, every run with a schedule of its own.

Only the **last** value of a run counts: one long run that is read early does not tell what a shorter one ends at. The
method is in :mod:`reuse_algos.compare.estimates.over_budgets`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reuse_algos.compare.estimates.cost import CostCurve, cost_interval, speedup_of_budgets
from reuse_algos.compare.estimates.interval import MIN_RUNS, RUNS_FOR_A_CLAIM, Speedup, mean_interval
from reuse_algos.compare.estimates.over_budgets import BudgetCrossing, Curve, Sample, crossing, own_level
from reuse_algos.compare.kinds.reader import Reading
from reuse_algos.compare.outcomes import Outcome, Outcomes
from reuse_algos.compare.question import AXES, Axis, Costs, Question, no_final
from reuse_algos.compare.result import Point

_RUNS_TO_PAIR = 3
Runs = Sequence[Outcome]


def costs_of(run: Outcome, outcomes: Outcomes, costs: Costs, later_runs: int) -> dict[Axis, float | None]:
    """Return what a run cost on every axis; None where that is not known.

    Args:
        run: Any run.
        outcomes: They know what prior runs took.
        costs: How cost is counted.
        later_runs: Among how many runs harvests are shared.
    """
    prior = outcomes.prior_training(run.prior_run_ids) if costs.count_prior_training else 0.0
    # No train seconds means that they were not recorded, not that training was free.
    own = run.train_seconds + run.setup_seconds if run.train_seconds > 0 else math.nan
    whole = own + run.harvest_seconds
    found: dict[Axis, float] = {
        "steps": float(run.steps),
        "samples": float(run.samples),
        "train_seconds": float(run.train_seconds),
        "cost_seconds": whole,
        "amortised_seconds": own + (run.harvest_seconds + prior) / later_runs,
        "flops": math.nan if run.flops is None else float(run.flops),
        "dollars": math.nan if costs.price_per_hour is None else whole / 3600.0 * costs.price_per_hour,
    }
    return {axis: found[axis] if math.isfinite(found[axis]) and found[axis] > 0 else None for axis in AXES}


def steps_of(runs: Runs) -> float:
    """Return the mean steps at one budget, without runs that diverged, since these may have stopped early."""
    # A diverged run that stopped early would pull its budget to the left.
    whole = [run.steps for run in runs if math.isfinite(run.final) and run.health != "diverged"]
    return float(np.mean(whole or [max(run.steps for run in runs)]))


def label_of(runs: Runs) -> str:
    """Return what the budget of these runs is called; several names for one number of steps are joined."""
    return " = ".join(dict.fromkeys(run.budget for run in runs))


def _points_of(runs: Runs) -> list[list[Outcome]]:
    # First by what the recipe says, then by steps: 10ep and 250ba may be the same budget.
    by_label: dict[str, list[Outcome]] = {}
    for run in runs:
        by_label.setdefault(run.budget, []).append(run)
    by_steps: dict[float, list[Outcome]] = {}
    for members in by_label.values():
        by_steps.setdefault(steps_of(members), []).extend(members)
    points = [members for _, members in sorted(by_steps.items())]
    for members in points:
        members.sort(key=lambda run: (run.seed is None, run.seed or 0, run.run_id))
    return points


@dataclass(frozen=True)
class Member:
    """One group of runs by budget.

    Attributes:
        points: Its runs by budget, ascending in steps.
        costs_of_runs: What each of them cost on every axis.
        curve: The metric, larger being better, at the budgets that are used.
        labels: Of these budgets.
        costs: At these budgets, on each axis on which the cost of all runs there is known.
    """

    points: list[list[Outcome]]
    costs_of_runs: list[list[dict[Axis, float | None]]]
    curve: Curve
    labels: tuple[str, ...]
    costs: dict[Axis, CostCurve]

    @staticmethod
    def of(runs: Runs, outcomes: Outcomes, costs: Costs, later_runs: int) -> Member:
        """Sort the runs of a group into budgets.

        Args:
            runs: Of the group.
            outcomes: All runs.
            costs: How cost is counted.
            later_runs: Among how many runs harvests are shared.
        """
        points = _points_of(runs)
        paid = [[costs_of(run, outcomes, costs, later_runs) for run in point] for point in points]
        # One or two runs at one more budget would say next to nothing and, with limits as wide as theirs, take away
        # what the others say.
        needed = min(RUNS_FOR_A_CLAIM, max(len(point) for point in points))
        used = [k for k, point in enumerate(points) if len(point) >= needed]
        steps_M = np.array([steps_of(points[k]) for k in used], dtype=np.float64)
        sign = 1.0 if outcomes.mode == "max" else -1.0

        def samples(values: Sequence[Sequence[float]]) -> tuple[Sample, ...]:
            seeds = [tuple(run.seed for run in points[k]) for k in used]
            return tuple(Sample(s, np.array(v, dtype=np.float64)) for s, v in zip(seeds, values, strict=True))

        curves: dict[Axis, CostCurve] = {}
        for axis in AXES:
            rows = [[each[axis] for each in paid[k]] for k in used]
            known = [[cost for cost in row if cost is not None] for row in rows]
            if known == rows:
                curves[axis] = CostCurve(steps_M, samples(known))
        values = [[sign * run.final for run in points[k]] for k in used]
        return Member(points, paid, Curve(steps_M, samples(values)), tuple(label_of(points[k]) for k in used), curves)

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.points[0][0].group

    @property
    def runs(self) -> list[Outcome]:
        """All runs, those of small budgets first."""
        return [run for point in self.points for run in point]

    @property
    def largest(self) -> str:
        """Its largest budget that is used, in words."""
        last = self.labels[-1]
        if last == label_of(self.points[-1]):
            return f"its largest budget ({last})"
        n = min(len(sample.values) for sample in self.curve.samples)
        return f"its largest budget with {n} or more runs ({last})"

    def records(self, confidence: float) -> list[Point]:
        """Return its budgets as the result has them, on no Pareto front yet."""
        pairs = zip(self.points, self.costs_of_runs, strict=True)
        return [self._record(point, paid, confidence) for point, paid in pairs]

    def _record(self, runs: Runs, paid: Sequence[dict[Axis, float | None]], confidence: float) -> Point:
        means: dict[Axis, float | None] = {}
        for axis in AXES:
            # A mean over some of the runs would be that of another group.
            known = [cost for each in paid if (cost := each[axis]) is not None]
            means[axis] = _geometric_mean(known) if len(known) == len(runs) else None
        return Point(
            budget=label_of(runs),
            steps=steps_of(runs),
            n=len(runs),
            seeds=[run.seed for run in runs],
            run_ids=[run.run_id for run in runs],
            values=[float(run.final) for run in runs],
            final=mean_interval([run.final for run in runs], confidence),
            costs=means,
            on_pareto_front=dict.fromkeys(AXES, False),
            used=label_of(runs) in self.labels,
        )


def _geometric_mean(values: Sequence[float]) -> float:
    # Equal costs are returned as they are: log and exp would change their last digit.
    return values[0] if len(set(values)) == 1 else float(np.exp(np.mean(np.log(values))))


class OverBudgets:
    """The reader of a question over budgets.

    Args:
        outcomes: All runs.
        question: What is asked, checked against them.
        baseline: The baseline's runs.
        later_runs: Among how many runs harvests are shared.

    Raises:
        CompareError: The baseline has no mean final metric, and no target is given.
    """

    method: Literal["budgets"] = "budgets"

    def __init__(self, outcomes: Outcomes, question: Question, baseline: Runs, later_runs: int) -> None:
        self._outcomes, self._question, self._later_runs = outcomes, question, later_runs
        self._baseline_runs = baseline
        sign = 1.0 if outcomes.mode == "max" else -1.0
        self.baseline = self.member(baseline)
        self.level: float | Sample
        if question.target is None:
            self.level = self.baseline.curve.samples[-1]
            if not math.isfinite(self.level.mean):
                raise no_final(f" at {self.baseline.largest}: a run of it ended with a value that is not finite")
            self.target = sign * self.level.mean
        else:
            self.level, self.target = sign * question.target, question.target

    def member(self, runs: Runs) -> Member:
        """Return a group by budget."""
        return Member.of(runs, self._outcomes, self._question.costs, self._later_runs)

    def crossing(self, member: Member, *, paired: bool) -> BudgetCrossing:
        """Return where a group reaches the target."""
        if member is self.baseline and isinstance(self.level, Sample):
            return own_level(member.curve, self._question.confidence)
        return crossing(member.curve, self.level, paired=paired, confidence=self._question.confidence)

    def read(self, group: Runs) -> Reading:
        """Read one group.

        Args:
            group: Its runs; the baseline's own for the baseline.
        """
        own, confidence, first = group is self._baseline_runs, self._question.confidence, self.baseline
        member = first if own else self.member(group)
        paired = None if own else self._pairs(member)
        ours, theirs = self.crossing(member, paired=bool(paired)), self.crossing(first, paired=False)
        speedups: dict[Axis, Speedup] = {}
        for axis, curve in () if own else member.costs.items():
            if axis in first.costs:
                speedups[axis] = speedup_of_budgets(
                    theirs, first.costs[axis], ours, curve,
                    own_level=isinstance(self.level, Sample), confidence=confidence,
                )  # fmt: skip
        return Reading(
            runs=member.runs,
            basis=self._basis(member, paired=bool(paired)),
            paired=paired,
            bound=ours.bound,
            speedups=speedups,
            cost_to_target={
                axis: cost_interval(ours, member.costs[axis], confidence) if axis in member.costs else None
                for axis in AXES
            },
            points=member.records(confidence),
            prior_seconds=float(np.mean([self._outcomes.prior_training(run.prior_run_ids) for run in member.runs])),
            where=member.largest,
        )

    def over(self, group: Runs, other: Runs) -> dict[Axis, Speedup]:
        """Return how much less a group costs to the target than another group, on each axis where both are known.

        Args:
            group: Such as a technique.
            other: Such as its control.
        """
        # Not paired: technique and control may have been trained with other seeds.
        ours, theirs = self.member(group), self.member(other)
        reached, first = self.crossing(ours, paired=False), self.crossing(theirs, paired=False)
        return {
            axis: speedup_of_budgets(
                first, theirs.costs[axis], reached, costs, own_level=False, confidence=self._question.confidence
            )
            for axis, costs in ours.costs.items()
            if axis in theirs.costs
        }

    def _pairs(self, member: Member) -> bool:
        if not isinstance(self.level, Sample):  # a given target has no seeds
            return False
        finals = set(self.level.by_seed)
        # Each gap of the curve has to pair by itself: seeds may be missing at one budget.
        common = [seeds & finals for seeds in member.curve.seeds]
        everything = all(set(s.by_seed) == finals for s in member.curve.samples) and len(finals) >= MIN_RUNS
        fits = everything or min(len(seeds) for seeds in common) >= _RUNS_TO_PAIR
        theirs = [sorted(sample.by_seed) for sample in member.curve.samples]
        return self._question.paired(
            fits,
            f"the largest budget of the baseline has the seeds {sorted(finals)}, the budgets of group {member.name!r} "
            f"have {theirs}",
        )

    def _basis(self, member: Member, *, paired: bool) -> str:
        counts = {len(sample.values) for sample in member.curve.samples}
        if paired and isinstance(self.level, Sample):
            finals = self.level.by_seed.keys()
            counts = {len(seeds & finals) for seeds in member.curve.seeds}
        return f"n = {min(counts)}" if len(counts) == 1 else f"n = {min(counts)} to {max(counts)}"
