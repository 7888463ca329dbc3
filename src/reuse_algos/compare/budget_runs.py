"""Runs of a budget comparison as plain records, whatever they come from, and what each one costs on every axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reuse_algos.compare.budgets import AXES, Axis
from reuse_algos.compare.outcomes import RunOutcome
from reuse_algos.compare.statistics import RUNS_FOR_A_CLAIM
from reuse_algos.compare.table import no_baseline
from reuse_algos.errors import CompareError, ReuseAlgosError

if TYPE_CHECKING:
    from reuse_algos.archive import RunArchive

__all__ = [
    "BudgetRun",
    "Terms",
    "budget_runs",
    "by_group",
    "costs_of",
    "points_of",
    "prior_seconds_of",
    "steps_of",
    "used_points",
]


@dataclass(frozen=True)
class BudgetRun:
    """One run that was trained to the end of its own schedule.

    Attributes:
        group: the method.
        seed: None if it was not recorded.
        budget: label; runs of one group with equal labels, or equal numbers of steps, are one point of its curve.
        steps: batches trained, positive.
        samples: examples trained; 0 where not known.
        final: the metric at the end, as it was recorded; NaN or infinite for a diverged run.
        train_seconds: training, evaluation excluded; 0 where not known.
        setup_seconds: before the first step.
        harvest_seconds: of the harvests that this run used, in full.
        flops: of training, as :class:`~reuse_algos.archive.CostRecord` has them; None where not known.
        prior_run_ids: the runs that it used.
        run_id: of itself.
        control_of: name of the group that its group is a control of.
        health: ``"ok"`` or ``"diverged"``.
    """

    group: str
    seed: int | None
    budget: str
    steps: float
    samples: float
    final: float
    train_seconds: float
    setup_seconds: float = 0.0
    harvest_seconds: float = 0.0
    flops: float | None = None
    prior_run_ids: tuple[str, ...] = ()
    run_id: str = ""
    control_of: str | None = None
    health: str = "ok"


@dataclass(frozen=True)
class Terms:
    """How costs are counted.

    Attributes:
        price_per_hour: dollars for an hour of the hardware, or None.
        later_runs: among how many runs harvests are shared, at least 1.
        count_prior_training: whether the training of prior runs is shared among them as well.
        prior_seconds: what each prior run took, training and set-up, by run id.
    """

    price_per_hour: float | None
    later_runs: int
    count_prior_training: bool
    prior_seconds: Mapping[str, float]

    def __post_init__(self) -> None:
        if self.later_runs < 1:
            raise CompareError(f"costs must be shared among at least 1 later run, got {self.later_runs}")
        price = self.price_per_hour
        if price is not None and not (math.isfinite(price) and price > 0):
            raise CompareError(f"the price of an hour must be a positive number, got {price}")

    def prior_training(self, run: BudgetRun) -> float:
        """Seconds that the prior runs of ``run`` took to train; NaN if that of one is not known."""
        return sum((self.prior_seconds.get(run_id, math.nan) for run_id in run.prior_run_ids), 0.0)


def costs_of(run: BudgetRun, terms: Terms) -> dict[Axis, float | None]:
    """What a run cost on every axis; None where that is not known."""
    prior = terms.prior_training(run) if terms.count_prior_training else 0.0
    own = run.train_seconds + run.setup_seconds if run.train_seconds > 0 else math.nan
    whole = own + run.harvest_seconds
    costs: dict[Axis, float] = {
        "steps": float(run.steps),
        "samples": float(run.samples),
        "train_seconds": float(run.train_seconds),
        "cost_seconds": whole,
        "amortised_seconds": own + (run.harvest_seconds + prior) / terms.later_runs,
        "flops": math.nan if run.flops is None else float(run.flops),
        "dollars": math.nan if terms.price_per_hour is None else whole / 3600.0 * terms.price_per_hour,
    }
    return {axis: costs[axis] if math.isfinite(costs[axis]) and costs[axis] > 0 else None for axis in AXES}


def by_group(runs: Sequence[BudgetRun], baseline: str, group_by: str) -> dict[str, list[BudgetRun]]:
    """The runs of each group.

    Raises:
        CompareError: none is in the baseline group.
    """
    groups: dict[str, list[BudgetRun]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    if baseline not in groups:
        raise no_baseline(baseline, groups, group_by)
    return groups


def steps_of(runs: Sequence[BudgetRun]) -> float:
    """Mean number of steps at one budget, without runs that diverged, since these may have stopped early."""
    whole = [run.steps for run in runs if math.isfinite(run.final) and run.health != "diverged"]
    return float(np.mean(whole or [max(run.steps for run in runs)]))


def used_points(points: Sequence[list[BudgetRun]]) -> list[list[BudgetRun]]:
    """The budgets that count: those with three runs, or as many as the one with most has if that is fewer.

    One or two runs at one more budget would say next to nothing and, with limits as wide as theirs, take away what the
    others say.
    """
    needed = min(RUNS_FOR_A_CLAIM, max(len(point) for point in points))
    return [point for point in points if len(point) >= needed]


def points_of(runs: Sequence[BudgetRun]) -> list[list[BudgetRun]]:
    """The runs of one group by budget, ascending in steps, each point sorted by seed and run id.

    Raises:
        CompareError: a run has trained for no steps.
    """
    for run in runs:
        if not (math.isfinite(run.steps) and run.steps > 0):
            raise CompareError(
                f"run {run.run_id or run.seed} of {run.group!r} trained for {run.steps} steps: remove it"
            )
    by_label: dict[str, list[BudgetRun]] = {}
    for run in runs:
        by_label.setdefault(run.budget, []).append(run)
    by_steps: dict[float, list[BudgetRun]] = {}
    for members in by_label.values():
        by_steps.setdefault(steps_of(members), []).extend(members)
    points = [members for _, members in sorted(by_steps.items())]
    for members in points:
        members.sort(key=lambda run: (run.seed is None, run.seed or 0, run.run_id))
    return points


def budget_runs(groups: Mapping[str, Sequence[RunOutcome]]) -> list[BudgetRun]:
    """Records of archived runs, as :func:`~reuse_algos.compare.table.select_outcomes` has grouped them."""
    return [_budget_run(name, outcome) for name, outcomes in groups.items() for outcome in outcomes]


def _budget_run(group: str, outcome: RunOutcome) -> BudgetRun:
    manifest = outcome.manifest
    duration = (manifest.recipe or {}).get("max_duration")
    return BudgetRun(
        group=group,
        seed=outcome.seed,
        budget=f"{outcome.budget}ba" if duration is None else str(duration),
        steps=float(outcome.budget),
        samples=float(outcome.samples[-1]),
        final=outcome.final,
        train_seconds=float(outcome.train_seconds[-1]),
        setup_seconds=outcome.setup_seconds,
        harvest_seconds=outcome.harvest_seconds,
        # Those of the whole run, which may have trained on after the metric's last value.
        flops=manifest.cost.train_flops if outcome.samples[-1] >= manifest.progress.sample else None,
        prior_run_ids=outcome.prior_run_ids,
        run_id=outcome.run_id,
        control_of=manifest.tags.get("control_of"),
        health=outcome.health,
    )


def prior_seconds_of(archive: RunArchive, runs: Sequence[BudgetRun]) -> dict[str, float]:
    """Training and set-up seconds of the prior runs that can still be read."""
    found = {}
    for run_id in sorted({run_id for run in runs for run_id in run.prior_run_ids}):
        try:
            cost = archive.run(run_id).manifest.cost
        except ReuseAlgosError:  # deleted since, or in another archive
            continue
        found[run_id] = cost.train_seconds + cost.setup_seconds
    return found
