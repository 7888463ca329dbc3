"""What the rows of a signal are and how they are kept: the columns of a file, and from them the rows.

Shape legend: B rows, K kept classes, C classes, P bytes of a packed row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from reuse_algos.archive.signals.packed import dequantize
from reuse_algos.archive.signals.top_k import decode_top_k

Encoding = Literal["dense", "top_k", "packed"]

TENSORS: dict[str, tuple[str, ...]] = {
    "dense": ("ids", "values"),
    "top_k": ("ids", "values", "indices", "rest"),
    "packed": ("ids", "values", "scale"),
}
"""The tensors of a segment, by encoding."""


@dataclass(frozen=True)
class RowFormat:
    """How rows are kept.

    Attributes:
        encoding: ``"dense"``: as they are. ``"top_k"``: the largest logits (:mod:`reuse_algos.archive.signals.top_k`).
            ``"packed"``: a few bits a number (:mod:`reuse_algos.archive.signals.packed`).
        num_classes: C for logits, else None.
        bits: Of a number, where packed.
        shape: Of a row, where packed.
    """

    encoding: Encoding = "dense"
    num_classes: int | None = None
    bits: int | None = None
    shape: tuple[int, ...] | None = None

    def decode(self, columns: Mapping[str, Tensor], seen_B: Tensor) -> Tensor:
        """Return rows from columns.

        Args:
            columns: The tensors of :data:`TENSORS` without ids, B rows each, 0 where not seen.
            seen_B: bool: which rows are there.

        Returns:
            ``[B, ...]``, 0 where not seen: ``values`` themselves if dense; float32 ``[B, C, X]`` from the largest
            logits; float32 ``[B, *shape]`` if packed.
        """
        if self.encoding == "top_k":
            logits_BC = decode_top_k(columns["values"], columns["indices"], columns["rest"], self.num_classes or 0)
            # Columns of 0 do not decode to 0: the classes that were not kept share the rest.
            return logits_BC.masked_fill_(~seen_B.reshape(-1, *[1] * (logits_BC.dim() - 1)), 0.0)
        if self.encoding == "packed":
            assert self.bits is not None  # every segment was checked
            assert self.shape is not None
            return dequantize(columns["values"], columns["scale"], self.bits, self.shape)  # not seen: scale 0
        return columns["values"]
