"""The one t interval of the library, and the types that carry an estimate with its limits.

Everything here holds at n = 3 to 5 runs per group (coverage is tested by simulation in ``tests/compare``).
Sources: Student (1908); Welch, "The generalization of Student's problem when several different population variances
are involved", Biometrika 34 (1947); Satterthwaite, Biometrics Bulletin 2 (1946).

**Groups without spread.** Metric values that are all equal are copies of one run, or a metric that is at its ceiling.
They do not tell how far another run would be away, so the interval has no limits. Costs differ: a number of
steps is exact, and equal counts do not mean copies. There (``exact=True``) the width is zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
"""Two-sided confidence of every interval unless the caller says otherwise."""

MIN_RUNS = 2
"""Runs per group below which there is no spread and so no verdict. With one degree of freedom t is 12.7."""

RUNS_FOR_A_CLAIM = 3
"""Runs per group that a claim needs; a headline needs five."""

Verdict = Literal["faster", "slower", "no difference", "not enough runs"]
Bound = Literal["", "<=", ">=", "?"]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with the two-sided limits of its confidence interval.

    ``low`` and ``high`` are ``-inf`` and ``inf`` (0 and ``inf`` for ratios and costs) where nothing is known.
    """

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Speedup:
    """How many times less a group needs than the baseline to reach the target; above 1 is faster.

    Attributes:
        estimate: Cost of the baseline divided by cost of the group. With a ``bound`` it is only a limit.
        low: Lower confidence limit, 0 where nothing is known.
        high: Upper confidence limit (the truth is below it, not at it), ``inf`` where nothing is known.
        bound: ``"<="`` if the group did not reach the target, so it is at most this fast; ``">="`` if the baseline did
            not, so the group is at least this fast; ``"?"`` if neither did; ``""`` if both did.
        verdict: See :func:`verdict_of`.
    """

    estimate: float
    low: float
    high: float
    bound: Bound
    verdict: Verdict

    @property
    def known(self) -> bool:
        """Whether the estimate says anything: not where both costs are only limits, nor of one run."""
        return self.bound != "?" and not math.isnan(self.estimate) and self.verdict != "not enough runs"

    @property
    def drawn(self) -> bool:
        """Whether a bar from 1 to the estimate is right: it is not for "at most 2" or "at least 0.8".

        There the estimate is a limit on the other side of 1 from what is known, and nothing between may be true.
        """
        open_ended = {"<=": self.estimate > 1.0, ">=": self.estimate < 1.0}.get(self.bound, False)
        return self.known and not open_ended


@functools.lru_cache(maxsize=1024)
def _quantile(probability: float, df: float) -> float:
    return float(stats.t.ppf(probability, df))


def _quantiles(probability: float, df_P: FloatArray) -> FloatArray:
    # scipy.stats takes 0.1 ms per call, and most calls ask for the same few degrees of freedom again.
    if df_P.size == 1 or (df_P == df_P[0]).all():
        return np.full(df_P.shape, _quantile(probability, float(df_P[0])))
    return np.asarray(stats.t.ppf(probability, df_P), dtype=np.float64)


