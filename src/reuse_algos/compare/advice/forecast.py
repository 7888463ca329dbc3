"""A budget that was not trained: where a technique is predicted to reach the target, and at what cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reuse_algos.compare.estimates.interval import Interval
from reuse_algos.compare.kinds.budgets import Member
from reuse_algos.compare.question import Axis, Mode
from reuse_algos.errors import NotEnoughEvidenceError
from reuse_algos.predict.budget_law import fit_budget_law

FARTHEST = 4.0
"""A forecast for more than so many times the largest budget is not made: the law has no floor."""


@dataclass(frozen=True)
class BudgetForecast:
    """What no run has shown yet: it is for the choice of the next run, and never a recommendation.

    Attributes:
        steps: After which the mean is predicted to reach the target, with limits.
        cost: Of such a run on the axis of the recommendation; None where it is not known.
        error: Relative error with which the smaller budgets predict the loss at the largest one.
    """

    steps: Interval
    cost: Interval | None
    error: float


def forecast_budget(member: Member, level: float, mode: Mode, axis: Axis, confidence: float) -> BudgetForecast | None:
    """Predict where a group reaches a target that it does not reach at any of its budgets.

    Args:
        member: The group by budget.
        level: The target, larger being better.
        mode: Whether more or less of the metric is better.
        axis: How cost is counted.
        confidence: Of the limits.

    Returns:
        The forecast; None where there are too few budgets, where the metric is neither a loss nor a share in [0, 1],
        where the target is not ahead, or is too far ahead.
    """
    curve = member.curve
    offset = 1.0 if mode == "max" else 0.0  # an accuracy becomes its error
    # Runs and not means: their spread is what the limits are made of.
    steps = [at for at, sample in zip(curve.steps_M, curve.samples, strict=True) for _ in sample.values]
    losses = [offset - value for sample in curve.samples for value in sample.values.tolist()]
    if offset - level <= 0 or (mode == "max" and max(losses) > 1):
        return None
    try:
        law = fit_budget_law(steps, losses)
    except NotEnoughEvidenceError:
        return None
    found = Interval(*law.steps_to(offset - level, confidence))
    largest = float(curve.steps_M[-1])
    # What lies within the budgets was measured, and does not need a forecast.
    if not largest < found.estimate <= FARTHEST * largest:
        return None
    return BudgetForecast(found, _cost(member, axis, found), law.last_error)


def _cost(member: Member, axis: Axis, steps: Interval) -> Interval | None:
    """Return the cost behind the largest budget, linear in steps as between budgets."""
    costs = member.costs.get(axis)
    if costs is None:
        return None
    (before, last), at = (math.exp(np.log(sample.values).mean()) for sample in costs.samples[-2:]), costs.steps_M[-2:]
    # A fixed set-up and a fixed time per step make costs linear in steps.
    each = (last - before) / float(at[1] - at[0])
    values = (
        last + each * (value - float(at[1])) for value in (steps.estimate, max(steps.low, float(at[1])), steps.high)
    )
    return Interval(*values)
