"""Accuracy over the strength of an attack: is there a transition, or only a slope?

Source: Xing et al., "Phase transition from clean training to adversarial training", NeurIPS 2022.

Legend: N strengths.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from reuse_algos.errors import NotEnoughEvidenceError

_LINE, _PLATEAUS = 3, 5  # parameters with the variance: slope and constant; two levels and two breakpoints


@dataclass(frozen=True)
class Transition:
    """Whether a metric over the strength has two plateaus with a slope between, or is a straight line.

    Attributes:
        shown: Whether the plateaus explain the metric better than the line.
        start: Strength at which the slope begins; NaN without a transition.
        stop: Strength at which the slope ends; NaN without a transition.
        before: Level of the first plateau; NaN without a transition.
        after: Level of the second plateau; NaN without a transition.
        advantage: AICc of the line less that of the plateaus; above ``margin`` means that a transition is shown.
    """

    shown: bool
    start: float
    stop: float
    before: float
    after: float
    advantage: float


def find_transition(strength: ArrayLike, metric: ArrayLike, *, margin: float = 6.0) -> Transition:
    """Fit plateau, line, plateau with two breakpoints, and compare it with a straight line by AICc.

    ``AICc = N ln(RSS / N) + 2 k + 2 k (k + 1) / (N - k - 1)`` with k parameters, of which one is the variance. Each
    plateau holds at least two strengths. "No transition shown" is an answer, not an error.

    Args:
        strength: ``[N]``, such as epsilon of the attack.
        metric: ``[N]``, such as robust accuracy.
        margin: By how much the AICc must be better; 6 is strong evidence (odds of 20). Default: 6.0.

    Raises:
        NotEnoughEvidenceError: There are fewer than seven different strengths, or a value is not finite.
    """
    x_N, y_N = np.asarray(strength, dtype=np.float64), np.asarray(metric, dtype=np.float64)
    if x_N.shape != y_N.shape or x_N.ndim != 1 or not (np.isfinite(x_N).all() and np.isfinite(y_N).all()):
        raise NotEnoughEvidenceError("a transition needs one finite value of the metric for each strength")
    different = np.unique(x_N)
    if len(different) < _PLATEAUS + 2:
        raise NotEnoughEvidenceError(
            f"a transition with two breakpoints needs at least {_PLATEAUS + 2} strengths, got {len(different)}"
        )
    line = np.polynomial.polynomial.polyfit(x_N, y_N, 1)
    line_error = float(((np.polynomial.polynomial.polyval(x_N, line) - y_N) ** 2).sum())
    start, stop = _breakpoints(x_N, y_N, different)
    levels, error = _levels(x_N, y_N, start, stop)
    # Rounding keeps a perfect fit from a logarithm of 0.
    least = len(x_N) * (1e-9 * max(float(np.ptp(y_N)), 1e-12)) ** 2
    advantage = _aicc(max(line_error, least), len(x_N), _LINE) - _aicc(max(error, least), len(x_N), _PLATEAUS)
    if advantage <= margin:
        return Transition(False, math.nan, math.nan, math.nan, math.nan, advantage)
    return Transition(True, start, stop, float(levels[0]), float(levels[1]), advantage)


def _breakpoints(x_N: NDArray, y_N: NDArray, different: NDArray) -> tuple[float, float]:
    """Return the two breakpoints with the least error: a grid over the strengths, then a local search."""
    # A plateau of one strength is no evidence of a plateau: each has at least two.
    first, last = different[1], different[-2]
    middle = np.sort(np.concatenate([different, (different[1:] + different[:-1]) / 2]))
    middle = middle[(middle >= first) & (middle <= last)]
    # All pairs: the error has many local minima over two breakpoints.
    pairs = list(itertools.combinations(middle.tolist(), 2))
    start, stop = min(pairs, key=lambda pair: _levels(x_N, y_N, *pair)[1])
    gap = float(np.diff(different).min())

    def error(at: NDArray) -> float:
        if not first <= at[0] < at[1] <= last:
            return math.inf
        return _levels(x_N, y_N, float(at[0]), float(at[1]))[1]

    simplex = np.asarray([[start, stop], [start + gap / 4, stop], [start, stop + gap / 4]])
    found = optimize.minimize(error, simplex[0], method="Nelder-Mead", options={"initial_simplex": simplex})
    return (float(found.x[0]), float(found.x[1])) if found.fun < error(simplex[0]) else (start, stop)


def _levels(x_N: NDArray, y_N: NDArray, start: float, stop: float) -> tuple[NDArray[np.float64], float]:
    """Return the two levels that fit best between these breakpoints, and the sum of squared errors."""
    share_N = np.clip((x_N - start) / (stop - start), 0, 1)
    rows_N2 = np.stack([1 - share_N, share_N], axis=1)
    levels = np.linalg.lstsq(rows_N2, y_N, rcond=None)[0].astype(np.float64)
    return levels, float(((rows_N2 @ levels - y_N) ** 2).sum())


def _aicc(error: float, count: int, parameters: int) -> float:
    return (
        count * math.log(error / count) + 2 * parameters + 2 * parameters * (parameters + 1) / (count - parameters - 1)
    )
