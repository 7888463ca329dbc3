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
def gradient_moments(rows: Rows, directions: Sequence[Tensor] = (), *, whole: bool = False) -> GradientMoments:
    """Return the sums over the gradients of all examples.

    Args:
        rows: The gradients. They are gone through twice, as ``g_i . g`` needs g first.
        directions: Vectors ``[D]`` along which each gradient is projected. Default: none.
        whole: One chunk holds all examples; it is kept instead of made a second time. Default: False.
    """
    sums, kept_bD = _Sums(directions), None
    for losses_b, gradients_bD in rows():
        sums.add(losses_b, gradients_bD)
        kept_bD = gradients_bD if whole else None
        del gradients_bD  # or it would be held while the next chunk is made
    losses_N = torch.cat(sums.losses)
    assert kept_bD is None or len(kept_bD) == len(losses_N), "one chunk was promised"
    mean_D = sums.sum_D / len(losses_N)
    again = rows() if kept_bD is None else iter([(losses_N, kept_bD)])
    inner = []
    for _, gradients_bD in again:
        inner += _along(gradients_bD, mean_D)
        del gradients_bD
    counts = sums.counts.double()
    return GradientMoments(
        losses_N=losses_N,
        mean_D=mean_D,
        second_D=sums.squares_D / len(losses_N),
        squared_norms_N=torch.stack(sums.norms),
        inner_N=torch.stack(inner),
        along_NP=torch.stack(sums.along) if directions else mean_D.new_zeros(len(losses_N), 0),
        shares=counts / counts.sum(),
    )


@torch.no_grad()
def slopes_along(rows: Rows, direction_D: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses ``[N]`` and ``g_i . direction`` ``[N]`` of all examples, in float64.

    Args:
        rows: The gradients; they are gone through once.
        direction_D: Where to.
    """
    losses, slopes = [], []
    for losses_b, gradients_bD in rows():
        losses.append(losses_b.double())
        slopes += _along(gradients_bD, direction_D)
        del gradients_bD
    return torch.cat(losses), torch.stack(slopes)


class _Sums:
    """What the first pass over the gradients adds up."""

    def __init__(self, directions: Sequence[Tensor]) -> None:
        self.directions = [direction_D.double() for direction_D in directions]
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.along: list[Tensor] = []
        self.sum_D = self.squares_D = torch.zeros((), dtype=torch.float64)
        self.counts = torch.zeros((), dtype=torch.int64)

    def add(self, losses_b: Tensor, gradients_bD: Tensor) -> None:
        """Add a chunk, row by row in float64: the tests are differences of nearly equal sums."""
        self.losses.append(losses_b.double())
        for row_D in gradients_bD.unbind():
            precise_D = row_D.double()
            self.sum_D = self.sum_D + precise_D
            self.squares_D = self.squares_D + precise_D.square()
            self.norms.append(precise_D @ precise_D)
            self.counts = self.counts + _decade_counts(precise_D)
            if self.directions:
                self.along.append(torch.stack([precise_D @ direction_D for direction_D in self.directions]))


def _along(gradients_bD: Tensor, direction_D: Tensor) -> list[Tensor]:
    """Return ``g_i . direction`` of each row. Row by row: a whole chunk in float64 would be twice as large."""
    return [row_D.double() @ direction_D for row_D in gradients_bD.unbind()]


def _decade_counts(values_D: Tensor) -> Tensor:
    """Return how many values lie in each bin of size; zeros and values that are not finite fall into outer bins."""
    edges = torch.tensor([10.0**power for power in DECADES], device=values_D.device, dtype=values_D.dtype)
    return torch.bincount(torch.bucketize(values_D.abs(), edges, right=True), minlength=len(DECADES) + 1)
