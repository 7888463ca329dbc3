"""Largest eigenvalue and trace of the Hessian by products with vectors.

Legend: D numbers in all trained parameters together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from reuse_algos.training.instruments.moments import GradientMoments

Product = Callable[[Tensor], Tensor]
"""``v [D] -> H v [D]``."""


@dataclass(frozen=True)
class Curvature:
    """How closely the Hessian is looked at.

    Attributes:
        probes: Random vectors for the trace, from 2. Default: 16.
        iterations: Products at most for the largest eigenvalue, from 1. Default: 50.
        tolerance: Relative change of the eigenvalue at which its search ends, above 0. Default: 1e-4.
        seed: Of the random vectors. Default: 0.
    """

    probes: int = 16
    iterations: int = 50
    tolerance: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that give no estimate."""
        if self.probes < 2 or self.iterations < 1 or not self.tolerance > 0:
            raise ValueError(
                f"curvature needs probes from 2, iterations from 1 and a tolerance above 0; got {self.probes}, "
                f"{self.iterations} and {self.tolerance}"
            )


class Estimate(NamedTuple):
    """A number and how far off it may be.

    Attributes:
        value: The estimate.
        error: Its standard error (trace), or the length of ``H v - value v`` (eigenvalue).
    """

    value: float
    error: float


def largest_eigenvalue(product: Product, size: int, settings: Curvature, device: torch.device | str) -> Estimate:
    """Return the eigenvalue of the Hessian that is largest in size, by power iteration.

    Args:
        product: Multiplies by the Hessian.
        size: D.
        settings: How many products, and when to stop.
        device: Where the vectors are.
    """
    # Drawn on the CPU, so that every device reads along the same vectors.
    generator = torch.Generator().manual_seed(settings.seed)
    vector_D = torch.randn(size, generator=generator).to(device)
    value, error = math.nan, math.nan
    for _ in range(settings.iterations):
        vector_D = vector_D / vector_D.norm()
        image_D = product(vector_D)
        earlier, value = value, float(vector_D.double() @ image_D.double())
        error = float((image_D - value * vector_D).norm())
        if not math.isfinite(value) or not bool(image_D.any()):  # diverged, or flat: the next vector would be 0 / 0
            break
        if abs(value - earlier) <= settings.tolerance * abs(value):
            break
        vector_D = image_D
    return Estimate(value, error)


def trace(product: Product, size: int, settings: Curvature, device: torch.device | str) -> Estimate:
    """Return Hutchinson's estimate of the trace, with its standard error over the probes.

    Args:
        product: Multiplies by the Hessian.
        size: D.
        settings: How many probes.
        device: Where the vectors are.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    samples = []
    for _ in range(settings.probes):
        # Random signs: of all independent entries of variance 1 they leave the estimate the least variance.
        signs_D = (torch.randint(2, (size,), generator=generator) * 2 - 1).float().to(device)
        samples.append(float(signs_D.double() @ product(signs_D).double()))
    values = torch.tensor(samples, dtype=torch.float64)
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(settings.probes))


def information_criterion(moments: GradientMoments, hessian_trace: float) -> float:
    """Return the Takeuchi information criterion from traces: mean ``|g_i| ** 2`` / trace of the Hessian.

    Thomas et al. 2020, https://arxiv.org/abs/1906.07774. Not a number where the trace is not above 0.
    """
    return float(moments.squared_norms_N.mean()) / hessian_trace if hessian_trace > 0 else math.nan
