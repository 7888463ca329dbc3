"""A signal held on a device, laid out so that a look-up is one ``index_select`` and waits for nothing.

Shape legend: n examples of the reading run, B looked up, S slots, T rows held (row 0 stands for "not seen").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reuse_algos.archive.signals.rows import RowFormat


class ResidentSignal:
    """Rows of a signal on one device. Made by :meth:`Signal.resident
    <reuse_algos.archive.signals.signal.Signal.resident>`.

    Args:
        columns: The tensors of the rows as they are archived, [T, ...], on the device; decoded after a look-up.
        table_Sn: int64 [S, n], the row for each slot and position; 0 for none.
        slots: The slot numbers, ascending.
        row_format: How the rows are kept.
    """

    def __init__(
        self, columns: Mapping[str, Tensor], table_Sn: Tensor, slots: Sequence[int], row_format: RowFormat
    ) -> None:
        self.device = columns["values"].device
        self.slots = list(slots)
        self.num_examples = table_Sn.shape[1]
        self._columns = dict(columns)
        # Half the memory of int64.
        narrow = torch.int32 if len(columns["values"]) < 2**31 else torch.int64
        self._table = table_Sn.to(narrow).reshape(-1).to(self.device)
        self._slots = torch.tensor(self.slots, dtype=torch.int64, device=self.device)
        self._row_format = row_format

    @property
    def nbytes(self) -> int:
        """Bytes held on the device."""
        return sum(column.nbytes for column in self._columns.values()) + self._table.nbytes

    def gather(self, positions_B: Tensor, slots_B: Tensor) -> tuple[Tensor, Tensor]:
        """Look up one row for each pair of position and slot, as :meth:`Signal.gather` does.

        Args:
            positions_B: int64 [B] from 0 to n-1, positions of the reading run. They are not checked, as that would have
                the device waited for.
            slots_B: int64 [B]; slots that are not held count as not seen.

        Returns:
            ``rows`` [B, ...] and ``seen`` bool [B], on the device.
        """
        positions_B = positions_B.to(self.device, non_blocking=True)
        slots_B = slots_B.to(self.device, non_blocking=True)
        if not self.slots or not self.num_examples:
            rows_B = torch.zeros(len(positions_B), dtype=torch.int64, device=self.device)
        else:
            # A slot that is not held meets a neighbour here, and the comparison below takes it to row 0.
            index_B = torch.searchsorted(self._slots, slots_B).clamp_(max=len(self.slots) - 1)
            rows_B = self._table.index_select(0, index_B * self.num_examples + positions_B)
            rows_B = rows_B * (self._slots.index_select(0, index_B) == slots_B)
        seen_B = rows_B > 0
        picked = {key: column.index_select(0, rows_B) for key, column in self._columns.items()}
        return self._row_format.decode(picked, seen_B), seen_B
