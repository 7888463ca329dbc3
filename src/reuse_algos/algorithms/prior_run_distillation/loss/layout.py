"""Teachers' logits in the layout of the task, and what of them can be believed and compared.

Shapes: B rows, C classes or labels, X positions of an example, K kept classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_algos.archive import PriorRun, encode_top_k
from reuse_algos.archive.signals.top_k import top_k_error
from reuse_algos.data.sampler import Examples
from reuse_algos.errors import PriorRunMismatchError
from reuse_algos.training.tasks.recorded_task import task_of
from reuse_algos.training.tasks.task import Rows, Task, mean_of_counted


class Microbatch(NamedTuple):
    """A microbatch after the forward pass.

    Attributes:
        batch: As it was before the forward pass. It is read, and left as it is.
        examples: Its rows of the current data; None where they are not asked for, as by live teachers.
        task: The task.
        rows: The student's outputs and the targets.
    """

    batch: Any
    examples: Examples | None
    task: Task
    rows: Rows


# Of the kept classes' probability that `top_k` may misplace, as a mean over rows: 1/20 of the teacher's answer.
_MOST_ERROR = 0.05


def in_layout(task: Task, logits: Tensor, like_BCX: Tensor) -> Tensor:
    """Bring a teacher's logits, as its model gave them, into the layout of the task.

    Unlike :meth:`Task.rows <reuse_algos.training.tasks.task.Task.rows>` it takes another number of classes where
    they lie in dimension 1.

    Args:
        task: Of the student.
        logits: ``[B, C, X]``, ``[B, X, C]``, ``[B, C]`` or ``[B]``.
        like_BCX: The student's, in the layout.

    Returns:
        Float ``[B, C, X]``.
    """
    if logits.dim() == 1 or (task.class_dim == 0 and logits.dim() + 1 == like_BCX.dim()):
        return logits.unsqueeze(1)
    # A shifted task leaves out the last position, which predicts a token that the batch does not have.
    places = like_BCX.shape[2] + int(task.shift) if like_BCX.dim() > 2 else None
    if task.class_dim == -1 and places is not None and logits.shape[1:] == (places, like_BCX.shape[1]):
        logits = logits.movedim(-1, 1)
    return logits[:, :, :-1] if task.shift and logits.shape[2] == places else logits


def at_size(logits_BCX: Tensor, like_BCX: Tensor) -> Tensor:
    """Return maps of logits at the size of the student's; those that were archived smaller are interpolated.

    Args:
        logits_BCX: ``[B, C, h, w]``, or logits without a height and a width, which stay as they are.
        like_BCX: The student's, ``[B, C, H, W]``.
    """
    # Recorded maps are means over cells, so they are smaller than the student's. Larger ones are of another task, and
    # stay as they are: the comparison of shapes refuses them.
    sizes = logits_BCX.shape[2:], like_BCX.shape[2:]
    if len(sizes[0]) != 2 or len(sizes[1]) != 2 or any(a > b for a, b in zip(*sizes, strict=True)):
        return logits_BCX
    if sizes[0] == sizes[1]:
        return logits_BCX
    return F.interpolate(logits_BCX.float(), sizes[1], mode="bilinear", align_corners=False)


def at_smaller_size(logits_BCX: Tensor, like_BCX: Tensor) -> Tensor:
    """Return maps of logits as they are archived at a smaller size: each cell is the mean of its pixels.

    Args:
        logits_BCX: ``[B, C, H, W]``, or logits without a height and a width, which stay as they are.
        like_BCX: ``[B, C, h, w]``.
    """
    maps = logits_BCX.dim() == like_BCX.dim() == 4 and logits_BCX.shape != like_BCX.shape
    height, width = like_BCX.shape[-2:]
    return F.adaptive_avg_pool2d(logits_BCX.float(), (height, width)) if maps else logits_BCX


def refuse_other_task(task: Task, runs: Sequence[PriorRun]) -> None:
    """Refuse prior runs that recorded another task; those that recorded none are not asked.

    Raises:
        PriorRunMismatchError: A run's outputs mean something else than this run's.
    """
    for run in runs:
        theirs = task_of(run.manifest)
        # The number of classes may differ here: only common classes are compared.
        if theirs is not None and (theirs.kind, theirs.shift) != (task.kind, task.shift):
            words = Task(task.kind, 1, shift=task.shift).difference(Task(theirs.kind, 1, shift=theirs.shift))
            raise PriorRunMismatchError(
                f"run {run.id} was trained on another task: {words}. Choose other runs, or set keys: {{task: {{kind: "
                "...}} where this run's was found wrongly."
            )


def refuse_other_shape(name: str, teacher_BC: Tensor, student_BC: Tensor) -> None:
    """Refuse logits of a teacher that cannot be compared with the student's.

    Raises:
        PriorRunMismatchError: Their shapes differ.
    """
    if teacher_BC.shape != student_BC.shape:
        raise PriorRunMismatchError(
            f"teacher {name} gives logits of shape {tuple(teacher_BC.shape)}, the student of shape "
            f"{tuple(student_BC.shape)} (dimension 1 is the classes). They must be alike."
        )


def check_top_k(name: str, logits_BC: Tensor, kept: int, temperature: float) -> None:
    """Refuse targets of which only the largest logits are archived where the temperature makes too little of them.

    Args:
        name: Of the teacher.
        logits_BC: Decoded: the classes that were not kept share the mass of the rest.
        kept: K.
        temperature: T.

    Raises:
        PriorRunMismatchError: More than 5 % of the kept classes' probability may be misplaced, as a mean over rows.
    """
    if temperature <= 1:
        return  # the kept mass is exact at 1, and the rest counts less below
    parts = encode_top_k(logits_BC, kept)
    error = float(top_k_error(parts["values"], parts["rest"], logits_BC.shape[1], temperature).mean())
    if error > _MOST_ERROR:
        raise PriorRunMismatchError(
            f"teacher {name} has its {kept} largest logits of {logits_BC.shape[1]} archived (top_k). At temperature "
            f"{temperature:g} up to {error:.0%} of their probability may be misplaced, more than {_MOST_ERROR:.0%}. "
            "Use a temperature nearer to 1, a larger top_k, dense logits (`reuse-algos harvest`) or source: live."
        )


def right_answers(task: Task, rows: Rows, target_BC: Tensor, yes_BC: Tensor, seen_B: Tensor | None) -> Tensor | None:
    """Return how many rows of a microbatch there are, and how many the student and its teachers answer rightly.

    Args:
        task: The task.
        rows: The student's outputs and the targets, of all classes.
        target_BC: The teachers' probabilities or logits, of the same classes.
        yes_BC: Labels that the teachers say yes to, for binary and multilabel tasks.
        seen_B: Rows that have a target of the teachers; None: all.

    Returns:
        Float32 ``[3]`` over the rows that the teachers know; None for regression, or without targets.
    """
    if rows.targets is None or not (task.is_softmax or task.is_sigmoid):
        return None
    # Task.correct reads the sign of a logit: a yes is above 0.
    theirs = rows._replace(logits_BCX=target_BC if task.is_softmax else yes_BC.float() - 0.5)
    right_B, taught_B = task.correct(rows).float(), task.correct(theirs).float()
    seen_B = torch.ones_like(right_B) if seen_B is None else seen_B.float()
    return torch.stack([seen_B.sum(), (right_B * seen_B).sum(), (taught_B * seen_B).sum()])


def agreement(
    task: Task, student_BC: Tensor, target_BC: Tensor, yes_BC: Tensor, counted_BX: Tensor | None
) -> Tensor | None:
    """Return the share of each row's counted positions (or labels) where student and teachers answer the same.

    Args:
        task: The task.
        student_BC: Logits ``[B, C, X]``.
        target_BC: The teachers' probabilities or logits.
        yes_BC: Labels that the teachers say yes to, for binary and multilabel tasks.
        counted_BX: What counts; None: everything.

    Returns:
        Float32 ``[B]``, NaN for a row in which nothing counts; None for regression, where no answers are the same.
    """
    if task.is_softmax:
        same = student_BC.argmax(1) == target_BC.argmax(1)
    elif task.is_sigmoid:
        same = (student_BC > 0) == yes_BC
    else:
        return None
    return mean_of_counted(same.float(), counted_BX, empty=torch.nan)