def sum_of_means(
    samples: Sequence[FloatArray], confidence: float = CONFIDENCE, *, exact: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Return the sum of the means of independent samples, and the half width of its t interval.

    With one sample this is Student's interval, with two (one of them negated) Welch's interval of a difference.

    Args:
        samples: Each [n, P] or [n, 1], with finite values and an n of its own.
        confidence: Two-sided, between 0 and 1. Default: 0.95.
        exact: The values have no noise, so that no spread means no width. Default: False, no spread means no limits.

    Returns:
        Sum [P] and half width [P]; the latter is infinite where a sample has fewer than 2 runs.

    Raises:
        ValueError: The confidence is not between 0 and 1, or a sample is empty.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    if min(len(rows) for rows in samples) == 0:
        raise ValueError("a mean needs at least one value in each group")
    mean_P = sum((rows.mean(axis=0) for rows in samples), np.zeros(1))
    # One run has no spread, so nothing bounds the mean.
    if min(len(rows) for rows in samples) < MIN_RUNS:
        return mean_P, np.full(mean_P.shape, np.inf)
    shares = [rows.var(axis=0, ddof=1) / len(rows) for rows in samples]
    variance_P = sum(shares, np.zeros(mean_P.shape))
    # Rounding leaves a spread of about 1e-16 where all values are equal: that does not count as spread.
    scale_P = sum((np.abs(rows).max(axis=0) for rows in samples), np.zeros(mean_P.shape))
    spread_P = variance_P > (1e-12 * scale_P) ** 2
    weights = (share**2 / (len(rows) - 1) for share, rows in zip(shares, samples, strict=True))
    df_P = np.divide(variance_P**2, sum(weights, np.zeros(mean_P.shape)), out=np.ones(mean_P.shape), where=spread_P)
    half_P = _quantiles(0.5 + confidence / 2.0, df_P) * np.sqrt(variance_P)
    return mean_P, np.where(spread_P, half_P, 0.0 if exact else np.inf)


def _interval(samples: Sequence[npt.ArrayLike], signs: Sequence[float], confidence: float, exact: bool) -> Interval:
    columns = [sign * np.asarray(x, dtype=np.float64).reshape(-1, 1) for x, sign in zip(samples, signs, strict=True)]
    finite = all(np.isfinite(column).all() for column in columns)
    mean_P, half_P = sum_of_means(columns if finite else [np.zeros_like(c) for c in columns], confidence, exact=exact)
    if not finite:
        return Interval(math.nan, -math.inf, math.inf)
    return Interval(float(mean_P[0]), float(mean_P[0] - half_P[0]), float(mean_P[0] + half_P[0]))


def mean_interval(values: npt.ArrayLike, confidence: float = CONFIDENCE, *, exact: bool = False) -> Interval:
    """Return the mean of ``values`` [n] with its two-sided Student-t interval.

    The interval has no limits for n = 1 and for values without spread. A value that is not finite makes the mean NaN.

    Args:
        values: At least one number.
        confidence: Two-sided, between 0 and 1. Default: 0.95.
        exact: See :func:`sum_of_means`. Default: False.

    Raises:
        ValueError: No values, or a confidence outside (0, 1).
    """
    return _interval([values], [1.0], confidence, exact)


def difference_interval(
    a: npt.ArrayLike, b: npt.ArrayLike, *, paired: bool, confidence: float = CONFIDENCE, exact: bool = False
) -> Interval:
    """Return the mean of ``a`` minus the mean of ``b`` with its two-sided t interval.

    Args:
        a: Values [n].
        b: Values [m]; m = n and the same order if ``paired``.
        paired: Take Student's interval of the n differences; else Welch's (unequal variances, Welch-Satterthwaite
            degrees of freedom).
        confidence: Two-sided, between 0 and 1. Default: 0.95.
        exact: See :func:`sum_of_means`. Default: False.

    Raises:
        ValueError: A side is empty, or pairs have different lengths.
    """
    x, y = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    if not paired:
        return _interval([x, y], [1.0, -1.0], confidence, exact)
    if x.size != y.size:
        raise ValueError(f"pairs need equal lengths, got {x.size} and {y.size}")
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and the interval says so
        return _interval([x - y], [1.0], confidence, exact)


def ratio_interval(
    numerator: npt.ArrayLike, denominator: npt.ArrayLike, *, paired: bool, confidence: float = CONFIDENCE
) -> Interval:
    """Return the ratio of the geometric means of costs, with its interval from the log scale.

    Args:
        numerator: Costs [n], at least 0.
        denominator: Costs [m], at least 0; m = n and the same order if ``paired``.
        paired: Pair the logs elementwise, else Welch.
        confidence: Two-sided, between 0 and 1. Default: 0.95.

    Returns:
        An interval within [0, inf]. A cost of 0 leaves no finite logarithm: the ratio is then 0 or ``inf`` (NaN if both
        sides hold a 0) and nothing is known about its limits.

    Raises:
        ValueError: A cost is negative or not finite.
    """
    top, bottom = np.asarray(numerator, dtype=np.float64).ravel(), np.asarray(denominator, dtype=np.float64).ravel()
    if (top < 0).any() or (bottom < 0).any() or not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        raise ValueError("costs must be finite and not negative")
    # A warm start may be at the target before its first step, at a cost of 0.
    zero_top, zero_bottom = bool((top == 0).any()), bool((bottom == 0).any())
    if zero_top or zero_bottom:
        estimate = math.nan if zero_top and zero_bottom else (0.0 if zero_top else math.inf)
        return Interval(estimate, 0.0, math.inf)
    # Steps are exact: runs that all needed equally many are not copies of each other.
    logs = difference_interval(np.log(top), np.log(bottom), paired=paired, confidence=confidence, exact=True)
    return Interval(safe_exp(logs.estimate), safe_exp(logs.low), safe_exp(logs.high))


def safe_exp(x: float) -> float:
    """Return ``exp(x)``, infinite where a float cannot hold it, NaN for NaN."""
    if math.isnan(x):
        return math.nan
    return math.exp(x) if x < 700.0 else math.inf


def verdict_of(low: float, high: float, n_baseline: int, n_group: int) -> Verdict:
    """Return the verdict that the limits of a speed-up allow.

    ``"not enough runs"`` if either group has fewer than :data:`MIN_RUNS`; ``"faster"`` if the whole interval is above
    1; ``"slower"`` if it is all below 1 (``high`` itself is excluded from the interval, so 1.0 counts); else
    ``"no difference"``, which means that none was shown, not that there is none.
    """
    if min(n_baseline, n_group) < MIN_RUNS:
        return "not enough runs"
    if low > 1.0:
        return "faster"
    # Rounding may put a limit of exactly 1 a little above it.
    return "slower" if high <= 1.0 + 1e-12 else "no difference"
