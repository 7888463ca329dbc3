"""Logits as their k largest and the mass of the rest.

Shape legend: B rows, C classes, K kept classes.

The probabilities of the kept classes and the total of the others survive exactly (up to the kept logits' rounding to
half precision); how the total divides among the others is lost.
"""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["decode_top_k", "encode_top_k"]


def encode_top_k(logits_BC: Tensor, k: int) -> dict[str, Tensor]:
    """Keep the ``k`` largest logits of each row.

    Args:
        logits_BC: Floating point, on any device.
        k: From 1 to C.

    Returns:
        ``values`` float16 [B, K] in falling order, ``indices`` int32 [B, K] their classes, and ``rest`` float32 [B],
        the logsumexp of all other logits, which is -inf where there are none.

    Raises:
        ValueError: ``k`` is not from 1 to C, or the logits are not a matrix.
    """
    if logits_BC.ndim != 2 or not 1 <= k <= logits_BC.shape[1]:
        raise ValueError(f"cannot keep the {k} largest of logits of shape {tuple(logits_BC.shape)}")
    logits_BC = logits_BC.detach().float()
    values_BK, indices_BK = logits_BC.topk(k, dim=1)
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
        float32 [B, C] on the arguments' device.
    """
    others = num_classes - values_BK.shape[1]
    share_B = rest_B.float() - math.log(max(others, 1))
    dense_BC = share_B.unsqueeze(1).repeat(1, num_classes)
    return dense_BC.scatter_(1, indices_BK.long(), values_BK.float())
