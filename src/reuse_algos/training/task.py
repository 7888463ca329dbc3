"""The task: what kind of learning problem a Trainer trains, and how its outputs and targets are read.

Everything that depends on the kind of problem asks a :class:`Task`: distillation terms, recorded signals, scores,
curricula, replay and robust evaluation. :func:`find_task` finds it in the first batch and holds it against the loss
that the model itself computed, so that a wrong axis or a wrong loss cannot pass unnoticed.

Shapes: B examples, C classes (labels or numbers for the other tasks), X positions of an example (tokens, pixels; none
for most tasks). ``logits_BCX`` always has the classes in dimension 1, wherever the model puts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F

from reuse_algos.errors import TaskError

__all__ = ["KINDS", "Kind", "Rows", "Task", "TaskSettings", "by_row", "find_task", "mean_of_counted"]

Kind = Literal["multiclass", "binary", "multilabel", "regression", "token", "dense", "detection"]
KINDS: tuple[str, ...] = get_args(Kind)
"""The kinds of task. ``token``: classes per position of a sequence; ``dense``: classes per pixel."""

_SOFTMAX = ("multiclass", "token", "dense")
_POSITIONS = ("token", "dense")

# Losses of bfloat16 forward passes are compared with ones computed in float32 here.
_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3}
_LEAST_TOLERANCE = 1e-4
_CONFIRMED = "its loss is the model's own"


@dataclass(frozen=True)
class TaskSettings:
    """The ``task:`` section of recorders and algorithms: what to take as given instead of finding it.

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
        return self.kind in _POSITIONS

    @property
    def is_confirmed(self) -> bool:
        """Whether the model's own loss of the first batch is the plain loss of this task, see :meth:`losses`."""
        return self.evidence == _CONFIRMED

    def difference(self, other: Task) -> str | None:
        """Return what differs from another run's task in words, or None where outputs mean the same."""
        compared = ("kind", "num_classes", "ignore_index", "shift")
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in compared}
        words = [f"{name} {here!r} here and {there!r} there" for name, (here, there) in pairs.items() if here != there]
        return ", ".join(words) or None

    def require(self, who: str, supported: Sequence[str]) -> None:
        """Refuse a task for which something is not defined.

        Args:
            who: What is refused, for the message.
            supported: Kinds for which it is defined.

        Raises:
            TaskError: This kind is not among them.
        """
        if self.kind not in supported:
            raise TaskError(
                f"{who} is not defined for the task {self.kind!r} ({self.evidence or 'as set'}). It is defined for "
                f"{', '.join(supported)}. Leave it out, or set task.kind where the task was found wrongly."
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
        if self.shift:
            logits_BCX = logits_BCX[:, :, :-1]
        if targets is None:
            return Rows(logits_BCX, None, None)
        if not self.is_softmax:
            return self._number_rows(logits_BCX, targets)
        if self.shift:
            targets = targets[:, 1:]
        if targets.dim() == logits_BCX.dim() and targets.is_floating_point():
            soft = targets.movedim(self.class_dim, 1)
            return Rows(logits_BCX, soft, None)
        if targets.shape != logits_BCX[:, 0].shape:
            raise TaskError(
                f"targets of shape {tuple(targets.shape)} do not fit outputs of shape {tuple(outputs.shape)}"
            )
        counted_BX = (targets >= 0) & (targets < self.num_classes)
        if self.ignore_index is not None:
            counted_BX &= targets != self.ignore_index
        return Rows(logits_BCX, targets.long().masked_fill(~counted_BX, 0), counted_BX)

    def _number_rows(self, logits_BC: torch.Tensor, targets: torch.Tensor) -> Rows:
        """Rows of tasks whose targets are one number for each output."""
        if targets.numel() != logits_BC.numel():
            raise TaskError(
                f"targets of shape {tuple(targets.shape)} do not fit outputs of shape {tuple(logits_BC.shape)}: "
                f"the task {self.kind!r} needs one number for each output"
            )
        numbers_BC = targets.reshape(logits_BC.shape).to(torch.promote_types(logits_BC.dtype, torch.float32))
        counted_BC = ~numbers_BC.isnan()
        if self.is_sigmoid:  # -1 and -100 are common marks of labels that nobody has given
            counted_BC &= (numbers_BC >= 0) & (numbers_BC <= 1)
        if self.ignore_index is not None:
            counted_BC &= numbers_BC != self.ignore_index
        return Rows(logits_BC, numbers_BC.masked_fill(~counted_BC, 0.0), counted_BC)

    def losses(self, rows: Rows) -> torch.Tensor:
        """Return the plain loss of each example: the mean over its counted targets.

        Cross entropy for softmax tasks, binary cross entropy for binary and multilabel, squared error for regression.

        Args:
            rows: With targets.

        Returns:
            float32 (float64 for float64 outputs) ``[B]``; NaN for an example without a counted target.
        """
        values, counted = self._losses_of_targets(rows)
        return mean_of_counted(values, counted, empty=torch.nan)

    def _losses_of_targets(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss of each target, and which count."""
        if rows.targets is None:
            raise TaskError(f"the loss of a {self.kind} task needs the targets of the batch")
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


def find_task(
    outputs: torch.Tensor,
    targets: torch.Tensor | None,
    own_loss: float | None,
    settings: TaskSettings | None = None,
    ignore_indices: Sequence[int] = (),
    metrics: Sequence[str] = (),
) -> Task:
    """Find the task of a model in a batch.

    Every reading of the shapes becomes a candidate, and each candidate's plain loss is held against the model's own:
    the reading whose loss is the model's is the task. Where the model's loss is none of the plain ones (label
    smoothing, class weights, focal loss), shapes and metrics decide if they leave one reading only.

    Args:
        outputs: Logits or predictions of the batch.
        targets: Its targets.
        own_loss: The loss that the model gave for it; None: not known.
        settings: What is taken as given. Default: nothing.
        ignore_indices: Values that the model's loss or its metrics name as ignored: hints that the loss must confirm.
            Default: none.
        metrics: Class names of the model's metrics (``BinaryAccuracy``, ``MeanSquaredError``): hints. Default: none.

    Raises:
        TaskError: Nothing fits, or several readings fit and nothing tells them apart.
    """
    settings = settings or TaskSettings()
    seen = _described(outputs, targets, own_loss)
    if settings.kind == "detection":
        raise TaskError(
            "task.kind 'detection' has no single tensor of outputs; the detection algorithms read it themselves"
        )
    if targets is None:
        raise TaskError(f"the task cannot be found without targets: {seen}. Name their place by keys.target.")
    candidates = _candidates(outputs, targets, settings, ignore_indices)
    if not candidates:
        raise TaskError(
            f"no task fits {seen}{_given(settings)}. Set task: {{kind: ...}} (one of {', '.join(KINDS)}), or name the "
            "right tensors by keys.output and keys.target."
        )
    chosen = _distinct(_confirmed(candidates, outputs, targets, own_loss), outputs, targets)
    if len(chosen) == 1:
        return replace(chosen[0], evidence=_CONFIRMED)
    # The loss cannot tell these apart (or is none of the plain ones): hints may, but only if they leave one.
    pool = chosen or _distinct(_without_hints(candidates), outputs, targets)
    named = [task for task in pool if _named_by(metrics, task)]
    if len(named) == 1:
        return replace(named[0], evidence="shapes and metrics")
    if len(pool) == 1:
        return replace(pool[0], evidence="the only reading of the shapes" + (" as set" if settings.kind else ""))
    raise TaskError(
        f"several tasks fit {seen}: {'; '.join(_words(task) for task in pool)}. The model's loss tells none of them "
        "apart. Set task: {kind: ..., class_dim: ...}."
    )


def _candidates(
    outputs: torch.Tensor, targets: torch.Tensor, settings: TaskSettings, ignore_indices: Sequence[int]
) -> list[Task]:
    """Every reading that the shapes allow and the settings admit; readings with fewer assumptions first."""
    found: list[Task] = []
    whole = not targets.is_floating_point()
    ignored = [None, *sorted(set(ignore_indices))] if settings.ignore_index is None else [settings.ignore_index]
    for dim in (1, -1) if outputs.dim() > 2 else (1,):
        if outputs.dim() < 2 or (settings.class_dim is not None and outputs.dim() > 2 and dim != settings.class_dim):
            continue
        classes = outputs.shape[dim]
        places = outputs.movedim(dim, 1)[:, 0].shape
        if classes > 1 and whole and targets.shape == places:
            kind = _kind_of_places(len(places), dim)
            shifts = (False, True) if kind == "token" else (False,)
            found += [Task(kind, classes, dim, index, shift) for index in ignored for shift in shifts]
        if classes > 1 and not whole and targets.shape == outputs.shape and _is_distribution(targets, dim):
            found.append(Task(_kind_of_places(len(places), dim), classes, dim))
    if _one_for_each(outputs, targets):
        classes = 1 if outputs.dim() == 1 else outputs.shape[1]
        dim = 0 if outputs.dim() == 1 else 1
        # Marks of missing labels aside, labels are 0 or 1, or probabilities.
        labels = targets[(targets != -1) & (targets != -100) & ~targets.isnan()]
        for index in ignored:
            if bool(((labels >= 0) & (labels <= 1)).all()):
                found.append(Task("binary" if classes == 1 else "multilabel", classes, dim, index))
            found.append(Task("regression", classes, dim, index))
    return [task for task in found if _admits(settings, task)]


def _kind_of_places(num_dimensions: int, class_dim: int) -> Kind:
    """The kind of a softmax task whose targets have that many dimensions."""
    if num_dimensions == 1:
        return "multiclass"
    # Language models put the classes last; ``[B, C, T]`` is how convolutions along one axis give them.
    return "token" if num_dimensions == 2 and class_dim == -1 else "dense"


def _one_for_each(outputs: torch.Tensor, targets: torch.Tensor) -> bool:
    """Whether there is one target for each output: equal shapes, but for dimensions of size 1 behind the rows."""
    if len(outputs) != len(targets) or outputs.numel() != targets.numel():
        return False
    return [size for size in outputs.shape[1:] if size > 1] == [size for size in targets.shape[1:] if size > 1]


def _admits(settings: TaskSettings, task: Task) -> bool:
    kind = settings.kind in (None, task.kind) or (settings.kind in _POSITIONS and task.kind in _POSITIONS)
    return kind and settings.shift in (None, task.shift)


def _is_distribution(targets: torch.Tensor, dim: int) -> bool:
    sums = targets.double().sum(dim)
    return bool((targets >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _confirmed(
    candidates: list[Task], outputs: torch.Tensor, targets: torch.Tensor, own_loss: float | None
) -> list[Task]:
    """The readings whose loss is the model's own; where several are near it, those that are as near as the nearest."""
    if own_loss is None:
        return []
    tolerance = _TOLERANCE.get(outputs.dtype, _LEAST_TOLERANCE) * max(1.0, abs(own_loss))
    off = {task: _distance(task, outputs, targets, own_loss) for task in candidates}
    nearest = min(off.values())
    # Another reading may come near by chance: in float32 the right one is a thousand times nearer.
    return [task for task in candidates if off[task] <= min(tolerance, 10 * nearest + 1e-6)]


def _distance(task: Task, outputs: torch.Tensor, targets: torch.Tensor, own_loss: float) -> float:
    """How far the model's loss is from this task's, as a mean over targets or over examples."""
    values, counted = task._losses_of_targets(task.rows(outputs.detach(), targets))
    over_targets = values.mean() if counted is None else values[counted].mean()
    over_examples = mean_of_counted(values, counted, empty=torch.nan).nanmean()
    distances = [abs(float(mean) - own_loss) for mean in (over_targets, over_examples)]
    return min((distance for distance in distances if math.isfinite(distance)), default=math.inf)


def _distinct(tasks: list[Task], outputs: torch.Tensor, targets: torch.Tensor) -> list[Task]:
    """Leave out readings that differ from an earlier one only in an ignored value that this batch does not hold."""
    kept: list[Task] = []
    for task in tasks:
        counted = task.rows(outputs.detach(), targets).counted_BX
        same = (
            replace(other, ignore_index=None) == replace(task, ignore_index=None)
            and _equal(other.rows(outputs.detach(), targets).counted_BX, counted)
            for other in kept
        )
        if not any(same):
            kept.append(task)
    return kept


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def _without_hints(tasks: list[Task]) -> list[Task]:
    """Readings without an ignored value that only a hint names, and no shift that no loss has shown."""
    plain = [task for task in tasks if task.ignore_index is None and not task.shift]
    return plain or tasks


_METRICS: dict[str, tuple[str, ...]] = {
    "binary": ("Binary",),
    "multilabel": ("Multilabel",),
    "regression": ("MeanSquaredError", "MeanAbsoluteError", "R2Score", "PearsonCorrCoef", "SpearmanCorrCoef"),
    "multiclass": ("Multiclass",),
    "token": ("Multiclass", "LanguageCrossEntropy", "Perplexity", "MaskedAccuracy"),
    "dense": ("Multiclass", "MIoU"),
}


def _named_by(metrics: Sequence[str], task: Task) -> bool:
    return any(name.startswith(_METRICS.get(task.kind, ())) for name in metrics)


def _described(outputs: torch.Tensor, targets: torch.Tensor | None, own_loss: float | None) -> str:
    what = "none" if targets is None else f"{tuple(targets.shape)} {str(targets.dtype).removeprefix('torch.')}"
    loss = "not known" if own_loss is None else f"{own_loss:.6g}"
    return f"outputs {tuple(outputs.shape)}, targets {what}, the model's loss {loss}"


def _given(settings: TaskSettings) -> str:
    given = {name: value for name, value in vars(settings).items() if value is not None}
    return f" with task {given}" if given else ""


def _words(task: Task) -> str:
    shift = ", shifted by one" if task.shift else ""
    ignored = "" if task.ignore_index is None else f", ignoring {task.ignore_index}"
    return f"{task.kind} of {task.num_classes} in dimension {task.class_dim}{shift}{ignored}"
