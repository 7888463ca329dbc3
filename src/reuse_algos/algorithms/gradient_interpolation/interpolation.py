"""The first Taylor polynomial of a model in time, and the step that is hardest for it.

Nasery et al. 2021, "Training for the future: a simple gradient interpolation loss to generalize along time",
https://arxiv.org/abs/2108.06721.

Legend: B rows, C classes, d a step in time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from reuse_algos.errors import ModelError


def interpolate(model: Callable[[Tensor], Tensor], times_B: Tensor, delta: Tensor) -> Tensor:
    """Return ``F(t - d) + d dF/dt(t - d)``: what the model says of now, extrapolated in a line from d before.

    Value and derivative come from one pass in forward mode, without rounding of finite differences. Gradients go
    through to the parameters and to ``delta``. For a model that is linear in time this is ``F(t)``.

    Args:
        model: Times ``[B]`` to outputs ``[B, C, ...]``.
        times_B: Float, when the rows are from.
        delta: A float scalar, d.

    Raises:
        ModelError: The outputs do not depend on the time.

    Example:
        >>> times_B, delta = torch.tensor([1.0, 3.0]), torch.tensor(0.5)
        >>> interpolate(lambda t: t[:, None] ** 2, times_B, delta).flatten()  # t^2 - d^2
        tensor([0.7500, 8.7500])
    """
    with forward_ad.dual_level():
        before_B = times_B - delta
        outputs = model(forward_ad.make_dual(before_B, torch.ones_like(before_B)))
        value, slope = forward_ad.unpack_dual(outputs)
        if slope is None:
            raise ModelError("the model's outputs do not depend on the time, so there is nothing to extrapolate")
        return value + delta * slope


def ascend_delta(
    loss: Callable[[Tensor], Tensor],
    start: float,
    *,
    steps: int,
    rate: float,
    limit: float,
    average: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Return the step in time after some ascent steps on a loss, kept between ``-limit`` and ``limit``.

    Args:
        loss: Scalar step, with gradient, to the loss; parameters need no gradient.
        start: Where to begin.
        steps: Ascent steps, at least 0.
        rate: Their size: the step moves by ``rate`` times the derivative.
        limit: Largest absolute value, above 0.
        average: What becomes of each derivative, such as its mean over ranks. Default: None, nothing.

    Example:
        >>> ascend_delta(lambda d: d**2, 0.5, steps=1, rate=0.25, limit=1.0)
        0.75
    """
    delta = float(start)
    for _ in range(steps):
        point = torch.tensor(delta, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(loss(point), point)
        slope = slope if average is None else average(slope)
        delta = min(limit, max(-limit, delta + rate * float(slope)))
    return delta
