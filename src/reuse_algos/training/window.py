"""When an algorithm is on, and how its settings change while it trains."""

from __future__ import annotations

import copy

import numpy as np
from composer import State, Time, TimeUnit
from composer.core import Timestamp
from composer.optim import ComposerScheduler

__all__ = ["ahead", "is_on", "reached", "scheduled"]

_LOOKED_AT = 64


def is_on(state: State, start: Time, stop: Time, every_n_batches: int) -> bool:
    """Whether the current batch is at or after ``start``, before ``stop``, and one of every n."""
    due = int(state.timestamp.batch) % every_n_batches == 0
    return due and reached(state, start) and not reached(state, stop)


def reached(state: State, when: Time) -> bool:
    """Whether training has come to a Composer time, which may be a share of the whole duration."""
    if when.unit == TimeUnit.DURATION:
        return _elapsed_share(state) >= when.value
    return state.timestamp.get(when.unit) >= when


def _elapsed_share(state: State) -> float:
    """Share of the whole duration that has passed, to the batch also where the duration is given in epochs."""
    duration, length = state.max_duration, state.dataloader_len
    if duration is None:
        return 0.0
    if duration.unit == TimeUnit.EPOCH and length is not None:
        done = int(state.timestamp.epoch) + int(state.timestamp.batch_in_epoch) / int(length)
        return done / int(duration)
    return state.timestamp.get(duration.unit).value / duration.value


def scheduled(value: float, scheduler: ComposerScheduler | None, state: State) -> float:
    """A setting at the current batch: times what its scheduler says, as a learning rate."""
    return value if scheduler is None else value * scheduler(state)


def ahead(scheduler: ComposerScheduler | None, state: State, start: Time, stop: Time) -> list[float]:
    """What a scheduler will say at the batches to come from ``start`` to ``stop``, looked at in up to 64 places.

    Args:
        scheduler: of Composer or of the caller's own; None gives no values.
        state: at the start of training.
        start: from which batch on it counts.
        stop: from which batch on it does not.

    Returns:
        At most the current value where the number of batches to come is not known.

    Raises:
        ValueError: the scheduler cannot say, as where its times are of a kind that it does not take.
    """
    if scheduler is None:
        return []
    duration, length = state.max_duration, state.dataloader_len
    batches = 0
    if duration is not None and duration.unit == TimeUnit.BATCH:
        batches = int(duration)
    elif duration is not None and duration.unit == TimeUnit.EPOCH and length is not None:
        batches = int(duration) * int(length)
    first, later = int(state.timestamp.batch), copy.copy(state)
    found = []
    for batch in np.unique(np.linspace(first, max(first, batches - 1), _LOOKED_AT).round().astype(int)):
        if batches:
            epoch, within = divmod(int(batch), int(length)) if length is not None else (0, int(batch))
            later.timestamp = Timestamp(epoch=epoch, batch=int(batch), batch_in_epoch=within)
        if not reached(later, start) or reached(later, stop):
            continue
        try:
            found.append(float(scheduler(later)))
        except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            name = type(scheduler).__name__
            raise ValueError(
                f"{name} cannot say what a setting is at batch {batch}: {error}. Check its times"
            ) from error
    return found
