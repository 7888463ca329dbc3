"""Runs that the archive already holds of a sequence's steps, so that they need not be trained again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.errors import SignalNotFoundError
from reuse_algos.predict.history import schedule_of
from reuse_algos.sequence.planning.order import fingerprint, queries_of, reuses
from reuse_algos.sequence.planning.plan import Plan
from reuse_algos.sequence.planning.step import PlannedStep

_END = re.compile(r"([0-9]+)(ep|ba)")


def held_runs(plan: Plan, archive: RunArchive) -> dict[str, PriorRun]:
    """Return the runs of other studies that are what steps of a plan would train.

    Steps that reuse runs, are reused, or are harvested, are always trained.

    Args:
        plan: The sequence.
        archive: Where the runs are.

    Returns:
        Title of the step -> its run, the first one of several.
    """
    alone = [step for step in plan.steps if _stands_alone(step, plan.steps)]
    same: dict[str, PriorRun] = {}
    longer: dict[str, list[PriorRun]] = {}
    for run in archive.runs(order="first") if alone else ():
        record = run.manifest.recipe
        if record is not None and run.tags.get("sequence") != plan.config.name:
            # The first one of several, so that the choice does not change when others are added.
            same.setdefault(fingerprint(record), run)
            # Under a constant learning rate a longer run is, at the step's end, what a run of that length would be.
            if schedule_of(record) == "constant":
                longer.setdefault(_without_end(record), []).append(run)
    found: dict[str, PriorRun] = {}
    for step in alone:
        record = step.recipe.record
        curves = longer.get(_without_end(record), []) if schedule_of(record) == "constant" else []
        read = (run for run in curves if value_at_end(run, step, plan.config.metric) is not None)
        # Of a longer run only the value at the step's end is the step's, so an equal one comes first.
        run = same.get(fingerprint(record)) or next(read, None)
        if run is not None:
            found[step.title] = run
    return found


def value_at_end(run: PriorRun, step: PlannedStep, metric: str | None) -> float | None:
    """Return a run's metric at the end of a step; None where it was not evaluated there.

    Args:
        run: It trained as long as the step, or longer.
        step: The step.
        metric: Full name or last part of it. Default: None, the run's monitor.
    """
    # Metrics are archived by epoch and step, so a duration in other units cannot be found in them.
    end = _END.fullmatch(str(step.recipe.settings.max_duration))
    if end is None:
        return None
    try:
        rows = run.metric(metric or run.manifest.monitor or "")
    except SignalNotFoundError:
        return None
    at = np.asarray(rows.epoch if end[2] == "ep" else rows.step)
    hits = np.flatnonzero(at == int(end[1]))
    # The first row at this count of epochs is the evaluation at its end; a later one is inside the next epoch.
    return float(rows.value[hits[0]]) if hits.size else None


def _stands_alone(step: PlannedStep, steps: Sequence[PlannedStep]) -> bool:
    # What others look up by its tags has to carry the tags of this sequence.
    return not step.harvests and not queries_of(step) and not any(reuses(other, step) for other in steps)


def _without_end(record: Mapping[str, Any]) -> str:
    return fingerprint({key: value for key, value in record.items() if key != "max_duration"})
