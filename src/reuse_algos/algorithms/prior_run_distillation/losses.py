"""The distillation terms as pure functions.

Shapes: B rows (examples), C classes (always dimension 1), ``...`` further positions of dense outputs, M teachers.
All arithmetic is float32 (float64 for float64 inputs) whatever the precision of the forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["combination_weights", "combined_loss", "kl_term", "mix_logits", "mix_probabilities", "mse_term"]


def _full(values: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    return values if values.dtype == torch.float64 else values.float()


def mix_probabilities(teacher_logits: Sequence[torch.Tensor], weights: Sequence[float], temperature: float):
    """Convex combination of the teachers' softened distributions, ``sum_m w_m softmax(z_m / T)``.

    Args:
        teacher_logits: M tensors ``[B, C, ...]``, any float dtype.
        weights: M numbers >= 0 that sum to 1.
        temperature: T > 0.

    Returns:
        float32 ``[B, C, ...]``; sums to 1 over dimension 1.
    """
    mixed = torch.zeros_like(_full(teacher_logits[0]))
    for logits_BC, weight in zip(teacher_logits, weights, strict=True):
        mixed.add_(F.softmax(_full(logits_BC) / temperature, dim=1), alpha=float(weight))
    return mixed


def mix_logits(teacher_logits: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Convex combination of the teachers' logits, ``sum_m w_m z_m``; float32 ``[B, C, ...]``.

    This is the mix of teacher *outputs* of arXiv 2303.06480.
    """
    mixed = torch.zeros_like(_full(teacher_logits[0]))
    for logits_BC, weight in zip(teacher_logits, weights, strict=True):
        mixed.add_(_full(logits_BC), alpha=float(weight))
    return mixed


def _mean_over_rows(values: torch.Tensor, seen_B: torch.Tensor | None, weights_B: torch.Tensor | None) -> torch.Tensor:
    """Mean over positions, then the weighted sum over the rows that count divided by the number of all rows."""
    values_B = values.reshape(len(values), -1).mean(1)
    if weights_B is not None:
        values_B = weights_B.to(values_B) * values_B
    if seen_B is not None:
        # where, not a product: a row without a teacher must not pass on a NaN.
        values_B = torch.where(seen_B, values_B, torch.zeros_like(values_B))
    return values_B.mean()


def kl_term(
    student_logits_BC: torch.Tensor,
    teacher_probabilities_BC: torch.Tensor,
    temperature: float,
    seen_B: torch.Tensor | None = None,
    weights_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """``T^2 KL(teacher || student)`` of softened distributions (Hinton et al. 2015, arXiv 1503.02531, section 2).

    The factor ``T^2`` keeps the size of the gradient independent of the temperature. The term is averaged over rows,
    and over positions for dense outputs; classes are dimension 1.

    Args:
        student_logits_BC: ``[B, C, ...]`` with gradient.
        teacher_probabilities_BC: ``[B, C, ...]`` at the same temperature, see :func:`mix_probabilities`.
        temperature: T > 0.
        seen_B: bool ``[B]``; rows that are False add nothing (the average still divides by B). None: all rows count.
        weights_B: float ``[B]`` >= 0, the weight of each row's term (the average still divides by B). None: all are 1.

    Returns:
        float32 scalar >= 0.
    """
    log_student_BC = F.log_softmax(_full(student_logits_BC) / temperature, dim=1)
    divergence = F.kl_div(log_student_BC, _full(teacher_probabilities_BC), reduction="none").sum(dim=1)
    return temperature**2 * _mean_over_rows(divergence, seen_B, weights_B)


def mse_term(
    student_logits_BC: torch.Tensor,
    teacher_logits_BC: torch.Tensor,
    seen_B: torch.Tensor | None = None,
    weights_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared difference of logits over rows, classes and positions (Ba & Caruana 2014; arXiv 2303.06480).

    Args:
        student_logits_BC: ``[B, C, ...]`` with gradient.
        teacher_logits_BC: ``[B, C, ...]``, see :func:`mix_logits`.
        seen_B: as in :func:`kl_term`.
        weights_B: as in :func:`kl_term`.

    Returns:
        float32 scalar >= 0.
    """
    squared = (_full(student_logits_BC) - _full(teacher_logits_BC)).square()
    return _mean_over_rows(squared, seen_B, weights_B)


def combined_loss(loss: Any, term: torch.Tensor, *, base_weight: float, weight: float) -> Any:
    """``b L + w D`` in the structure that the model's loss has.

    Args:
        loss: L, a scalar tensor, or a tuple, list or mapping of those. Of a mapping with ``total`` only that is trained
            on, else the sum of all parts.
        term: D, a scalar tensor.
        base_weight: b >= 0.
        weight: w >= 0.

    Returns:
        A tensor, a tuple with ``w D`` as one part more, or a dict in which ``distillation`` is ``w D``, or D beside a
        ``total`` that has it already.
    """
    added = weight * term
    if isinstance(loss, Mapping):
        if "total" in loss:
            return {**loss, "total": base_weight * loss["total"] + added.to(loss["total"].dtype), "distillation": term}
        return {**{key: base_weight * value for key, value in loss.items()}, "distillation": added}
    if isinstance(loss, (tuple, list)):
        return (*(base_weight * part for part in loss), added)
    return base_weight * loss + added


def combination_weights(
    combine: str, num_teachers: int, rng: np.random.Generator, *, dirichlet_alpha: float = 1.0, sample_size: int = 1
) -> np.ndarray:
    """Weights of the teachers for one batch.

    Args:
        combine: ``mean`` (1/M each), ``mixup`` (one draw from a symmetric Dirichlet distribution; with
            ``dirichlet_alpha=1`` uniform over all convex combinations), or ``sample`` (``sample_size`` of the teachers
            without replacement, equal among themselves, 0 for the others).
        num_teachers: M >= 1.
        rng: generator of this batch.
        dirichlet_alpha: concentration > 0; small values favour one teacher, large ones the mean.
        sample_size: k >= 1; k > M counts as M.

    Returns:
        float64 ``[M]`` that sums to 1.
    """
    if combine == "mean" or num_teachers == 1:
        return np.full(num_teachers, 1.0 / num_teachers)
    if combine == "mixup":
        return rng.dirichlet(np.full(num_teachers, dirichlet_alpha))
    chosen = rng.choice(num_teachers, size=min(sample_size, num_teachers), replace=False)
    weights = np.zeros(num_teachers)
    weights[chosen] = 1.0 / len(chosen)
    return weights
