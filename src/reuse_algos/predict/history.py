"""Archived runs as the plain records that forecasts and sweeps read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.archive.format.metrics import resolve_metric
from reuse_algos.errors import NotEnoughEvidenceError, SignalNotFoundError, nearest

TRAIN_LOSS = "loss/train/total"

_CONSTANT = ("constant", "constant_with_warmup")


@dataclass(frozen=True)
class History:
    """One archived run, as much of it as forecasts need.

    Attributes:
        run_id: Of the run.
        name: Name that its user gave it.
        metric: Full name of the metric.
        mode: Whether more or less of the metric is better.
        steps: Step of each row, float64 ``[N]``, ascending.
        values: The metric, float64 ``[N]``.
        seconds: Seconds of training up to each row, float64 ``[N]``.
        end_step: Steps that were trained in all.
        train_seconds: Seconds of training in all.
        finished: Whether the run ended by itself.
        diverged: Whether its record says so, or a value is not finite.
        schedule: What the recipe says of the learning rate: ``constant``, ``decayed``, or ``unknown`` without a recipe.
        hardware: Name of the hardware; empty where it is not recorded.
        workers: Number of processes.
        local_workers: Those of one machine; None where it is not recorded.
        room: Processes of one machine that have hardware of their own: one for each GPU, and without a GPU as many
            as the cores allow with the threads of one. None where it is not recorded.
        servers: Parameter servers, as the tag ``servers`` says; None without it.
        batch: Examples of a step, as trained.
        num_examples: Of the training data; None where it is not recorded.
        flops_per_example: Of a forward pass; None where it is not recorded.
        model: Name of the model.
        recipe: Settings of the run.
    """

    run_id: str
    name: str
    metric: str
    mode: Literal["max", "min"]
    steps: NDArray[np.float64]
    values: NDArray[np.float64]
    seconds: NDArray[np.float64]
    end_step: float
    train_seconds: float
    finished: bool = True
    diverged: bool = False
    schedule: Literal["constant", "decayed", "unknown"] = "unknown"
    hardware: str = ""
    workers: int = 1
    local_workers: int | None = None
    room: int | None = None
    servers: int | None = None
    batch: float = math.nan
    num_examples: int | None = None
    flops_per_example: float | None = None
    model: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps_per_second(self) -> float:
        """Speed of training over the whole run; NaN where no time was recorded."""
        return self.end_step / self.train_seconds if self.train_seconds > 0 else math.nan

    @property
    def shares_hardware(self) -> bool:
        """Whether the processes of a machine had to share its cores, so that each was slower than one alone."""
        if self.room is None:
            return False
        # Composer gives each process of a machine a GPU of its own; a record without a number is of one machine.
        return (self.workers if self.local_workers is None else self.local_workers) > self.room

    def losses(self) -> NDArray[np.float64]:
        """Return the values as something that falls towards a floor: a loss as it is, an accuracy as its error.

        Raises:
            NotEnoughEvidenceError: More of the metric is better, and it is not a share in [0, 1].
        """
        if self.mode == "min":
            return self.values
        least, most = float(np.nanmin(self.values)), float(np.nanmax(self.values))
        if least < 0 or most > 1:
            raise NotEnoughEvidenceError(
                f"{self.metric} of run {self.run_id} goes from {least:.4g} to {most:.4g}: only losses, and shares "
                "between 0 and 1 such as accuracies, have a curve to predict"
            )
        return 1.0 - self.values


def history_of(run: PriorRun, metric: str | None = None) -> History:
    """Read one run.

    Args:
        run: Of an archive.
        metric: Full name, or the last part of it; ``monitor`` is the one by which the run is ordered. Default: the
            training loss, ``loss/train/total``.

    Raises:
        SignalNotFoundError: The run has no such metric, or several.
    """
    said = run.manifest
    # The training loss is logged at every step; a monitor once for each evaluation.
    name = (said.monitor or metric) if metric == "monitor" else metric or TRAIN_LOSS
    full = resolve_metric(name or TRAIN_LOSS, run.metric_names, f"run {run.id} has")
    rows = run.metric(full)
    hardware = said.environment.hardware if said.environment else {}
    values_N = np.asarray(rows.value, dtype=np.float64)
    steps = float(said.progress.batch)
    return History(
        run_id=run.id,
        name=run.run_name,
        metric=full,
        mode=run.metric_mode(full),
        steps=np.asarray(rows.step, dtype=np.float64),
        values=values_N,
        seconds=np.asarray(rows.train_seconds, dtype=np.float64),
        end_step=steps,
        train_seconds=said.cost.train_seconds,
        finished=run.finished,
        # An evaluation can be NaN while the loss of training stays finite.
        diverged=run.health == "diverged" or not bool(np.isfinite(values_N).all()),
        schedule=schedule_of(said.recipe),
        hardware=str(hardware.get("name") or ""),
        workers=int(hardware.get("world_size") or 1),
        local_workers=_whole(hardware.get("local_world_size")),
        room=room_of(hardware),
        servers=_servers(run),
        # The mean, as a last batch may be smaller.
        batch=said.progress.sample / steps if steps else math.nan,
        num_examples=said.dataset.num_examples if said.dataset else None,
        flops_per_example=said.model.flops_per_example if said.model else None,
        model=said.model.name if said.model else "",
        recipe=said.recipe or {},
    )


def room_of(hardware: Mapping[str, Any]) -> int | None:
    """Return how many processes of one machine have hardware of their own, or None where the record does not say.

    Args:
        hardware: Of a run's record: ``gpu_count``, ``cpu_count`` and ``threads`` of one process. Where the threads are
            not recorded, they are as many as the cores, which is torch's default.
    """
    gpus, cores, threads = (_whole(hardware.get(key)) for key in ("gpu_count", "cpu_count", "threads"))
    if gpus:
        # More processes than GPUs cannot be told from several machines where their number is not recorded.
        return gpus if "local_world_size" in hardware else None
    return None if cores is None else max(1, cores // (threads or cores))


def _whole(value: Any) -> int | None:
    """Return a number from 1, or None: records may come from others."""
    return int(value) if isinstance(value, int | float) and value >= 1 else None


def _servers(run: PriorRun) -> int | None:
    # Tags are free words: one that is not a number is about something else.
    said = re.fullmatch(r"[1-9][0-9]{0,5}", run.tags.get("servers", ""))
    return None if said is None else int(said[0])


def planned_end(run: PriorRun) -> float | None:
    """Return the step at which a run's recipe ends it; None where the recipe and the rows do not say.

    Args:
        run: Of an archive. It may still train, or have been stopped.
    """
    found = re.fullmatch(r"([1-9][0-9]*)(ep|ba|)", str((run.manifest.recipe or {}).get("max_duration")))
    if found is None:
        return None
    if found[2] == "ba":
        return float(found[1])
    if TRAIN_LOSS not in run.metric_names:
        return None
    # This loss is archived at the end of each epoch, so drop_last and the number of ranks are in its steps already.
    rows = run.metric(TRAIN_LOSS)
    known = len(rows.step) and rows.epoch[-1] > 0
    return float(found[1]) * float(rows.step[-1]) / float(rows.epoch[-1]) if known else None


def histories(
    archive: RunArchive,
    metric: str | None = None,
    *,
    tags: Mapping[str, object] | None = None,
    unfinished: bool = False,
) -> list[History]:
    """Read all runs of an archive that have a metric, in the order in which they were started.

    Diverged runs are among them, and say so.

    Args:
        archive: To read.
        metric: Full name, or the last part of it. Default: the training loss.
        tags: Of the runs, only those with these. Default: None.
        unfinished: Also read runs that have not ended. Default: False.

    Raises:
        NotEnoughEvidenceError: No run has the metric.
        SignalNotFoundError: A run has several metrics of this name.
    """
    found: list[History] = []
    runs = archive.runs(tags=tags, order="first", unfinished=unfinished, unhealthy=True)
    for run in runs:
        try:
            found.append(history_of(run, metric))
        except SignalNotFoundError:
            # A run without the metric is left out; an ambiguous name is an error of the caller.
            if any(name.endswith(f"/{metric}") for name in run.metric_names):
                raise  # several metrics end so, and the message lists them
    if not found:
        names = sorted({name for run in runs for name in run.metric_names})
        raise NotEnoughEvidenceError(
            f"none of {len(runs)} runs in {archive.location} has the metric {metric or TRAIN_LOSS!r}."
            + (nearest(metric or TRAIN_LOSS, names) if names else "")
        )
    return found


def recipe_value(recipe: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path of a recipe, such as ``optimizer.lr``; None where there is none."""
    value: Any = recipe
    for part in path.removeprefix("recipe.").split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def schedule_of(recipe: Mapping[str, Any] | None) -> Literal["constant", "decayed", "unknown"]:
    """Return what a recipe says of the learning rate; ``unknown`` without a recipe, or without an optimizer in it."""
    if recipe is None or "optimizer" not in recipe:
        return "unknown"
    scheduler = recipe.get("scheduler")
    name = scheduler.get("name") if isinstance(scheduler, Mapping) else scheduler
    return "constant" if name is None or name in _CONSTANT else "decayed"
