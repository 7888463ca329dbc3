"""Small-sample statistics of the comparison: pure functions on numpy arrays, no archive, no state.

Everything here is meant to hold at n = 3 to 5 runs per group. Two estimators of a speed-up live in two modules:

* :func:`speedup_of_runs` (here), for a target that was declared in advance: every run has its own cost to the target.
* :func:`reuse_algos.compare.curves.speedup_of_curves`, for the default target, the baseline's own final level.

Sources: Student (1908); Welch, "The generalization of Student's problem when several different population variances
are involved", Biometrika 34 (1947). Coverage is tested by simulation at n = 3 and n = 5 (``tests/compare``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

__all__ = [
    "CONFIDENCE",
    "MIN_RUNS",
    "RUNS_FOR_A_CLAIM",
    "Hit",
    "Interval",
    "Speedup",
    "Verdict",
    "difference_interval",
    "mean_interval",
    "paired_interval",
    "ratio_interval",
    "speedup_of_runs",
    "t_quantile",
    "verdict_of",
    "welch_interval",
]

CONFIDENCE = 0.95
"""Two-sided confidence of every interval unless the caller says otherwise."""

MIN_RUNS = 2
"""Runs per group below which there is no spread and so no verdict. Two are the bare minimum (t is 12.7 with one degree
of freedom, so the intervals are very wide); three are needed for a claim and five for a headline."""

RUNS_FOR_A_CLAIM = 3
"""Runs per group that a claim needs."""

Verdict = Literal["faster", "slower", "no difference", "not enough runs"]
Bound = Literal["", "<=", ">=", "?"]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with the two-sided limits of its confidence interval.

    ``low`` and ``high`` are ``-inf`` and ``inf`` (0 and ``inf`` for ratios) where nothing is known.
    """

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Speedup:
    """How many times less a group spends than the baseline to reach the target; above 1 is faster.

    Attributes:
        estimate: cost of the baseline divided by cost of the group. With a ``bound`` it is only a limit.
        low: lower confidence limit, 0 where nothing is known.
        high: upper confidence limit (the truth is below it, not at it), ``inf`` where nothing is known.
        bound: ``"<="`` the group did not reach the target, so it is at most this fast; ``">="`` the baseline did not,
            so the group is at least this fast; ``"?"`` neither did; ``""`` both did.
        verdict: see :func:`verdict_of`.
    """

    estimate: float
    low: float
    high: float
    bound: Bound
    verdict: Verdict

    @property
    def known(self) -> bool:
        """Whether the estimate says anything: not where both costs are only limits, whose ratio is none."""
        return self.bound != "?" and not math.isnan(self.estimate)

    @property
    def drawn(self) -> bool:
        """Whether a bar from 1 to the estimate says nothing wrong: not for "at most 2" or "at least 0.8".

        There the estimate is a limit on the other side of 1 from what is known, and nothing between may be true.
        """
        open_ended = {"<=": self.estimate > 1.0, ">=": self.estimate < 1.0}.get(self.bound, False)
        return self.known and not open_ended


@dataclass(frozen=True)
class Hit:
    """When one run reached the target, on one cost axis.

    Attributes:
        before: cost at the last evaluation below the target (0, or the set-up cost, if there was none). The target was
            reached after this cost.
        at: cost at the first evaluation at or beyond the target. For a censored run both are its total cost.
        reached: False if the run never reached the target: it is censored at its total cost, never dropped.
    """

    before: float
    at: float
    reached: bool


