"""Speed-up from the mean curves of two groups, at the baseline's own final level.

The question: how much less does a group need to be as good as the baseline is *at the end of its own budget*? That
target is itself an estimate, and about half of the baseline's own runs end below it, so each run's own hitting time
would be censored and make the baseline look infinitely slow. So groups are compared, not runs: a group's cost to the
target is its cost where its **mean curve** (at the evaluations that all of its runs share, against the geometric mean
of their costs) first is at or beyond the target. Its **interval** comes from inverting tests, as in Fieller's theorem,
and counts the noise of the target and of the seconds.

Limits: roughly normal values over seeds; bit-equal runs have no spread, so nothing is significant there; where a flat
baseline reached its own level is not counted beyond the point estimate; a group that ends no better than the baseline
cannot be shown to be faster at this target: declare a lower ``target`` in advance for that question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reuse_algos.compare.estimates.interval import (
    CONFIDENCE,
    Bound,
    FloatArray,
    Interval,
    Speedup,
    ratio_interval,
    safe_exp,
    sum_of_means,
    verdict_of,
)

# Shapes: R runs of one group, K evaluations that all of them share.


@dataclass(frozen=True)
class MeanCurves:
    """The runs of one group on their shared evaluations.

    Attributes:
        values_RK: Metric, **larger is better** (negate a loss); NaN and infinities count as not reached.
        costs_RK: Cost at each evaluation on one axis (steps or seconds), not negative, not falling.
        start_R: Cost before the first step (set-up and harvest; 0 on the step axis).
    """

    values_RK: FloatArray
    costs_RK: FloatArray
    start_R: FloatArray

    def __post_init__(self) -> None:
        shape = self.values_RK.shape
        if len(shape) != 2 or shape != self.costs_RK.shape or self.start_R.shape != shape[:1] or 0 in shape:
            raise ValueError(f"shapes do not match: {shape}, {self.costs_RK.shape}, {self.start_R.shape}")

    @property
    def mean_K(self) -> FloatArray:
        """Mean curve [K]; ``-inf`` where a run's value is not finite, so that the target is not reached there."""
        finite_K = np.isfinite(self.values_RK).all(axis=0)
        mean_K = np.full(self.values_RK.shape[1], -np.inf)
        mean_K[finite_K] = self.values_RK[:, finite_K].mean(axis=0)
        return mean_K

    def cost_R(self, k: int) -> FloatArray:
        """Return the costs [R] at evaluation ``k``; -1 is before the first step."""
        return self.start_R if k < 0 else self.costs_RK[:, k]


@dataclass(frozen=True)
class Crossing:
    """Where a group's mean curve reaches the target, as indices of its K evaluations; K stands for "not seen".

    Attributes:
        estimate: First evaluation whose mean is at or beyond the target.
        earliest: L, the first evaluation that is not surely below it.
        latest: U, the first evaluation from which on every one is surely at or beyond it.
    """

    estimate: int
    earliest: int
    latest: int


def own_crossing(curves: MeanCurves) -> int:
    """Return the first evaluation at which a group's mean curve is at or beyond its own final mean."""
    mean_K = curves.mean_K
    return int(np.argmax(mean_K >= mean_K[-1]))


def _limits(
    values_RK: FloatArray, final_S: FloatArray, *, paired: bool, confidence: float
) -> tuple[FloatArray, FloatArray]:
    """Return the limits [K] of mean(values_RK[:, k]) - mean(final_S); infinite without spread or finite values."""
    low_K, high_K = np.full(values_RK.shape[1], -np.inf), np.full(values_RK.shape[1], np.inf)
    usable_K = np.isfinite(values_RK).all(axis=0)
    if not np.isfinite(final_S).all() or not usable_K.any():
        return low_K, high_K
    values, finals = values_RK[:, usable_K], final_S[:, None]
    mean, half = sum_of_means([values - finals] if paired else [values, -finals], confidence)
    low_K[usable_K], high_K[usable_K] = mean - half, mean + half
    return low_K, high_K


def crossing_of(baseline: MeanCurves, group: MeanCurves, *, paired: bool, confidence: float = CONFIDENCE) -> Crossing:
    """Return where the group's mean curve reaches the baseline's mean final value, with confidence limits.

    Args:
        baseline: R runs on their evaluations; the last one is the end of their budget.
        group: Its own runs and evaluations; as many runs in the same order of seeds if ``paired``.
        paired: The runs pair by seed.
        confidence: Two-sided, between 0 and 1. Default: 0.95.
    """
    final_S = baseline.values_RK[:, -1]
    evaluations = group.values_RK.shape[1]
    reached_K = group.mean_K >= final_S.mean() if np.isfinite(final_S).all() else np.zeros(evaluations, dtype=bool)
    # A hitting time is not a smooth function of the data, so a jackknife or bootstrap over three runs does not cover.
    # Instead each evaluation is tested against the baseline's finals, one-sided at half of 1 - confidence: at the true
    # crossing of a curve that does not fall, such a test has to miss.
    low_K, high_K = _limits(group.values_RK, final_S, paired=paired, confidence=confidence)
    surely_below_K = high_K < 0
    earliest = _first(~surely_below_K)
    # One more test, at the evaluation where the group has cost what the baseline cost in all: a true mean that is
    # below the target there was below it before, so evaluations before it need no test of their own.
    within = np.flatnonzero(_geometric_mean(group.costs_RK) <= _geometric_mean(baseline.costs_RK[:, -1:]))
    if within.size and surely_below_K[within[-1]]:
        anchor = int(within[-1])
        earliest = max(earliest, anchor + _first(~surely_below_K[anchor:]))
    # Surely reached is what stays surely at or beyond the target from there on.
    not_above = np.flatnonzero(~(low_K >= 0))
    return Crossing(_first(reached_K), earliest, int(not_above[-1]) + 1 if not_above.size else 0)


