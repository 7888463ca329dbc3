"""One loss per example from a model that returns their mean.

Shapes: B rows of a microbatch.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from composer import Event, State
from composer.core import get_precision_context
from composer.models import ComposerClassifier
from torch import nn

from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import ModelError, TaskError
from reuse_algos.training.first_batch import TaskReader, targets_of
from reuse_algos.training.interplay import ExampleLosses
from reuse_algos.training.loss import total_of
from reuse_algos.training.outputs import logits_of
from reuse_algos.training.ranks import on_every_rank
from reuse_algos.training.task import by_row

__all__ = [
    "CheckedLosses",
    "ExampleLosses",
    "MeanCheck",
    "TaskLosses",
    "find_losses",
    "per_example_losses",
    "refuse_ignored",
]

_ADVICE = "Give per_example_loss=lambda outputs, batch: ..., which returns a tensor [B] whose mean is the model's loss"
_OTHERWISE = "a strategy and mode without weights and updates"


def per_example_losses(model: nn.Module) -> ExampleLosses:
    """Return the loss function of a ``ComposerClassifier`` with ``reduction="none"``.

    Works for loss functions that take an argument ``reduction`` (torch's functions, Composer's ``soft_cross_entropy``)
    and for loss modules that have an attribute of that name (``nn.CrossEntropyLoss``). Dense outputs are averaged over
    their positions.

    Args:
        model: The user's model, without wrappers.

    Raises:
        ModelError: The model computes its loss in another way.
    """
    # A loss() of the user's own may add terms that belong to no example, so its name alone proves nothing.
    if not isinstance(model, ComposerClassifier) or type(model).loss is not ComposerClassifier.loss:
        raise ModelError(
            f"weights and updated scores need the loss of each example, but {type(model).__name__} has a loss() of its "
            f"own, which gives one number for the batch. {_ADVICE}."
        )
    unreduced = _without_reduction(model._loss_fn)

    def losses(outputs: Any, batch: Any) -> torch.Tensor:
        _, targets = batch
        values = unreduced(outputs, targets)
        # Dense outputs have a loss for each position.
        return values.reshape(len(values), -1).mean(1)

    return losses


def _without_reduction(function: Any) -> Callable[..., torch.Tensor]:
    if isinstance(function, nn.Module) and hasattr(function, "reduction"):
        plain = copy.copy(function)  # the user's own keeps its reduction
        plain.reduction = "none"  # type: ignore[assignment]
        return plain
    try:
        takes = "reduction" in inspect.signature(function).parameters and not isinstance(function, nn.Module)
    except (TypeError, ValueError):  # builtins have no signature
        takes = False
    if takes:
        return functools.partial(function, reduction="none")
    name = getattr(function, "__name__", type(function).__name__)
    raise ModelError(
        f"weights and updated scores need the loss of each example, but the model's loss function {name} has no "
        f"'reduction'. Let it take reduction='none', or use torch.nn.functional.cross_entropy. {_ADVICE}."
    )


def find_losses(model: nn.Module, info: DatasetInfo | None, reader: TaskReader) -> ExampleLosses:
    """Return how to get losses of single examples: from the model's loss function, or else from its task.

    Args:
        model: The user's model, without wrappers.
        info: The train data.
        reader: Knows the task once there is a batch.

    Raises:
        ModelError: The loss function has class weights, or targets are ignored.
    """
    try:
        losses = per_example_losses(model)
    except ModelError as error:
        return TaskLosses(reader, error)
    refuse_ignored(model, None if info is None else info.labels)
    return losses


def refuse_ignored(model: nn.Module, labels_N: torch.Tensor | None) -> None:
    """Refuse class weights and ignored targets where they can be seen at the start.

    Args:
        model: The user's model, one that :func:`per_example_losses` takes.
        labels_N: int64, where they are known.

    Raises:
        ModelError: The loss function has class weights, or a label is below 0 or the loss function's ``ignore_index``.
    """
    # With either, the loss is not the mean over the rows: torch divides by the weights of the targets, or by the number
    # of those that are not ignored.
    function: Any = model._loss_fn
    settings: Mapping[str, Any] = {}
    if isinstance(function, functools.partial):
        settings = function.keywords
    elif hasattr(function, "ignore_index"):  # modules without it, such as BCEWithLogitsLoss, divide by the rows
        settings = {"weight": getattr(function, "weight", None), "ignore_index": function.ignore_index}
    if settings.get("weight") is not None:
        raise ModelError(
            "the model's loss function has class weights: it divides by the weights of a batch's targets, and so is "
            f"not the mean of the examples' losses. {_ADVICE}, or choose {_OTHERWISE}."
        )
    if labels_N is None:
        return
    ignored_N = (labels_N < 0) | (labels_N == settings.get("ignore_index", -100))
    if bool(ignored_N.any()):
        raise ModelError(
            f"{int(ignored_N.sum())} of {len(labels_N)} training labels are below 0 or the loss function's "
            "ignore_index: with ignored targets the loss is not the mean of the examples' losses. Leave these examples "
            f"out of the dataset (torch.utils.data.Subset), or choose {_OTHERWISE}. Or g{_ADVICE[1:]}."
        )


class TaskLosses:
    """The plain losses of the task, for models whose own loss they are but cannot be had for single examples.

    Args:
        reader: Knows the task and the targets of the running microbatch.
        otherwise: What is raised in the first microbatch where the model's loss is another one.
    """

    def __init__(self, reader: TaskReader, otherwise: ModelError) -> None:
        self._reader, self._otherwise = reader, otherwise
        self._over_targets = True

    def follow(self, event: Event, state: State) -> None:
        """Follow the events of the reader.

        Raises:
            ModelError: On every rank, in the first microbatch: the model's loss is not the plain one of its task.
        """
        if self._reader.handle(event, state):
            if not self._reader.known.is_confirmed:
                raise self._otherwise
            self._settle(total_of(state.loss).detach().float(), state.outputs)

    def _settle(self, own: torch.Tensor, outputs: Any) -> None:
        """Find out whether the model's loss is a mean over targets, as torch's are, or over examples."""
        off = []  # the two differ where targets are ignored, and by how much says which it is
        for self._over_targets in (True, False):
            off.append(float((self._weighed(*self._read(outputs)).mean() - own).abs()))
        self._over_targets = not off[1] < off[0]

    def __call__(self, outputs: Any, batch: Any) -> torch.Tensor:
        """Return float ``[B]``, whose mean is the model's loss.

        An example counts with its share of the counted targets; one without any is 0.
        """
        return self._weighed(*self._read(outputs, batch))

    def of_examples(self, outputs: Any) -> torch.Tensor:
        """Return the loss of each example of the running microbatch by itself: float ``[B]``, NaN where none counts."""
        return self._read(outputs)[0]

    def _read(self, outputs: Any, batch: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of each example, and the number of its counted targets."""
        task, keys = self._reader.known, self._reader.keys
        targets = self._reader.targets
        if batch is not None:  # rows of another batch have targets of their own
            with contextlib.suppress(TaskError):  # the model took them out, and the reader has them
                targets = targets_of(batch, keys.target)
        rows = task.rows(logits_of(outputs, keys.output), targets)
        losses_B = task.losses(rows)
        if rows.counted_BX is None:
            return losses_B, torch.ones_like(losses_B)
        return losses_B, by_row(rows.counted_BX).sum(1).to(losses_B.dtype)

    def _weighed(self, losses_B: torch.Tensor, numbers_B: torch.Tensor) -> torch.Tensor:
        shares_B = numbers_B if self._over_targets else (numbers_B > 0).to(numbers_B.dtype)
        # where, not a product: an example without a counted target is NaN.
        kept_B = losses_B.where(numbers_B > 0, torch.zeros_like(losses_B))
        return kept_B * shares_B * (len(losses_B) / shares_B.sum().clamp_min(1))


