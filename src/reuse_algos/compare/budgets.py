"""A budget comparison as plain data: groups of runs, each trained at several budgets.

Every run has a schedule of its own that is fully decayed at the end of its budget, and only its **last** value counts:
one long run that is read early says nothing about a shorter one. The speed-up is the horizontal distance between the
budget-accuracy curves of two groups. How it is computed is in :mod:`reuse_algos.compare.budget_curves`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reuse_algos.compare.outcomes import Mode
from reuse_algos.compare.results import BreakEven, json_safe
from reuse_algos.compare.statistics import Bound, Interval, Speedup

__all__ = [
    "AXES",
    "AXIS_WORDS",
    "Axis",
    "BudgetComparison",
    "BudgetGroup",
    "BudgetPoint",
    "alike",
    "cost_words",
    "less_of",
]

Axis = Literal["steps", "samples", "train_seconds", "cost_seconds", "amortised_seconds", "flops", "dollars"]
"""A way to count cost.

* ``steps``, ``samples``: batches trained, and examples drawn from the data. Passes of live teachers and appended rows
  come on top of both; ``flops`` and the seconds have them.
* ``train_seconds``: training only, evaluation excluded.
* ``cost_seconds``: training, set-up, and all of the harvests that the run used.
* ``amortised_seconds``: the same with the harvests (and, if asked for, the training of its prior runs) shared among
  :attr:`BudgetComparison.later_runs` runs.
* ``flops``: of training as archived, see :class:`~reuse_algos.archive.CostRecord`. Harvests are not in it, only in the
  seconds.
