"""Looking archived rows up by example of the current run, and the share of a harvest that this uses.

Shapes: N examples of the current run, B rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from reuse_algos.archive import PriorRun, ResidentSignal, Signal

# A look-up on the training device is one index_select. Signals beyond this size would take memory from the training:
# they are read from the memory map.
_RESIDENT_BYTES = 2 << 30


def fits_device(signals: Iterable[Signal]) -> bool:
    """Return whether all rows of these signals together are small enough for the training device."""
    return sum(signal.nbytes for signal in signals) <= _RESIDENT_BYTES


class ArchivedRows:
    """Rows of a signal by position in the current data, on the training device or in the memory map.

    Args:
        signal: Of a prior run.
        rows_N: int64 ``[N]``, each current example's position in the prior run, -1 where it had none; None: the same.
        slots: Slots that may be looked up. Rows of others count as missing.
        device: Where to keep the rows; None: they stay in the memory map.

    Attributes:
        num_examples: N.
        slots: The slots.
    """

    def __init__(
        self, signal: Signal, rows_N: Tensor | None, slots: Iterable[int], device: torch.device | None
    ) -> None:
        self.slots = list(slots)
        self.num_examples = signal.num_examples if rows_N is None else len(rows_N)
        self._found: Signal | ResidentSignal = signal
        self._rows_N, self._allowed = rows_N, torch.tensor(self.slots)
        # The memory map has all slots; those that were not asked for count as missing.
        self._hides = device is None and not set(self.slots) >= set(signal.slots)
        if device is not None:  # a resident signal has the rows in its table, and no other slots
            self._found, self._rows_N = signal.resident(device, slots=self.slots, rows=rows_N), None

    def gather(self, positions_B: Tensor, slots_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows ``[B, ...]`` and bool ``[B]``, which of them there are, where the signal is kept.

        Args:
            positions_B: int64 on the CPU, from 0 to N - 1.
            slots_B: int64 on the CPU.
        """
        theirs_B = positions_B if self._rows_N is None else self._rows_N.index_select(0, positions_B)
        # An example that the prior run does not have reads row 0, and is marked as not seen below.
        found, seen_B = self._found.gather(theirs_B.clamp_min(0), slots_B)
        if self._rows_N is not None:
            seen_B = seen_B & (theirs_B >= 0)
        return found, seen_B & torch.isin(slots_B, self._allowed) if self._hides else seen_B


def harvest_share(run: PriorRun, signals: Collection[str], slots: Collection[int]) -> float:
    """Return the seconds of a run's harvests, each by the share of its views that were looked up.

    Args:
        run: The prior run.
        signals: Names of its signals that were read.
        slots: Views that were looked up.
    """
    used = set(slots)
    harvests = [one for one in run.manifest.harvests if one.signal in signals and one.views]
    return sum((len(used & set(one.views)) / len(one.views) * one.seconds for one in harvests), 0.0)
