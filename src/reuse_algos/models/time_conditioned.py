"""Networks with the time of an example as an input.

Legend: B rows, C channels or columns, E features of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Time2Vec(nn.Module):
    """Features of a moment: the first is linear in it, the others are sines of learned frequency and phase.

    Kazemi et al. 2019 (https://arxiv.org/abs/1907.05321, equation 1).

    Args:
        size: E, at least 1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"Time2Vec needs at least 1 feature, got {size}")
        self.linear = nn.Linear(1, size)

    def forward(self, times_B: Tensor) -> Tensor:
        """Return the features, float ``[B, E]``, of times ``[B]``."""
        phases_BE = self.linear(times_B[:, None])
        return torch.cat([phases_BE[:, :1], phases_BE[:, 1:].sin()], dim=1)


class TimeConditioned(nn.Module):
    """A network whose input has the time as its last column or channel, and that is given features of it instead.

    Args:
        net: Takes ``[B, C - 1 + size]`` or ``[B, C - 1 + size, H, W]``.
        size: Features of the time, see :class:`Time2Vec`.
    """

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.time2vec = Time2Vec(size)
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the network says of inputs ``[B, C]`` or ``[B, C, H, W]`` whose last column is the time."""
        features = self.time2vec(time_of(inputs))
        features = features.reshape(*features.shape, *[1] * (inputs.dim() - 2)).expand(-1, -1, *inputs.shape[2:])
        return self.net(torch.cat([inputs[:, :-1], features], dim=1))


def time_of(inputs: Tensor) -> Tensor:
    """Return the time of each row, ``[B]``: the last column, or any pixel of the last channel."""
    return inputs[:, -1].flatten(1)[:, 0] if inputs.dim() > 2 else inputs[:, -1]


def with_time(inputs: Tensor, times_B: Tensor) -> Tensor:
    """Return inputs as of other times; gradients and tangents of the times go through."""
    column = times_B.reshape(-1, *[1] * (inputs.dim() - 1)).expand(-1, 1, *inputs.shape[2:])
    return torch.cat([inputs[:, :-1], column], dim=1)
