"""How the ranks agree on a gradient, one parameter at a time: what is sent, what comes back, what is remembered.

Working parameter by parameter makes the result independent of how DDP groups them into buckets, which it changes after
the first backward pass of each process.

Legend: P entries of a parameter, K of them sent, N ranks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Sent(NamedTuple):
    """What came of an exchange.

    Attributes:
        gradients: The agreed gradient of each parameter, flat, in the order and type of what was given.
        memory: What this rank has not sent of each; empty for methods without memory.
        bytes: Bytes that this rank put on the wire, as a payload: what the collective makes of them is its own.
    """

    gradients: list[Tensor]
    memory: list[Tensor]
    bytes: int


def count_kept(size: int, ratio: float) -> int:
    """Return K, how many of a parameter's entries are sent: ``size / ratio``, rounded up."""
    return max(1, math.ceil(size / ratio))


def agree_by_mean(whole: Tensor) -> Tensor:
    """Average a tensor over the ranks in place, bit by bit as DDP does it without a hook, and return it."""
    whole.mul_(1 / dist.get_world_size())
    dist.all_reduce(whole)
    return whole


def scalecom(gradients: list[Tensor], memory: list[Tensor], *, leader: int, ratio: float, beta: float) -> Sent:
    """Average the entries that are largest for the leading rank, and remember what was not sent.

    ``I`` is the leader's top K of ``|m + g|``; the result is the mean of ``(m + g)[I]`` over the ranks and 0 elsewhere,
    and ``m <- (1 - beta) m + beta (m + g - sent)`` (Chen et al. 2020, https://arxiv.org/abs/2104.11125, algorithm 1).

    Args:
        gradients: This rank's, flat.
        memory: This rank's, flat, of the same sizes.
        leader: The rank whose choice counts at this step, the same on every rank.
        ratio: Entries for each one that is sent.
        beta: Share of the new remainder in the memory.
    """
    ranks = dist.get_world_size()
    wholes = [old + new for old, new in zip(memory, gradients, strict=True)]
    kept = [count_kept(whole.numel(), ratio) for whole in wholes]
    # In rising order, so that with ratio 1 the sum over the ranks is that of a plain all-reduce to the last bit.
    places_K = torch.cat(
        [whole.abs().topk(count).indices.sort().values for whole, count in zip(wholes, kept, strict=True)]
    ).to(torch.int32)
    dist.broadcast(places_K, src=leader)
    each = places_K.long().split(kept)
    own_K = torch.cat([whole[places] for whole, places in zip(wholes, each, strict=True)])
    # As DDP does it without a hook: the reciprocal and the product, before the sum.
    mean_K = own_K * (1 / ranks)
    dist.all_reduce(mean_K)
    results, remembered = [], []
    for old, whole, places, mean in zip(memory, wholes, each, mean_K.split(kept), strict=True):
        results.append(torch.zeros_like(whole).index_copy_(0, places, mean))
        rest = whole.index_fill(0, places, 0)
        remembered.append((1 - beta) * old + beta * rest)
    choice = places_K.nbytes if dist.get_rank() == leader else 0
    return Sent(results, remembered, own_K.nbytes + choice)


def agree_by_sign(gradients: list[Tensor], noise: list[Tensor], scale: float) -> Sent:
    """Return ``scale`` times the sign that most ranks have of ``g + noise``; 0 where the vote is even.

    Args:
        gradients: This rank's, flat.
        noise: What is added to each, of the same sizes.
        scale: Size of each entry of the result.
    """
    # One byte for an entry, as collectives do not send bits; a sum of 128 votes or more needs a wider type.
    kind = torch.int8 if dist.get_world_size() < 128 else torch.int32
    votes_P = torch.cat([(g + xi).sign() for g, xi in zip(gradients, noise, strict=True)]).to(kind)
    size = votes_P.nbytes
    dist.all_reduce(votes_P)
    parts = (scale * votes_P.sign().to(gradients[0].dtype)).split([g.numel() for g in gradients])
    return Sent(list(parts), [], size)


def agree_by_median(gradients: list[Tensor], noise: list[Tensor]) -> Sent:
    """Return the median over the ranks of ``g + noise``, entry by entry; of an even number the middle two's mean.

    Args:
        gradients: This rank's, flat.
        noise: What is added to each, of the same sizes.
    """
    own_P = torch.cat([g + xi for g, xi in zip(gradients, noise, strict=True)])
    all_NP = [torch.empty_like(own_P) for _ in range(dist.get_world_size())]
    dist.all_gather(all_NP, own_P)
    ordered_NP = torch.stack(all_NP).sort(dim=0).values
    low, high = (len(all_NP) - 1) // 2, len(all_NP) // 2
    median_P = (ordered_NP[low] + ordered_NP[high]) / 2 if low != high else ordered_NP[low]
    return Sent(list(median_P.split([g.numel() for g in gradients])), [], own_P.nbytes)
