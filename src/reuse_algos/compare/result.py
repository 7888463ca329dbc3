"""The result of a comparison as plain data: one tree for every kind, with one record per run, budget and group."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reuse_algos.compare.estimates.interval import Bound, Interval, Speedup
from reuse_algos.compare.payback import BreakEven
from reuse_algos.compare.question import AXES, Axis, Mode

Method = Literal["curves", "runs", "budgets", "ends"]

# Batches of one size, but for the smaller last ones of an epoch.
_SMALLER_LAST_BATCHES = 0.1


def alike(sizes: Sequence[float]) -> bool:
    """Return whether batches are of one size, but for the smaller last ones of an epoch."""
    return not sizes or max(sizes) - min(sizes) <= _SMALLER_LAST_BATCHES * max(sizes)


@dataclass(frozen=True)
class CostToTarget:
    """What it took to reach the target; totals, which are lower bounds, where it was not reached.

    Attributes:
        reached: Whether the target was reached.
        steps: Batches.
        epochs: Whole epochs.
        samples: Examples.
        train_seconds: Training only.
        cost_seconds: Training, set-up and the used share of harvests.
    """

    reached: bool
    steps: float
    epochs: float
    samples: float
    train_seconds: float
    cost_seconds: float


@dataclass(frozen=True)
class Run:
    """One run: its last value, and its cost.

    Attributes:
        run_id: Of the run.
        seed: None if it was not recorded.
        health: ``"ok"`` or ``"diverged"``.
        budget: Label.
        budget_steps: Batches trained.
        final: Last value of the metric.
        to_target: Its own cost to the target; None where runs are not read over their training.
        setup_seconds: Before the first step.
        harvest_seconds: Of the harvests that it used.
    """

    run_id: str
    seed: int | None
    health: str
    budget: str
    budget_steps: float
    final: float
    to_target: CostToTarget | None
    setup_seconds: float
    harvest_seconds: float


@dataclass(frozen=True)
class Point:
    """One group at one budget.

    Attributes:
        budget: Label, ``recipe.max_duration`` where it is recorded ("5ep"), else the number of batches ("400ba").
        steps: Mean number of batches.
        n: Number of runs.
        seeds: Of the runs, ascending; None where a run has none.
        run_ids: Of the runs, in the order of ``seeds``.
        values: Last value of the metric of each run, in the order of ``seeds``; NaN for a diverged run.
        final: Mean of ``values`` with its t interval.
        costs: Cost of a run on each axis, the geometric mean; None where it is not known for all of them.
        on_pareto_front: For each axis, whether no other point of any group is at least as cheap and at least as good,
            and better in one of the two; False where the cost or the mean is not known, and for unused points.
        used: Whether it counts in curves and fronts. With fewer than three runs it does not where the group has three
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
class OverControl:
    """A technique against one of its controls, which does all that it does but for the idea itself.

    Attributes:
        control: Name of the control's group.
        speedups: On each axis where both costs are known, the control's cost to the target divided by the technique's.
        sentence: The verdict in words, on the axis of the comparison.
    """

    control: str
    speedups: dict[Axis, Speedup]
    sentence: str


