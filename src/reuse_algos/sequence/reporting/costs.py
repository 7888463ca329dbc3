"""What the steps of a sequence cost, with each harvest counted once in an arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.errors import ReuseAlgosError
from reuse_algos.sequence.planning.plan import PlannedStep


@dataclass(frozen=True)
class Cost:
    """What a step or an arm took.

    Attributes:
        steps: Batches trained.
        epochs: Whole epochs.
        samples: Examples trained.
        train_seconds: Training, evaluation excluded, with what an interrupted attempt trained behind its checkpoint.
        setup_seconds: Loading prior runs before the first step.
        harvest_seconds: Passes over the data that filled signals afterwards, each counted once in an arm: at its first
            use, or at the run where the arm's ``harvest`` made it and none of its steps used it.
        cost_seconds: The three together.
        flops: Of training as archived, see :class:`~reuse_algos.archive.CostRecord`; what a frozen backbone spares is
            in the seconds only. None where that of a run is not known.
    """

    steps: int
    epochs: int
    samples: int
    train_seconds: float
    setup_seconds: float
    harvest_seconds: float
    cost_seconds: float
    flops: float | None


_NAMES = [field.name for field in dataclasses.fields(Cost)]


def costs_of(pairs: Sequence[tuple[PlannedStep, PriorRun]], archive: RunArchive) -> list[Cost]:
    """Return what each step of an arm cost, in the order of ``pairs``.

    Args:
        pairs: The steps of one arm in the order of training, with their runs.
        archive: Where the runs are that they used.
    """
    charged: dict[str, float] = {}
    used = [_used_harvests(run, archive, charged) for _, run in pairs]
    costs = []
    # Only when all uses are charged is it known which harvests no step used.
    for (step, run), seconds in zip(pairs, used, strict=True):
        # Of the run's harvests only those that the arm asks for are the sequence's cost.
        names = {harvest.name for harvest in step.harvests}
        made = sum(harvest.seconds for harvest in run.manifest.harvests if harvest.signal in names)
        costs.append(_cost(run, seconds + max(0.0, made - charged.get(run.id, 0.0))))
    return costs


def _used_harvests(run: PriorRun, archive: RunArchive, charged: dict[str, float]) -> float:
    harvest = 0.0
    for use in run.manifest.prior_runs:
        # A harvest that several steps use is charged to the first of them, and never with more than it took.
        before = charged.get(use.run_id, 0.0)
        share = min(use.harvest_seconds, max(0.0, _harvested(archive, use.run_id, use.harvest_seconds) - before))
        charged[use.run_id] = before + share
        harvest += share
    return harvest


def _harvested(archive: RunArchive, run_id: str, otherwise: float) -> float:
    """Return the seconds that all harvests of a run took; ``otherwise`` where the run cannot be read."""
    # The archive is not asked where there is nothing to share.
    if otherwise == 0.0:
        return 0.0
    try:
        return max(otherwise, sum(harvest.seconds for harvest in archive.run(run_id).manifest.harvests))
    except ReuseAlgosError:
        return otherwise


def _cost(run: PriorRun, harvest: float) -> Cost:
    trained, cost = run.manifest.progress, run.manifest.cost
    return Cost(
        steps=trained.batch,
        epochs=trained.epoch,
        samples=trained.sample,
        train_seconds=cost.train_seconds,
        setup_seconds=cost.setup_seconds,
        harvest_seconds=harvest,
        cost_seconds=cost.train_seconds + cost.setup_seconds + harvest,
        flops=cost.train_flops,
    )


def total_of(costs: Sequence[Cost]) -> Cost:
    """Return the sum of costs; FLOPs are None where those of one are not known."""
    totals: dict[str, Any] = {}
    for name in _NAMES:
        values = [getattr(cost, name) for cost in costs]
        totals[name] = None if None in values else sum(values)
    return Cost(**totals)


def shares_of(part: Cost, whole: Cost) -> dict[str, float | None]:
    """Return each number of ``part`` over that of ``whole``, by name; None where it has no value."""

    def ratio(name: str) -> float | None:
        above, below = getattr(part, name), getattr(whole, name)
        return None if above is None or not below else above / below

    return {name: ratio(name) for name in _NAMES}
