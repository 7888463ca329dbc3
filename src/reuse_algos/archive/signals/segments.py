"""One file of a signal: some rows of one slot, by ascending position.

Shape legend: N training examples, B looked up, M rows of the segment, K kept classes, C classes, P bytes of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_algos.archive.format.records import Scalar
from reuse_algos.archive.signals.packed import BITS, packed_shape, parse_shape
from reuse_algos.archive.signals.rows import TENSORS, RowFormat

Parts = Callable[[str], Iterable[Tensor]]
"""Reads one tensor of a file, named by its key, in parts of some rows each, in order."""

_SMALL_BYTES = 1 << 20
_ROWS_PER_PART = 1 << 17

MAX_SLOTS = 1 << 31
MAX_CLASSES = 1 << 24  # of sparse rows, where only the manifest says how many numbers a row is to become
MAX_ROW_NUMBERS = 1 << 26  # of a packed or sparse row, which becomes many times its bytes
MAX_UNBACKED_BYTES = 1 << 20  # of a row where there is none: nothing in the file stands for its size


@dataclass(frozen=True)
class Segment:
    """One file of a signal.

    Attributes:
        where: The file's name, for messages.
        meta: ``slot``, ``epoch``, ``view`` (integers), ``source`` ("capture" or "harvest"), ``encoding`` ("dense",
            "top_k" or "packed") and ``num_classes`` (an integer or None); where packed also ``bits`` (2, 4 or 8) and
            ``shape`` (of a row, such as "3x32x32").
        tensors: ``ids`` int64 [M], strictly ascending positions; ``values`` [M, ...]; with encoding "top_k" also
            ``indices`` [M, K, X] and ``rest`` [M, X] (see :mod:`reuse_algos.archive.signals.top_k`); with encoding
            "packed" the values are uint8 [M, P], and there is ``scale`` float32 [M]
            (see :mod:`reuse_algos.archive.signals.packed`).
        parts: How to read a tensor without the memory map, so that checking a large one does not fill memory with its
            pages; None where the tensors are in memory anyway.
    """

    where: str
    meta: Mapping[str, Scalar]
    tensors: Mapping[str, Tensor]
    parts: Parts | None = None

    @property
    def slot(self) -> int:
        """The slot whose rows these are."""
        slot = self.meta["slot"]
        return slot if isinstance(slot, int) else -1

    @property
    def row_format(self) -> RowFormat:
        """How the rows are kept; of a segment that was checked."""
        encoding, num_classes = self.meta.get("encoding", "dense"), self.meta.get("num_classes")
        classes = num_classes if isinstance(num_classes, int) else None
        if encoding == "packed":
            bits = self.meta.get("bits")
            return RowFormat(
                "packed", classes, bits if isinstance(bits, int) else None, parse_shape(self.meta.get("shape"))
            )
        return RowFormat("top_k" if encoding == "top_k" else "dense", classes)

    def find(self, positions: Tensor, num_examples: int) -> tuple[Tensor, Tensor]:
        """Find positions in this segment.

        Args:
            positions: int64 [B], each from 0 to N-1.
            num_examples: N.

        Returns:
            ``found`` bool [B], and ``rows`` int64 [B], which means something only where found.
        """
        ids_M = self.tensors["ids"]
        if len(ids_M) == num_examples:  # ascending and in range: every position is at its own row
            return torch.ones_like(positions, dtype=torch.bool), positions
        # A position behind the last id meets the last row, and differs from its id.
        rows = torch.searchsorted(ids_M, positions).clamp_(max=max(len(ids_M) - 1, 0))
        found = (
            ids_M.index_select(0, rows) == positions if len(ids_M) else torch.zeros_like(positions, dtype=torch.bool)
        )
        return found, rows


def check_signal(
    meta: Mapping[str, Scalar],
    tensors: Mapping[str, Tensor],
    num_examples: int | None = None,
    parts: Parts | None = None,
) -> str | None:
    """Return what is wrong with a segment of a signal, in words; None if nothing is.

    Args:
        meta: The facts about the file, as in :class:`Segment`.
        tensors: Its tensors, as in :class:`Segment`.
        num_examples: N. Default: not known.
        parts: Reads a tensor without the memory map, as in :class:`Segment`. Default: None.
    """
    slot, encoding, num_classes = meta.get("slot"), meta.get("encoding", "dense"), meta.get("num_classes")
    if not isinstance(slot, int) or isinstance(slot, bool) or not 0 <= slot < MAX_SLOTS:
        return f"its slot is {slot!r}, not a number from 0 to {MAX_SLOTS - 1}"
    if not isinstance(encoding, str) or encoding not in TENSORS or set(tensors) != set(TENSORS[encoding]):
        return f"with encoding {encoding!r} it holds the tensors {sorted(tensors)}"
    ids_M, values = tensors["ids"], tensors["values"]
    if ids_M.dtype != torch.int64 or ids_M.ndim != 1:
        return "its ids are not strictly ascending int64"
    if any(tensor.ndim < 1 or len(tensor) != len(ids_M) for tensor in tensors.values()):
        return "its tensors differ in their number of rows"
    if fault := _check_ids(_in_parts("ids", tensors, parts), num_examples):
        return fault
    if fault := _check_unbacked(tensors):
        return fault
    if encoding == "packed":
        return _check_packed(meta, tensors, parts)
    if encoding == "top_k":
        indices_MK = tensors["indices"]
        if not isinstance(num_classes, int) or not 1 <= num_classes <= MAX_CLASSES:
            return f"its number of classes is {num_classes!r}, not from 1 to {MAX_CLASSES}"
        if values.ndim < 2 or not 1 <= values.shape[1] <= num_classes:
            return f"its values of shape {tuple(values.shape)} cannot be the largest of {num_classes} logits"
        if indices_MK.shape != values.shape or indices_MK.dtype not in (torch.int32, torch.int64):
            return "its indices are not one integer per value"
        if tensors["rest"].shape != (len(values), *values.shape[2:]):
            return "its rest is not one number per row" + (" and position" if values.ndim > 2 else "")
        if num_classes * math.prod(values.shape[2:]) > MAX_ROW_NUMBERS:
            return f"its rows become {num_classes} numbers at each position, more than {MAX_ROW_NUMBERS} in all"
        for part_K in _in_parts("indices", tensors, parts):
            if part_K.numel() and not 0 <= int(part_K.min()) <= int(part_K.max()) < num_classes:
                return f"its indices are not from 0 to {num_classes - 1}"
    return None


def _check_unbacked(tensors: Mapping[str, Tensor]) -> str | None:
    """Return what is wrong with the rows that a file without rows claims; None if nothing is."""
    # They may be of any size, and who looks up what is not there gets so many zeros.
    if len(tensors["ids"]):
        return None
    for key, tensor in tensors.items():
        row_bytes = math.prod(tensor.shape[1:]) * tensor.element_size()
        if row_bytes > MAX_UNBACKED_BYTES:
            return f"it has no row, and {key} of {row_bytes} bytes for each; at most {MAX_UNBACKED_BYTES} are believed"
    return None


def unknown_encoding(meta: Mapping[str, Scalar]) -> str | None:
    """Return the name of an encoding that this version does not know; None if it does, or if it is not a name."""
    encoding = meta.get("encoding", "dense")
    return encoding[:40] if isinstance(encoding, str) and encoding not in TENSORS else None


def _check_packed(meta: Mapping[str, Scalar], tensors: Mapping[str, Tensor], parts: Parts | None) -> str | None:
    bits, shape, values = meta.get("bits"), parse_shape(meta.get("shape")), tensors["values"]
    if not isinstance(bits, int) or isinstance(bits, bool) or bits not in BITS:
        return f"its bits are {bits!r}, not one of {BITS}"
    if shape is None:
        return f"its shape is {meta.get('shape')!r:.80}, not sizes such as '3x32x32'"
    # What a row is to become is backed by bytes of the file (or small, if there is no row): a claim takes no memory.
    if values.dtype != torch.uint8 or values.ndim != 2 or values.shape[1] != packed_shape(shape, bits):
        return (
            f"its values are {values.dtype} of shape {tuple(values.shape)}, but rows of {meta['shape']} in {bits} bits "
            f"are {packed_shape(shape, bits)} bytes each"
        )
    if math.prod(shape) > MAX_ROW_NUMBERS:
        return f"its rows of {meta['shape']} are {math.prod(shape)} numbers each, more than {MAX_ROW_NUMBERS}"
    if tensors["scale"].dtype != torch.float32 or tensors["scale"].ndim != 1:
        return "its scale is not one float32 per row"
    for part_M in _in_parts("scale", tensors, parts):
        if not bool((part_M.isfinite() & (part_M >= 0)).all()):
            return "its scale is not finite and 0 or more everywhere"
    return None


def _in_parts(key: str, tensors: Mapping[str, Tensor], parts: Parts | None) -> Iterable[Tensor]:
    """Return a tensor in parts."""
    # A small one comes through its map, which is quicker; a large one past it, as pages of a map stay in memory.
    if parts is not None and tensors[key].nbytes > _SMALL_BYTES:
        return parts(key)
    return tensors[key].split(_ROWS_PER_PART)


def _check_ids(parts: Iterable[Tensor], num_examples: int | None) -> str | None:
    last = None
    for ids in parts:
        if len(ids) == 0:
            continue
        first = int(ids[0])
        if (last is not None and first <= last) or bool((ids[1:] <= ids[:-1]).any()):
            return "its ids are not strictly ascending int64"
        last = int(ids[-1])
        if first < 0 or (num_examples is not None and last >= num_examples):
            return "its ids are not from 0" + ("" if num_examples is None else f" to {num_examples - 1}")
    return None


def layout_of(segment: Segment) -> tuple[object, ...]:
    """Return what all segments of a signal must have in common."""
    columns = {key: (t.dtype, tuple(t.shape[1:])) for key, t in sorted(segment.tensors.items()) if key != "ids"}
    return segment.row_format, *columns.items()
