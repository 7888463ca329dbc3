"""Where inputs, targets and ids lie in a batch and logits in the model's outputs, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from composer.utils.batch_helpers import batch_get

from reuse_algos.training.tasks.task import TaskSettings


@dataclass(frozen=True)
class BatchKeys:
    """Keys into a batch and into the model's outputs.

    Attributes:
        input: Where the inputs lie in a batch. Default: 0, the first of a pair.
        target: Where the targets lie in a batch. Default: 1, or what is called ``labels``, ``label``, ``targets``,
            ``target`` or ``y`` in a mapping. Parts within parts are named with dots:
            ``out.classes``.
        output: Where the logits lie in the model's outputs. Default: the tensor itself, or what is called ``logits``.
        ids: Where the example ids lie in a batch, for iterable datasets. Default: none; the batch sampler is followed.
        views: Where the view numbers lie in a batch, beside ``ids``. Default: none; a dataset has one view, or unknown
            ones.
        mask: Where a mask of the targets lies in a batch, of their shape: 1 for those that count. Default: found, as
            the tensor of zeros and ones whose zeros (or ones) are the targets at which the loss has no gradient.
        task: :class:`~reuse_algos.training.tasks.task.TaskSettings`, what is taken as given of the task. Default: it is
            found from the first batch.
    """

    input: str | int = 0
    target: str | int = 1
    output: str | int | None = None
    ids: str | int | None = None
    views: str | int | None = None
    mask: str | int | None = None
    task: TaskSettings = field(default_factory=TaskSettings)


def part_of(batch: Any, key: str | int) -> Any:
    """Return what lies in a batch under a key, or within its parts where the key has dots.

    Args:
        batch: A mapping, a sequence, or an object with attributes.
        key: Of one of its parts, or a path such as ``out.classes``.

    Raises:
        KeyError, IndexError, TypeError, AttributeError: Nothing lies there.

    >>> part_of({"out": [{"classes": 3}]}, "out.0.classes")
    3
    """
    try:
        return batch_get(batch, key)
    except (KeyError, IndexError, TypeError, AttributeError):
        if not isinstance(key, str) or "." not in key:
            raise
    steps = (int(step) if step.isdigit() else step for step in key.split("."))
    return reduce(batch_get, steps, batch)
