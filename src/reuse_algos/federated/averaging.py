"""The model of a round from those of its parts.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017,
https://arxiv.org/abs/1602.05629, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_MEAN, _VARIANCE = "running_mean", "running_var"  # torch's names of the statistics of batch norm


def average_states(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of state dicts.

    Running variances of batch norm become those of all parts together, ``mean(var + mean^2) - mean(mean)^2``: parts of
    other classes differ in their means, which a mean of variances leaves out. Of whole numbers, such as counts of
    batches, the largest is kept.

    Args:
        states: Of the same names and shapes.
        weights: One for each, at least 0, with a sum above 0; such as numbers of examples.

    Returns:
        New tensors, except for a single state, which is returned as it is: bit for bit.

    Raises:
        ValueError: There are no states, names differ, or the weights are not such numbers.
    """
    if len(states) != len(weights) or not states or min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f"{len(states)} states need as many weights of at least 0 with a sum above 0, got {weights}")
    if any(state.keys() != states[0].keys() for state in states):
        raise ValueError("the states to average have different names")
    # Parts of weight 0 are left out before the multiplication, as 0 times NaN is NaN.
    kept = [(state, weight) for state, weight in zip(states, weights, strict=True) if weight > 0]
    if len(kept) == 1:
        return dict(kept[0][0])
    shares = torch.tensor([weight for _, weight in kept], dtype=torch.float64)
    shares /= shares.sum()

    def mean(values: Sequence[Tensor]) -> Tensor:
        # In float64, so that the order of the parts does not show.
        return torch.stack([share * value.double() for share, value in zip(shares, values, strict=True)]).sum(0)

    averaged: dict[str, Tensor] = {}
    for name, first in states[0].items():
        values = [state[name] for state, _ in kept]
        means = name[: -len(_VARIANCE)] + _MEAN
        if not first.is_floating_point():
            averaged[name] = torch.stack(list(values)).amax(0)
        elif name.endswith(_VARIANCE) and means in states[0]:
            centres = [state[means].double() for state, _ in kept]
            squares = [value.double() + centre**2 for value, centre in zip(values, centres, strict=True)]
            # The difference of two near numbers may be a hair below 0, and batch norm takes its root.
            averaged[name] = (mean(squares) - mean(centres) ** 2).clamp(min=0).to(first.dtype)
        else:
            averaged[name] = mean(values).to(first.dtype)
    return averaged
