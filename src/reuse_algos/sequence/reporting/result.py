"""What a sequence cost and found, as plain data: one record for each step and each arm."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from reuse_algos.compare.estimates.interval import Interval
from reuse_algos.compare.result import json_safe
from reuse_algos.sequence.reporting.costs import Cost
from reuse_algos.sequence.reporting.search import SearchResult


@dataclass(frozen=True)
class StepResult:
    """One finished step.

    Attributes:
        name: Of the step.
        point: The grid's values, by recipe key.
        run_id: Its run.
        seed: Of the run.
        health: ``ok``, or ``diverged``.
        fingerprint: Of its recipe.
        special: Whether it was trained by the arm's ``first`` and not as the others.
        judged: Whether the arm is judged by its metric; its cost counts in any case.
        rung: Round of a search by halving; None outside of such a search.
        held: Whether its run is of another study, which had trained the same before.
        final: The metric at the end; NaN where there is none.
        best: Its best value during the run; NaN where there is none.
        cost: What it took.
        prior_runs: What it reused.
    """

    name: str
    point: dict[str, Any]
    run_id: str
    seed: int | None
    health: str
    fingerprint: str
    special: bool
    judged: bool
    rung: int | None
    held: bool
    final: float
    best: float
    cost: Cost
    prior_runs: list[str]


@dataclass(frozen=True)
class ArmResult:
    """One arm.

    Attributes:
        name: Of the arm.
        is_baseline: Whether the others are compared with it.
        steps: Its steps, in order.
        total: What all of them took.
        final: Mean final metric of the steps with its t interval, over whatever the steps differ in.
        best: The best final metric, and ``best_step`` whose it is.
        best_step: Name of that step; None if no step has a metric.
        share: Total cost over that of the baseline, by the name of the cost; None where the baseline has none of it,
            and empty for the baseline itself and where nothing is compared.
        final_difference: Mean final metric minus the baseline's, with its interval; None for the baseline itself and
            where nothing is compared.
        paired: Whether the steps were paired with the baseline's by name.
    """

    name: str
    is_baseline: bool
    steps: list[StepResult]
    total: Cost
    final: Interval
    best: float
    best_step: str | None
    share: dict[str, float | None]
    final_difference: Interval | None
    paired: bool


@dataclass(frozen=True)
class SequenceReport:
    """All arms of a finished sequence.

    Attributes:
        name: Of the sequence.
        archive: Where its runs are.
        metric: Full name of the metric.
        mode: Whether more (``max``) or less of it is better.
        baseline: The arm that the others are compared with, or None.
        arms: In the order of the file.
        search: The winners, where the sequence searches for something.
        notes: What a reader must know before believing the numbers.
    """

    name: str
    archive: str
    metric: str
    mode: str
    baseline: str | None
    arms: list[ArmResult]
    search: SearchResult | None
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it; numbers that are not finite become None."""
        return json_safe(dataclasses.asdict(self))
