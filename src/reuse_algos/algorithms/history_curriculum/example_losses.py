"""The losses of single examples for a curriculum: how they are had, and that they are the model's.

Shapes: B rows of a microbatch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from composer import Event, State
from composer.core import get_precision_context
from torch import nn

from reuse_algos.errors import ModelError
from reuse_algos.training.first_batch.task_reader import TaskReader
from reuse_algos.training.interplay import ExampleLosses
from reuse_algos.training.loss import total_of
from reuse_algos.training.outputs import unwrap_model
from reuse_algos.training.ranks import on_every_rank
from reuse_algos.training.tasks.example_losses import ADVICE, TaskLosses, unreduced_losses

_OTHERWISE = "a strategy and mode without weights and updates"


def find_losses(model: nn.Module, reader: TaskReader) -> TaskLosses:
    """Return how to get losses of single examples; the choice is made in the first microbatch.

    Args:
        model: The user's model, without wrappers.
        reader: Finds the task in the first microbatch. It need not find one where the loss function serves.

    Raises:
        ModelError: The loss function has class weights.
    """
    reader.required = False
    try:
        losses: ExampleLosses | ModelError = unreduced_losses(model)
    except ModelError as error:
        losses = error
    else:
        _refuse_class_weights(model)
    return TaskLosses(reader, losses)


def _refuse_class_weights(model: nn.Module) -> None:
    """Refuse class weights at the start, in a loss function that ``unreduced_losses`` takes."""
    # torch divides by the weights of a batch's targets, so the loss is not the mean over the rows.
    function: Any = unwrap_model(model)._loss_fn
    settings: Mapping[str, Any] = {}
    if isinstance(function, functools.partial):
        settings = function.keywords
    elif hasattr(function, "ignore_index"):  # modules without it, such as BCEWithLogitsLoss, divide by the rows
        settings = {"weight": getattr(function, "weight", None)}
    if settings.get("weight") is not None:
        raise ModelError(
            "the model's loss function has class weights: it divides by the weights of a batch's targets, and so is "
            f"not the mean of the examples' losses. {ADVICE}, or choose {_OTHERWISE}."
        )


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
        return losses_B, self.losses.of_examples(state.outputs, state.batch) if isinstance(
            self.losses, TaskLosses
        ) else losses_B


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
                f"weights, ignored targets or a further term. {ADVICE}, or choose {_OTHERWISE}."
            )
