"""The loss curve of a run, fitted to its first part.

Source: Peng et al., "Optimus: an efficient dynamic resource scheduler for deep learning clusters", EuroSys 2018,
section 3.1, equation 1, https://doi.org/10.1145/3190508.3190517.

Legend: N points of a curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from reuse_algos.errors import NotEnoughEvidenceError

MIN_POINTS = 5
"""Fewest points of a fit: three coefficients, and two points to spare."""

_GRID = 64
_DECAY_LEVEL = 0.01


@dataclass(frozen=True)
class LossCurve:
    """The curve ``loss(k) = scale * (1 / (b0 k + b1) + b2)`` over steps k.

    Attributes:
        b0: Speed of the descent, at least 0, per step.
        b1: Inverse of the loss above the floor at step 0, at least 0.
        b2: Floor, at least 0.
        scale: Largest loss of the points that were fitted, by which they were divided.
        residual: Root of the mean squared error of the fit, in units of the loss.
        num_points: Number of points that were fitted.
    """

    b0: float
    b1: float
    b2: float
    scale: float = 1.0
    residual: float = 0.0
    num_points: int = 0

    def loss(self, steps: ArrayLike) -> NDArray[np.float64]:
        """Return the loss at these steps.

        Args:
            steps: Numbers of steps, at least 0, of any shape.

        Returns:
            float64 of the same shape.
        """
        steps = np.asarray(steps, dtype=np.float64)
        # A curve that was fitted as 0 has no inverse.
        return self.scale * (1.0 / np.maximum(self.b0 * steps + self.b1, 1e-300) + self.b2)

    def steps_to(self, loss: float) -> float:
        """Return the number of steps after which the curve is at or below a loss.

        Returns:
            Steps, at least 0; infinite if the floor of the curve is above the target.
        """
        above = loss / self.scale - self.b2
        if above <= 0:
            return math.inf
        missing = 1.0 / above - self.b1
        if missing <= 0:
            return 0.0
        return missing / self.b0 if self.b0 > 0 else math.inf


def replace_outliers(losses: ArrayLike, reach: int = 2) -> NDArray[np.float64]:
    """Replace each loss that lies outside the range of its neighbours by their mean.

    Args:
        losses: Float ``[N]``, finite.
        reach: Number of neighbours on each side. With 1, on noisy curves, most points are outside. Default: 2.

    Returns:
        float64 ``[N]``. The first and the last ``reach`` points stay as they are.
    """
    losses_N = np.asarray(losses, dtype=np.float64)
    cleaned_N = losses_N.copy()
    for at in range(reach, len(losses_N) - reach):
        around = np.concatenate([losses_N[at - reach : at], losses_N[at + 1 : at + 1 + reach]])
        if not around.min() <= losses_N[at] <= around.max():
            cleaned_N[at] = around.mean()
    return cleaned_N


def fit_loss_curve(steps: ArrayLike, losses: ArrayLike, *, outliers: int = 0, relative: bool = False) -> LossCurve:
    """Fit a loss curve to the points of a run at a constant learning rate.

    For a fixed floor this is a non-negative least squares problem; the floor comes from a grid and a bounded search.

    Args:
        steps: ``[N]``, at least 0.
        losses: ``[N]``, above 0.
        outliers: Reach of :func:`replace_outliers`; 0 keeps all points as they are. Default: 0.
        relative: Whether to minimise the relative errors, robustly, in place of the squared ones. The first losses are
            hundreds of times larger than the last ones, which then decide little. Default: False.

    Raises:
        NotEnoughEvidenceError: There are fewer than :data:`MIN_POINTS` different steps, or a loss is not finite or not
            above 0.
    """
    steps_N, losses_N = _checked(steps, losses)
    if outliers:
        losses_N = replace_outliers(losses_N, outliers)
    scale, reach = float(losses_N.max()), float(max(steps_N.max(), 1.0))
    # Steps are divided by the last one while fitting: the columns of the least squares are then of one size.
    x_N, y_N = steps_N / reach, losses_N / scale

    def solve(floor: float) -> tuple[float, NDArray[np.float64]]:
        # The curve is linear in 1 / (loss - b2). Weights of (loss - b2)^2 make the errors those of the loss.
        above_N = y_N - floor
        weights_N = above_N**2
        rows_N2 = np.stack([x_N, np.ones_like(x_N)], axis=1) * weights_N[:, None]
        found, _ = optimize.nnls(rows_N2, weights_N / above_N)
        curve_N = 1.0 / np.maximum(found[0] * x_N + found[1], 1e-12) + floor
        return float(((curve_N - y_N) ** 2).sum()), found

    # At the least loss itself 1 / (loss - floor) is infinite.
    highest = float(y_N.min()) * (1 - 1e-9)
    # Denser towards the least loss, where a curve that has levelled off has its floor.
    grid = highest * (1 - np.geomspace(1.0, 1e-4, _GRID))
    errors = [solve(floor)[0] for floor in grid]
    at = int(np.argmin(errors))
    low, high = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, _GRID - 1)])
    searched: Any = optimize.minimize_scalar(
        lambda floor: solve(floor)[0], bounds=(low, high), method="bounded", options={"xatol": 1e-10}
    )
    # A bounded search may end beside a better point of the grid.
    floor = float(searched.x) if searched.fun < errors[at] else float(grid[at])
    (b0, b1), floor = _polish(x_N, y_N, solve(floor)[1], floor, relative)
    curve = LossCurve(b0 / reach, b1, floor, scale, 0.0, len(steps_N))
    residual = float(np.sqrt(np.mean((curve.loss(steps_N) - losses_N) ** 2)))
    return LossCurve(b0 / reach, b1, floor, scale, residual, len(steps_N))


def _polish(
    x_N: NDArray[np.float64], y_N: NDArray[np.float64], start: NDArray[np.float64], floor: float, relative: bool
) -> tuple[tuple[float, float], float]:
    """Improve a fit by a few steps on the squared error of the loss itself, which the weights only approximate."""

    def errors(b: NDArray[np.float64]) -> NDArray[np.float64]:
        curve_N = 1.0 / np.maximum(b[0] * x_N + b[1], 1e-12) + b[2]
        return np.log(curve_N / y_N) if relative else curve_N - y_N

    begin = np.maximum([*start, floor], 1e-12)
    robust: dict[str, Any] = {"loss": "soft_l1", "f_scale": 0.1} if relative else {}
    # The second start matters for relative errors: with the floor at 0 the tail decides.
    starts = [begin, np.asarray([1 / (y_N[-1] * x_N[-1]), 1.0, 1e-12])] if relative else [begin]
    scales = [np.maximum(b, 1e-3) for b in starts]
    fits = [
        optimize.least_squares(errors, b, bounds=(0, np.inf), x_scale=scale, **robust)
        for b, scale in zip(starts, scales, strict=True)
    ]
    found = min(fits, key=lambda fit: fit.cost)
    worse = not relative and float((found.fun**2).sum()) > float((errors(begin) ** 2).sum())
    # The search may stop a little behind where it began.
    better = begin if worse else found.x
    return (float(better[0]), float(better[1])), float(better[2])


def looks_decayed(steps: ArrayLike, losses: ArrayLike) -> bool:
    """Check whether the last third of a curve falls faster than its first two thirds can explain.

    The form of :func:`fit_loss_curve` assumes a constant learning rate. A decayed one lets the loss drop below it: the
    residuals of the last third are then on one side.

    Args:
        steps: ``[N]``, at least 0.
        losses: ``[N]``, above 0.

    Returns:
        True where the sign test says so at the 1 % level (or all of fewer than 7 points are below) and the mean gap is
        more than twice the residual of the fit.
        False also for fewer than 12 points, which are too few.
    """
    steps_N, losses_N = _checked(steps, losses)
    cut = len(steps_N) * 2 // 3
    if len(steps_N) < 12:
        return False
    curve = fit_loss_curve(steps_N[:cut], losses_N[:cut])
    gaps = losses_N[cut:] - curve.loss(steps_N[cut:])
    below = int((gaps < 0).sum())
    # Fewer than 7 points cannot reach the level: then all of them must be below.
    pvalue = stats.binomtest(below, len(gaps), 0.5, alternative="greater").pvalue
    one_sided = pvalue <= _DECAY_LEVEL or below == len(gaps)
    return bool(one_sided and -gaps.mean() > 2 * max(curve.residual, 1e-6 * curve.scale))


def _checked(steps: ArrayLike, losses: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    steps_N, losses_N = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if steps_N.shape != losses_N.shape or steps_N.ndim != 1:
        raise NotEnoughEvidenceError(
            f"a loss curve needs one loss for each step, got shapes {steps_N.shape} and {losses_N.shape}"
        )
    if not (np.isfinite(losses_N).all() and np.isfinite(steps_N).all()):
        raise NotEnoughEvidenceError("the loss is not finite at some step: a diverged run has no loss curve to predict")
    if len(np.unique(steps_N)) < MIN_POINTS:
        raise NotEnoughEvidenceError(
            f"a loss curve needs at least {MIN_POINTS} points at different steps, got {len(np.unique(steps_N))}. Log "
            "the loss more often, or wait."
        )
    if not (losses_N > 0).all() or not (steps_N >= 0).all():
        raise NotEnoughEvidenceError(
            f"losses must be above 0 and steps at least 0; the least are {losses_N.min():.4g} and {steps_N.min():.4g}"
        )
    return steps_N, losses_N