* ``dollars``: ``cost_seconds`` at :attr:`BudgetComparison.price_per_hour`.
"""

_SMALLER_LAST_BATCHES = 0.1

AXES: tuple[Axis, ...] = (
    "steps",
    "samples",
    "train_seconds",
    "cost_seconds",
    "amortised_seconds",
    "flops",
    "dollars",
)
"""All axes, in the order in which they are shown."""

AXIS_WORDS: dict[Axis, str] = {
    "steps": "steps",
    "samples": "examples",
    "train_seconds": "train seconds",
    "cost_seconds": "seconds, all costs",
    "amortised_seconds": "seconds, harvest shared",
    "flops": "FLOPs",
    "dollars": "dollars",
}
"""What to call them in a heading."""


def alike(sizes: Sequence[float]) -> bool:
    """Whether batches are of one size, but for the smaller last ones of an epoch."""
    return not sizes or max(sizes) - min(sizes) <= _SMALLER_LAST_BATCHES * max(sizes)


def cost_words(axis: Axis) -> str:
    """An axis in a sentence: ``steps``, ``cost in seconds``, ``FLOPs``."""
    return {"cost_seconds": "cost in seconds", "amortised_seconds": "shared cost in seconds"}.get(
        axis, AXIS_WORDS[axis]
    )


def less_of(axis: Axis) -> str:
    """Less of it: ``fewer steps``, ``less cost in seconds``."""
    return f"{'less' if axis in ('cost_seconds', 'amortised_seconds') else 'fewer'} {cost_words(axis)}"


@dataclass(frozen=True)
class BudgetPoint:
    """One group at one budget.

    Attributes:
        budget: label, ``recipe.max_duration`` where it is recorded ("5ep"), else the number of batches ("400ba").
        steps: mean number of batches.
        n: number of runs.
        seeds: of the runs, ascending; None where a run has none.
        run_ids: of the runs, in the order of ``seeds``.
        values: final metric of each run as it was recorded, in the order of ``seeds``; NaN for a diverged run.
        final: mean of ``values`` with its t interval.
        costs: cost of a run on each axis, the geometric mean as in :attr:`BudgetGroup.cost_to_target`; None where it is
            not known for all of them.
        on_pareto_front: for each axis, whether no other point of any group is at least as cheap and at least as good,
            and better in one of the two; False where the cost or the mean is not known, and for a point that is not
            used.
        used: whether it counts in curves and fronts: with fewer than three runs it does not where the group has three
            or more at another budget, nor does a single run where there are two at another.
    """

    budget: str
    steps: float
    n: int
    seeds: list[int | None]
    run_ids: list[str]
    values: list[float]
    final: Interval
    costs: dict[Axis, float | None]
    on_pareto_front: dict[Axis, bool]
    used: bool


@dataclass(frozen=True)
class BudgetGroup:
    """One group over its budgets.

    Attributes:
        name: value of the grouping key.
        is_baseline: whether this is the baseline itself.
        control_of: name of the group that this one is a control of (the tag ``control_of`` of its runs), or None.
        points: its budgets, by ascending number of steps.
        paired: whether its seeds were paired with the baseline's; None for the baseline.
        cost_to_target: on each axis, where its mean curve reaches the target, with limits (0 and ``inf`` where nothing
            is known); None where the cost is not known. With a ``target_bound`` the estimate is only a limit.
        target_bound: ``""`` it reaches the target between its budgets, or exactly at one; ``"<="`` it is there at its
            smallest budget already, so its cost is at most the estimate; ``">="`` it is not there at its largest, so
            its cost is at least the estimate.
        speedups: on each axis where both costs are known, the baseline's cost divided by this group's; empty for the
            baseline.
        verdict: of the axis :attr:`BudgetComparison.judged_by` (of ``steps`` where it is not known); ``"baseline"`` for
            the baseline.
        sentence: the verdict in words, with n and interval.
        break_even: after how many later runs the harvest, and the prior runs, are paid back. ``prior_training_seconds``
            is the mean over runs of what their own prior runs took. None for the baseline and for groups that used no
            prior run.
    """

    name: str
    is_baseline: bool
    control_of: str | None
    points: list[BudgetPoint]
    paired: bool | None
    cost_to_target: dict[Axis, Interval | None]
    target_bound: Bound
    speedups: dict[Axis, Speedup]
    verdict: str
    sentence: str
    break_even: BreakEven | None

    @property
    def largest_budget(self) -> str:
        """Label of the largest budget that is used."""
        return [point.budget for point in self.points if point.used][-1]

    @property
    def batch_sizes(self) -> list[float]:
        """Mean examples of a step at each budget where they are known."""
        return [samples / point.steps for point in self.points if (samples := point.costs.get("samples")) is not None]

    @property
    def flops_per_example(self) -> float | None:
        """What an example cost on average, in FLOPs; None where that is not known at every budget that is used."""
        spent = [(point.costs.get("flops"), point.costs.get("samples")) for point in self.points if point.used]
        known = [(flops, samples) for flops, samples in spent if flops is not None and samples is not None]
        return math.fsum(f for f, _ in known) / math.fsum(s for _, s in known) if len(known) == len(spent) else None


@dataclass(frozen=True)
class BudgetComparison:
    """A finished budget comparison.

    Attributes:
        archive: where the runs are.
        archive_id: identity of that archive; empty where the runs are not from one.
        group_by: the grouping key.
        baseline: name of the baseline group.
        metric: full name of the metric.
        mode: whether more or less of it is better.
        target: value that counts as reached.
        target_source: ``"given"``, or ``"baseline mean final"``: the baseline's mean at its largest budget.
        confidence: of every interval, two-sided.
        price_per_hour: dollars for an hour of the hardware, or None.
        later_runs: among how many runs ``amortised_seconds`` shares the harvests.
        count_prior_training: whether ``amortised_seconds`` also shares the training of the prior runs.
        judged_by: the axis of the verdicts.
        groups: the baseline first, then the others by name, each control right after its technique.
        notes: what a reader must know before believing the numbers.
    """

    archive: str
    archive_id: str
    group_by: str
    baseline: str
    metric: str
    mode: Mode
    target: float
    target_source: str
    confidence: float
    price_per_hour: float | None
    later_runs: int
    count_prior_training: bool
    judged_by: Axis
    groups: list[BudgetGroup]
    notes: list[str]

    @property
    def shown_axes(self) -> list[Axis]:
        """Axes worth showing, that of the verdicts first.

        Examples are the steps over again, unless batches are of different sizes.
        """
        same = self.judged_by != "samples" and alike([size for group in self.groups for size in group.batch_sizes])
        shown: list[Axis] = [axis for axis in AXES if axis != "samples" or not same]
        return sorted(shown, key=lambda axis: axis != self.judged_by)

    def group(self, name: str) -> BudgetGroup:
        """The group of this name; KeyError if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; numbers that are not finite (NaN, no limit) become None."""
        return json_safe(dataclasses.asdict(self))
