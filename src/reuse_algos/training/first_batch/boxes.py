"""Whether a batch is a detector's, and what can be done there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reuse_algos.errors import TaskError
from reuse_algos.training.tasks.task import TaskSettings


def has_boxes(batch: Any) -> bool:
    """Return whether a batch is a detector's: one of its parts is a sequence of mappings with boxes.

    Args:
        batch: As the DataLoader gives it.

    >>> has_boxes(([], [{"boxes": [[0, 0, 4, 4]], "labels": [1]}]))
    True
    >>> has_boxes({"input_ids": [[1, 2]], "labels": [0]})
    False
    """
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    else:
        parts = list(batch) if isinstance(batch, list | tuple) else []
    return any(
        isinstance(part, list | tuple)
        and bool(part)
        and all(isinstance(one, Mapping) and "boxes" in one for one in part)
        for part in parts
    )


def refuse_boxes(batch: Any, settings: TaskSettings | None = None) -> None:
    """Refuse a detector's batch where something reads one tensor of outputs and one of targets.

    Args:
        batch: As the DataLoader gives it.
        settings: What is taken as given of the task. Default: nothing.

    Raises:
        TaskError: The batch has boxes, or the task is set to detection.
    """
    # Before outputs or targets are looked for: the advice to name their place would lead nowhere.
    if (settings is not None and settings.kind == "detection") or has_boxes(batch):
        raise TaskError(
            "this is not defined for the task detection: the answers of a detector are boxes in any number and order, "
            "and not one tensor. Detectors are served by MixTraining (from signals boxes,gt_scores, which "
            "reuse-algos harvest fills), FeatureDistillation and PriorRunWarmStart; RunRecorder without signals "
            "archives their runs."
        )
