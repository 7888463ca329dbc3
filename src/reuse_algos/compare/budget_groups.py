"""One group of a budget comparison: from its runs to a :class:`~reuse_algos.compare.budgets.BudgetGroup`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reuse_algos.compare.budget_costs import CostCurve, cost_interval, speedup_of_budgets
from reuse_algos.compare.budget_curves import BudgetCrossing, Curve, Sample, crossing, own_level
from reuse_algos.compare.budget_runs import BudgetRun, Terms, costs_of, points_of, steps_of, used_points
from reuse_algos.compare.budgets import AXES, Axis, BudgetGroup, BudgetPoint, cost_words, less_of
from reuse_algos.compare.outcomes import Mode
from reuse_algos.compare.results import BreakEven
from reuse_algos.compare.statistics import MIN_RUNS, Speedup, mean_interval
from reuse_algos.compare.table import Pairing
from reuse_algos.errors import CompareError

__all__ = ["BudgetQuestion", "Member", "group_over_budgets", "label_of"]

_RUNS_TO_PAIR = 3


@dataclass(frozen=True)
class Member:
    """One group of runs.

    Attributes:
        name: of the group.
        points: its runs by budget, ascending in steps.
        curve: the metric, larger being better, at the budgets that are used
            (:func:`~reuse_algos.compare.budget_runs.used_points`).
        labels: of these budgets.
        costs: at these budgets, on each axis on which the cost of all runs there is known.
        terms: how costs are counted.
    """

    name: str
    points: list[list[BudgetRun]]
    curve: Curve
    labels: tuple[str, ...]
    costs: dict[Axis, CostCurve]
    terms: Terms

    @staticmethod
    def of(name: str, runs: Sequence[BudgetRun], terms: Terms, mode: Mode) -> Member:
        """Sort the runs of a group into budgets.

        Raises:
            CompareError: a run has trained for no steps.
        """
        points = points_of(runs)
        used = used_points(points)
        steps_M = np.array([steps_of(point) for point in used], dtype=np.float64)
        sign = 1.0 if mode == "max" else -1.0

        def samples(values: Sequence[Sequence[float]]) -> tuple[Sample, ...]:
            seeds = [tuple(run.seed for run in point) for point in used]
            return tuple(Sample(s, np.array(v, dtype=np.float64)) for s, v in zip(seeds, values, strict=True))

        costs: dict[Axis, CostCurve] = {}
        for axis in AXES:
            rows = [[costs_of(run, terms)[axis] for run in point] for point in used]
            known = [[cost for cost in row if cost is not None] for row in rows]
            if known == rows:
                costs[axis] = CostCurve(steps_M, samples(known))
        values = [[sign * run.final for run in point] for point in used]
        labels = tuple(label_of(point) for point in used)
        return Member(name, points, Curve(steps_M, samples(values)), labels, costs, terms)

    @property
    def runs(self) -> list[BudgetRun]:
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

    @property
    def control_of(self) -> str | None:
        """What all runs of the group say they are a control of."""
        found = {run.control_of for run in self.runs}
        return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class BudgetQuestion:
    """What is asked of every group.

    Attributes:
        baseline: the group to compare with.
        target: the baseline's runs at its largest budget, or a given number; larger is better in both.
        pairing: see :func:`~reuse_algos.compare.budget_table.compare_budgets`.
        confidence: two-sided.
        metric: full name of the metric.
        mode: which way it is better.
        terms: how costs are counted.
        judge_by: the axis of the verdict.
    """

    baseline: Member
    target: float | Sample
    pairing: Pairing
    confidence: float
    metric: str
    mode: Mode
    terms: Terms
    judge_by: Axis

    @property
    def level(self) -> float:
        """The target as the metric has it."""
        value = self.target.mean if isinstance(self.target, Sample) else self.target
        return value if self.mode == "max" else -value

    def crossing(self, member: Member, *, paired: bool) -> BudgetCrossing:
        """Where a group reaches the target."""
        if member is self.baseline and isinstance(self.target, Sample):
            return own_level(member.curve, self.confidence)
        return crossing(member.curve, self.target, paired=paired, confidence=self.confidence)

    def pairs(self, member: Member) -> bool:
        """Whether the group's runs are paired with the baseline's by seed."""
        if self.pairing == "none" or not isinstance(self.target, Sample):
            return False
        finals = set(self.target.by_seed)
        common = [seeds & finals for seeds in member.curve.seeds]
        everything = all(set(s.by_seed) == finals for s in member.curve.samples) and len(finals) >= MIN_RUNS
        fits = everything or min(len(seeds) for seeds in common) >= _RUNS_TO_PAIR
        if not fits and self.pairing == "seed":
            theirs = [sorted(sample.by_seed) for sample in member.curve.samples]
            raise CompareError(
                f"runs do not pair by seed: the largest budget of the baseline has the seeds {sorted(finals)}, the "
                f"budgets of group {member.name!r} have {theirs}"
            )
        return fits


def group_over_budgets(member: Member, question: BudgetQuestion) -> BudgetGroup:
    """Compare one group with the baseline (or describe the baseline itself); on no Pareto front yet.

    Raises:
        CompareError: the runs do not pair by seed, though that was asked for.
    """
    first = question.baseline
    is_baseline = member is first
    own = isinstance(question.target, Sample)
    paired = None if is_baseline else question.pairs(member)
    ours, theirs = question.crossing(member, paired=bool(paired)), question.crossing(first, paired=False)
    costs = {axis: cost_interval(ours, curve, question.confidence) for axis, curve in member.costs.items()}
    speedups: dict[Axis, Speedup] = {}
    if not is_baseline:
        speedups = {
            axis: speedup_of_budgets(
                theirs, first.costs[axis], ours, curve, own_level=own, confidence=question.confidence
            )
            for axis, curve in member.costs.items()
            if axis in first.costs
        }
    if is_baseline:
        verdict, sentence = "baseline", _baseline_sentence(member, question, ours)
    else:
        decisive = question.judge_by if question.judge_by in speedups else "steps"
        verdict = speedups[decisive].verdict
        why_unknown = (
            "both are there with their smallest budget already"
            if ours.bound == "<="
            else "neither reaches it within its budgets"
        )
        sentence = _sentence(member, question, speedups[decisive], decisive, why_unknown, paired=bool(paired))
    break_even = None
    if not is_baseline and any(run.prior_run_ids for run in member.runs):
        in_seconds = speedups.get("cost_seconds")
        at_baseline = math.nan
        if in_seconds is not None:
            at_baseline = cost_interval(theirs, first.costs["cost_seconds"], question.confidence).estimate
        break_even = _break_even(member, at_baseline, in_seconds)
    return BudgetGroup(
        name=member.name,
        is_baseline=is_baseline,
        control_of=member.control_of,
        points=[_point(point, member, question.confidence) for point in member.points],
        paired=paired,
        cost_to_target={axis: costs.get(axis) for axis in AXES},
        target_bound=ours.bound,
        speedups=speedups,
        verdict=verdict,
        sentence=sentence,
        break_even=break_even,
    )


def label_of(runs: Sequence[BudgetRun]) -> str:
    """What the budget of these runs is called; several names for one number of steps are joined."""
    return " = ".join(dict.fromkeys(run.budget for run in runs))


def _point(runs: Sequence[BudgetRun], member: Member, confidence: float) -> BudgetPoint:
    means: dict[Axis, float | None] = {}
    for axis in AXES:
        costs = [costs_of(run, member.terms)[axis] for run in runs]
        known = [cost for cost in costs if cost is not None]
        means[axis] = _geometric_mean(known) if known == costs else None
    return BudgetPoint(
        budget=label_of(runs),
        steps=steps_of(runs),
        n=len(runs),
        seeds=[run.seed for run in runs],
        run_ids=[run.run_id for run in runs],
        values=[float(run.final) for run in runs],
        final=mean_interval([run.final for run in runs], confidence),
        costs=means,
        on_pareto_front=dict.fromkeys(AXES, False),
        used=label_of(runs) in member.labels,
    )


def _geometric_mean(values: Sequence[float]) -> float:
    return values[0] if len(set(values)) == 1 else float(np.exp(np.mean(np.log(values))))


def _break_even(member: Member, baseline_seconds: float, in_seconds: Speedup | None) -> BreakEven:
    """After how many runs what was spent once is paid back."""
    harvest = float(np.mean([run.harvest_seconds for run in member.runs]))
    prior = float(np.mean([member.terms.prior_training(run) for run in member.runs]))
    return BreakEven.of(harvest, prior, baseline_seconds, in_seconds)


def _numbers(member: Member, question: BudgetQuestion, *, paired: bool = False) -> str:
    """How many runs there are at each budget, or pairs in each gap between two of them."""
    counts = {len(sample.values) for sample in member.curve.samples}
    if paired and isinstance(question.target, Sample):
        finals = question.target.by_seed.keys()
        counts = {len(seeds & finals) for seeds in member.curve.seeds}
    return f"n = {min(counts)}" if len(counts) == 1 else f"n = {min(counts)} to {max(counts)}"


def _baseline_sentence(member: Member, question: BudgetQuestion, found: BudgetCrossing) -> str:
    if isinstance(question.target, Sample):
        return (
            f"{member.name} ends at a mean {_short(question.metric)} of {question.level:.4g} with {member.largest}; "
            f"{_numbers(member, question)}. The others are measured by what they spend to get there."
        )
    how = {
        "": "reaches the target within its budgets",
        "<=": "is at the target with its smallest budget already",
        ">=": f"does not reach the target within its budgets (the largest is {member.labels[-1]})",
    }[found.bound if found.bound != "?" else ""]
    return f"{member.name} ({_numbers(member, question)}) {how}."


def _sentence(
    member: Member, question: BudgetQuestion, speedup: Speedup, axis: Axis, why_unknown: str, *, paired: bool
) -> str:
    cost, less = cost_words(axis), less_of(axis)
    base = question.baseline.name
    goal = (
        f"to be as good as {base}"
        if isinstance(question.target, Sample)
        else f"to reach {_short(question.metric)} {question.level:.4g}"
    )
    basis = f"{_numbers(member, question, paired=paired)}, {'paired by seed' if paired else 'not paired'}"
    percent = f"{100 * question.confidence:g} % interval"
    about = {"": "", "<=": "at most ", ">=": "at least ", "?": ""}[speedup.bound]
    limits = f"{percent} {_limits(speedup.low, speedup.high)}; {basis}"
    if speedup.verdict == "faster":
        return f"{member.name} needs {about}{speedup.estimate:.2f} times {less} than {base} {goal} ({limits})."
    if speedup.verdict == "slower":
        return (
            f"{member.name} needs more {cost} than {base} {goal}: its speed-up is {about}{speedup.estimate:.2f}, "
            f"below 1 ({limits})."
        )
    if speedup.verdict == "not enough runs":
        return f"Not enough runs to say whether {member.name} needs {less} than {base} {goal} ({basis})."
    if not speedup.known:
        return f"Nothing can be said about the {cost} that {member.name} needs {goal}: {why_unknown} ({basis})."
    return (
        f"No difference was shown in the {cost} that {member.name} and {base} need {goal}: speed-up "
        f"{about}{speedup.estimate:.2f} ({limits})."
    )


def _limits(low: float, high: float) -> str:
    if low == 0.0 and math.isinf(high):
        return "without limits"
    if math.isinf(high):
        return f"from {low:.2f}, no upper limit"
    return f"from {low:.2f} to {high:.2f}" if low > 0.0 else f"up to {high:.2f}, no lower limit"


def _short(metric: str) -> str:
    return metric.rsplit("/", 1)[-1]
