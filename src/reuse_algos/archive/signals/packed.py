"""Rows of numbers around 0 in 2, 4 or 8 bits each, packed into bytes, with one scale per row.

Shape legend: N rows, D numbers of a row (of any shape), P = ceil(D * bits / 8) bytes of a row.

A row has ``2**bits`` levels, at equal distances from ``-scale`` to ``scale`` and without 0:
``scale * (2 q / (2**bits - 1) - 1)`` for q from 0 to ``2**bits - 1``. The lowest bits of a byte are its first number;
bits behind the last number of a row are 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

BITS = (2, 4, 8)

_SHAPE = re.compile(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8}){0,7}", re.ASCII)


def quantize(
    rows: Tensor, bits: int, *, norm: Literal["linf", "l2"] = "linf", room: tuple[Tensor, Tensor] | None = None
) -> dict[str, Tensor]:
    """Keep each number as the nearest level of its row.

    Args:
        rows: Floating point and finite, ``[N, ...]``, on any device.
        bits: 2, 4 or 8.
        norm: What no row may exceed after :func:`dequantize` either: with ``"linf"`` its largest absolute value, which
            is the scale; with ``"l2"`` its Euclidean norm (up to float32's rounding), for which the scale is lowered
            where rounding has made a row longer.
        room: For rows that are clipped when they are used: the least and the greatest value of each number, which
            ``rows`` keep to, each of the shape of ``rows``. A number at its limit is kept as the nearest level at or
            beyond the limit, so that it is clipped to what it was; the nearest of all may lie on the other side, and
            pull a black pixel up that the row wants black. (With ``"l2"`` the lowered scale can leave a remainder.)

    Returns:
        ``values`` uint8 ``[N, P]`` and ``scale`` float32 ``[N]``.

    Raises:
        ValueError: ``bits`` or ``norm`` is none of these, or the rows are empty or not finite.
    """
    if bits not in BITS or norm not in ("linf", "l2"):
        raise ValueError(f"rows are packed in {BITS} bits with norm linf or l2, not in {bits!r} bits with {norm!r}")
    if rows.ndim < 2 or not math.prod(rows.shape[1:]) or not bool(rows.isfinite().all()):
        raise ValueError(f"rows of shape {tuple(rows.shape)} cannot be packed: they must be finite and hold numbers")
    top = 2**bits - 1
    flat_ND = rows.detach().float().flatten(1)
    scale_N = flat_ND.abs().amax(dim=1) if len(rows) else flat_ND.new_zeros(0)
    unit_ND = flat_ND / scale_N.where(scale_N > 0, torch.ones_like(scale_N))[:, None]
    # From -1 to 1 becomes 0 to top.
    exact_ND = (unit_ND + 1) * (top / 2)
    steps_ND = exact_ND.round()
    if room is not None:
        low_ND, high_ND = (limit.detach().float().reshape(flat_ND.shape) for limit in room)
        steps_ND = torch.where(flat_ND >= high_ND, exact_ND.ceil(), steps_ND)
        # A number at both limits cannot move: any level is clipped to it.
        steps_ND = torch.where(flat_ND <= low_ND, exact_ND.floor(), steps_ND)
    steps_ND.clamp_(0, top)
    if norm == "l2":
        # Rounding may have made the row longer than it was.
        length_N = torch.linalg.vector_norm(steps_ND * (2 / top) - 1, dim=1)
        scale_N = torch.minimum(scale_N, torch.linalg.vector_norm(flat_ND, dim=1) / length_N)
    return {"values": _pack(steps_ND.to(torch.uint8), bits), "scale": scale_N}


def dequantize(values_BP: Tensor, scale_B: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Return the numbers that levels stand for.

    Args:
        values_BP: uint8.
        scale_B: Floating point.
        bits: 2, 4 or 8.
        shape: Of a row; D is its product.

    Returns:
        float32 ``[B, *shape]`` on the arguments' device, from ``-scale`` to ``scale``.
    """
    table = _levels(bits, values_BP.device)
    count = math.prod(shape)
    rows_BD = table.index_select(0, values_BP.reshape(-1).int()).view(len(values_BP), values_BP.shape[1] * 8 // bits)
    if rows_BD.shape[1] != count:
        rows_BD = rows_BD[:, :count].contiguous()
    return rows_BD.mul_(scale_B.float()[:, None]).view(len(values_BP), *shape)


def packed_shape(shape: Sequence[int], bits: int) -> int:
    """Return P, the bytes of a row of this shape."""
    return -(-math.prod(shape) * bits // 8)


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as a manifest writes it, such as ``3x32x32``."""
    return "x".join(map(str, shape))


def parse_shape(text: object) -> tuple[int, ...] | None:
    """Return the shape that a text says, 1 to 8 sizes from 1; None for anything else."""
    if not isinstance(text, str) or _SHAPE.fullmatch(text) is None:
        return None
    return tuple(map(int, text.split("x")))


def _pack(steps_ND: Tensor, bits: int) -> Tensor:
    per_byte = 8 // bits
    padded_ND = torch.nn.functional.pad(steps_ND, (0, -steps_ND.shape[1] % per_byte))
    parts_NPK = padded_ND.view(len(steps_ND), padded_ND.shape[1] // per_byte, per_byte)
    packed_NP = parts_NPK[..., 0].clone()
    for place in range(1, per_byte):
        packed_NP |= parts_NPK[..., place] << (place * bits)
    return packed_NP


@lru_cache(maxsize=32)
def _levels(bits: int, device: torch.device) -> Tensor:
    """Return what each byte stands for, in units of the scale: float32 ``[256, 8 / bits]``."""
    # A table of all bytes: one look-up unpacks a byte, whatever the number of bits.
    with torch.inference_mode(False):
        place = torch.arange(8 // bits) * bits
        # In float64 and rounded once, so that levels are equal on every device.
        steps = (torch.arange(256)[:, None] >> place) & (2**bits - 1)
        return (steps.double() * (2 / (2**bits - 1)) - 1).clamp_(-1, 1).float().to(device)
