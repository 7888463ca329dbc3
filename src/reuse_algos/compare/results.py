"""The result of a comparison as plain data: one record per run, per group, and for the whole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reuse_algos.compare.outcomes import Mode
from reuse_algos.compare.statistics import Interval, Speedup

__all__ = ["BreakEven", "Comparison", "CostToTarget", "GroupResult", "RunResult", "json_safe"]

Method = Literal["curves", "runs"]


@dataclass(frozen=True)
class CostToTarget:
    """What it took to reach the target, on every axis; totals where the target was not reached (``reached`` False).

    Attributes:
        reached: whether the target was reached; if not, all numbers are lower bounds.
        steps: batches.
        epochs: whole epochs.
        samples: examples.
        train_seconds: training only.
        cost_seconds: training, set-up and the used share of harvests.
    """

    reached: bool
    steps: float
    epochs: float
    samples: float
    train_seconds: float
    cost_seconds: float


@dataclass(frozen=True)
class RunResult:
    """One run: its final metric, its own (censored) cost to the target, and the parts of its cost in seconds."""

    run_id: str
    seed: int | None
    health: str
    budget_steps: int
    final: float
    to_target: CostToTarget
    setup_seconds: float
    harvest_seconds: float


@dataclass(frozen=True)
class BreakEven:
    """After how many later runs like these the work done beforehand is paid back.

    Each number is what was spent once, divided by what one later run saves against the baseline when it gets that work
    for free. It is ``inf`` where nothing is saved, NaN where the target was not reached or the cost is not known. Its
    limits are those of the saving: of the speed-up in all costs, with the baseline's cost taken as it was measured.

    Attributes:
        harvest_seconds: mean seconds of harvest that a run used.
        harvest_runs: later runs until the harvest alone is paid back, with limits.
        prior_training_seconds: training and set-up of all prior runs that the group used; NaN if one of them cannot be
            read.
        prior_training_runs: later runs until harvest and prior runs are paid back, with limits: counts if the prior
            runs were trained only for this.
        saving_shown: whether the group is "faster" in seconds of all costs; otherwise it may pay nothing back at all.
    """

    harvest_seconds: float
    harvest_runs: Interval
    prior_training_seconds: float
    prior_training_runs: Interval
    saving_shown: bool

    @staticmethod
    def of(harvest: float, prior: float, baseline_seconds: float, in_seconds: Speedup | None) -> BreakEven:
        """From seconds of harvest and prior training, and how much less than the baseline a run costs.

        Args:
            harvest: mean seconds of harvest per run; they are in the run's costs.
            prior: seconds of all prior runs.
            baseline_seconds: all costs of the baseline; NaN where they are not known.
            in_seconds: the speed-up in all costs; None, or a bound, where it is not known.
        """
        ratios = 3 * (math.nan,)
        if in_seconds is not None and in_seconds.bound == "":
            ratios = in_seconds.estimate, in_seconds.low, in_seconds.high
        saved = [harvest + baseline_seconds * (1.0 - (1.0 / ratio if ratio else math.inf)) for ratio in ratios]

        def runs_until_paid(spent: float) -> Interval:
            middle, most, least = (_quotient(spent, saving) for saving in saved)
            return Interval(middle, least, most)

        shown = in_seconds is not None and in_seconds.verdict == "faster"
        return BreakEven(harvest, runs_until_paid(harvest), prior, runs_until_paid(harvest + prior), shown)


def _quotient(spent: float, saving: float) -> float:
    """Runs until ``spent`` is paid back; ``inf`` where nothing is saved."""
    if math.isnan(spent) or math.isnan(saving):
        return math.nan
    if spent <= 0:
        return 0.0
    return spent / saving if saving > 0 else math.inf


@dataclass(frozen=True)
class GroupResult:
    """One group of runs against the baseline.

    Attributes:
        name: value of the grouping key.
        is_baseline: whether this is the baseline itself.
        n: number of runs.
        runs: one record per run, by seed and run id.
        final: mean final metric with its t interval.
        final_difference: mean final metric minus the baseline's, with its interval; None for the baseline.
        paired: whether runs were paired with the baseline's by seed; None for the baseline.
        reached: how many runs reached the target on their own.
        censored: how many did not; they are counted at their total cost.
        to_target: of the group: at the crossing of its mean curve (method "curves"), or the mean over its runs,
            censored ones at their total (method "runs").
        speedup_steps: against the baseline, in steps; None for the baseline.
        speedup_cost: the same in seconds with every cost counted; None for the baseline, or if a run has no recorded
            time.
        verdict: of ``speedup_cost`` (of ``speedup_steps`` if there are no seconds); ``"baseline"`` for the baseline.
        setup_seconds: mean per run.
        harvest_seconds: mean per run.
        break_even: see :class:`BreakEven`; None for the baseline and for groups that used no prior run.
    """

    name: str
    is_baseline: bool
    n: int
    runs: list[RunResult]
    final: Interval
    final_difference: Interval | None
    paired: bool | None
    reached: int
    censored: int
    to_target: CostToTarget
    speedup_steps: Speedup | None
    speedup_cost: Speedup | None
    verdict: str
    setup_seconds: float
    harvest_seconds: float
    break_even: BreakEven | None

    @property
    def run_ids(self) -> list[str]:
        """Ids of the runs, in the order of ``runs``."""
        return [run.run_id for run in self.runs]

    @property
    def seeds(self) -> list[int | None]:
        """Seeds of the runs, in the order of ``runs``."""
        return [run.seed for run in self.runs]


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        archive: where the runs are.
        archive_id: identity of that archive.
        group_by: the grouping key.
        baseline: name of the baseline group.
        metric: full name of the metric.
        mode: whether more or less of it is better.
        target: value that counts as reached.
        target_source: ``"given"``, or ``"baseline mean final"``.
        method: ``"curves"`` or ``"runs"``, see :mod:`reuse_algos.compare.curves` and
            :func:`reuse_algos.compare.statistics.speedup_of_runs`.
        confidence: of every interval, two-sided.
        groups: the baseline first, then the others by name.
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
    method: Method
    confidence: float
    groups: list[GroupResult]
    notes: list[str]

    def group(self, name: str) -> GroupResult:
        """The group of this name; KeyError if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it.

        A number that is not finite becomes None: an estimate that does not exist (NaN), or a limit that is not known
        (infinite). A run whose final metric is None ended with NaN or an infinity; its ``health`` says so.
        """
        plain = dataclasses.asdict(self)
        for group, record in zip(self.groups, plain["groups"], strict=True):
            record.update(run_ids=group.run_ids, seeds=group.seeds)
        return json_safe(plain)


def json_safe(value: Any) -> Any:
    """Copy nested data with every float that is not finite replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [json_safe(item) for item in value]
    return value
