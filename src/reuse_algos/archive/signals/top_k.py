"""Logits as their k largest and the mass of the rest.

Shape legend: B rows, C classes, K kept classes, X positions of a row (tokens, pixels; none for most tasks).

The probabilities of the kept classes and the total of the others survive exactly (up to the kept logits' rounding to
half precision); how the total divides among the others is lost.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def encode_top_k(logits_BC: Tensor, k: int) -> dict[str, Tensor]:
    """Keep the ``k`` largest logits of each row.

    Args:
        logits_BC: Floating point [B, C] or [B, C, X], on any device.
        k: From 1 to C.

    Returns:
        ``values`` float16 [B, K, X] in falling order, ``indices`` int32 [B, K, X] their classes, and ``rest`` float32
        [B, X], the logsumexp of all other logits, which is -inf where there are none.

    Raises:
        ValueError: ``k`` is not from 1 to C, or the logits have no dimension of classes.
    """
    if logits_BC.ndim < 2 or not 1 <= k <= logits_BC.shape[1]:
        raise ValueError(f"cannot keep the {k} largest of logits of shape {tuple(logits_BC.shape)}")
    # Half precision would lose the shares of rare classes in the sum.
    logits_BC = logits_BC.detach().float()
    values_BK, indices_BK = logits_BC.topk(k, dim=1)
    # Without the kept classes, as a difference of two near logsumexps would lose the digits.
    rest_B = logits_BC.scatter(1, indices_BK, -math.inf).logsumexp(dim=1)
    return {"values": values_BK.half(), "indices": indices_BK.int(), "rest": rest_B}


def decode_top_k(values_BK: Tensor, indices_BK: Tensor, rest_B: Tensor, num_classes: int) -> Tensor:
    """Return dense logits, in which the classes that were not kept share the mass of the rest equally.

    Args:
        values_BK: The kept logits.
        indices_BK: Their classes, integers from 0 to C-1.
        rest_B: Logsumexp of all others.
        num_classes: C.

    Returns:
        float32 [B, C, X] on the arguments' device.
    """
    others = num_classes - values_BK.shape[1]
    # Where all classes are kept, the logarithm must not be of 0.
    share_B = rest_B.float() - math.log(max(others, 1))
    dense_BC = share_B.unsqueeze(1).repeat(1, num_classes, *[1] * (rest_B.dim() - 1))
    return dense_BC.scatter_(1, indices_BK.long(), values_BK.float())


def top_k_error(values_BK: Tensor, rest_B: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Bound how much of the kept classes' probability :func:`decode_top_k` misplaces at a temperature.

    At temperature 1 the kept mass is exact. At T > 1 it depends on how the rest's mass divides among the others, which
    is lost: ``sum exp(z_i / T)`` is largest where they are equal, which is what decoding assumes, and smallest where as
    few as possible have the mass, each at the smallest kept logit, which none of them exceeds.

    Args:
        values_BK: The kept logits in falling order.
        rest_B: Logsumexp of all others.
        num_classes: C.
        temperature: T >= 1.

    Returns:
        float32 [B, X] from 0 to 1: the largest possible difference of the kept classes' total probability.
    """
    others = num_classes - values_BK.shape[1]
    if others < 1:
        return torch.zeros_like(rest_B, dtype=torch.float32)
    # The two bounds may be nearly equal, and float32 would lose their difference.
    values_BK, rest_B = values_BK.double(), rest_B.double()
    kept_B = (values_BK / temperature).logsumexp(1)
    largest_B = math.log(others) + (rest_B - math.log(others)) / temperature
    least_B = values_BK[:, -1]
    # Fewer than one class at the smallest kept logit is one class below it.
    smallest_B = torch.where(rest_B < least_B, rest_B / temperature, rest_B - least_B + least_B / temperature)
    smallest_B = torch.minimum(smallest_B, largest_B)
    return (torch.sigmoid(kept_B - smallest_B) - torch.sigmoid(kept_B - largest_B)).float()
