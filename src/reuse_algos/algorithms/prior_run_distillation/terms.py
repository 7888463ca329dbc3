"""The distillation terms, and the combination of several teachers, as pure functions.

Shapes: B rows (examples), C classes (always dimension 1), ``...`` further positions of dense outputs, M teachers.
All arithmetic is float32 (float64 for float64 inputs) whatever the precision of the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["kl_term", "mean_weights", "mix_logits", "mix_probabilities", "mixup_weights", "mse_term", "sample_weights"]


def mix_probabilities(
    teacher_logits: Sequence[torch.Tensor], weights: Sequence[float], temperature: float
) -> torch.Tensor:
    """Return the convex combination of the teachers' softened distributions, ``sum_m w_m softmax(z_m / T)``.

    Args:
        teacher_logits: M tensors ``[B, C, ...]``, any float dtype.
        weights: M numbers of at least 0 that sum to 1.
        temperature: T, above 0.

    Returns:
        Float32 ``[B, C, ...]``; sums to 1 over dimension 1.

    >>> mix_probabilities([torch.zeros(1, 2), torch.tensor([[0.0, 100.0]])], [0.5, 0.5], temperature=1.0)
    tensor([[0.2500, 0.7500]])
    """
    mixed = torch.zeros_like(_full(teacher_logits[0]))
    for logits_BC, weight in zip(teacher_logits, weights, strict=True):
        mixed.add_(F.softmax(_full(logits_BC) / temperature, dim=1), alpha=float(weight))
    return mixed


def mix_logits(teacher_logits: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return the convex combination of the teachers' logits, ``sum_m w_m z_m``: the mix of outputs of arXiv 2303.06480.

    Args:
        teacher_logits: M tensors ``[B, C, ...]``, any float dtype.
        weights: M numbers of at least 0 that sum to 1.

    Returns:
        Float32 ``[B, C, ...]``.

    >>> mix_logits([torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])], [0.5, 0.5])
    tensor([[1., 2.]])
    """
    mixed = torch.zeros_like(_full(teacher_logits[0]))
    for logits_BC, weight in zip(teacher_logits, weights, strict=True):
        mixed.add_(_full(logits_BC), alpha=float(weight))
    return mixed


def kl_term(
    student_logits_BC: torch.Tensor,
    teacher_probabilities_BC: torch.Tensor,
    temperature: float,
    seen_B: torch.Tensor | None = None,
    weights_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``T^2 KL(teacher || student)`` of softened distributions.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2.
    The factor ``T^2`` keeps the size of the gradient independent of the temperature. The term is averaged over rows,
    and over positions for dense outputs.

    Args:
        student_logits_BC: ``[B, C, ...]`` with gradient.
        teacher_probabilities_BC: ``[B, C, ...]`` at the same temperature, see :func:`mix_probabilities`.
        temperature: T, above 0.
        seen_B: Bool ``[B]``; rows that are False add nothing, and the average still divides by B. Default: all rows
            count.
        weights_B: Float ``[B]`` of at least 0, the weight of each row's term; the average still divides by B. Default:
            all are 1.

    Returns:
        Float32 scalar of at least 0.

    >>> logits = torch.tensor([[1.0, 0.0]])
    >>> round(float(kl_term(logits, mix_probabilities([logits], [1.0], 4.0), temperature=4.0)), 4)
    0.0
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
    """Return the mean squared difference of logits (Ba & Caruana 2014, arXiv 1312.6184; arXiv 2303.06480).

    The mean is over rows, classes and positions.

    Args:
        student_logits_BC: ``[B, C, ...]`` with gradient.
        teacher_logits_BC: ``[B, C, ...]``, see :func:`mix_logits`.
        seen_B: Bool ``[B]``; rows that are False add nothing, and the mean still divides by B. Default: all rows count.
        weights_B: Float ``[B]`` of at least 0, the weight of each row's term; the mean still divides by B. Default: all
            are 1.

    Returns:
        Float32 scalar of at least 0.

    >>> float(mse_term(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])))
    0.5
    """
    squared = (_full(student_logits_BC) - _full(teacher_logits_BC)).square()
    return _mean_over_rows(squared, seen_B, weights_B)


def mean_weights(num_teachers: int) -> np.ndarray:
    """Return 1/M for each of M teachers, float64 ``[M]``.

    >>> mean_weights(4)
    array([0.25, 0.25, 0.25, 0.25])
    """
    return np.full(num_teachers, 1.0 / num_teachers)


def mixup_weights(num_teachers: int, rng: np.random.Generator, alpha: float = 1.0) -> np.ndarray:
    """Return a random convex combination, one draw from a symmetric Dirichlet distribution: float64 ``[M]``, sum 1.

    Args:
        num_teachers: M, at least 1.
        rng: Drawn from, unless there is one teacher only.
        alpha: Concentration above 0; small values favour one teacher, large ones the mean, 1 is uniform over all
            combinations. Default: 1.0.

    >>> mixup_weights(3, np.random.default_rng(0)).round(2)
    array([0.4 , 0.59, 0.01])
    """
    return mean_weights(1) if num_teachers == 1 else rng.dirichlet(np.full(num_teachers, alpha))


def sample_weights(num_teachers: int, rng: np.random.Generator, size: int = 1) -> np.ndarray:
    """Return equal weights for some of the teachers, drawn without replacement, and 0 for the others: float64 ``[M]``.

    Args:
        num_teachers: M, at least 1.
        rng: Drawn from, unless there is one teacher only.
        size: How many teachers, at least 1; more than M counts as M. Default: 1.

    >>> sample_weights(4, np.random.default_rng(0), size=2)
    array([0. , 0. , 0.5, 0.5])
    """
    if num_teachers == 1:
        return mean_weights(1)
    chosen = rng.choice(num_teachers, size=min(size, num_teachers), replace=False)
    weights = np.zeros(num_teachers)
    weights[chosen] = 1.0 / len(chosen)
    return weights


def _full(values: torch.Tensor) -> torch.Tensor:
    """Return at least float32."""
    return values if values.dtype == torch.float64 else values.float()


def _mean_over_rows(values: torch.Tensor, seen_B: torch.Tensor | None, weights_B: torch.Tensor | None) -> torch.Tensor:
    """Return the mean over positions, then the weighted sum over the rows that count divided by B."""
    values_B = values.reshape(len(values), -1).mean(1)
    if weights_B is not None:
        values_B = weights_B.to(values_B) * values_B
    if seen_B is not None:
        # where, not a product: a row without a teacher must not pass on a NaN.
        values_B = torch.where(seen_B, values_B, torch.zeros_like(values_B))
    return values_B.mean()
