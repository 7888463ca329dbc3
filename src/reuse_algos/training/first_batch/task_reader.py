"""The task of a running Trainer, found in its first microbatch, and the rows of each microbatch in its layout."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from composer import Event, State

from reuse_algos.data.nested import fields_of
from reuse_algos.errors import ModelError, ReuseAlgosError, TaskError
from reuse_algos.training.batch_guard import BatchGuard
from reuse_algos.training.batch_keys import BatchKeys, part_of
from reuse_algos.training.first_batch.boxes import refuse_boxes
from reuse_algos.training.first_batch.masks import TargetMasks
from reuse_algos.training.loss import pull_of, total_of
from reuse_algos.training.outputs import logits_of, unwrap_model
from reuse_algos.training.ranks import on_rank_zero
from reuse_algos.training.tasks.find_task import find_task
from reuse_algos.training.tasks.task import Rows, Task, TaskSettings

TARGET_NAMES = ("labels", "label", "targets", "target", "y")
"""Where targets lie in batches that are mappings, dataclasses or named tuples, the first that is there.

``keys.target`` may say another."""


def targets_of(batch: Any, key: str | int = 1) -> torch.Tensor:
    """Return the targets of a batch.

    Args:
        batch: As the DataLoader gives it.
        key: Where they lie. Default: 1, the second of a pair, or one of :data:`TARGET_NAMES` in a mapping, a
            dataclass or a named tuple.

    Raises:
        TaskError: Nothing, or no tensor, lies there.
    """
    if key == BatchKeys.target and (names := _names(batch)):
        key = next((name for name in TARGET_NAMES if name in names), key)
    try:
        found = part_of(batch, key)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise TaskError(
            f"the batch has no targets at keys.target={key!r}: it is {_described(batch)}. Name their place by keys: "
            "{target: ...}, with dots for parts within parts."
        ) from error
    if not isinstance(found, torch.Tensor) or found.dim() == 0:
        refuse_boxes(batch)
        raise TaskError(
            f"the targets at keys.target={key!r} must be one tensor with a row for each example; found "
            f"{_described(found)}. Name another place by keys: {{target: ...}}."
        )
    return found


def _names(batch: Any) -> Collection[Any]:
    """Return the names of the parts of a batch: a mapping's keys, the fields of a dataclass or named tuple."""
    if isinstance(batch, Mapping):
        return () if BatchKeys.target in batch else batch.keys()
    return getattr(batch, "_fields", None) or (fields_of(batch) or {}).keys()


def class_numbers_of(batch: Any, key: str | int, who: str) -> torch.Tensor:
    """Return the targets of a batch that are one class number for each example, int64 ``[B]``.

    Args:
        batch: As the DataLoader gives it.
        key: Where they lie, see :func:`targets_of`.
        who: What is defined for such targets only, for the message.

    Raises:
        TaskError: They are something else, or the batch is a detector's.
    """
    refuse_boxes(batch)
    targets = targets_of(batch, key)
    if targets.dim() != 1 or targets.is_floating_point():
        raise TaskError(
            f"{who} is defined for the task multiclass, whose targets are whole numbers [B]; found "
            f"{tuple(targets.shape)} {str(targets.dtype).removeprefix('torch.')}."
        )
    return targets


