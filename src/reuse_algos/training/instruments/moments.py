"""Sums over the gradients of single examples, taken chunk by chunk.

Legend: N examples, D numbers in all trained parameters together, P directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_algos.training.instruments.single.blocks import Gradients, Totals

Chunks = Callable[[], Iterator[Gradients]]
"""Yields losses and gradients, chunk by chunk, from the first example on at every call."""


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
def gradient_moments(chunks: Chunks, directions: Sequence[Tensor] = (), *, whole: bool = False) -> GradientMoments:
    """Return the sums over the gradients of all examples.

    Args:
        chunks: The gradients. They are gone through twice, as ``g_i . g`` needs g first.
        directions: Vectors ``[D]`` along which each gradient is projected. Default: none.
        whole: One chunk holds all examples; it is kept instead of made a second time. Default: False.
    """
    totals: Totals | None = None
    kept: Gradients | None = None
    losses, norms, along = [], [], []
    for chunk in chunks():
        totals = Totals(chunk.size, chunk.losses_b.device) if totals is None else totals
        losses.append(chunk.losses_b.double())
        norms.append(chunk.add_to(totals))
        along.append([chunk.along(direction_D) for direction_D in directions])
        kept = chunk if whole else None
        del chunk  # or it would be held while the next one is made
    assert totals is not None, "there are examples"
    losses_N = torch.cat(losses)
    assert kept is None or len(kept.losses_b) == len(losses_N), "one chunk was promised"
    mean_D = totals.sum_D / len(losses_N)
    inner = []
    for chunk in chunks() if kept is None else iter([kept]):
        inner.append(chunk.along(mean_D))
        del chunk
    counts = totals.counts.double()
    return GradientMoments(
        losses_N=losses_N,
        mean_D=mean_D,
        second_D=totals.squares_D / len(losses_N),
        squared_norms_N=torch.cat(norms),
        inner_N=torch.cat(inner),
        along_NP=torch.cat([torch.stack(one, 1) for one in along])
        if directions
        else mean_D.new_zeros(len(losses_N), 0),
        shares=counts / counts.sum(),
    )


@torch.no_grad()
def slopes_along(chunks: Chunks, direction_D: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses ``[N]`` and ``g_i . direction`` ``[N]`` of all examples, in float64.

    Args:
        chunks: The gradients; they are gone through once.
        direction_D: Where to.
    """
    losses, slopes = [], []
    for chunk in chunks():
        losses.append(chunk.losses_b.double())
        slopes.append(chunk.along(direction_D))
        del chunk
    return torch.cat(losses), torch.cat(slopes)
