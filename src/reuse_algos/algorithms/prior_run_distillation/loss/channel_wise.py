"""Channel-wise distillation of maps of logits (Shu et al. 2021, arXiv 2011.13256): where in the picture a class is.

Shapes: B rows, C classes, X positions of an example (height and width of a picture).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_algos.algorithms.prior_run_distillation.loss.section import KL, Strength, Weighing
from reuse_algos.algorithms.prior_run_distillation.loss.terms import mix_logits
from reuse_algos.training.tasks.task import Task


def channel_wise_term(
    student_logits_BCX: Tensor,
    teacher_logits_BCX: Tensor,
    temperature: float,
    seen_B: Tensor | None = None,
    weights_B: Tensor | None = None,
    counted_BX: Tensor | None = None,
) -> Tensor:
    """Return ``T^2 / (B C)`` times the sum over rows and classes of ``KL(teacher || student)`` of spatial softmaxes.

    Each class's map becomes a distribution over the positions that count; a constant added to a map changes nothing.
    Positions that do not count are at minus infinity on both sides.

    Args:
        student_logits_BCX: ``[B, C, H, W]`` with gradient.
        teacher_logits_BCX: ``[B, C, H, W]``.
        temperature: T, above 0.
        seen_B: Bool ``[B]``; rows that are False add nothing, and the mean still divides by B. Default: all rows count.
        weights_B: Float ``[B]`` of at least 0, the weight of each row's term. Default: all are 1.
        counted_BX: Bool ``[B, H, W]``, the positions that count; a row without any adds nothing. Default: all.

    Returns:
        Float32 (float64 for float64 inputs) scalar of at least 0.

    >>> maps = torch.arange(8.0).reshape(1, 2, 2, 2)
    >>> float(channel_wise_term(maps, maps + 5.0, temperature=4.0))
    0.0
    """
    full = torch.float64 if student_logits_BCX.dtype == torch.float64 else torch.float32
    student_BCP, teacher_BCP = (logits.to(full).flatten(2) for logits in (student_logits_BCX, teacher_logits_BCX))
    everything = torch.ones(student_BCP[:, 0].shape, dtype=torch.bool, device=student_BCP.device)
    counted_BP = everything if counted_BX is None else counted_BX.flatten(1)
    some_B = counted_BP.any(1)
    if seen_B is not None:
        some_B = some_B & seen_B
    # Zeros before the softmax where a row adds nothing: its gradient at a NaN or at minus infinity everywhere is NaN.
    keep = some_B[:, None, None]
    student_BCP, teacher_BCP = student_BCP.where(keep, 0.0), teacher_BCP.where(keep, 0.0)
    if counted_BX is not None:
        hidden = (~counted_BP & some_B[:, None])[:, None]
        student_BCP = student_BCP.masked_fill(hidden, -torch.inf)
        teacher_BCP = teacher_BCP.masked_fill(hidden, -torch.inf)
    log_p_BCP = F.log_softmax(teacher_BCP / temperature, dim=2)
    log_q_BCP = F.log_softmax(student_BCP / temperature, dim=2)
    p_BCP = log_p_BCP.exp()
    # A position that is hidden on both sides has p = 0, and minus infinity less minus infinity is NaN.
    gap_BCP = (log_p_BCP.masked_fill(p_BCP == 0, 0.0) - log_q_BCP.masked_fill(p_BCP == 0, 0.0)) * p_BCP
    values_B = temperature**2 * gap_BCP.sum(2).mean(1)
    if weights_B is not None:
        values_B = weights_B.to(values_B) * values_B
    return values_B.where(some_B, 0.0).mean()


@dataclass(frozen=True)
class ChannelWise(KL):
    """Where each class is in the picture, ``b L + w D``, for dense tasks (arXiv 2011.13256).

    Attributes:
        weight: w, at least 0. Default: 3.0.
        base_weight: b, at least 0, the weight of the model's own loss. Default: 1.0.
        temperature: T, above 0. Default: 4.0.

    Raises:
        ValueError: A weight or the temperature is out of its range.
    """

    name: ClassVar[str] = "channel_wise"
    weight: float = 3.0
    base_weight: float | None = 1.0

    def check_task(self, task: Task) -> None:
        """Raise a ``TaskError`` where the term is not defined for a task."""
        task.require("PriorRunDistillation with loss: channel_wise", ("dense",))

    @property
    def needs_all_logits(self) -> bool:
        """Whether ``top_k`` is not enough: a softmax over positions needs the logit of every one."""
        return True

    def target(self, teacher_logits: Sequence[Tensor], shares: Sequence[float], now: Strength, task: Task) -> Tensor:
        """Return the mix of the teachers' maps of logits."""
        return mix_logits(teacher_logits, shares)

    def term(self, student_BC: Tensor, target_BC: Tensor, now: Strength, task: Task, weighing: Weighing) -> Tensor:
        """Return D, see :func:`~reuse_algos.functional.channel_wise_term`."""
        return channel_wise_term(student_BC, target_BC, now.temperature, *weighing)
