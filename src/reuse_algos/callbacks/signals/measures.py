"""What is recorded of each microbatch, measured as the task of the run defines it.

Shapes: B rows of a microbatch, C classes, X positions of an example (none for most tasks).
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from composer import State
from composer.algorithms import LabelSmoothing

from reuse_algos.callbacks.signals.capture import CaptureSettings
from reuse_algos.callbacks.signals.kept_logits import check_logits
from reuse_algos.errors import ArchiveWarning, ModelError, TaskError
from reuse_algos.training.first_batch.boxes import refuse_boxes
from reuse_algos.training.first_batch.task_reader import TaskReader
from reuse_algos.training.interplay import clean_rows, example_losses, example_weights, replayed_outputs
from reuse_algos.training.loss import total_of
from reuse_algos.training.outputs import logits_of, unwrap_model
from reuse_algos.training.tasks.example_losses import TaskLosses, unreduced_losses
from reuse_algos.training.tasks.task import Rows, Task, by_row

_NEAR = 1e-3  # of the loss, from 1; half precision keeps three digits

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
        self._own: TaskLosses | None = None
        # Of the microbatch whose loss is farthest from the mean of the recorded ones: how far, its loss, the mean. It
        # stays on the device until an epoch ends.
        self._worst_3: torch.Tensor | None = None
        self._warned = False

    def check(self, state: State, batch: Any, num_examples: int) -> None:
        """Refuse, before the first step, what cannot be measured in this Trainer (first AFTER_LOSS).

        Raises:
            TaskError: A signal is not defined for the task, its rows are too large, its layout is not known, or the
                model's loss of each example cannot be had.
        """
        refuse_boxes(batch, self.reader.settings)
        outputs = logits_of(state.outputs, self.reader.keys.output).detach()
        # Without a task it is not known which dimension of larger outputs holds the classes.
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
        """Return the signals with these names at AFTER_LOSS: ``logits`` ``[B, C, X]``, the others ``[B]``."""
        outputs, task = logits_of(state.outputs, self.reader.keys.output).detach(), self.reader.task
        # Without a task only logits [B, C] get here; check() refused all else in the first batch.
        if task is None:
            # Logits only: whatever else is wanted needs a task.
            return dict.fromkeys(names, outputs if outputs.dim() > 1 else outputs.unsqueeze(1))
        rows = task.rows(outputs, self.reader.targets)
        found: dict[str, torch.Tensor] = {}
        for name in names:
            if name == "logits":
                found[name] = rows.logits_BCX
            elif name == "loss":
                own = self._own
                found[name] = task.losses(rows) if own is None else self._own_losses(own, state.outputs, batch)
                if own is not None:
                    self._compare(state, found[name], rows)
            else:
                found[name] = _OF_TASK[name](task, rows)
        return found

    def end_epoch(self) -> None:
        """Warn, once for a run, where losses of the epoch that ends were not those that the model gave."""
        worst_3, self._worst_3 = self._worst_3, None
        if worst_3 is None or self._warned:
            return
        off, given, mean = worst_3.tolist()
        if off > _NEAR:
            self._warned = True
            warnings.warn(
                "RunRecorder signals.loss: in the first batch the recorded losses were the model's own, and now the "
                f"model's loss of a batch is {given:.6g} and the mean of the recorded ones {mean:.6g}: weights of "
                "examples, or a term that begins later (a penalty, a smoothing, an auxiliary head), which the recorded "
                "losses are without. Set signals.loss: {of: task} where the plain loss is what is wanted, or leave "
                "loss out.",
                ArchiveWarning,
                stacklevel=2,
            )

    def _compare(self, state: State, losses_B: torch.Tensor, rows: Rows) -> None:
        """Hold the mean of recorded losses against the model's loss of the microbatch; nothing waits for the device."""
        # Other algorithms may weigh or replace rows from some batch on, which is not the model's loss.
        if _is_changed(state) or clean_rows(state) is not None or replayed_outputs(state) is not None:
            return
        loss = total_of(state.loss).detach()
        given, means = loss.float(), torch.stack(_means(losses_B, rows))
        mean = means[(means - given).abs().nan_to_num(torch.inf).argmin()]
        slack = max(1.0, torch.finfo(loss.dtype).eps / _NEAR)
        off = ((mean - given).abs() / given.abs().clamp_min(1.0) / slack).nan_to_num(0.0, posinf=0.0)
        found_3 = torch.stack([off, given, mean])
        worst_3 = self._worst_3
        self._worst_3 = found_3 if worst_3 is None else torch.where(found_3[0] > worst_3[0], found_3, worst_3)

    def _choose_loss(self, state: State, batch: Any, rows: Rows) -> None:
        """Find out how to get the model's own loss of each example, and hold it against the batch's loss."""
        given = float(total_of(state.loss).detach())
        if self.settings["loss"].of == "task":
            self.about_loss = "loss is the task's plain one, as set"
            return
        try:
            losses = TaskLosses(self.reader, example_losses(state) or unreduced_losses(unwrap_model(state.model)))
        except ModelError as error:
            losses = TaskLosses(self.reader, error)
        try:
            losses.choose(state, batch)
            mean = self._mean_loss(losses, state, batch, rows)
        except ModelError as error:
            raise self._no_loss(state, given, rows) from error
        # A loss that is infinite or no number from the start can be held against nothing; the run is marked diverged.
        checked = math.isfinite(given) and not _is_changed(state)
        # Not ">", so that a mean that is NaN is refused as well.
        # A loss that is a bfloat16 number has two digits.
        near = max(_NEAR, torch.finfo(total_of(state.loss).dtype).eps)
        if checked and not abs(mean - given) <= near * max(1.0, abs(given)):
            raise self._no_loss(state, given, rows)
        self._own = losses
        self.about_loss = f"loss is {losses.words}"

    def _no_loss(self, state: State, given: float, rows: Rows) -> TaskError:
        task = self.reader.known
        return TaskError(
            f"RunRecorder signals.loss: the model's loss ({given:.6g}) is not the plain one of the task "
            f"{task.kind!r} ({float(task.losses(rows).nanmean()):.6g}), and it cannot be had for each example: "
            f"{type(unwrap_model(state.model)).__name__} has no loss function with an argument 'reduction' whose mean "
            "is the loss. Set signals.loss: {of: task} to record the plain loss, or leave loss out."
        )

    @torch.no_grad()
    def _own_losses(self, losses: TaskLosses, outputs: Any, batch: Any) -> torch.Tensor:
        """Return the model's own losses, float32 ``[B]``: the mean over what counts, NaN where nothing does."""
        losses_B = losses.of_examples(outputs, batch).detach().float()
        if losses_B.dim() != 1:
            raise ModelError(f"the loss function gives a tensor of shape {tuple(losses_B.shape)}")
        return losses_B

    def _mean_loss(self, losses: TaskLosses, state: State, batch: Any, rows: Rows) -> float:
        """Return the mean over all counted targets, or over examples, whichever the model's loss is nearer to."""
        losses_B = self._own_losses(losses, state.outputs, batch)
        given = float(total_of(state.loss).detach())
        return min(map(float, _means(losses_B, rows)), key=lambda mean: abs(mean - given))


def _means(losses_B: torch.Tensor, rows: Rows) -> list[torch.Tensor]:
    """Return the mean of losses over examples and, where targets are ignored, that over all counted targets."""
    means = [losses_B.nanmean()]
    if rows.counted_BX is not None:
        counted_B = by_row(rows.counted_BX).sum(1)
        kept_B = losses_B.where(counted_B > 0, torch.zeros_like(losses_B))
        means.append((kept_B * counted_B).sum() / counted_B.sum().clamp_min(1))
    return means


def _is_changed(state: State) -> bool:
    """Return whether the loss of the batch is not meant to be the mean of the examples' losses."""
    if any(isinstance(one, LabelSmoothing) for one in state.algorithms) or example_weights(state) is not None:
        return True
    # A loss function with class weights divides by the weights of the batch's targets.
    function = getattr(unwrap_model(state.model), "_loss_fn", None)
    if isinstance(function, functools.partial):
        return function.keywords.get("weight") is not None
    return isinstance(function, torch.nn.Module) and getattr(function, "weight", None) is not None