class TaskReader:
    """Finds the task of a Trainer and reads the outputs and targets of each microbatch by it.

    The owner passes on :attr:`EVENTS`. At the first AFTER_LOSS the task is found from targets, outputs and the model's
    loss; rank 0's answer counts on every rank. A task that an algorithm of the run has found is taken over.

    Args:
        keys: Where targets and outputs lie, and what is taken as given of the task. Default: pairs of inputs and
            targets; the task that another reader of the run is given, else found.
        required: Whether a Trainer without a task is an error. Default: True; else :attr:`refusal` says why.

    Attributes:
        task: None before the first AFTER_LOSS, or where there is none.
        refusal: Why there is no task; None where there is one.
    """

    EVENTS = (Event.BEFORE_FORWARD, Event.AFTER_LOSS)

    def __init__(self, keys: BatchKeys | None = None, *, required: bool = True) -> None:
        self.keys, self.required = keys or BatchKeys(), required
        self.settings = self.keys.task
        self.start_afresh()

    def start_afresh(self) -> None:
        """Forget the task of another Trainer (INIT)."""
        self.task: Task | None = None
        self.refusal: TaskError | None = None
        self.masks = TargetMasks(self.keys.mask)
        self._targets: torch.Tensor | None = None
        self._missing: TaskError | None = None
        self._guard = BatchGuard("the model's forward pass")
        self._batch: Any = None

    @property
    def batch(self) -> Any:
        """The running microbatch as it was before the forward pass. Read it; do not change it.

        Raises:
            DataError: The model wrote into a tensor that it had left alone in the first batch.
        """
        self._guard.look()
        return self._batch

    @property
    def targets(self) -> torch.Tensor | None:
        """The targets of the running microbatch, from BEFORE_FORWARD on; None where there are none.

        What a mask of the batch leaves out of the loss is marked as ignored.

        Raises:
            DataError: The model wrote into a tensor that it had left alone in the first batch.
        """
        self._guard.look()
        return self._targets

    def handle(self, event: Event, state: State) -> bool:
        """Follow one of :attr:`EVENTS`; every rank must do so.

        Returns:
            Whether the task was found just now: the moment for checks of the first batch.

        Raises:
            TaskError: No task can be found, and one is required. Every rank raises it.
        """
        if event == Event.BEFORE_FORWARD:
            # A copy, because some models take things out of their batch or write into it.
            self._batch = self._guard.copy(state.batch)
            self._keep_targets(self._batch)
            return False
        if event == Event.AFTER_LOSS and self.masks.is_open:
            self._look_for_masks(state)
        if event == Event.AFTER_LOSS and self.task is None and self.refusal is None:
            # Later microbatches are not looked at: one whose loss is odd by chance must not change the task. Another
            # algorithm's answer comes first: it was found before anything weighed the loss.
            self.task = self._shared(state)
            if self.task is None:
                self._find(state)
            return self.task is not None
        return False

    @property
    def is_looking(self) -> bool:
        """Whether AFTER_LOSS of the next microbatch may show something: the task, or a mask of the targets."""
        return (self.task is None and self.refusal is None) or self.masks.is_open

    def targets_in(self, batch: Any) -> torch.Tensor:
        """Return the targets of a batch of this Trainer, marked as :attr:`targets` are.

        Raises:
            TaskError: There are none, or a mask is missing.
        """
        return self.masks.mark(batch, targets_of(batch, self.keys.target))

    def rows(self, outputs: Any) -> Rows:
        """Return outputs and targets of the running microbatch in the task's layout.

        Raises:
            TaskError: There is no task, or the shapes do not belong to it.
        """
        return self.known.rows(logits_of(outputs, self.keys.output), self.targets)

    @property
    def known(self) -> Task:
        """The task.

        Raises:
            TaskError: It is not known.
        """
        if self.task is None:
            raise self.refusal or TaskError("the task is known from the first microbatch's loss on (AFTER_LOSS)")
        return self.task

    def _settings_of_all(self, state: State) -> TaskSettings:
        """Return the settings of this reader, or of the first one of the run that has any: one section serves all."""
        readers = (getattr(one, "task_reader", None) for one in (*state.algorithms, *state.callbacks))
        found = (one.settings for one in (self, *readers) if isinstance(one, TaskReader))
        return next((settings for settings in found if settings != TaskSettings()), TaskSettings())

    def _keep_targets(self, batch: Any) -> None:
        self._targets, self._missing = None, None
        try:
            self._targets = self.targets_in(batch)
        except TaskError as error:
            self._missing = error  # raised, or kept as the refusal, when the task is looked for: on every rank

    def _look_for_masks(self, state: State) -> None:
        if self._missing is not None or self.refusal is not None:
            return
        with contextlib.suppress(ModelError):  # no logits: said where the task is looked for
            outputs, batch = logits_of(state.outputs, self.keys.output), self.batch
            # FSDP's hooks would wait for ranks that do not take part, so there keys.mask must name a mask.
            pull = None if state.fsdp_enabled else pull_of(total_of(state.loss), outputs)
            self.masks.learn(batch, targets_of(batch, self.keys.target), outputs.detach(), pull)
            self._targets = self.targets_in(batch)

    def _shared(self, state: State) -> Task | None:
        """Return the task that an algorithm of the run has found in the same places."""
        for algorithm in state.algorithms:
            other = getattr(algorithm, "task_reader", None)
            if isinstance(other, TaskReader) and other.task is not None and self._reads_like(other):
                return other.task
        return None

    def _reads_like(self, other: TaskReader) -> bool:
        places = (self.keys.target, self.keys.output) == (other.keys.target, other.keys.output)
        return places and self.settings in (TaskSettings(), other.settings)

    def _find(self, state: State) -> None:
        try:
            # One answer for all ranks: each sees other rows, and ranks that read them differently would wait for each
            # other.
            self.task = on_rank_zero(lambda: self._found(state))
        except ReuseAlgosError as error:
            refusal = error if isinstance(error, TaskError) else TaskError(str(error))
            if self.required:
                raise refusal from error
            self.refusal = refusal

    def _found(self, state: State) -> Task:
        settings = self._settings_of_all(state)
        refuse_boxes(self.batch, settings)
        outputs = logits_of(state.outputs, self.keys.output).detach()
        if self._missing is not None:
            if settings.kind is None:
                raise self._missing
            return _as_set(settings, outputs)
        assert self.targets is not None
        metrics = list(_metrics(state))
        of_loss = set(_ignored_by_loss(unwrap_model(state.model)))
        of_metrics = {index for metric in metrics if type(index := getattr(metric, "ignore_index", None)) is int}
        # FSDP gathers its shards by hooks on the way back: this rank alone would wait there for the others for ever.
        pull = None if state.fsdp_enabled else pull_of(total_of(state.loss), logits_of(state.outputs, self.keys.output))
        task = find_task(
            outputs,
            self.targets,
            float(total_of(state.loss).detach()),
            settings,
            sorted(of_loss | of_metrics),
            [type(metric).__name__ for metric in metrics],
            pull,
        )
        # A class that the loss ignores may be missing from the first microbatch, where its loss cannot show it.
        named = {index for index in of_loss if task.is_softmax and 0 <= index < task.num_classes}
        if task.ignore_index is None and len(named) == 1 and not bool((self.targets == min(named)).any()):
            return replace(task, ignore_index=min(named))
        return task


