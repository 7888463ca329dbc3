"""What the comparison takes from each archived run: its group, its metric over time, and every cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from reuse_algos.compare.statistics import FloatArray, Hit
from reuse_algos.errors import CompareError, SignalNotFoundError, nearest

if TYPE_CHECKING:
    from reuse_algos.archive import PriorRun

__all__ = ["GROUP_KEYS", "Mode", "RunOutcome", "choose_metric", "group_of", "read_outcome"]

Mode = Literal["max", "min"]

GROUP_KEYS = "tags.<key>, run_name, model.name, dataset.name, seed or recipe.<dotted path>"


@dataclass(frozen=True)
class RunOutcome:
    """One run's metric and cost over time. All arrays have one entry per evaluation [K], in order of steps.

    Attributes:
        run_id: the run.
        seed: its seed, None if it was not recorded.
        health: as in its manifest; a diverged run stays in the comparison.
        steps: batches trained so far, int64, strictly ascending.
        samples: examples trained so far.
        epochs: whole epochs trained so far.
        train_seconds: training time so far, evaluation excluded.
        values: the metric, NaN and infinities kept.
        setup_seconds: spent before the first step.
        harvest_seconds: spent on harvests of prior runs that this run used, counted in full.
        prior_run_ids: the runs that it used.
        manifest: of the run, for checks of what else differs.
    """

    run_id: str
    seed: int | None
    health: str
    steps: npt.NDArray[np.int64]
    samples: npt.NDArray[np.int64]
    epochs: npt.NDArray[np.int64]
    train_seconds: FloatArray
    values: FloatArray
    setup_seconds: float
    harvest_seconds: float
    prior_run_ids: tuple[str, ...]
    manifest: Any

    @property
    def upfront_seconds(self) -> float:
        """Cost before the first step: set-up and harvest."""
        return self.setup_seconds + self.harvest_seconds

    @property
    def cost_seconds(self) -> FloatArray:
        """Whole cost [K] at each evaluation: training, set-up and harvest."""
        return self.train_seconds + self.upfront_seconds

    @property
    def budget(self) -> int:
        """Steps at the last evaluation."""
        return int(self.steps[-1])

    @property
    def final(self) -> float:
        """Metric at the last evaluation."""
        return float(self.values[-1])

    def first_at(self, target: float, mode: Mode) -> int | None:
        """Index of the first evaluation at or beyond ``target``; None if there is none. NaN is never beyond."""
        reached = self.values >= target if mode == "max" else self.values <= target
        reached &= np.isfinite(self.values)
        return int(np.argmax(reached)) if reached.any() else None

    def hit(self, target: float, mode: Mode, axis: Literal["steps", "cost"]) -> Hit:
        """When the run reached ``target``, in steps or in seconds of cost; censored at its total if it never did."""
        costs = self.steps.astype(np.float64) if axis == "steps" else self.cost_seconds
        k = self.first_at(target, mode)
        if k is None:
            return Hit(before=float(costs[-1]), at=float(costs[-1]), reached=False)
        start = 0.0 if axis == "steps" else self.upfront_seconds
        return Hit(before=float(costs[k - 1]) if k else start, at=float(costs[k]), reached=True)


def _look_up(run: PriorRun, path: str) -> object:
    head, _, rest = path.partition(".")
    manifest = run.manifest
    if head == "tags" and rest:
        return manifest.tags.get(rest)
    if path in ("run_name", "seed"):
        return getattr(manifest, path)
    if path in ("model.name", "dataset.name"):
        record = getattr(manifest, head)
        return None if record is None else record.name
    if head == "recipe" and rest:
        node: object = manifest.recipe
        for part in rest.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node
    raise CompareError(f"runs cannot be grouped by {path!r}: use {GROUP_KEYS}, or several of them with commas between")


def group_of(run: PriorRun, group_by: str) -> str | None:
    """Name of the run's group, or None if it lacks a value.

    ``group_by`` is one of :data:`GROUP_KEYS`, or several joined by commas; the name then joins the values with " / ".

    Raises:
        CompareError: ``group_by`` names something else.
    """
    values = [_look_up(run, path.strip()) for path in group_by.split(",")]
    return None if any(value is None for value in values) else " / ".join(str(value) for value in values)


def choose_metric(runs: Sequence[PriorRun], metric: str | None) -> str:
    """Full name of the metric to compare by.

    Args:
        runs: all runs of the comparison.
        metric: a full name, or its last part if that is unique; None takes the monitor that all runs share.

    Raises:
        CompareError: no common monitor, or an unknown or ambiguous name.
    """
    known = sorted({name for run in runs for name in run.metric_names})
    if metric is None:
        monitors = sorted({run.manifest.monitor or "" for run in runs})
        if len(monitors) == 1 and monitors[0]:
            return monitors[0]
        said = "no run names one" if monitors == [""] else "the runs name " + ", ".join(m or "none" for m in monitors)
        raise CompareError(f"which metric? There is no common monitor ({said}). Known metrics: {', '.join(known)}")
    if metric in known:
        return metric
    ends = [name for name in known if name.endswith("/" + metric)]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise CompareError(f"metric {metric!r} is ambiguous: {', '.join(ends)}")
    raise CompareError(f"no run has a metric {metric!r}." + nearest(metric, known))


def read_outcome(run: PriorRun, metric: str) -> RunOutcome | None:
    """Read one run; None if it has no value of ``metric`` (its full name).

    Where a step was evaluated more than once, as at the end of an epoch and of the run, the last evaluation counts.
    """
    try:
        history = run.metric(metric)
    except SignalNotFoundError:
        return None
    step = np.asarray(history.step, dtype=np.int64)
    if step.size == 0:
        return None
    # np.unique gives first occurrences, so look from the end.
    _, from_end = np.unique(step[::-1], return_index=True)
    keep = step.size - 1 - from_end
    manifest = run.manifest
    return RunOutcome(
        run_id=run.id,
        seed=manifest.seed,
        health=manifest.health,
        steps=step[keep],
        samples=np.asarray(history.sample, dtype=np.int64)[keep],
        epochs=np.asarray(history.epoch, dtype=np.int64)[keep],
        train_seconds=np.asarray(history.train_seconds, dtype=np.float64)[keep],
        values=np.asarray(history.value, dtype=np.float64)[keep],
        setup_seconds=manifest.cost.setup_seconds,
        harvest_seconds=sum((use.harvest_seconds for use in manifest.prior_runs), 0.0),
        prior_run_ids=tuple(sorted({use.run_id for use in manifest.prior_runs})),
        manifest=manifest,
    )
