"""What a position on a budget curve costs, and the speed-up between two curves.

Costs between two budgets are linear in steps, as they are for runs with a fixed set-up and a fixed time per step. A
group's cost at a position is the geometric mean over its runs. Steps are exact; seconds are noisy: the log ratio of two
costs has a Welch interval over the runs, and it is combined with the limits of the crossings by square-and-add (MOVER:
Zou and Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 27, 2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reuse_algos.compare.estimates.interval import (
    CONFIDENCE,
    MIN_RUNS,
    Bound,
    FloatArray,
    Interval,
    Speedup,
    safe_exp,
    sum_of_means,
    verdict_of,
)
from reuse_algos.compare.estimates.over_budgets import BudgetCrossing, Sample


@dataclass(frozen=True)
class CostCurve:
    """What the runs of one group cost on one axis: mean steps [M], ascending, and positive costs at each budget."""

    steps_M: FloatArray
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        good = self.steps_M.shape == (len(self.samples),) and len(self.samples) > 0
        if not good or not all(np.isfinite(s.values).all() and (s.values > 0).all() for s in self.samples):
            raise ValueError("costs must be positive and finite, with one sample for each number of steps")

    def at(self, position: float) -> tuple[float, list[FloatArray]]:
        """Return the log cost at a position, and samples [n, 1] whose means add up to it, for its noise."""
        m = min(int(position), len(self.samples) - 1)
        part = position - m
        logs = [np.log(sample.values) for sample in self.samples[m : m + 2]]
        first = float(logs[0].mean())
        if part == 0.0:
            return first, [logs[0][:, None]]
        second = float(logs[1].mean())
        # Positions are in log steps, and costs are linear in steps.
        grown = math.expm1(part * math.log(self.steps_M[m + 1] / self.steps_M[m]))
        share = grown / (self.steps_M[m + 1] / self.steps_M[m] - 1.0)
        log_cost = math.log((1.0 - share) * math.exp(first) + share * math.exp(second))
        # Write the same cost as a weighted mean of logs, so that the noise of both budgets has the right weight.
        weight = (log_cost - first) / (second - first) if abs(second - first) > 1e-9 else share
        ours, theirs = self.samples[m].by_seed, self.samples[m + 1].by_seed
        # Runs of one seed share noise at both budgets, so they are weighted together where they can be.
        common = sorted(ours.keys() & theirs.keys())
        if len(common) >= MIN_RUNS:
            rows = [(1.0 - weight) * math.log(ours[seed]) + weight * math.log(theirs[seed]) for seed in common]
            return log_cost, [np.array(rows)[:, None]]
        return log_cost, [(1.0 - weight) * logs[0][:, None], weight * logs[1][:, None]]


def _half(components: list[FloatArray], confidence: float) -> float:
    return float(sum_of_means(components, confidence, exact=True)[1].max())


def cost_interval(found: BudgetCrossing, costs: CostCurve, confidence: float = CONFIDENCE) -> Interval:
    """Return the cost at a crossing. Its limits count where the crossing may be and the noise of the costs.

    Args:
        found: The crossing. Where it has no limits, those of the cost are 0 and ``inf``.
        costs: Of the same group, on one axis.
        confidence: Two-sided, between 0 and 1. Default: 0.95.
    """
    centre, components = costs.at(found.estimate)
    low, high = 0.0, math.inf
    if found.low is not None:
        edge, others = costs.at(found.low)
        noise = max(_half(components, confidence), _half(others, confidence))
        low = safe_exp(centre - math.hypot(noise, max(0.0, centre - edge)))
    if found.high is not None:
        edge, others = costs.at(found.high)
        noise = max(_half(components, confidence), _half(others, confidence))
        high = safe_exp(centre + math.hypot(noise, max(0.0, edge - centre)))
    return Interval(safe_exp(centre), low, high)


def speedup_of_budgets(
    baseline: BudgetCrossing,
    baseline_costs: CostCurve,
    group: BudgetCrossing,
    group_costs: CostCurve,
    *,
    own_level: bool,
    confidence: float = CONFIDENCE,
) -> Speedup:
    """Return the cost of the baseline divided by the cost of the group, each where its mean curve reaches the target.

    Args:
        baseline: Its crossing.
        baseline_costs: On the axis that is asked for.
        group: Its crossing.
        group_costs: On the same axis.
        own_level: The target is the baseline's level at its largest budget. The limits of its crossing are then not
            noise but readings (see :func:`~reuse_algos.compare.estimates.over_budgets.own_level`), and count in full.
        confidence: Two-sided, between 0 and 1. Default: 0.95.
    """

    def log_ratio(at_baseline: float, at_group: float) -> tuple[float, float]:
        top, ours = baseline_costs.at(at_baseline)
        bottom, theirs = group_costs.at(at_group)
        return top - bottom, _half([*ours, *(-rows for rows in theirs)], confidence)

    centre, noise = log_ratio(baseline.estimate, group.estimate)

    def limit(at_baseline: float, at_group: float, sign: float) -> float:
        by_baseline = max(0.0, sign * (log_ratio(at_baseline, group.estimate)[0] - centre))
        by_group = max(0.0, sign * (log_ratio(baseline.estimate, at_group)[0] - centre))
        noises = max(noise, log_ratio(at_baseline, at_group)[1])
        if own_level:
            return safe_exp(centre + sign * (by_baseline + math.hypot(noises, by_group)))
        return safe_exp(centre + sign * math.hypot(noises, by_baseline, by_group))

    # The slowest group against the quickest baseline is the lower limit, and the other way round.
    low = limit(baseline.low, group.high, -1.0) if baseline.low is not None and group.high is not None else 0.0
    high = limit(baseline.high, group.low, 1.0) if baseline.high is not None and group.low is not None else math.inf
    n_baseline, n_group = (min(len(s.values) for s in costs.samples) for costs in (baseline_costs, group_costs))
    verdict = verdict_of(low, high, n_baseline, n_group)
    return Speedup(safe_exp(centre), low, high, _RATIO_BOUNDS.get((baseline.bound, group.bound), "?"), verdict)


# Which side of the true ratio the estimate lies, where the cost of the baseline, or of the group, is only a limit.
_RATIO_BOUNDS: dict[tuple[Bound, Bound], Bound] = {
    ("", ""): "",
    ("", "<="): ">=",
    ("", ">="): "<=",
    ("<=", ""): "<=",
    (">=", ""): ">=",
    ("<=", ">="): "<=",
    (">=", "<="): ">=",
}
