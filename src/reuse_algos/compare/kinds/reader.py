"""What every kind of comparison reads of a group."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from reuse_algos.compare.estimates.interval import Bound, Interval, Speedup
from reuse_algos.compare.outcomes import Outcome
from reuse_algos.compare.question import Axis
from reuse_algos.compare.result import CostToTarget, Point


@dataclass(frozen=True)
class Reading:
    """What an estimator reads of one group; the engine makes a :class:`~reuse_algos.compare.Group` of it.

    Attributes:
        runs: The group's runs in the order in which they are shown.
        basis: Number of runs in words, such as ``n = 3 to 5``.
        paired: Whether runs were paired with the baseline's by seed; None for the baseline.
        bound: Of the cost to the target, see :attr:`Group.target_bound`.
        speedups: Against the baseline; empty for the baseline.
        to_runs: Each run's own cost to the target, in the order of ``runs``; empty where there is none.
        to_target: The group's; None where runs are not read over their training.
        cost_to_target: With limits on each axis; empty where runs are read over their training.
        points: The group's budgets.
        prior_seconds: What the prior runs took that are to be paid back.
        where: Where a budget curve ends, in words; empty elsewhere.
    """

    runs: Sequence[Outcome]
    basis: str
    paired: bool | None
    bound: Bound
    speedups: dict[Axis, Speedup]
    to_runs: Sequence[CostToTarget] = ()
    to_target: CostToTarget | None = None
    cost_to_target: dict[Axis, Interval | None] = dataclasses.field(default_factory=dict)
    points: list[Point] = dataclasses.field(default_factory=list)
    prior_seconds: float = math.nan
    where: str = ""
