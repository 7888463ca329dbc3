"""The loss section of PriorRunDistillation: the terms, with their weights.

Shapes: B rows, C classes or labels, X positions of an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

from composer import State
from composer.optim import ComposerScheduler
from torch import Tensor

from reuse_algos.algorithms.prior_run_distillation.loss.strength import standardized
from reuse_algos.algorithms.prior_run_distillation.loss.terms import (
    Average,
    bernoulli_kl_term,
    kl_term,
    mix_logits,
    mix_probabilities,
    mix_sigmoids,
    mse_term,
)
from reuse_algos.errors import TaskError
from reuse_algos.training.tasks.task import SUMMED, Task
from reuse_algos.training.window import Window, ahead, scheduled

Scale = Literal["none", "teacher", "rows"]
"""Units of the logits that a term compares, see :class:`MSE`."""

_TASKS = ("multiclass", "binary", "multilabel", "regression", "token", "dense")

_COLDEST, _HOTTEST = 0.01, 1000.0


class Weighing(NamedTuple):
    """What of a microbatch counts, and how much.

    Attributes:
        seen_B: Bool ``[B]``, rows that have a target of the teachers; None: all.
        weights_B: Float ``[B]``, weights of the rows; None: all are 1.
        counted_BX: Bool, the positions (labels, outputs) that count, see
            :class:`~reuse_algos.training.tasks.task.Rows`; None: all.
    """

    seen_B: Tensor | None = None
    weights_B: Tensor | None = None
    counted_BX: Tensor | None = None

    def of_rows(self, rows_R: Tensor) -> Weighing:
        """Return what counts of some rows.

        Args:
            rows_R: int64, numbers of rows.
        """
        return Weighing(*(None if part is None else part[rows_R.to(part.device)] for part in self))


class Strength(NamedTuple):
    """The settings of a term at the current batch: its weight w and, for KL, its temperature T."""

    weight: float
    temperature: float


@dataclass(frozen=True)
class MSE:
    """The mean squared difference of logits, ``b L + w D`` with b = 1 (arXiv 2303.06480).

    Attributes:
        weight: w, at least 0. Default: 0.9.
        weight_scheduler: Multiplies w at every batch, as Composer's schedulers multiply the learning rate:
            ``LinearScheduler(t_max="0.5dur")`` fades it out over the first half. Where it is 0 the term is off.
            Default: w is constant.
        base_weight: b, at least 0, the weight of the model's own loss. Default: 1.
        average: ``examples``: D is the mean over examples, each of which is the mean of its counted tokens, pixels or
            labels. ``targets``: the mean over all counted ones of the microbatch. Default: ``examples``, or
            ``targets`` where the Trainer weighs microbatches by their tokens (``accumulate_train_batch_on_tokens``).
        scale: Units of the logits. ``none``: as they are, so that the term grows with the square of the teachers'
            logits. ``teacher``: all logits are divided by the standard deviation of the teachers' (measured over
            archived logits, or in the first batch, which then goes without the term); one weight serves all teachers.
            ``rows``: each row has mean 0 and standard deviation 1 (arXiv 2403.01427), for tasks with a softmax.
            Default: ``none``.
        bound: The largest ratio, above 0, of the gradient of w D to that of b L, both with respect to the logits. It is
            measured in the first eight batches of the term, the first of which goes without it; w is lowered to hold
            it. Default: None, no bound.

    Raises:
        ValueError: A setting is out of its range.
    """

    name: ClassVar[str] = "mse"
    weight: float = 0.9
    weight_scheduler: ComposerScheduler | None = None
    base_weight: float | None = None
    average: Average | None = None
    scale: Scale = "none"
    bound: float | None = None

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}, got {self.scale!r}")
        if self.bound is not None and not self.bound > 0:
            raise ValueError(f"bound must be above 0, got {self.bound}")
        if self.bound is not None and self.base(self.plain, 1.0) == 0:
            raise ValueError("bound needs a share of the model's own loss to hold the term against: its weight is 0")
        if self.average is not None and self.average not in get_args(Average):
            raise ValueError(f"average must be examples or targets, got {self.average!r}")
        if self.base_weight is not None and not self.base_weight >= 0:
            raise ValueError(f"base_weight must be at least 0, got {self.base_weight}")
        self.check(self.plain)

    @property
    def plain(self) -> Strength:
        """The settings as they are written, without schedulers."""
        return Strength(float(self.weight), 1.0)

    def at(self, state: State) -> Strength:
        """Return the settings at the current batch, unchecked: they do not count where the term is off."""
        return Strength(scheduled(float(self.weight), self.weight_scheduler, state), 1.0)

    def check(self, now: Strength) -> None:
        """Raise a ``ValueError`` where a setting is out of its range."""
        if not now.weight >= 0:
            raise ValueError(f"weight must be at least 0, got {now.weight}")

    def check_ahead(self, state: State, window: Window) -> None:
        """Raise a ``ValueError`` where a scheduler will bring a setting out of its range within a window."""
        # Now, since a schedule that leaves the range in the last epoch would stop a training of days there.
        for value in ahead(self.weight_scheduler, state, window):
            self.check(self.plain._replace(weight=self.weight * value))

    def base(self, now: Strength, share: float) -> float:
        """Return b for a batch of whose rows a share has a target."""
        return 1.0 if self.base_weight is None else self.base_weight

    def check_task(self, task: Task) -> None:
        """Raise a ``TaskError`` where the term is not defined for a task."""
        task.require("PriorRunDistillation with loss: mse", _TASKS)
        self._check_scale(task)

    def _check_scale(self, task: Task) -> None:
        if task.evidence == SUMMED:
            raise TaskError(
                "the model's loss is a sum over the batch, and the term is a mean, so its weight would depend on the "
                "size of the batch. Let the model return the mean loss (reduction='mean'), with a learning rate that "
                "fits it."
            )
        if self.scale == "rows" and not task.is_softmax:
            raise TaskError(
                f"PriorRunDistillation with loss.scale: rows needs classes that exclude each other, and the task is "
                f"{task.kind} ({task.evidence or 'as set'}). Set scale: teacher."
            )

    @property
    def needs_all_logits(self) -> bool:
        """Whether the largest logits alone (top_k) are not enough."""
        return True

    def in_units(self, logits_BC: Tensor, deviation: float | None) -> Tensor:
        """Return logits of the student or a teacher in the units that are compared.

        Args:
            logits_BC: ``[B, C, ...]``.
            deviation: Standard deviation of the teachers' logits; None where it is not known yet.
        """
        if self.scale == "rows":
            return standardized(logits_BC)
        return logits_BC if self.scale == "none" or deviation is None else logits_BC / deviation

    def target(self, teacher_logits: Sequence[Tensor], shares: Sequence[float], now: Strength, task: Task) -> Tensor:
        """Return what :meth:`term` compares the student with, of the teachers' logits and weights."""
        return mix_logits(teacher_logits, shares)

    def term(self, student_BC: Tensor, target_BC: Tensor, now: Strength, task: Task, weighing: Weighing) -> Tensor:
        """Return D, see :func:`~reuse_algos.functional.mse_term`."""
        return mse_term(student_BC, target_BC, *weighing, average=self.average or "examples")

    def answers(self, target_BC: Tensor) -> Tensor:
        """Return which labels a target of :meth:`target` says yes to, for binary and multilabel tasks."""
        return target_BC > 0  # logits

    def metrics(self, now: Strength) -> dict[str, float]:
        """Return the settings that a scheduler or the bound changes, for the log."""
        moves = self.weight_scheduler is not None or self.bound is not None
        return {"weight": now.weight} if moves else {}


