"""The distillation terms, and the combination of several teachers, as pure functions.

Shapes: B rows (examples), C classes or labels (always dimension 1), X positions of an example (tokens, pixels; none for
most tasks), M teachers. All arithmetic is float32 (float64 for float64 inputs) whatever the precision of the forward
pass. What does not count (``seen_B``, ``counted_BX``) adds nothing, gets a gradient of exactly 0, and may hold NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from reuse_algos.training.tasks.task import by_row, mean_of_counted

Average = Literal["examples", "targets"]
"""What a term is the mean of: of examples, each of which is the mean of its targets; or of all targets of the batch."""


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
    # In place, one teacher at a time: M distributions over a vocabulary side by side may not fit.
    mixed = torch.zeros_like(_full(teacher_logits[0]))
    for logits_BC, weight in zip(teacher_logits, weights, strict=True):
        mixed.add_(F.softmax(_full(logits_BC) / temperature, dim=1), alpha=float(weight))
    return mixed


def mix_sigmoids(teacher_logits: Sequence[torch.Tensor], weights: Sequence[float], temperature: float) -> torch.Tensor:
    """Return the convex combination of the teachers' softened yes-or-no answers, ``sum_m w_m sigmoid(z_m / T)``.

    Args:
        teacher_logits: M tensors ``[B, C, ...]``, any float dtype: one logit for each label.
        weights: M numbers of at least 0 that sum to 1.
        temperature: T, above 0.

    Returns:
        Float32 ``[B, C, ...]``, 0 to 1.

    >>> mix_sigmoids([torch.zeros(1, 1), torch.tensor([[100.0]])], [0.5, 0.5], temperature=1.0)
    tensor([[0.7500]])
    """
    mixed = torch.zeros_like(_full(teacher_logits[0]))
    for logits_BC, weight in zip(teacher_logits, weights, strict=True):
        mixed.add_(torch.sigmoid(_full(logits_BC) / temperature), alpha=float(weight))
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
    counted_BX: torch.Tensor | None = None,
    average: Average = "examples",
) -> torch.Tensor:
    """Return ``T^2 KL(teacher || student)`` of softened distributions.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2. A class whose
    probability is 0 for the teacher adds nothing, also where the student's logit is -inf.

    Args:
        student_logits_BC: ``[B, C, ...]`` with gradient.
        teacher_probabilities_BC: ``[B, C, ...]`` at the same temperature, see :func:`mix_probabilities`.
        temperature: T, above 0.
        seen_B: Bool ``[B]``; rows that are False add nothing, and the average still divides by B. Default: all rows
            count.
        weights_B: Float ``[B]`` of at least 0, the weight of each row's term; the average still divides by B. Default:
            all are 1.
        counted_BX: Bool ``[B, ...]``, the positions that count; a row without any adds nothing. Default: all.
        average: ``examples``: the mean over a row's positions, then over the B rows, which is the same for every cut
            into microbatches. ``targets``: the sum over all positions divided by the number of those that count, which
            is so where Composer accumulates on tokens. Default: ``examples``.

    Returns:
        Float32 scalar of at least 0.

    >>> logits = torch.tensor([[1.0, 0.0]])
    >>> round(float(kl_term(logits, mix_probabilities([logits], [1.0], 4.0), temperature=4.0)), 4)
    0.0
    """
    student_BC, teacher_BC = _counted(_full(student_logits_BC), _full(teacher_probabilities_BC), seen_B, counted_BX)
    divergence_BX = _cross(teacher_BC, F.log_softmax(student_BC / temperature, dim=1)).sum(dim=1)
    # T^2 keeps the size of the gradient independent of the temperature.
    return temperature**2 * _mean(divergence_BX, seen_B, weights_B, counted_BX, average)


def bernoulli_kl_term(
    student_logits_BC: torch.Tensor,
    teacher_probabilities_BC: torch.Tensor,
    temperature: float,
    seen_B: torch.Tensor | None = None,
    weights_B: torch.Tensor | None = None,
    counted_BC: torch.Tensor | None = None,
    average: Average = "examples",
) -> torch.Tensor:
    """Return ``T^2 KL(teacher || student)`` of softened yes-or-no answers, for binary and multilabel tasks.

    ``KL = p log(p / q) + (1 - p) log((1 - p) / (1 - q))`` of each label with ``q = sigmoid(z / T)``, averaged over
    labels.

    Args:
        student_logits_BC: ``[B, C, ...]`` with gradient, one logit for each label.
        teacher_probabilities_BC: ``[B, C, ...]`` at the same temperature, see :func:`mix_sigmoids`.
        temperature: T, above 0.
        seen_B: Bool ``[B]``, as for :func:`kl_term`. Default: all rows count.
        weights_B: Float ``[B]``, as for :func:`kl_term`. Default: all are 1.
        counted_BC: Bool ``[B, C, ...]``, the labels that count; a row without any adds nothing. Default: all.
        average: As for :func:`kl_term`, with labels as targets. Default: ``examples``.

    Returns:
        Float32 scalar of at least 0.

    >>> term = bernoulli_kl_term(torch.zeros(1, 1), torch.ones(1, 1), temperature=1.0)
    >>> round(float(term), 4)
    0.6931
    """
    student_BC, teacher_BC = _counted(_full(student_logits_BC), _full(teacher_probabilities_BC), seen_B, counted_BC)
    logits_BC = student_BC / temperature
    divergence_BC = _cross(teacher_BC, F.logsigmoid(logits_BC)) + _cross(1 - teacher_BC, F.logsigmoid(-logits_BC))
    return temperature**2 * _mean(divergence_BC, seen_B, weights_B, counted_BC, average)


def mse_term(
    student_logits_BC: torch.Tensor,
    teacher_logits_BC: torch.Tensor,
    seen_B: torch.Tensor | None = None,
    weights_B: torch.Tensor | None = None,
    counted_BX: torch.Tensor | None = None,
    average: Average = "examples",
) -> torch.Tensor:
    """Return the mean squared difference of logits (Ba & Caruana 2014, arXiv 1312.6184; arXiv 2303.06480).

    The mean is over rows, classes and positions. For regression the logits are the model's outputs. Logits that are
    -inf on both sides are equal.

    Args:
        student_logits_BC: ``[B, C, ...]`` with gradient.
        teacher_logits_BC: ``[B, C, ...]``, see :func:`mix_logits`.
        seen_B: Bool ``[B]``; rows that are False add nothing, and the mean still divides by B. Default: all rows count.
        weights_B: Float ``[B]`` of at least 0, the weight of each row's term; the mean still divides by B. Default: all
            are 1.
        counted_BX: Bool ``[B, ...]`` positions, or ``[B, C, ...]`` labels or outputs, that count. Default: all.
        average: As for :func:`kl_term`. Default: ``examples``.

    Returns:
        Float32 scalar of at least 0.

    >>> float(mse_term(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])))
    0.5
    """
    student_BC, teacher_BC = _counted(_full(student_logits_BC), _full(teacher_logits_BC), seen_B, counted_BX)
    alike_BC = (student_BC == teacher_BC) & student_BC.isinf()
    # Zero before the square: the gradient of inf - inf is NaN.
    squared_BC = (student_BC - teacher_BC).masked_fill(alike_BC, 0.0).square()
    of_positions = counted_BX is not None and counted_BX.dim() < squared_BC.dim()
    squared = squared_BC.mean(1) if of_positions else squared_BC
    return _mean(squared, seen_B, weights_B, counted_BX, average)


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
    if num_teachers == 1:  # nothing is drawn, so that one teacher gives the same run under every combination
        return mean_weights(1)
    chosen = rng.choice(num_teachers, size=min(size, num_teachers), replace=False)
    weights = np.zeros(num_teachers)
    weights[chosen] = 1.0 / len(chosen)
    return weights


def _full(values: torch.Tensor) -> torch.Tensor:
    """Return at least float32."""
    return values if values.dtype == torch.float64 else values.float()


def _counted(
    student_BC: torch.Tensor, teacher_BC: torch.Tensor, seen_B: torch.Tensor | None, counted_BX: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both with zeros where nothing counts."""
    # In front of the softmax and not behind it: its gradient at a NaN is NaN, even where the loss is not used.
    if seen_B is not None:
        seen = seen_B.reshape(-1, *[1] * (student_BC.dim() - 1))
        student_BC, teacher_BC = student_BC.where(seen, 0.0), teacher_BC.where(seen, 0.0)
    if counted_BX is not None:
        counted = counted_BX if counted_BX.dim() == student_BC.dim() else counted_BX.unsqueeze(1)
        student_BC, teacher_BC = student_BC.where(counted, 0.0), teacher_BC.where(counted, 0.0)
    return student_BC, teacher_BC


