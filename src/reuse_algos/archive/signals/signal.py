"""Signals: one row per training example and slot.

A slot is a view (for logits, whose value depends on the augmentation shown) or an epoch (for losses, correctness, and
logits of unknown views). Each archived file is a *segment*: some rows of one slot, by ascending position. A slot may
have several segments, from ranks that saw different examples or from epochs that were cut short; of a row that is in
more than one, the later segment in the manifest holds.

Shape legend: N training examples, B looked up, M rows of a segment, K kept classes, C classes, S slots, T rows in all.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from reuse_algos.archive.signals.joined import JoinedSlots
from reuse_algos.archive.signals.resident import ResidentSignal
from reuse_algos.archive.signals.rows import Encoding, RowFormat
from reuse_algos.archive.signals.segments import Segment, check_signal, layout_of, unknown_encoding
from reuse_algos.errors import ArchiveCorruptError, ArchiveVersionError, ExampleIdError, SignalNotFoundError

_PART_NUMBERS = 1 << 22  # of packed rows that are decoded at once


class Signal:
    """All rows of one signal of one run, memory mapped.

    Args:
        name: The name of the signal, such as ``"logits"``.
        segments: The files, in the order of the manifest.
        num_examples: N.

    Attributes:
        row_format: How the rows are kept.

    Raises:
        ArchiveCorruptError: A segment is malformed, or does not fit the others.
        ArchiveVersionError: A segment has an encoding of a newer minor version.
        SignalNotFoundError: There are no segments.
    """

    def __init__(self, name: str, segments: Sequence[Segment], num_examples: int) -> None:
        if not segments:
            raise SignalNotFoundError(f"there is no signal {name!r}")
        self.name = name
        self.num_examples = num_examples
        self._by_slot: dict[int, list[Segment]] = {}
        first = layout_of(segments[0])
        for segment in segments:
            if name_of_encoding := unknown_encoding(segment.meta):
                raise ArchiveVersionError(
                    f"{segment.where} keeps the signal {name!r} in the encoding {name_of_encoding!r}, which this "
                    "reuse_algos does not know; the rest of the run can be read. A newer version wrote it: upgrade"
                )
            fault = check_signal(segment.meta, segment.tensors, num_examples, segment.parts)
            if fault is None and layout_of(segment) != first:
                fault = f"its layout {layout_of(segment)} differs from {first} of {segments[0].where}"
            if fault is not None:
                raise ArchiveCorruptError(f"{segment.where} is not a segment of the signal {name!r}: {fault}")
            self._by_slot.setdefault(segment.slot, []).append(segment)
        self._first = segments[0]
        self.row_format: RowFormat = segments[0].row_format
        self._joined = JoinedSlots(num_examples)
        self._whole_values: dict[int, Tensor] = {}  # of each dense slot that has one row for every example, in order
        for slot in self._by_slot if self.encoding == "dense" else ():
            whole = self._whole(slot)
            if (
                whole is not None and whole.tensors["values"].numel()
            ):  # index_select does not check positions against an empty tensor
                self._whole_values[slot] = whole.tensors["values"]

    @property
    def encoding(self) -> Encoding:
        """``"dense"``, ``"top_k"`` or ``"packed"``."""
        return self.row_format.encoding

    @property
    def num_classes(self) -> int | None:
        """C for logits, else None."""
        return self.row_format.num_classes

    @property
    def kept_classes(self) -> int | None:
        """K where only the largest logits of each row are kept (encoding ``top_k``), else None."""
        return self._first.tensors["values"].shape[1] if self.encoding == "top_k" else None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row as :meth:`gather` returns it: ``(C,)`` for logits, ``(C, H, W)`` for packed images."""
        if self.row_format.shape is not None:
            return self.row_format.shape
        if self.encoding == "top_k":
            return (self.num_classes or 0, *self._first.tensors["values"].shape[2:])
        return tuple(self._first.tensors["values"].shape[1:])

    @property
    def slots(self) -> list[int]:
        """Slots that have rows, ascending."""
        return sorted(self._by_slot)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as archived, without ids: about what :meth:`resident` needs."""
        return sum(
            tensor.nbytes
            for segments in self._by_slot.values()
            for segment in segments
            for key, tensor in segment.tensors.items()
            if key != "ids"
        )

    def slot_meta(self, slot: int) -> dict[str, Any]:
        """Return the facts about a slot (see :class:`Segment`), from its latest segment.

        Raises:
            SignalNotFoundError: There is no such slot.
        """
        return dict(self._segments(slot)[-1].meta)

    def seen(self, slot: int) -> Tensor:
        """Return which examples have a row in a slot: bool [N].

        Raises:
            SignalNotFoundError: There is no such slot.
        """
        seen = torch.zeros(self.num_examples, dtype=torch.bool)
        for segment in self._segments(slot):
            seen[segment.tensors["ids"]] = True
        return seen

    def gather(self, positions_B: Tensor, slots_B: Tensor) -> tuple[Tensor, Tensor]:
        """Look up one row for each pair of position and slot.

        Args:
            positions_B: int64 [B] from 0 to N-1, on the CPU.
            slots_B: int64 [B]; a slot that the signal does not have counts as not seen.

        Returns:
            ``rows`` [B, ...] in the archived type (float32 [B, C, X] for encoding "top_k" and float32 of the packed
            shape for "packed"), 0 where not seen, and ``seen`` bool [B].

        Raises:
            ExampleIdError: A position is not from 0 to N-1.
        """
        # The usual case is a batch shown in one view, which was recorded for every example. It takes microseconds, so
        # what is asked of torch besides the look-up itself would show.
        fits = positions_B.dim() == 1 and positions_B.shape == slots_B.shape
        slot = _only_slot(slots_B) if fits and self.encoding == "dense" else -1
        if slot in self._by_slot:
            try:  # index_select checks the range of the positions by itself
                if (values := self._whole_values.get(slot)) is None:
                    return self._joined.rows(slot, self._by_slot[slot]).gather(positions_B)
                rows = values.index_select(0, positions_B)
            except IndexError:
                _check_positions(self, positions_B, slots_B)
                raise
            return rows, torch.frombuffer(bytearray(b"\x01") * slots_B.numel(), dtype=torch.bool)
        _check_positions(self, positions_B, slots_B)
        slots = slots_B.unique().tolist()
        whole = self._whole(slots[0]) if len(slots) == 1 else None
        if whole is not None:  # the usual case: a batch is shown in one view, which was recorded for every example
            encoded = {key: whole.tensors[key].index_select(0, positions_B) for key in self._columns()}
            seen_B = torch.ones(len(positions_B), dtype=torch.bool)
        else:
            encoded, seen_B = self._gather_parts(positions_B, slots_B, slots)
        return self.row_format.decode(encoded, seen_B), seen_B

    def dense(self, slot: int) -> tuple[Tensor, Tensor]:
        """Return all rows of a slot: ``values`` [N, ...] as :meth:`gather` returns them, and ``seen`` bool [N].

        A dense slot that one segment fills is returned as a view of the memory map, without a copy. Packed rows take
        4 bytes a number here, 4 to 16 times what they take in the archive (on top of the result, decoding takes only
        some MiB): where that is too much, :meth:`gather` the rows of a batch, or hold them packed (:meth:`resident`).

        Raises:
            SignalNotFoundError: There is no such slot.
        """
        self._segments(slot)
        whole = self._whole(slot)
        if whole is not None and self.encoding == "dense":
            return whole.tensors["values"], torch.ones(self.num_examples, dtype=torch.bool)
        positions = torch.arange(self.num_examples)
        if self.encoding != "packed":
            return self.gather(positions, torch.full_like(positions, slot))
        # Decoded in parts into the result: decoding all at once would need the memory twice.
        values = torch.empty(self.num_examples, *self.row_shape)
        seen = torch.empty(self.num_examples, dtype=torch.bool)
        for part in positions.split(max(1, _PART_NUMBERS // math.prod(self.row_shape))):
            begin, end = int(part[0]), int(part[-1]) + 1
            values[begin:end], seen[begin:end] = self.gather(part, torch.full_like(part, slot))
        return values, seen

    def resident(
        self, device: torch.device | str, slots: Sequence[int] | None = None, rows: Tensor | None = None
    ) -> ResidentSignal:
        """Copy rows to a device, so that a look-up there is one ``index_select``.

        Args:
            device: The device.
            slots: The slots. Default: all.
            rows: int64 [n], for each position of the *reading* run the position in this run, or -1 for an example that
                this run did not have. Then ``gather`` takes positions of the reading run.

        Raises:
            SignalNotFoundError: There is no such slot.
            ExampleIdError: ``rows`` names a position that this run does not have.
        """
        slots = self.slots if slots is None else sorted(set(slots))
        wanted = torch.arange(self.num_examples) if rows is None else rows.detach().cpu()
        has_row = (wanted >= 0).nonzero().squeeze(1)
        positions = wanted.index_select(0, has_row)
        _check_positions(self, positions, positions)
        located = []
        table_Sn = torch.zeros(len(slots), len(wanted), dtype=torch.int64)  # row 0 is the row of what was not seen
        end = 1
        for index, slot in enumerate(slots):
            self._segments(slot)
            for segment, targets, segment_rows in self._locate(slot, positions):
                table_Sn[index, has_row[targets]] = torch.arange(end, end + len(segment_rows))
                located.append((segment, segment_rows, end))
                end += len(segment_rows)
        columns = {}
        for key, like in self._columns().items():
            column_T = torch.empty((end, *like.shape[1:]), dtype=like.dtype, device=device)
            column_T[0] = 0
            for segment, segment_rows, begin in located:
                column_T[begin : begin + len(segment_rows)] = segment.tensors[key].index_select(0, segment_rows)
            columns[key] = column_T
        return ResidentSignal(columns, table_Sn, slots, self.row_format)

    def _segments(self, slot: int) -> list[Segment]:
        if slot not in self._by_slot:
            known = ", ".join(map(str, self.slots[:20]))
            raise SignalNotFoundError(f"the signal {self.name!r} has no slot {slot}; it has {known}")
        return self._by_slot[slot]

    def _columns(self) -> dict[str, Tensor]:
        """Return the tensors that hold rows, as in any of the segments."""
        return {key: tensor for key, tensor in self._first.tensors.items() if key != "ids"}

    def _whole(self, slot: int) -> Segment | None:
        """Return the latest segment of a slot if it has a row for every example."""
        # It then says alone what is in the slot, and earlier segments need not be asked.
        latest = self._by_slot.get(slot, [None])[-1]
        return latest if latest is not None and len(latest.tensors["ids"]) == self.num_examples else None

    def _gather_parts(self, positions_B: Tensor, slots_B: Tensor, slots: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Return encoded rows from several segments, 0 where not seen; and which were seen."""
        encoded = {key: like.new_zeros((len(positions_B), *like.shape[1:])) for key, like in self._columns().items()}
        seen_B = torch.zeros(len(positions_B), dtype=torch.bool)
        for slot in slots:
            places = (slots_B == slot).nonzero().squeeze(1)
            positions = positions_B.index_select(0, places)
            whole = self._whole(slot)
            every = slice(None)
            located = self._locate(slot, positions) if whole is None else [(whole, every, positions)]
            for segment, targets, rows in located:
                for key, column in encoded.items():
                    column.index_copy_(0, places[targets], segment.tensors[key].index_select(0, rows))
                seen_B[places[targets]] = True
        return encoded, seen_B

    def _locate(self, slot: int, positions: Tensor) -> Iterator[tuple[Segment, Tensor, Tensor]]:
        """Yield segments that hold rows, with indices into ``positions`` and the rows; no position twice."""
        open_places = torch.arange(len(positions))
        # The latest first: where it has a row, an earlier one does not hold any more.
        for segment in reversed(self._by_slot.get(slot, [])):
            if len(open_places) == 0:
                return
            found, rows = segment.find(positions.index_select(0, open_places), self.num_examples)
            if bool(found.any()):
                yield segment, open_places[found], rows[found]
            open_places = open_places[~found]


def _only_slot(slots_B: Tensor) -> int:
    """Return the slot that all of a batch is in; -1 if there are several or none, or they are not at hand."""
    if not slots_B.is_cpu or slots_B.dtype is not torch.int64:
        return -1
    data = slots_B.numpy().tobytes()  # comparing bytes takes a third of the time of any reduction
    first = data[:8]
    return int.from_bytes(first, sys.byteorder, signed=True) if first and first * (len(data) // 8) == data else -1


def _check_positions(signal: Signal, positions_B: Tensor, slots_B: Tensor) -> None:
    if positions_B.ndim != 1 or positions_B.shape != slots_B.shape:
        raise ExampleIdError(
            f"positions and slots must be two equally long vectors, not {tuple(positions_B.shape)} and "
            f"{tuple(slots_B.shape)}"
        )
    if len(positions_B) and not 0 <= int(positions_B.min()) <= int(positions_B.max()) < signal.num_examples:
        raise ExampleIdError(
            f"positions from {int(positions_B.min())} to {int(positions_B.max())} were asked of the signal "
            f"{signal.name!r}, which has positions 0 to {signal.num_examples - 1}"
        )
