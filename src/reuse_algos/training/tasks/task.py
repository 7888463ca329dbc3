"""The task: what kind of learning problem a Trainer trains, and how its outputs and targets are read.

Everything that depends on the kind of problem asks a :class:`Task`: distillation terms, recorded signals, scores,
curricula, replay and robust evaluation. :func:`~reuse_algos.training.tasks.find_task.find_task` finds it in the first
batch and holds it against the loss that the model itself computed, so that a wrong axis or loss cannot pass unnoticed.

Shapes: B examples, C classes (labels or numbers for the other tasks), X positions of an example (tokens, pixels; none
for most tasks). ``logits_BCX`` always has the classes in dimension 1, wherever the model puts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F

from reuse_algos.errors import TaskError

Kind = Literal["multiclass", "binary", "multilabel", "regression", "token", "dense", "detection"]
KINDS: tuple[str, ...] = get_args(Kind)
"""The kinds of task. ``token``: classes per position of a sequence; ``dense``: classes per pixel."""

_SOFTMAX = ("multiclass", "token", "dense")
POSITIONS = ("token", "dense")
CONFIRMED = "its loss is the model's own"
SUMMED = "its loss, added up over the batch, is the model's own"


@dataclass(frozen=True)
class TaskSettings:
    """The section ``keys: {task: ...}`` of recorder and algorithms: what to take as given instead of finding it.

    Attributes:
        kind: One of :data:`KINDS`. Default: found from the first batch.
        class_dim: Dimension of the outputs that holds the classes, 1 or -1. Default: found.
        ignore_index: Target value that does not count in the loss. Values outside 0 to C-1 never count. Default: found.
        shift: Whether position t is judged by the target at t + 1 (causal language models). Default: found.
    """

    kind: Kind | None = None
    class_dim: int | None = None
    ignore_index: int | None = None
    shift: bool | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise TaskError(f"task.kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        if self.class_dim not in (None, 1, -1):
            raise TaskError(f"task.class_dim must be 1 or -1, got {self.class_dim!r}")
        if self.shift and self.kind not in (None, "token"):
            raise TaskError(f"task.shift is defined for kind 'token' only, got kind {self.kind!r}")


class Rows(NamedTuple):
    """Outputs and targets of a batch in one layout for every task.

    Attributes:
        logits_BCX: Float, classes in dimension 1. ``[B, C]`` where examples have no positions.
        targets: int64 ``[B, X]`` class numbers (``[B]`` without positions; 0 where not counted) for softmax tasks, or
            float ``[B, C, X]`` probabilities; float ``[B, C]`` for binary, multilabel and regression; None where there
            are no targets.
        counted_BX: bool ``[B, X]`` (``[B, C]`` for multilabel and regression): which targets count. None: all.
    """

    logits_BCX: torch.Tensor
    targets: torch.Tensor | None
    counted_BX: torch.Tensor | None


@dataclass(frozen=True)
class Task:
    """What kind of learning problem is trained, and where classes, positions and ignored targets lie.

    Attributes:
        kind: One of :data:`KINDS`.
        num_classes: C >= 1: classes, labels (multilabel) or predicted numbers (regression); 1 for binary.
        class_dim: Dimension of the model's outputs that holds them: 1 or -1; 0 where outputs are ``[B]``.
        ignore_index: A class number that does not count as a target. Values outside 0 to C-1 never do. Default: None.
        shift: Whether position t is judged by the target at t + 1. Default: False.
        evidence: How it was found, for messages. Default: "".
    """

    kind: Kind
    num_classes: int
    class_dim: int = 1
    ignore_index: int | None = None
    shift: bool = False
    evidence: str = ""

    @property
    def is_softmax(self) -> bool:
        """Whether classes exclude each other, so that outputs are logits of a softmax."""
        return self.kind in _SOFTMAX

    @property
    def is_sigmoid(self) -> bool:
        """Whether each output is the logit of a yes-or-no question of its own."""
        return self.kind in ("binary", "multilabel")

    @property
    def has_positions(self) -> bool:
        """Whether an example has many targets: tokens or pixels."""
        return self.kind in POSITIONS

    @property
    def is_confirmed(self) -> bool:
        """Whether the model's own loss of the first batch is the plain loss of this task, see :meth:`losses`."""
        return self.evidence == CONFIRMED

    def difference(self, other: Task) -> str | None:
        """Return what differs from another run's task in words, or None where outputs mean the same."""
        compared = ("kind", "num_classes", "ignore_index", "shift")
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in compared}
        words = [f"{name} {here!r} here and {there!r} there" for name, (here, there) in pairs.items() if here != there]
        return ", ".join(words) or None

    def require(self, who: str, supported: Sequence[str]) -> None:
        """Refuse a task for which something is not defined.

        Raises:
            TaskError: This kind is not among them.
        """
        if self.kind not in supported:
            raise TaskError(
                f"{who} is not defined for the task {self.kind!r} ({self.evidence or 'as set'}). It is defined for "
                f"{', '.join(supported)}. Leave it out, or set keys.task.kind where the task was found wrongly."
            )

    def rows(self, outputs: torch.Tensor, targets: torch.Tensor | None = None) -> Rows:
        """Bring outputs and targets of a batch into one layout.

        Args:
            outputs: The model's logits or predictions, ``[B, C, X]``, ``[B, X, C]``, ``[B, C]`` or ``[B]``.
            targets: As they lie in the batch. Default: None, and ``targets`` and ``counted_BX`` are None as well.

        Raises:
            TaskError: The shapes do not belong to this task.
        """
        logits_BCX = outputs.unsqueeze(1) if self.class_dim == 0 else outputs.movedim(self.class_dim, 1)
        if logits_BCX.shape[1] != self.num_classes:
            raise TaskError(
                f"outputs of shape {tuple(outputs.shape)} have {logits_BCX.shape[1]} in dimension {self.class_dim}; "
                f"the task {self.kind!r} has {self.num_classes}"
            )
        # The last position predicts a token that the batch does not have.
        if self.shift:
            logits_BCX = logits_BCX[:, :, :-1]
        if targets is None:
            return Rows(logits_BCX, None, None)
        # In narrow types a mark wraps: of uint8, 255 is equal to -1 and 156 to -100.
        targets = targets if targets.is_floating_point() else targets.long()
        if not self.is_softmax:
            return self._number_rows(logits_BCX, targets)
        targets = class_numbers(targets, outputs, self.class_dim)
        if self.shift:
            targets = targets[:, 1:]
        if targets.dim() == logits_BCX.dim():  # probabilities, or one-hot in any type
            soft = targets.movedim(self.class_dim, 1)
            return Rows(logits_BCX, soft if soft.is_floating_point() else soft.float(), None)
        if targets.shape != logits_BCX[:, 0].shape:
            raise TaskError(
                f"targets of shape {tuple(targets.shape)} do not fit outputs of shape {tuple(outputs.shape)}"
            )
        counted_BX = (targets >= 0) & (targets < self.num_classes)
        if self.ignore_index is not None:
            counted_BX &= targets != self.ignore_index
        # 0 and not the mark itself: -100 or 255 as an index would read outside the classes.
        return Rows(logits_BCX, targets.long().masked_fill(~counted_BX, 0), counted_BX)

    def _number_rows(self, logits_BC: torch.Tensor, targets: torch.Tensor) -> Rows:
        """Return the rows of tasks whose targets are one number for each output."""
        if targets.numel() != logits_BC.numel():
            raise TaskError(
                f"targets of shape {tuple(targets.shape)} do not fit outputs of shape {tuple(logits_BC.shape)}: "
                f"the task {self.kind!r} needs one number for each output"
            )
        numbers_BC = targets.reshape(logits_BC.shape).to(torch.promote_types(logits_BC.dtype, torch.float32))
        counted_BC = ~numbers_BC.isnan()
        if self.is_sigmoid:  # -1 and -100 are common marks of missing labels
            counted_BC &= (numbers_BC >= 0) & (numbers_BC <= 1)
        if self.ignore_index is not None:
            counted_BC &= numbers_BC != self.ignore_index
        return Rows(logits_BC, numbers_BC.masked_fill(~counted_BC, 0.0), counted_BC)

    def losses(self, rows: Rows) -> torch.Tensor:
        """Return the plain loss of each example: the mean over its counted targets.

        Cross entropy for softmax tasks, binary cross entropy for binary and multilabel, squared error for regression.

        Returns:
            float32 (float64 for float64 outputs) ``[B]``; NaN for an example without a counted target.
        """
        values, counted = self.losses_of_targets(rows)
        return mean_of_counted(values, counted, empty=torch.nan)

    def losses_of_targets(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the loss of each target, and which of them count (None: all), see :meth:`losses`."""
        if rows.targets is None:
            raise TaskError(f"the loss of a {self.kind} task needs the targets of the batch")
        # In float32 at least: sums over many targets in half precision would not match the model's own loss.
        logits_BCX = rows.logits_BCX.to(torch.promote_types(rows.logits_BCX.dtype, torch.float32))
        targets = rows.targets.to(logits_BCX.dtype) if rows.targets.is_floating_point() else rows.targets
        if self.is_softmax:
            return F.cross_entropy(logits_BCX, targets, reduction="none"), rows.counted_BX
        if self.is_sigmoid:
            return F.binary_cross_entropy_with_logits(logits_BCX, targets, reduction="none"), rows.counted_BX
        return (logits_BCX - targets).square(), rows.counted_BX

    def correct(self, rows: Rows) -> torch.Tensor:
        """Return whether each example is right: uint8 ``[B]``, 1 where all of its counted targets are.

        The largest logit must be the target's (softmax tasks), or the logit's sign that of the label (binary and
        multilabel). An example without a counted target is 0: nothing shows that it is right.

        Raises:
            TaskError: The task is regression, where nothing is simply right.
        """
        self.require("the signal 'correct'", (*_SOFTMAX, "binary", "multilabel"))
        if rows.targets is None:
            raise TaskError("the signal 'correct' needs the targets of the batch")
        if self.is_softmax:
            truth = rows.targets.argmax(1) if rows.targets.is_floating_point() else rows.targets
            right = rows.logits_BCX.argmax(1) == truth
        else:
            right = (rows.logits_BCX > 0) == (rows.targets > 0.5)
        if rows.counted_BX is not None:
            # Ignored positions make no example wrong, and an example of nothing else is not right.
            right = right | ~rows.counted_BX
            some_B = by_row(rows.counted_BX).any(1)
            return (by_row(right).all(1) & some_B).to(torch.uint8)
        return by_row(right).all(1).to(torch.uint8)

    def logit_margin(self, rows: Rows) -> torch.Tensor:
        """Return the margin of each example, averaged over its counted targets: float32 ``[B]``.

        The target's logit minus the largest other one (equation 1 of Pleiss et al. 2020, arXiv 2001.10528). For binary
        and multilabel a label's logit is held against that of its opposite, which is 0: z for label 1, -z for label 0.

        Raises:
            TaskError: The task is regression, which has no margin.
        """
        self.require("the signal 'logit_margin'", (*_SOFTMAX, "binary", "multilabel"))
        if rows.targets is None:
            raise TaskError("the signal 'logit_margin' needs the targets of the batch")
        logits_BCX = rows.logits_BCX.float()
        if self.is_softmax:
            truth = rows.targets.argmax(1) if rows.targets.is_floating_point() else rows.targets
            index = truth.unsqueeze(1)
            others = logits_BCX.scatter(1, index, -torch.inf).amax(1)
            margins = logits_BCX.gather(1, index).squeeze(1) - others
        else:
            margins = torch.where(rows.targets > 0.5, logits_BCX, -logits_BCX)
        return mean_of_counted(margins, rows.counted_BX, empty=torch.nan)


def class_numbers(targets: torch.Tensor, outputs: torch.Tensor, class_dim: int) -> torch.Tensor:
    """Return targets without the dimension that the classes have in the outputs, where they have it with size 1.

    Args:
        targets: Of a batch, such as masks ``[B, 1, H, W]`` or a column ``[B, 1]`` of class numbers.
        outputs: The model's logits.
        class_dim: Dimension of the outputs that holds the classes.

    >>> class_numbers(torch.zeros(8, 1), torch.zeros(8, 5), class_dim=1).shape
    torch.Size([8])
    """
    extra = targets.dim() == outputs.dim() > 1 and targets.shape[class_dim] == 1
    return targets.squeeze(class_dim) if extra else targets


def mean_of_counted(values: torch.Tensor, counted: torch.Tensor | None, *, empty: float) -> torch.Tensor:
    """Return the mean of each example's counted values.

    Args:
        values: Float ``[B, ...]``.
        counted: bool of the same shape; None: all count.
        empty: The value of an example of which nothing counts.

    Returns:
        Float ``[B]``.
    """
    values_BX = by_row(values)
    if counted is None:
        return values_BX.mean(1)
    counted_BX = by_row(counted)
    numbers_B = counted_BX.sum(1)
    # where, not a product: a NaN or an infinity at an ignored position must not reach the mean.
    sums_B = torch.where(counted_BX, values_BX, torch.zeros_like(values_BX)).sum(1)
    return torch.where(numbers_B > 0, sums_B / numbers_B.clamp_min(1), torch.full_like(sums_B, empty))


def by_row(values: torch.Tensor) -> torch.Tensor:
    """Return ``[B, X]`` of ``[B, ...]``, also where B is 0."""
    return values.flatten(1) if values.dim() > 1 else values.unsqueeze(1)