def _cross(probabilities: torch.Tensor, log_student: torch.Tensor) -> torch.Tensor:
    """Return ``p (log p - log q)``, which is 0 where p is 0, also where log q is -inf."""
    return torch.xlogy(probabilities, probabilities) - probabilities * log_student.masked_fill(probabilities == 0, 0.0)


def _mean(
    values: torch.Tensor,
    seen_B: torch.Tensor | None,
    weights_B: torch.Tensor | None,
    counted: torch.Tensor | None,
    average: Average,
) -> torch.Tensor:
    """Return the mean over what counts in each row, then the weighted sum over rows divided by B (or over targets)."""
    values_BX = by_row(values)
    counted_BX = None if counted is None else by_row(counted)
    if average == "targets":
        numbers = (
            values_BX.new_tensor(values_BX.numel()) if counted_BX is None else counted_BX.sum().clamp_min(1).to(values)
        )
        values_B = (values_BX if counted_BX is None else values_BX.where(counted_BX, 0.0)).sum(1)
        # Times B, as the last line divides by it.
        values_B = values_B * (len(values) / numbers)
    elif counted_BX is None:
        values_B = values_BX.mean(1)
    else:
        values_B = mean_of_counted(values_BX, counted_BX, empty=0.0)
    if weights_B is not None:
        values_B = weights_B.to(values_B) * values_B
    if seen_B is not None:
        # where, not a product: a row without a teacher must not pass on a NaN.
        values_B = torch.where(seen_B, values_B, torch.zeros_like(values_B))
    return values_B.mean()
