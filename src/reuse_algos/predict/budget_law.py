"""How the loss at the end falls with the budget: a power law, for budgets that were not trained.

Runs that each had a schedule of their own end at losses that fall by a straight line in double logarithms (Hestness et
al., "Deep learning scaling is predictable, empirically", 2017, https://arxiv.org/abs/1712.00409). The line has no
floor, so that it is only right near the budgets that were trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from reuse_algos.errors import NotEnoughEvidenceError

MIN_BUDGETS = 3
"""Fewest budgets of a fit: two coefficients, and one budget that can contradict them."""


@dataclass(frozen=True)
class BudgetLaw:
    """The law ``ln loss = intercept + slope ln steps``.

    Attributes:
        intercept: At one step.
        slope: Below 0 where more steps help.
        spread: Standard deviation of ``ln loss`` about the line.
        n: Number of runs.
        mean_log: Mean of ``ln steps`` over the runs.
        sum_squares: Sum of the squared distances of ``ln steps`` from that mean.
        last_error: Relative error with which the other budgets predict the loss at the largest one.
    """

    intercept: float
    slope: float
    spread: float
    n: int
    mean_log: float
    sum_squares: float
    last_error: float

    def loss(self, steps: ArrayLike) -> np.ndarray:
        """Return the loss at these numbers of steps, above 0, of any shape."""
        return np.exp(self.intercept + self.slope * np.log(np.asarray(steps, dtype=np.float64)))

    def steps_to(self, loss: float, confidence: float = 0.95) -> tuple[float, float, float]:
        """Return after how many steps the line reaches a loss, with limits from Fieller's theorem.

        Args:
            loss: Above 0.
            confidence: Two-sided, in (0, 1). Default: 0.95.

        Returns:
            Estimate, lower and upper limit; infinite where the line does not surely fall.
        """
        if self.slope >= 0:
            return math.inf, 0.0, math.inf
        t = float(stats.t.ppf(0.5 + confidence / 2, self.n - 2))
        estimate = (math.log(loss) - self.intercept) / self.slope
        # Inverting the band of the line: (gap - slope d)^2 <= t^2 s^2 (1 / n + d^2 / S) is quadratic in the distance d.
        gap = math.log(loss) - (self.intercept + self.slope * self.mean_log)
        a = self.slope**2 - (t * self.spread) ** 2 / self.sum_squares
        b, c = gap * self.slope, gap**2 - (t * self.spread) ** 2 / self.n
        # The line does not surely fall, so no number of steps is ruled out.
        if a <= 0:
            return math.exp(estimate), 0.0, math.inf
        root = math.sqrt(max(0.0, b**2 - a * c))
        # exp overflows beyond 709.
        low, high = (math.exp(min(700.0, self.mean_log + (b + sign * root) / a)) for sign in (-1.0, 1.0))
        return math.exp(estimate), low, high


def fit_budget_law(steps: ArrayLike, losses: ArrayLike) -> BudgetLaw:
    """Fit the law to the ends of runs at several budgets, by least squares in double logarithms.

    Args:
        steps: ``[N]``, steps of each run, above 0.
        losses: ``[N]``, loss at its end, above 0.

    Raises:
        NotEnoughEvidenceError: There are fewer than :data:`MIN_BUDGETS` budgets, or a number is not above 0.
    """
    steps_N, losses_N = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    budgets = len(np.unique(steps_N))
    if budgets < MIN_BUDGETS:
        raise NotEnoughEvidenceError(f"a law over budgets needs at least {MIN_BUDGETS} of them, got {budgets}")
    if not (np.isfinite(losses_N).all() and (losses_N > 0).all() and (steps_N > 0).all()):
        raise NotEnoughEvidenceError("a law over budgets needs steps and losses above 0")
    x, y = np.log(steps_N), np.log(losses_N)
    slope, intercept = np.polyfit(x, y, 1)
    spread = float(np.sqrt(((intercept + slope * x - y) ** 2).sum() / (len(x) - 2)))
    # The law is judged by the largest budget, predicted from the others.
    last = steps_N == steps_N.max()
    others = np.polyfit(x[~last], y[~last], 1)
    error = float(np.exp(np.polyval(others, x[last].mean()) - y[last].mean()) - 1)
    squares = float(((x - x.mean()) ** 2).sum())
    return BudgetLaw(float(intercept), float(slope), spread, len(x), float(x.mean()), squares, error)