class CheckedLosses:
    """Losses of single examples, whose mean is held against the model's loss in every microbatch.

    Args:
        losses: How to get them.
        device: Of the model.
    """

    def __init__(self, losses: ExampleLosses, device: torch.device) -> None:
        self.losses = losses
        self._check = MeanCheck(device)

    def follow(self, event: Event, state: State) -> None:
        """Follow all events. What any rank found is raised on all of them, after the first batch and each epoch.

        Raises:
            ModelError: The model's loss is another number than the mean.
        """
        if isinstance(self.losses, TaskLosses) and event in TaskReader.EVENTS:
            self.losses.follow(event, state)
        # The check waits for the device, so it is not made in every batch.
        if event in (Event.EPOCH_END, Event.FIT_END) or (event == Event.BATCH_END and not self._check.looked):
            self._check.on_all_ranks()

    def of_microbatch(self, state: State, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses of a microbatch, whose mean is the model's loss, and those of each example by itself.

        Args:
            state: At AFTER_LOSS.
            rows: Of the microbatch.

        Returns:
            Float ``[B]`` with gradient, and float ``[B]``, NaN where no target of an example counts.
        """
        with get_precision_context(state.precision, state.precision_config):
            losses_B = self.losses(state.outputs, state.batch)
        self._check.add(state.loss, losses_B, rows)
        return losses_B, self.losses.of_examples(state.outputs) if isinstance(self.losses, TaskLosses) else losses_B


class MeanCheck:
    """Checks that the mean of the per-example losses is the loss that the model gave, for every microbatch.

    Args:
        device: Of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self.looked = False
        # Excess, loss and mean of the worst microbatch. It stays on the training device until it is asked for, so that
        # no microbatch makes a GPU wait.
        self._worst_3 = torch.zeros(3, dtype=torch.float32, device=device)

    def add(self, loss: Any, losses_B: torch.Tensor, rows: int) -> None:
        """Compare one microbatch; a loss and losses that are both not finite any more (divergence) agree.

        Args:
            loss: Of the model.
            losses_B: Of the examples.
            rows: Of the microbatch.

        Raises:
            ModelError: There is not one loss per row.
        """
        if losses_B.shape != (rows,):
            raise ModelError(f"per_example_loss gives a tensor of shape {tuple(losses_B.shape)} for {rows} examples.")
        given = total_of(loss).detach()
        total, mean = given.float(), losses_B.detach().float().mean()
        coarse = max(torch.finfo(given.dtype).eps, torch.finfo(losses_B.dtype).eps)
        # A part in a thousand, or four units in the last place of the coarser dtype: sums are taken in another order.
        excess = (total - mean).abs() / (max(1e-3, 4 * coarse) * total.abs().clamp_min(1e-3))
        excess = torch.where(total.isfinite() | mean.isfinite(), excess.nan_to_num(torch.inf), 0.0)
        found_3 = torch.stack([excess, total, mean]).to(self._worst_3.device)
        self._worst_3 = torch.where(found_3[0] > self._worst_3[0], found_3, self._worst_3)

    def on_all_ranks(self) -> None:
        """Raise on every rank what any of them found. Every rank must call this.

        Raises:
            ModelError: The loss is something else (class weights, ignored targets, a regularisation term).
        """
        self.looked = True
        on_every_rank(self._raise)

    def _raise(self) -> None:
        excess, total, mean = self._worst_3.tolist()
        if excess > 1:
            raise ModelError(
                f"the model's loss is {total:.6g}, but the mean of its per-example losses is {mean:.6g}: class "
                f"weights, ignored targets or a further term. {_ADVICE}, or choose {_OTHERWISE}."
            )