@dataclass(frozen=True)
class Group:
    """One group of runs against the baseline.

    Attributes:
        name: Value of the grouping key.
        is_baseline: Whether this is the baseline itself.
        control_of: Name of the group that this one is a control of (the tag ``control_of`` of its runs), or None.
        runs: One record per run, by budget, seed and run id.
        points: Its budgets, by ascending number of steps; empty where runs are read over their training.
        final: Mean last value over all runs with its t interval; None over budgets (each point has its own).
        final_difference: The same minus the baseline's, with its interval; None for the baseline and over budgets.
        paired: Whether runs were paired with the baseline's by seed; None for the baseline.
        to_target: At the crossing of its mean curve (method "curves"), or the mean over its runs (method "runs", those
            that did not reach it at their total); None over budgets.
        cost_to_target: Over budgets, where its mean curve reaches the target on each axis, with limits (0 and ``inf``
            where nothing is known); None where the cost is not known.
        target_bound: ``""`` if it reaches the target; ``"<="`` if it is there at its smallest budget already, so its
            cost is at most the estimate; ``">="`` if it does not get there, so its cost is at least the estimate.
        speedups: On each axis where both costs are known, the baseline's cost divided by this group's.
        verdict: Of the axis :attr:`Comparison.judged_by` (of ``steps`` where it is not known); ``"baseline"`` for the
            baseline.
        sentence: The verdict in words, with n and interval.
        break_even: None for the baseline and for groups that used no prior run.
        over_controls: Over budgets, the technique against each of its controls; empty for others.
    """

    name: str
    is_baseline: bool
    control_of: str | None
    runs: list[Run]
    points: list[Point]
    final: Interval | None
    final_difference: Interval | None
    paired: bool | None
    to_target: CostToTarget | None
    cost_to_target: dict[Axis, Interval | None]
    target_bound: Bound
    speedups: dict[Axis, Speedup]
    verdict: str
    sentence: str
    break_even: BreakEven | None
    over_controls: list[OverControl] = dataclasses.field(default_factory=list)

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.runs)

    @property
    def reached(self) -> int:
        """How many runs reached the target on their own."""
        return sum(run.to_target is not None and run.to_target.reached for run in self.runs)

    @property
    def run_ids(self) -> list[str]:
        """Ids of the runs, in the order of ``runs``."""
        return [run.run_id for run in self.runs]

    @property
    def seeds(self) -> list[int | None]:
        """Seeds of the runs, in the order of ``runs``."""
        return [run.seed for run in self.runs]

    @property
    def setup_seconds(self) -> float:
        """Mean set-up of a run."""
        return sum(run.setup_seconds for run in self.runs) / len(self.runs)

    @property
    def harvest_seconds(self) -> float:
        """Mean seconds of harvests that a run used."""
        return sum(run.harvest_seconds for run in self.runs) / len(self.runs)

    @property
    def largest_budget(self) -> str:
        """Label of the largest budget that is used."""
        # At least one is used: a group always uses its budget with the most runs.
        return [point.budget for point in self.points if point.used][-1]

    @property
    def batch_sizes(self) -> list[float]:
        """Mean examples of a step at each budget where they are known."""
        return [samples / point.steps for point in self.points if (samples := point.costs.get("samples")) is not None]

    @property
    def flops_per_example(self) -> float | None:
        """What an example cost on average, in FLOPs; None where that is not known at every budget that is used."""
        # The sum of all over the sum of all: a mean of ratios would weigh a short budget like a long one.
        pairs = [(point.costs.get("flops"), point.costs.get("samples")) for point in self.points if point.used]
        known = [(flops, samples) for flops, samples in pairs if flops is not None and samples is not None]
        return math.fsum(f for f, _ in known) / math.fsum(s for _, s in known) if len(known) == len(pairs) else None


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        archive: Where the runs are.
        archive_id: Identity of that archive; empty where the runs are not from one.
        group_by: The grouping key.
        baseline: Name of the baseline group.
        metric: Full name of the metric.
        mode: Whether more or less of it is better.
        target: Value that counts as reached; NaN where only the ends are compared.
        target_source: ``"given"``, or ``"baseline mean final"``.
        method: ``"curves"`` and ``"runs"`` (:mod:`~reuse_algos.compare.estimates.within_runs`), ``"budgets"``
            (:mod:`~reuse_algos.compare.estimates.over_budgets`) or ``"ends"``.
        confidence: Of every interval, two-sided.
        price_per_hour: Dollars for an hour of the hardware, or None.
        later_runs: Among how many runs ``amortised_seconds`` shares the harvests.
        count_prior_training: Whether ``amortised_seconds`` also shares the training of the prior runs.
        judged_by: The axis of the verdicts.
        groups: The baseline first, then the others by name, each control right after its technique.
        notes: What a reader must know before believing the numbers.
    """

    archive: str
    archive_id: str
    group_by: str
    baseline: str
    metric: str
    mode: Mode
    target: float
    target_source: str
    method: Method
    confidence: float
    price_per_hour: float | None
    later_runs: int
    count_prior_training: bool
    judged_by: Axis
    groups: list[Group]
    notes: list[str]

    @property
    def points(self) -> list[Point]:
        """All points of all groups."""
        return [point for group in self.groups for point in group.points]

    @property
    def shown_axes(self) -> list[Axis]:
        """Axes worth showing, that of the verdicts first.

        Examples say the same as steps, unless batches are of different sizes.
        """
        # Steps and examples tell the same where all batches are of one size.
        same = self.judged_by != "samples" and alike([size for group in self.groups for size in group.batch_sizes])
        shown: list[Axis] = [axis for axis in AXES if axis != "samples" or not same]
        return sorted(shown, key=lambda axis: axis != self.judged_by)

    def group(self, name: str) -> Group:
        """Return the group of this name.

        Raises:
            KeyError: There is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it.

        A number that is not finite becomes None: an estimate that does not exist (NaN), or a limit that is not known
        (infinite). A run whose last value is None ended with NaN or an infinity; its ``health`` says so.
        """
        plain = dataclasses.asdict(self)
        for group, record in zip(self.groups, plain["groups"], strict=True):
            # Properties are not fields, so asdict leaves them out.
            for name in ("n", "reached", "run_ids", "seeds", "setup_seconds", "harvest_seconds"):
                record[name] = getattr(group, name)
            record["censored"] = group.n - group.reached
        return json_safe(plain)


def json_safe(value: Any) -> Any:
    """Return nested data with every float that is not finite replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [json_safe(item) for item in value]
    return value
