"""What is recorded of each microbatch, measured as the task of the run defines it.

Shapes: B rows of a microbatch, C classes, X positions of an example (none for most tasks).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from composer import State

from reuse_algos.algorithms.history_curriculum.example_losses import per_example_losses
from reuse_algos.callbacks.signals.capture import CaptureSettings
from reuse_algos.callbacks.signals.kept_logits import check_logits
from reuse_algos.errors import ModelError, TaskError
from reuse_algos.training.first_batch import TaskReader
from reuse_algos.training.interplay import ExampleLosses, example_losses
from reuse_algos.training.loss import total_of
from reuse_algos.training.outputs import logits_of, unwrap_model
from reuse_algos.training.task import Rows, Task

__all__ = ["Measures"]

_OF_TASK: dict[str, Callable[[Task, Rows], torch.Tensor]] = {
    "correct": Task.correct,
    "logit_margin": Task.logit_margin,
}


class Measures:
    """Computes the signals of a microbatch from its outputs and targets.

    Args:
        settings: What is kept, by name.
        reader: Knows the task from the first AFTER_LOSS on, and the targets of each microbatch.
    """

    def __init__(self, settings: Mapping[str, CaptureSettings], reader: TaskReader) -> None:
        self.settings, self.reader = settings, reader
        self.about_loss, self.about_logits = "loss is not recorded", ""
        self._own: ExampleLosses | None = None

    def check(self, state: State, batch: Any, num_examples: int) -> None:
        """Refuse, before the first step, what cannot be measured in this Trainer.

        Args:
            state: At the first AFTER_LOSS.
            batch: The microbatch as the model was given it.
            num_examples: N of the training data.

        Raises:
            TaskError: A signal is not defined for the task, its rows are too large, its layout is not known, or the
                model's loss of each example cannot be had.
        """
        outputs = logits_of(state.outputs, self.reader.keys.output).detach()
        # Without a task nobody knows which dimension of larger outputs holds the classes.
        if self.reader.task is None and outputs.dim() > 2 and self.reader.refusal is not None:
            raise self.reader.refusal
        if (logits := self.settings.get("logits")) is not None:
            known = outputs if self.reader.task is None else self.reader.task.rows(outputs).logits_BCX
            if known.dim() > 1:
                self.about_logits = check_logits(known.shape[1:], logits.top_k, logits.size, num_examples)
        if self.reader.task is not None and self.settings.keys() - {"logits"}:
            rows = self.reader.rows(state.outputs)
            for name in _OF_TASK.keys() & self.settings.keys():
                _OF_TASK[name](self.reader.known, rows)
            if "loss" in self.settings:
                self._choose_loss(state, batch, rows)

    def of(self, names: Sequence[str], state: State, batch: Any) -> dict[str, torch.Tensor]:
        """Return the signals with these names: ``logits`` ``[B, C, X]``, the others ``[B]``.

        Args:
            names: Which signals.
            state: At AFTER_LOSS.
            batch: The microbatch as the model was given it.
        """
        outputs, task = logits_of(state.outputs, self.reader.keys.output).detach(), self.reader.task
        if task is None:
            return dict.fromkeys(names, outputs)  # logits only: whatever else is wanted needs a task
        rows = task.rows(outputs, self.reader.targets)
        found: dict[str, torch.Tensor] = {}
        for name in names:
            if name == "logits":
                found[name] = rows.logits_BCX
            elif name == "loss":
                found[name] = task.losses(rows) if self._own is None else self._own_losses(state, batch, rows)
            else:
                found[name] = _OF_TASK[name](task, rows)
        return found

    def _choose_loss(self, state: State, batch: Any, rows: Rows) -> None:
        """Find out how to get the model's own loss of each example."""
        task = self.reader.known
        if self.settings["loss"].of == "task":
            self.about_loss = "loss is the task's plain one, as set"
            return
        own, plain = float(total_of(state.loss).detach()), float(task.losses(rows).nanmean())
        if task.is_confirmed or abs(own - plain) <= 1e-4 * max(1.0, abs(own)):
            self.about_loss = "loss is the model's own, which is the task's plain one"
            return
        try:
            self._own = example_losses(state) or per_example_losses(unwrap_model(state.model))
            self._own_losses(state, batch, rows)
        except ModelError as error:
            raise TaskError(
                f"RunRecorder signals.loss: the model's loss ({own:.6g}) is not the plain one of the task "
                f"{task.kind!r} ({plain:.6g}), and it cannot be had for each example: {type(state.model).__name__} has "
                "no loss function with an argument 'reduction'. Set signals.loss: {of: task} to record the plain loss, "
                "or leave loss out."
            ) from error
        self.about_loss = "loss is that of the model's own loss function"

    @torch.no_grad()
    def _own_losses(self, state: State, batch: Any, rows: Rows) -> torch.Tensor:
        """float32 ``[B]``: the model's own; the mean over what counts, NaN where nothing does."""
        assert self._own is not None
        losses_B = self._own(state.outputs, batch).detach().float()
        if losses_B.shape != (len(rows.logits_BCX),):
            raise ModelError(f"the loss function gives a tensor of shape {tuple(losses_B.shape)}")
        if rows.counted_BX is None or not self.reader.known.is_softmax:
            return losses_B
        # Loss functions give 0 at ignored positions, and these means are over all of them.
        counted_B = rows.counted_BX.reshape(len(losses_B), -1).float().mean(1)
        return torch.where(counted_B > 0, losses_B / counted_B.clamp_min(1e-12), torch.nan)
