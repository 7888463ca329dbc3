"""Which examples an epoch shows where frequent classes are to be shown less often.

Legend: N examples, C classes that occur, M positions of an epoch.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from reuse_algos.data.sampler import Plan

RESAMPLING = ("natural", "sqrt", "uniform")
_EXPONENTS = {"natural": 1.0, "sqrt": 0.5, "uniform": 0.0}


def class_quotas(counts_C: np.ndarray, how: str, total: int) -> np.ndarray:
    """Return how many examples of each class an epoch shows: whole numbers that add up to the total.

    Mahajan et al. 2018 (https://arxiv.org/abs/1805.00932, section 2.2) replicate images by the inverse square root of
    their label's frequency, which makes a class as frequent as the square root of its count.

    Args:
        counts_C: Examples of each class, from 1.
        how: ``natural``, ``sqrt`` or ``uniform``: in proportion to the count, its square root, or nothing.
        total: Examples of an epoch.

    Returns:
        int64 ``[C]``. The parts that rounding down leaves over go to the largest remainders; of equal ones, to the
        earlier class.
    """
    shares_C = counts_C.astype(np.float64) ** _EXPONENTS[how]
    exact_C = shares_C / shares_C.sum() * total
    quotas_C = np.floor(exact_C).astype(np.int64)
    left = total - int(quotas_C.sum())
    quotas_C[np.argsort(-(exact_C - quotas_C), kind="stable")[:left]] += 1
    return quotas_C


def resampling_plan(labels_N: Tensor, how: str, seed: int) -> Plan:
    """Return the function from epoch to positions, int64 ``[N]``, that shows each class as often as wanted.

    Within a class the examples take turns: over the epochs, none is shown twice more often than it is due. The result
    depends on the labels, the seed and the epoch only, so a resumed run and every rank see the same.

    Args:
        labels_N: int64.
        how: See :func:`class_quotas`.
        seed: Seed of the order.
    """
    labels = labels_N.numpy()
    classes, counts_C = np.unique(labels, return_counts=True)
    quotas_C = class_quotas(counts_C, how, len(labels))
    members = [np.flatnonzero(labels == one) for one in classes]

    def plan(epoch: int) -> np.ndarray:
        parts = []
        for number, (own, quota) in enumerate(zip(members, quotas_C.tolist(), strict=True)):
            # The class is gone through again and again, in a new order each round; an epoch takes the next stretch.
            start, stop = epoch * quota, (epoch + 1) * quota
            for turn in range(start // len(own), -(-stop // len(own))):
                # numpy takes no negative seeds.
                order = np.random.default_rng([seed % 2**63, number, turn]).permutation(own)
                parts.append(order[max(0, start - turn * len(own)) : stop - turn * len(own)])
        shown = np.concatenate(parts)
        # The number of classes is not the number of a class, so this order is drawn from a stream of its own.
        return np.random.default_rng([seed % 2**63, len(members), epoch]).permutation(shown)

    return plan
