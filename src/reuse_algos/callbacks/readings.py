"""What a callback offers to the run's record: numbers that it read at the current step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from composer import State


@runtime_checkable
class OffersReadings(Protocol):
    """A callback whose readings :class:`~reuse_algos.callbacks.RunRecorder` keeps as metrics of the run."""

    def readings(self, state: State) -> Mapping[str, float]:
        """Return the full names and values of what was read at this step; empty at most steps.

        The recorder asks once at the end of each batch, before or after the callback's own BATCH_END, and on every
        rank.
        """
        ...


def readings_of(state: State) -> dict[str, float]:
    """Return the readings of all callbacks of a trainer at this step."""
    offering = [one for one in state.callbacks if isinstance(one, OffersReadings)]
    return {name: value for one in offering for name, value in one.readings(state).items()}