@dataclass(frozen=True)
class KL(MSE):
    """The divergence of softened distributions, ``b L + w T^2 KL`` (Hinton et al. 2015, arXiv 1503.02531).

    Attributes:
        weight: w, at least 0, and at most 1 where ``base_weight`` is left out. Default: 0.9.
        weight_scheduler: Multiplies w at every batch, as Composer's schedulers multiply the learning rate. Where it is
            0 the term is off. Default: w is constant.
        base_weight: b, at least 0, the weight of the model's own loss. Default: ``1 - weight``, Hinton's convex
            combination.
        average: ``examples``: D is the mean over examples, each of which is the mean of its counted tokens, pixels or
            labels. ``targets``: the mean over all counted ones of the microbatch. Default: ``examples``, or
            ``targets`` where the Trainer weighs microbatches by their tokens (``accumulate_train_batch_on_tokens``).
        scale: Units of the logits that are divided by T. ``none``: as they are. ``teacher``: the standard deviation of
            the teachers' logits (measured over archived logits, or in the first batch, which then goes without the
            term). ``rows``: each row has mean 0 and standard deviation 1 (arXiv 2403.01427), for tasks with a softmax.
            Default: ``none``.
        bound: The largest ratio, above 0, of the gradient of w D to that of b L, both with respect to the logits. It is
            measured in the first eight batches of the term, the first of which goes without it; w is lowered to hold
            it. Default: None, no bound.
        temperature: T, from 0.01 to 1,000. Default: 4.0.
        temperature_scheduler: Multiplies T at every batch; T must stay in its range. Default: T is constant.

    Raises:
        ValueError: A setting is out of its range.
    """

    name: ClassVar[str] = "kl"
    temperature: float = 4.0
    temperature_scheduler: ComposerScheduler | None = None

    @property
    def plain(self) -> Strength:
        """The settings as they are written, without schedulers."""
        return Strength(float(self.weight), float(self.temperature))

    def at(self, state: State) -> Strength:
        """Return the settings at the current batch, unchecked: they do not count where the term is off."""
        temperature = scheduled(float(self.temperature), self.temperature_scheduler, state)
        return Strength(super().at(state).weight, temperature)

    def check(self, now: Strength) -> None:
        """Raise a ``ValueError`` where a setting is out of its range."""
        if not 0 <= now.weight <= (1 if self.base_weight is None else float("inf")):
            wanted = "in [0, 1]" if self.base_weight is None else "at least 0"
            raise ValueError(f"weight must be {wanted}, got {now.weight}")
        # T^2 multiplies a difference of two logarithms: in float32 little of it is left at higher temperatures.
        # At low ones the factor leaves next to no gradient.
        if not _COLDEST <= now.temperature <= _HOTTEST:
            raise ValueError(f"temperature must be in [{_COLDEST:g}, {_HOTTEST:g}], got {now.temperature}")

    def check_ahead(self, state: State, window: Window) -> None:
        """Raise a ``ValueError`` where a scheduler will bring a setting out of its range within a window."""
        super().check_ahead(state, window)
        for value in ahead(self.temperature_scheduler, state, window):
            self.check(self.plain._replace(temperature=self.temperature * value))

    def base(self, now: Strength, share: float) -> float:
        """Return b for a batch of whose rows a share has a target."""
        # Rows without a target keep their own loss whole: the convex combination holds on average over the batch.
        return 1.0 - now.weight * share if self.base_weight is None else self.base_weight

    def check_task(self, task: Task) -> None:
        """Raise a ``TaskError`` where the term is not defined for a task."""
        if task.kind == "regression":
            raise TaskError(
                "PriorRunDistillation with loss: kl needs logits, and the task is regression "
                f"({task.evidence or 'as set'}), whose outputs are numbers. Set loss: mse, or keys: {{task: {{kind: "
                "...}} where the task was found wrongly."
            )
        task.require("PriorRunDistillation with loss: kl", _TASKS)
        self._check_scale(task)

    @property
    def needs_all_logits(self) -> bool:
        """Whether the largest logits alone (top_k) are not enough."""
        return self.scale != "none"

    def target(self, teacher_logits: Sequence[Tensor], shares: Sequence[float], now: Strength, task: Task) -> Tensor:
        """Return what :meth:`term` compares the student with, of the teachers' logits and weights."""
        mix = mix_sigmoids if task.is_sigmoid else mix_probabilities
        return mix(teacher_logits, shares, now.temperature)

    def term(self, student_BC: Tensor, target_BC: Tensor, now: Strength, task: Task, weighing: Weighing) -> Tensor:
        """Return D, see :func:`~reuse_algos.functional.kl_term` and ``bernoulli_kl_term``."""
        divergence = bernoulli_kl_term if task.is_sigmoid else kl_term
        return divergence(student_BC, target_BC, now.temperature, *weighing, average=self.average or "examples")

    def answers(self, target_BC: Tensor) -> Tensor:
        """Return which labels a target of :meth:`target` says yes to, for binary and multilabel tasks."""
        return target_BC > 0.5  # probabilities

    def metrics(self, now: Strength) -> dict[str, float]:
        """Return the settings that a scheduler or the bound changes, for the log."""
        moving = {} if self.temperature_scheduler is None else {"temperature": now.temperature}
        return {**super().metrics(now), **moving}