def t_quantile(probability: float, df: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Quantile of Student's t distribution with ``df`` degrees of freedom (any positive real, elementwise)."""
    return np.asarray(stdtrit(df, probability), dtype=np.float64)


def _upper(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    return 0.5 + confidence / 2.0


def mean_interval(values: npt.ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Mean of ``values`` [n] with its two-sided Student-t interval.

    With n = 1 the interval is infinite. A value that is not finite makes the mean NaN and the interval infinite.

    Raises:
        ValueError: no values, or a confidence outside (0, 1).
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    upper = _upper(confidence)
    if x.size == 0:
        raise ValueError("a mean needs at least one value")
    if not np.isfinite(x).all():
        return Interval(math.nan, -math.inf, math.inf)
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, -math.inf, math.inf)
    half = float(t_quantile(upper, x.size - 1)) * float(x.std(ddof=1)) / math.sqrt(x.size)
    return Interval(mean, mean - half, mean + half)


def paired_interval(a: npt.ArrayLike, b: npt.ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Mean of the paired differences ``a - b`` [n] with its Student-t interval (n - 1 degrees of freedom).

    Raises:
        ValueError: the lengths differ or are zero.
    """
    x, y = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    if x.size != y.size:
        raise ValueError(f"pairs need equal lengths, got {x.size} and {y.size}")
    return mean_interval(x - y, confidence)


def welch_interval(a: npt.ArrayLike, b: npt.ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Difference of means ``mean(a) - mean(b)`` with Welch's interval (unequal variances, Welch-Satterthwaite df).

    Infinite if a group has one value only; of width zero if neither group has any spread.

    Raises:
        ValueError: a group is empty.
    """
    x, y = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    upper = _upper(confidence)
    if x.size == 0 or y.size == 0:
        raise ValueError("a difference of means needs at least one value in each group")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Interval(math.nan, -math.inf, math.inf)
    difference = float(x.mean() - y.mean())
    if x.size < 2 or y.size < 2:
        return Interval(difference, -math.inf, math.inf)
    var_x, var_y = float(x.var(ddof=1)) / x.size, float(y.var(ddof=1)) / y.size
    if var_x + var_y <= 0.0:
        return Interval(difference, difference, difference)
    df = (var_x + var_y) ** 2 / (var_x**2 / (x.size - 1) + var_y**2 / (y.size - 1))
    half = float(t_quantile(upper, df)) * math.sqrt(var_x + var_y)
    return Interval(difference, difference - half, difference + half)


def difference_interval(
    a: npt.ArrayLike, b: npt.ArrayLike, *, paired: bool, confidence: float = CONFIDENCE
) -> Interval:
    """:func:`paired_interval` or :func:`welch_interval` of ``a - b``."""
    return paired_interval(a, b, confidence) if paired else welch_interval(a, b, confidence)


def ratio_interval(
    numerator: npt.ArrayLike, denominator: npt.ArrayLike, *, paired: bool, confidence: float = CONFIDENCE
) -> Interval:
    """Ratio of geometric means with its interval on the log scale, back-transformed.

    Args:
        numerator: costs [n], at least 0.
        denominator: costs [m], at least 0; m = n and the same order if ``paired``.
        paired: pair the logs elementwise, else Welch.
        confidence: two-sided.

    Returns:
        An interval within [0, inf]. A cost of 0 leaves no finite logarithm: the ratio is then 0 or ``inf`` (NaN if both
        sides hold a 0) and nothing is known about its limits.
    """
    top, bottom = np.asarray(numerator, dtype=np.float64).ravel(), np.asarray(denominator, dtype=np.float64).ravel()
    if (top < 0).any() or (bottom < 0).any() or not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        raise ValueError("costs must be finite and not negative")
    zero_top, zero_bottom = bool((top == 0).any()), bool((bottom == 0).any())
    if zero_top or zero_bottom:
        estimate = math.nan if zero_top and zero_bottom else (0.0 if zero_top else math.inf)
        return Interval(estimate, 0.0, math.inf)
    logs = difference_interval(np.log(top), np.log(bottom), paired=paired, confidence=confidence)
    return Interval(_exp(logs.estimate), _exp(logs.low), _exp(logs.high))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700.0 else math.inf


def verdict_of(low: float, high: float, n_baseline: int, n_group: int) -> Verdict:
    """Turn the limits of a speed-up into words.

    ``"not enough runs"`` if either group has fewer than :data:`MIN_RUNS`; ``"faster"`` if the whole interval is above
    1; ``"slower"`` if it is all below 1 (``high`` itself is excluded from the interval, so 1.0 counts); else
    ``"no difference"``, which means that none was shown, not that there is none.
    """
    if min(n_baseline, n_group) < MIN_RUNS:
        return "not enough runs"
    if low > 1.0:
        return "faster"
    if high <= 1.0 + 1e-12:
        return "slower"
    return "no difference"


def speedup_of_runs(
    baseline: Sequence[Hit], group: Sequence[Hit], *, paired: bool, confidence: float = CONFIDENCE
) -> Speedup:
    """Speed-up from each run's own cost to a target that was fixed in advance.

    The estimate is the ratio of the geometric means of :attr:`Hit.at`. Between two evaluations nothing is known: each
    true cost lies in ``(before, at]``. So the lower limit is the lower t limit computed from the baseline's ``before``
    and the group's ``at``, and the upper limit the upper one from the baseline's ``at`` and the group's ``before``; a
    coarse evaluation grid, on which all runs of a group hit at the same evaluation, widens the interval instead of
    faking a spread of zero.

    Censored runs stay in at their total cost, which is a lower bound of their true cost. If a run of the group is
    censored, the estimate and the upper limit are bounds from above and the lower limit is unknown (0), so the verdict
    is never "faster". If a run of the baseline is, it is the other way round.

    Args:
        baseline: one hit per run.
        group: one hit per run, in the same order as ``baseline`` if ``paired``.
        paired: the runs pair by seed.
        confidence: two-sided.
    """
    if not baseline or not group:
        raise ValueError("a speed-up needs at least one run in each group")
    baseline_censored = not all(hit.reached for hit in baseline)
    group_censored = not all(hit.reached for hit in group)

    def ratio(top: list[float], bottom: list[float]) -> Interval:
        return ratio_interval(top, bottom, paired=paired, confidence=confidence)

    estimate = ratio([h.at for h in baseline], [h.at for h in group]).estimate
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