def _first(mask: npt.NDArray[np.bool_]) -> int:
    return int(np.argmax(mask)) if mask.any() else len(mask)


def _geometric_mean(costs_RK: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore"):
        return np.exp(np.log(costs_RK).mean(axis=0))


def speedup_of_curves(
    baseline: MeanCurves, group: MeanCurves, *, paired: bool, confidence: float = CONFIDENCE
) -> Speedup:
    """Return the baseline's cost to its own final level divided by the group's cost to that level, with limits.

    Args:
        baseline: R runs on K evaluations; the last one is the end of the baseline's budget.
        group: Its own number of runs and evaluations; the same order of seeds if ``paired``.
        paired: The runs pair by seed.
        confidence: Two-sided, between 0 and 1. Default: 0.95.
    """
    crossing = crossing_of(baseline, group, paired=paired, confidence=confidence)
    last = group.values_RK.shape[1] - 1
    censored = crossing.estimate > last

    def log_ratio(k_baseline: int, k_group: int) -> tuple[float, float, float]:
        """Return the log of the cost ratio at two evaluations, and how far its limits are below and above it."""
        interval = ratio_interval(
            baseline.cost_R(k_baseline), group.cost_R(k_group), paired=paired, confidence=confidence
        )
        estimate = _log(interval.estimate)
        return estimate, estimate - _log(interval.low), _log(interval.high) - estimate

    # Both groups are read by the same rule: a baseline that flattened out early counts only up to there, so that a
    # plateau favours neither.
    centre, below, above = log_ratio(own_crossing(baseline), min(crossing.estimate, last))
    low, high = 0.0, math.inf
    # Noise of the seconds and of the crossing are combined by square-and-add (MOVER: Zou and Donner, Statistics in
    # Medicine 27, 2008). Between two evaluations nothing is known: the crossing is after earliest - 1.
    if crossing.latest <= last:
        at_latest, below_latest, _ = log_ratio(own_crossing(baseline), crossing.latest)
        if math.isfinite(centre):
            low = safe_exp(centre - math.hypot(below, max(0.0, centre - at_latest)))
        elif not math.isnan(at_latest):  # a warm start may be there before the first step
            low = safe_exp(at_latest - below_latest) if math.isfinite(at_latest) else at_latest
    at_earliest, _, _ = log_ratio(baseline.values_RK.shape[1] - 1, min(crossing.earliest - 1, last))
    if math.isfinite(centre) and math.isfinite(at_earliest):
        high = safe_exp(centre + math.hypot(above, max(0.0, at_earliest - centre)))
    bound: Bound = "<=" if censored else ""
    if not np.isfinite(baseline.values_RK[:, -1]).all():
        bound = "?"
    return Speedup(
        safe_exp(centre), low, high, bound, verdict_of(low, high, len(baseline.values_RK), len(group.values_RK))
    )


def _log(x: float) -> float:
    if math.isnan(x):
        return math.nan
    return -math.inf if x <= 0.0 else math.log(x)


@dataclass(frozen=True)
class Hit:
    """When one run reached the target, on one cost axis.

    Attributes:
        before: Cost at the last evaluation below the target (0, or the set-up cost, if there was none). The target was
            reached after this cost.
        at: Cost at the first evaluation at or beyond the target. For a censored run both are its total cost.
        reached: False if the run never reached the target: it is censored at its total cost, never dropped.
    """

    before: float
    at: float
    reached: bool


def speedup_of_runs(
    baseline: Sequence[Hit], group: Sequence[Hit], *, paired: bool, confidence: float = CONFIDENCE
) -> Speedup:
    """Return the speed-up from each run's own cost to a target that was fixed in advance.

    The estimate is the ratio of the geometric means of :attr:`Hit.at`. Between two evaluations nothing is known: each
    true cost lies in ``(before, at]``. So the lower limit is the lower t limit computed from the baseline's ``before``
    and the group's ``at``, and the upper limit the upper one from the baseline's ``at`` and the group's ``before``; a
    coarse evaluation grid, on which all runs of a group hit at the same evaluation, widens the interval instead of
    faking a spread of zero.

    Censored runs stay in at their total cost, which is a lower bound of their true cost. If a run of the group is
    censored, the estimate and the upper limit are bounds from above and the lower limit is unknown (0), so the verdict
    is never "faster". If a run of the baseline is, it is the other way round.

    Args:
        baseline: One hit per run.
        group: One hit per run, in the same order as ``baseline`` if ``paired``.
        paired: The runs pair by seed.
        confidence: Two-sided, between 0 and 1. Default: 0.95.
    """
    if not baseline or not group:
        raise ValueError("a speed-up needs at least one run in each group")
    baseline_censored = not all(hit.reached for hit in baseline)
    group_censored = not all(hit.reached for hit in group)

    def ratio(top: list[float], bottom: list[float]) -> Interval:
        return ratio_interval(top, bottom, paired=paired, confidence=confidence)

    estimate = ratio([h.at for h in baseline], [h.at for h in group]).estimate
    # The target was passed between two evaluations, so each limit takes the end that says less.
    low = 0.0 if group_censored else ratio([h.before for h in baseline], [h.at for h in group]).low
    high = math.inf if baseline_censored else ratio([h.at for h in baseline], [h.before for h in group]).high
    bound: Bound = ""
    if group_censored and baseline_censored:
        bound = "?"
    elif group_censored:
        bound = "<="
    elif baseline_censored:
        bound = ">="
    return Speedup(estimate, low, high, bound, verdict_of(low, high, len(baseline), len(group)))
