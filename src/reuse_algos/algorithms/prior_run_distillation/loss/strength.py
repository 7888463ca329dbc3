"""How strong a distillation term is: units of the logits, and its gradient beside that of the model's own loss.

A squared difference of logits grows with the square of the teachers' logits, which depends on the data and on how long
the teachers trained. What is here makes a weight mean the same for every teacher.

Shapes: B rows, C classes or labels, X positions of an example, K columns of moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reuse_algos.errors import ModelError
from reuse_algos.training.loss import pull_of
from reuse_algos.training.ranks import sum_over_ranks
from reuse_algos.training.tasks.task import Task

# Added to a row's variance: a head that starts at zero has rows without any, and a gradient of 1 / 0.
_LEAST_VARIANCE = 1e-4

# Batches after which the factor of a bound stays as it is.
_LOOKS = 8


def standardized(logits_BC: Tensor) -> Tensor:
    """Return each row's logits with mean 0 and standard deviation 1 over the classes.

    Sun et al. 2024, "Logit Standardization in Knowledge Distillation" (arXiv 2403.01427), equation 9, with 1e-4 added
    to the variance: ``(z - mean(z)) / sqrt(var(z) + 1e-4)``, where the variance divides by C.

    Args:
        logits_BC: Float ``[B, C, ...]``, classes in dimension 1. Classes with -inf are left out and stay what they are.

    Returns:
        At least float32, of the same shape.

    >>> standardized(torch.tensor([[3.0, 1.0]])).round(decimals=2)
    tensor([[ 1., -1.]])
    """
    logits_BC = logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
    finite_BC = logits_BC.isfinite()
    # Zero before the arithmetic: the gradient of a masked NaN or infinity is NaN.
    known_BC = logits_BC.where(finite_BC, 0.0)
    numbers_B = finite_BC.sum(1, keepdim=True).clamp_min(1)
    centred_BC = (known_BC - known_BC.sum(1, keepdim=True) / numbers_B).where(finite_BC, 0.0)
    variance_B = centred_BC.square().sum(1, keepdim=True) / numbers_B
    return (centred_BC / (variance_B + _LEAST_VARIANCE).sqrt()).where(finite_BC, logits_BC.detach())


def logit_moments(
    task: Task, logits_BC: Tensor, seen_B: Tensor | None = None, counted_BX: Tensor | None = None
) -> Tensor:
    """Return what the variance of logits is made of, so that microbatches add up.

    Args:
        task: What the logits mean. Softmax: each row's logits are taken from their mean over the classes, which a
            softmax does not see. Binary and multilabel: from 0, where the answer changes. Regression: each output from
            its mean over the rows.
        logits_BC: Float ``[B, C, ...]``, of one teacher.
        seen_B: Bool ``[B]``, the rows that count. Default: all.
        counted_BX: Bool ``[B, ...]`` positions or ``[B, C, ...]`` labels that count. Default: all.

    Returns:
        Float64 ``[3, K]``: number, sum and sum of squares; K is C for regression, else 1.
    """
    values_BC = logits_BC.detach().double()
    counted_BC = values_BC.isfinite()
    if counted_BX is not None:
        counted_BC = counted_BC & (counted_BX if counted_BX.dim() == values_BC.dim() else counted_BX.unsqueeze(1))
    if seen_B is not None:
        counted_BC = counted_BC & seen_B.reshape(-1, *[1] * (values_BC.dim() - 1))
    values_BC = values_BC.where(counted_BC, 0.0)
    if task.is_softmax:
        means_B = values_BC.sum(1, keepdim=True) / counted_BC.sum(1, keepdim=True).clamp_min(1)
        values_BC = (values_BC - means_B).where(counted_BC, 0.0)
    parts = torch.stack([counted_BC.double(), values_BC, values_BC.square()])
    if task.kind == "regression":
        return parts.movedim(2, 1).flatten(2).sum(2)
    sums = parts.flatten(1).sum(1)
    # These values are taken from their reference already, so their mean plays no part in the variance.
    return torch.stack([sums[0], torch.zeros_like(sums[1]), sums[2]]).unsqueeze(1)


def variance_of(moments: Tensor) -> float:
    """Return the variance that moments of :func:`logit_moments` make, averaged over their columns; at least 1e-4.

    >>> variance_of(torch.tensor([[4.0], [0.0], [8.0]], dtype=torch.float64))
    2.0
    """
    numbers_K, sums_K, squares_K = moments.double()
    numbers_K = numbers_K.clamp_min(1)
    return max(float((squares_K / numbers_K - (sums_K / numbers_K).square()).mean()), _LEAST_VARIANCE)


def pulls(own: Tensor, term: Tensor, outputs: Tensor, *, required: bool = False) -> Tensor | None:
    """Return how hard the model's own loss and the distillation term pull at the logits, and whether the same way.

    Only the short way from the loss to the logits is followed, so it costs next to nothing and leaves the gradients of
    parameters alone.

    Args:
        own: The model's own loss, a scalar.
        term: The term, a scalar.
        outputs: The logits that both come from.
        required: Whether a loss that is not computed from the logits is an error. Default: False.

    Raises:
        ModelError: It is not, and that is required.

    Returns:
        Float32 ``[3]``: squared norms of the two gradients, and their inner product; None where the loss is not
        computed from these logits.
    """
    of_own, of_term = pull_of(own, outputs), pull_of(term, outputs)
    if of_own is None or of_term is None:
        if required:
            raise ModelError(
                "loss.bound holds the term's gradient against that of the model's own loss, both with respect to the "
                "logits, and the model's loss is not computed from the logits that it returns. Leave loss.bound out, "
                "or name other outputs by keys: {output: ...}."
            )
        return None
    a, b = of_own.detach().flatten().float(), of_term.detach().flatten().float()
    return torch.stack([a @ a, b @ b, a @ b])


class Measured:
    """What archived logits or the first batches have shown of the teachers' scale and of the term's pull.

    Args:
        scaled: Whether the teachers' standard deviation is needed.
        bound: The largest ratio of the term's gradient to that of the model's own loss; None: no bound.

    Attributes:
        deviation: Standard deviation of the teachers' logits, once it is known.
        factor: Of the weight, at most 1, so that the bound holds.
        looks: Batches that the factor has come from; it stays after 8 of them.
    """

    def __init__(self, scaled: bool, bound: float | None) -> None:
        self._scaled, self._bound = scaled, bound
        self.deviation: float | None = None
        self.factor, self.looks = 1.0, 0
        self._moments: list[Tensor] = []

    @property
    def needs_deviation(self) -> bool:
        """Whether the teachers' deviation is needed and not known yet."""
        return self._scaled and self.deviation is None

    @property
    def is_ready(self) -> bool:
        """Whether the term may count in the running batch; the batch that is measured goes without it."""
        return not self.needs_deviation and (self._bound is None or self.looks > 0)

    @property
    def wants_pulls(self) -> bool:
        """Whether the gradients of the running batch are to be measured for the bound."""
        return self._bound is not None and self.looks < _LOOKS and not self.needs_deviation

    def begin_batch(self) -> None:
        """Forget what an attempt at this batch measured that ran out of memory."""
        self._moments = []

    def add(self, moments: Tensor) -> None:
        """Add the moments of one teacher and microbatch."""
        self._moments.append(moments)

    def settle(self, across_ranks: bool = True) -> None:
        """Turn the moments into the deviation, as the mean variance over the teachers.

        Args:
            across_ranks: Whether ranks saw different rows. Every rank must then call this. Default: True.
        """
        if not self._moments or not self.needs_deviation:
            return
        moments = torch.stack(self._moments).sum(0)
        if across_ranks:
            sum_over_ranks(moments)
        self._moments = []
        if float(moments[0].sum()):
            self.deviation = variance_of(moments) ** 0.5

    def hold(self, ratio: float) -> None:
        """Lower the factor where the term pulled more than the bound allows.

        Args:
            ratio: Of the gradients' norms in the batch, with the weight as the recipe has it.
        """
        assert self._bound is not None
        self.looks += 1
        if ratio > self._bound:
            self.factor = min(self.factor, self._bound / ratio)

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured."""
        return {"deviation": self.deviation, "factor": self.factor, "looks": self.looks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with it."""
        self.deviation = None if state["deviation"] is None else float(state["deviation"])
        self.factor, self.looks = float(state["factor"]), int(state["looks"])
