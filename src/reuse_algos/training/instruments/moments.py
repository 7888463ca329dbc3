"""Sums over the gradients of single examples, taken chunk by chunk.

Legend: N examples, b examples of a chunk, D numbers in all trained parameters together, P directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Rows = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Yields losses ``[b]`` and gradients ``[b, D]``, chunk by chunk, from the first example on at every call."""

DECADES = tuple(range(-8, 1))
"""Edges of the histogram of gradient elements, as powers of ten; what lies outside falls into the outer bins."""


@dataclass(frozen=True)
class GradientMoments:
    """What the instruments need to know of the gradients g_i of N examples, in float64.

    Attributes:
        losses_N: The loss of each example.
        mean_D: G, the mean gradient.
        second_D: Mean of ``g_id ** 2`` over the examples.
        squared_norms_N: ``|g_i| ** 2``.
        inner_N: ``g_i . g``.
        along_NP: ``g_i . d`` for each direction d that was asked for.
        shares: Share of the elements ``g_id`` in each bin of size, ``len(DECADES) + 1`` numbers that sum to 1.
    """

    losses_N: Tensor
    mean_D: Tensor
    second_D: Tensor
    squared_norms_N: Tensor
    inner_N: Tensor
    along_NP: Tensor
    shares: Tensor

    @property
    def num_examples(self) -> int:
        """N."""
        return len(self.losses_N)

    @property
    def squared_norm(self) -> float:
        """``|g| ** 2``."""
        return float(self.mean_D @ self.mean_D)


@torch.no_grad()
def gradient_moments(rows: Rows, directions: Sequence[Tensor] = ()) -> GradientMoments:
    """Return the sums over the gradients of all examples.

    Args:
        rows: The gradients. They are gone through twice, as ``g_i . g`` needs g first; once where one chunk holds all.
        directions: Vectors ``[D]`` along which each gradient is projected. Default: none.
    """
    losses, norms, along, inner = [], [], [], []
    sum_D = squares_D = torch.zeros((), dtype=torch.float64)
    counts = torch.zeros((), dtype=torch.int64)
    kept_bD = None
    for losses_b, gradients_bD in rows():
        losses.append(losses_b.double())
        # Row by row in float64: the tests are differences of nearly equal sums, and a whole chunk would double.
        for row_D in gradients_bD.unbind():
            precise_D = row_D.double()
            sum_D = sum_D + precise_D
            squares_D = squares_D + precise_D.square()
            norms.append(precise_D @ precise_D)
            along.append([precise_D @ direction_D.double() for direction_D in directions])
            counts = counts + _decade_counts(precise_D)
        kept_bD = gradients_bD
    assert kept_bD is not None
    losses_N = torch.cat(losses)
    mean_D = sum_D / len(losses_N)
    # Where one chunk holds all examples, its gradients are still there.
    whole = [kept_bD] if len(kept_bD) == len(losses_N) else (gradients_bD for _, gradients_bD in rows())
    # Without this the last chunk would be held beside each one of the second pass.
    del kept_bD
    for gradients_bD in whole:
        inner += [row_D.double() @ mean_D for row_D in gradients_bD.unbind()]
    return GradientMoments(
        losses_N=losses_N,
        mean_D=mean_D,
        second_D=squares_D / len(losses_N),
        squared_norms_N=torch.stack(norms),
        inner_N=torch.stack(inner),
        along_NP=torch.stack([torch.stack(one) for one in along]) if directions else mean_D.new_zeros(len(losses_N), 0),
        shares=counts.double() / counts.double().sum(),
    )


def _decade_counts(values_D: Tensor) -> Tensor:
    """Return how many values lie in each bin of size; zeros and values that are not finite fall into outer bins."""
    edges = torch.tensor([10.0**power for power in DECADES], device=values_D.device, dtype=values_D.dtype)
    return torch.bincount(torch.bucketize(values_D.abs(), edges, right=True), minlength=len(DECADES) + 1)
