"""One dense slot that several files hold: which of them has the row of an example.

Several ranks write a file each, and so does every part of a training that was interrupted.

Shape legend: N training examples, B looked up, T rows of all files of the slot and one of zeros before them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reuse_algos.archive.signals.segments import Segment

_COPIED_BYTES = 64 << 20


class JoinedSlots:
    """The dense slots of a signal that several files each hold, as far as they were looked up.

    Up to 64 MiB of them are copied into memory; beyond it they stay in the memory maps.

    Args:
        num_examples: N.
    """

    def __init__(self, num_examples: int) -> None:
        self._num_examples = num_examples
        self._by_slot: dict[int, JoinedRows] = {}
        self._copied_bytes = 0

    def rows(self, slot: int, segments: Sequence[Segment]) -> JoinedRows:
        """Return the rows of a slot.

        Args:
            slot: Its number.
            segments: Its files, in the order of the manifest.
        """
        if slot not in self._by_slot:
            size = sum(segment.tensors["values"].nbytes for segment in segments)
            copy = self._copied_bytes + size <= _COPIED_BYTES
            self._copied_bytes += size if copy else 0
            self._by_slot[slot] = JoinedRows(segments, self._num_examples, copy)
        return self._by_slot[slot]


class JoinedRows:
    """Rows of one dense slot by position, from all files of the slot.

    Args:
        segments: The slot's files, in the order of the manifest; of a row in several of them the last one holds.
        num_examples: N.
        copy: Whether to copy the rows into memory, one after the other, so that a look-up is one ``index_select``.
            Otherwise they stay in the memory maps.
    """

    def __init__(self, segments: Sequence[Segment], num_examples: int, copy: bool) -> None:
        self._values = [segment.tensors["values"] for segment in segments]
        self._begins = [1]
        for values in self._values:
            self._begins.append(self._begins[-1] + len(values))
        narrow = torch.int32 if self._begins[-1] < 1 << 31 else torch.int64
        self._table_N = torch.zeros(num_examples, dtype=narrow)  # 0: no file has a row
        for segment, begin, end in zip(segments, self._begins, self._begins[1:], strict=False):
            self._table_N[segment.tensors["ids"]] = torch.arange(begin, end, dtype=narrow)
        self._copy: Tensor | None = None
        if copy:
            first = self._values[0]
            self._copy = torch.cat([first.new_zeros((1, *first.shape[1:])), *self._values])
            self._values = []

    def gather(self, positions_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows ``[B, ...]``, 0 where there is none, and bool ``[B]``, which there are.

        Args:
            positions_B: int64, from 0 to N - 1.

        Raises:
            IndexError: A position is not from 0 to N - 1.
        """
        rows_B = self._table_N.index_select(0, positions_B)
        if self._copy is not None:
            return self._copy.index_select(0, rows_B), rows_B > 0
        # Sorted by file, as each file is read by itself; then back into the order that was asked for.
        ordered_B, order_B = rows_B.sort()
        ends = torch.searchsorted(ordered_B, torch.tensor(self._begins, dtype=ordered_B.dtype)).tolist()
        first = self._values[0]
        found = [first.new_zeros((ends[0], *first.shape[1:]))]
        for values, begin, low, high in zip(self._values, self._begins, ends, ends[1:], strict=False):
            found.append(values.index_select(0, ordered_B[low:high] - begin))
        return torch.cat(found).index_select(0, order_B.argsort()), rows_B > 0
