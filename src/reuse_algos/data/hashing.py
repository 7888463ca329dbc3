"""A counter-based hash: random numbers as a pure function of (seed, key, view, salt).

No generator state is kept anywhere, so the numbers do not depend on worker, rank, batch, epoch of the start, device, or
on anything drawn before. The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), done in wrapping int64 arithmetic, which gives the same bits on every
device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Return the int64 whose bits are the low 64 bits of ``value``."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_int(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    return x ^ (x >> 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask turns that into the logical shift of an unsigned number.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = x + _signed(_GOLDEN)
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right(x, 31)


def view_hash(seed: int, keys: Tensor, views: Tensor, salt: int) -> Tensor:
    """Hash (seed, key, view, salt) to 64 uniform bits.

    Args:
        seed: Any integer; its low 64 bits count.
        keys: int64, any shape.
        views: int64, any shape that broadcasts with ``keys``, on the same device.
        salt: Keeps draws for different purposes apart; its low 64 bits count.

    Returns:
        int64 of the broadcast shape: ``m(m(m(m(seed) ^ salt) ^ key) ^ view)`` with m = SplitMix64's step.
    """
    start = _mix_int(_mix_int(seed & _MASK) ^ (salt & _MASK))
    return _mix(_mix(keys ^ _signed(start)) ^ views)


def uniform_ints(hashes: Tensor, upper: int) -> Tensor:
    """Return whole numbers in ``[0, upper)`` from hashes (int64, any shape), ``upper`` from 1 to 2**31.

    Made from the upper 32 bits; no value is more likely than another by more than ``upper / 2**32``.
    """
    return (_shift_right(hashes, 32) * upper) >> 32


def uniform_floats(hashes: Tensor) -> Tensor:
    """Return float64 numbers in ``[0, 1)``, multiples of 2**-53, from hashes (int64, any shape)."""
    return _shift_right(hashes, 11).to(torch.float64) * 2.0**-53
