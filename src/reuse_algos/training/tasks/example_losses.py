"""One loss for each example from a model that returns one number for the batch.

Shapes: B rows of a microbatch.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from composer import Event, State
from composer.models import ComposerClassifier
from torch import nn

from reuse_algos.errors import ModelError, TaskError
from reuse_algos.training.first_batch.task_reader import TaskReader
from reuse_algos.training.interplay import ExampleLosses
from reuse_algos.training.loss import total_of
from reuse_algos.training.outputs import logits_of
from reuse_algos.training.tasks.task import Rows, by_row

ADVICE = "Give per_example_loss=lambda outputs, batch: ..., which returns a tensor [B] whose mean is the model's loss"

_PLAIN = 1e-4  # of the loss, from 1: sums in another order differ by less, another loss by more


def unreduced_losses(model: nn.Module) -> ExampleLosses:
    """Return the loss function of a ``ComposerClassifier`` with ``reduction="none"``.

    Works for loss functions that take an argument ``reduction`` (torch's functions, Composer's ``soft_cross_entropy``)
    and for loss modules that have an attribute of that name (``nn.CrossEntropyLoss``). Dense outputs are averaged over
    their positions.

    Raises:
        ModelError: The model computes its loss in another way.
    """
    if not isinstance(model, ComposerClassifier) or type(model).loss is not ComposerClassifier.loss:
        raise ModelError(
            f"weights and updated scores need the loss of each example, but {type(model).__name__} has a loss() of its "
            f"own, which gives one number for the batch. {ADVICE}."
        )
    unreduced = _without_reduction(model._loss_fn)

    def losses(outputs: Any, batch: Any) -> torch.Tensor:
        _, targets = batch
        values = unreduced(outputs, targets)
        return values.reshape(len(values), -1).mean(1)

    return losses


def _without_reduction(function: Any) -> Callable[..., torch.Tensor]:
    if isinstance(function, nn.Module) and hasattr(function, "reduction"):
        # A copy, as the user's module goes on giving the model one number.
        plain = copy.copy(function)
        plain.reduction = "none"  # type: ignore[assignment]
        return plain
    try:
        takes = "reduction" in inspect.signature(function).parameters and not isinstance(function, nn.Module)
    except (TypeError, ValueError):
        takes = False
    if takes:
        return functools.partial(function, reduction="none")
    name = getattr(function, "__name__", type(function).__name__)
    raise ModelError(
        f"weights and updated scores need the loss of each example, but the model's loss function {name} has no "
        f"'reduction'. Let it take reduction='none', or use torch.nn.functional.cross_entropy. {ADVICE}."
    )


class TaskLosses:
    """The model's loss of each example: the plain one of its task where that is the model's, else its loss function's.

    The choice is made in the first microbatch, where both can be held against the loss that the model gave.

    Args:
        reader: Knows the task and the targets of the running microbatch.
        otherwise: What to take where the model's loss is not the plain one of its task: the losses of its loss
            function, or what is raised then.

    Attributes:
        words: What was chosen, in words; empty before the first microbatch.
    """

    def __init__(self, reader: TaskReader, otherwise: ExampleLosses | ModelError) -> None:
        self._reader, self._otherwise = reader, otherwise
        self._own: ExampleLosses | None = None
        self._over_targets = True
        self.words = ""

    def follow(self, event: Event, state: State) -> None:
        """Follow the events of the reader, and choose in the first microbatch.

        Raises:
            ModelError: On every rank: the losses of single examples cannot be had.
        """
        self._reader.handle(event, state)
        if event == Event.AFTER_LOSS and not self.words:
            self.choose(state, state.batch)

    def choose(self, state: State, batch: Any) -> None:
        """Choose how to get the losses, at the first AFTER_LOSS.

        Args:
            state: With outputs and loss.
            batch: The microbatch as the model's loss was given it.

        Raises:
            ModelError: The losses of single examples cannot be had.
        """
        task, own = self._reader.task, float(total_of(state.loss).detach())
        off = self._distance(state.outputs, own)
        if task is not None and (task.is_confirmed or off <= _PLAIN * max(1.0, abs(own))):
            self.words = "the model's own, which is the task's plain one"
            return
        # The error names what to give (per_example_loss); the reader's says why there is no task.
        if isinstance(self._otherwise, ModelError):
            raise self._otherwise from self._reader.refusal
        self._own = self._otherwise
        self.words = "that of the model's own loss function"

    def _distance(self, outputs: Any, own: float) -> float:
        """Return how far the model's loss is from the plain one, and settle whether it is a mean over targets."""
        if self._reader.task is None or self._reader.targets is None:
            return math.inf
        losses_B, numbers_B = self._by_task(self._reader.rows(outputs))
        # torch's losses are means over all counted targets of a batch; others are means over examples.
        off = []
        for self._over_targets in (True, False):
            off.append(abs(float(self._weighed(losses_B, numbers_B).mean().detach()) - own))
        # "not <", so that a NaN leaves the mean over targets, which is torch's rule.
        self._over_targets = not off[1] < off[0]
        return min(off)

    def __call__(self, outputs: Any, batch: Any) -> torch.Tensor:
        """Return float ``[B]`` with gradient, whose mean is the model's loss.

        By the task, an example counts with its share of the counted targets; one without any is 0.
        """
        own = self._own
        if not self.words and self._reader.task is None:
            # Replayed rows are weighed before the first loss, when there is nothing to choose by yet.
            if isinstance(self._otherwise, ModelError):
                raise self._otherwise
            own = self._otherwise
        if own is not None:
            return own(outputs, batch)
        targets = self._reader.targets
        with contextlib.suppress(TaskError):  # the model took them out, and the reader has them
            targets = self._reader.targets_in(batch)
        return self._weighed(*self._by_task(self._rows(outputs, targets)))

    def of_examples(self, outputs: Any, batch: Any) -> torch.Tensor:
        """Return the loss of each example of the running microbatch by itself: float ``[B]``, NaN where none counts."""
        if self._own is None:
            return self._reader.known.losses(self._rows(outputs, self._reader.targets))
        losses_B, task = self._own(outputs, batch), self._reader.task
        if task is None or not task.is_softmax:
            return losses_B
        counted_BX = self._reader.rows(outputs).counted_BX
        if counted_BX is None:
            return losses_B
        # Loss functions give 0 at ignored positions, and these means are over all of them.
        shares_B = by_row(counted_BX).float().mean(1)
        return torch.where(shares_B > 0, losses_B / shares_B.clamp_min(1e-12), torch.nan)

    def _rows(self, outputs: Any, targets: torch.Tensor | None) -> Rows:
        return self._reader.known.rows(logits_of(outputs, self._reader.keys.output), targets)

    def _by_task(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of each example, and the number of its counted targets."""
        losses_B = self._reader.known.losses(rows)
        if rows.counted_BX is None:
            return losses_B, torch.ones_like(losses_B)
        return losses_B, by_row(rows.counted_BX).sum(1).to(losses_B.dtype)

    def _weighed(self, losses_B: torch.Tensor, numbers_B: torch.Tensor) -> torch.Tensor:
        shares_B = numbers_B if self._over_targets else (numbers_B > 0).to(numbers_B.dtype)
        # where, not a product: an example without a counted target is NaN.
        kept_B = losses_B.where(numbers_B > 0, torch.zeros_like(losses_B))
        # The factor makes the mean over B rows the mean over what counts.
        return kept_B * shares_B * (len(losses_B) / shares_B.sum().clamp_min(1))
