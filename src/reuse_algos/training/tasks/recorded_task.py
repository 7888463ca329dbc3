"""The task as an archived run has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from reuse_algos.archive import Manifest, TaskRecord
from reuse_algos.errors import TaskError
from reuse_algos.training.tasks.task import KINDS, Kind, Task


def record_of(task: Task) -> TaskRecord:
    """Return what the manifest keeps of a task."""
    return TaskRecord(
        kind=task.kind,
        num_classes=task.num_classes,
        class_dim=task.class_dim,
        ignore_index=task.ignore_index,
        shift=task.shift,
    )


def task_of(manifest: Manifest) -> Task | None:
    """Return the task of an archived run, or None where its record has none (format 1.1 and older).

    Raises:
        TaskError: A newer version recorded a kind of task that this one does not know.
    """
    found = manifest.task
    if found is None:
        return None
    if found.kind not in KINDS or found.class_dim not in (-1, 0, 1) or found.num_classes < 1:
        raise TaskError(
            f"run {manifest.run_id} has a task that this version does not know: kind {found.kind!r}, class dimension "
            f"{found.class_dim}, {found.num_classes} classes. Known kinds: {', '.join(KINDS)}. Upgrade reuse_algos."
        )
    return Task(
        cast(Kind, found.kind), found.num_classes, found.class_dim, found.ignore_index, found.shift, "as recorded"
    )


def refuse_other_task(run_id: str, task: TaskRecord | None, who: str, kinds: Sequence[str]) -> None:
    """Refuse a prior run whose recorded task is none of some kinds, before it is asked for what it cannot have.

    Args:
        run_id: For the message.
        task: As recorded; None, which the runs of detectors and old ones have, is refused nowhere.
        who: What is defined for these kinds only.
        kinds: Of tasks.

    Raises:
        TaskError: It is another one.
    """
    if task is not None and task.kind not in kinds:
        raise TaskError(
            f"{who} is defined for {' and '.join(kinds)}, and run {run_id} was trained for the task {task.kind!r}. "
            f"Leave {who} out, or choose another prior run."
        )
