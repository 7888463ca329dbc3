"""Whether the examples of a dataset stay the same ones while training goes on.

Rows are known by the positions that the batch sampler yields. A dataset that shuffles itself between epochs, or that
grows, gives other examples at these positions, and a history over epochs would be of several examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sized
from typing import Any, NamedTuple

from reuse_algos.data.examples.content import example_bytes
from reuse_algos.data.info import label_of
from reuse_algos.data.seeding import seeded_rng, undisturbed
from reuse_algos.data.views import ExampleView, declared_views
from reuse_algos.errors import ExampleIdError

# Each costs a read in every epoch. Of four classes, a shuffle leaves eight labels as they are once in 65,000 times.
_LOOKED_AT = 8


class _Seen(NamedTuple):
    """What an example shows; None where two readings differ or nothing is known."""

    label: int | None
    content: bytes | None


class HeldExamples:
    """Remembers a few examples of the train dataset, to be looked at again in later epochs.

    Args:
        dataset: Map-style.
        epoch: Number of the epoch that comes next. A dataset that is told the epoch is asked for the next one as well.

    Raises:
        ExampleIdError: The dataset gives other examples when it is told another epoch.
    """

    def __init__(self, dataset: Any, epoch: int) -> None:
        self._dataset = dataset
        self._size = len(dataset) if isinstance(dataset, Sized) else 0
        self._positions = sorted({number * self._size // _LOOKED_AT for number in range(_LOOKED_AT)})
        self._epoch, self._seen = epoch, self._look(readings=2)
        self._checked = epoch
        set_epoch = getattr(dataset, "set_epoch", None)
        if set_epoch is not None and declared_views(dataset) is None:
            set_epoch(epoch)
            self._seen = self._look(readings=2)
            set_epoch(epoch + 1)
            try:
                self.check(epoch + 1)
            finally:
                set_epoch(epoch)
            self._checked = epoch

    def check(self, epoch: int) -> None:
        """Hold the dataset against what it was.

        Args:
            epoch: Number of the epoch, for the message.

        Raises:
            ExampleIdError: It has another length, or other examples at its positions.
        """
        if not self._size or epoch == self._checked:
            return
        self._checked = epoch
        advice = (
            "so no row of the archive belongs to one example. Let the sampler shuffle and the dataset keep its order "
            "and length, or put the ids of the examples into the batch (keys: {ids: ...})."
        )
        kind = type(self._dataset).__name__
        if len(self._dataset) != self._size:
            raise ExampleIdError(
                f"{kind} had {self._size} examples in epoch {self._epoch} and has {len(self._dataset)} in epoch "
                f"{epoch}, {advice}"
            )
        for position, before, now in zip(self._positions, self._seen, self._look(readings=1), strict=False):
            if _is_other(before, now):
                shown = "" if before.label is None else f" (label {before.label}, then {now.label})"
                raise ExampleIdError(
                    f"{kind} gives another example at position {position} in epoch {epoch} than in epoch "
                    f"{self._epoch}{shown}, {advice}"
                )

    def _look(self, readings: int) -> list[_Seen]:
        viewed = declared_views(self._dataset) is not None
        indices = [ExampleView(position, 0) if viewed else position for position in self._positions]
        try:
            # Around all readings: a generator of its own must show itself, once. One reading is enough afterwards.
            with undisturbed(self._dataset):
                return [_alike([self._read(index) for _ in range(readings)]) for index in indices]
        except Exception:  # a user's dataset may raise anything; training will show it
            return []

    def _read(self, index: Any) -> _Seen:
        with seeded_rng(0):
            example = self._dataset[index]
        return _Seen(label_of(example), hashlib.blake2b(example_bytes(example), digest_size=8).digest())


def _alike(readings: list[_Seen]) -> _Seen:
    return _Seen(*(column[0] if len(set(column)) == 1 else None for column in zip(*readings, strict=True)))


def _is_other(before: _Seen, now: _Seen) -> bool:
    # Augmentation may grow with the epoch: where there are labels, these decide.
    if before.label is not None and now.label is not None:
        return before.label != now.label
    return None not in (before.content, now.content) and before.content != now.content
