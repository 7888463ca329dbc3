"""Seeding the global generators for a stretch of a user's code."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded_rng"]


@contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of torch, numpy and random inside the block; put them back afterwards.

    GPU generators are left alone. The states are put back on an exception too.

    Args:
        seed: int64.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        # Not torch.manual_seed: that would reseed every GPU as well, and nothing would put those back.
        torch.default_generator.manual_seed(seed)
        bits = seed & ((1 << 64) - 1)
        np.random.seed([bits & 0xFFFFFFFF, bits >> 32])
        random.seed(bits)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