def _as_set(settings: TaskSettings, outputs: torch.Tensor) -> Task:
    """Return the task of batches without targets (unlabelled data for distillation), whose kind the user says."""
    assert settings.kind is not None
    # Language models put the classes last, everything else has them in dimension 1.
    usual = 0 if outputs.dim() == 1 else (-1 if settings.kind == "token" and outputs.dim() == 3 else 1)
    dim = usual if settings.class_dim is None else settings.class_dim
    classes = 1 if dim == 0 else outputs.shape[dim]
    return Task(settings.kind, classes, dim, settings.ignore_index, bool(settings.shift), "as set, without targets")


def _metrics(state: State) -> Iterator[Any]:
    """Yield the model's metrics for training and evaluation."""
    yield from (state.train_metrics or {}).values()
    for metrics in state.eval_metrics.values():
        yield from metrics.values()


def _ignored_by_loss(model: torch.nn.Module) -> Iterator[int]:
    """Yield what the loss functions name as ignored: attributes of loss modules, keywords of partial functions."""
    for module in model.modules():
        for one in (module, *vars(module).values()):
            if isinstance(one, functools.partial):
                given = one.keywords.get("ignore_index")
            else:
                given = getattr(one, "ignore_index", None) if _is_loss(one) else None
            if type(given) is int:
                yield given


def _is_loss(one: Any) -> bool:
    return isinstance(one, torch.nn.Module) and hasattr(one, "reduction")


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(repr, value))}"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"
