"""When an algorithm is on, and how its settings change while it trains."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from composer import State, Time, TimeUnit
from composer.core import Timestamp
from composer.optim import ComposerScheduler

_LOOKED_AT = 64  # a schedule of thousands of batches would take seconds to ask for each


@dataclass(frozen=True)
class Window:
    """The batches in which an algorithm is on.

    Attributes:
        start: Composer time from which it is on, such as ``"5ep"`` or ``"0.1dur"``. Default: ``"0ba"``.
        stop: Composer time from which it is off again. Default: ``"1dur"``.
        every_n_batches: It is on at every n-th batch only, n at least 1. Default: 1.

    Raises:
        ValueError: A time cannot be read, or ``every_n_batches`` is below 1.
    """

    start: str | int | Time = "0ba"
    stop: str | int | Time = "1dur"
    every_n_batches: int = 1

    def __post_init__(self) -> None:
        if self.every_n_batches < 1:
            raise ValueError(f"every_n_batches must be at least 1, got {self.every_n_batches}")
        for name in ("start", "stop"):
            object.__setattr__(self, name, Time.from_input(getattr(self, name), TimeUnit.EPOCH))

    def is_on(self, state: State) -> bool:
        """Return whether the current batch is in the window, and one of every n."""
        # By the batch of the whole run: an epoch that a curriculum shortens does not shift the rhythm.
        return int(state.timestamp.batch) % self.every_n_batches == 0 and self.spans(state)

    def spans(self, state: State) -> bool:
        """Return whether the current time lies at or after the start and before the stop."""
        return reached(state, self.start) and not reached(state, self.stop)


def batches_of(state: State) -> int | None:
    """Return the batches of the whole training, or None where its duration does not give them."""
    duration, length = state.max_duration, state.dataloader_len
    if duration is not None and duration.unit == TimeUnit.BATCH:
        return int(duration)
    if duration is not None and duration.unit == TimeUnit.EPOCH and length is not None:
        return int(duration) * int(length)
    return None


def reached(state: State, when: str | int | Time) -> bool:
    """Return whether training has come to a Composer time, which may be a share of the whole duration."""
    when = Time.from_input(when, TimeUnit.EPOCH)
    if when.unit == TimeUnit.DURATION:
        return elapsed_share(state) >= when.value
    return state.timestamp.get(when.unit) >= when


def elapsed_share(state: State) -> float:
    """Return the share of the whole duration that has passed, from 0: to the batch, even where it is in epochs.

    Args:
        state: At an event of training. Between EVAL_START and EVAL_END its dataloader is that of the evaluation.
    """
    duration, length = state.max_duration, state.dataloader_len
    if duration is None:
        return 0.0
    if duration.unit == TimeUnit.EPOCH and length is not None:
        done = int(state.timestamp.epoch) + int(state.timestamp.batch_in_epoch) / int(length)
        return done / int(duration)
    return state.timestamp.get(duration.unit).value / duration.value


def scheduled(value: float, scheduler: ComposerScheduler | None, state: State) -> float:
    """Return a setting at the current batch, multiplied by its scheduler as Composer multiplies a learning rate."""
    return value if scheduler is None else value * scheduler(state)


def ahead(scheduler: ComposerScheduler | None, state: State, window: Window) -> list[float]:
    """Return a scheduler's values at up to 64 of the batches to come in a window.

    Args:
        scheduler: Composer's or the caller's own; None has no values.
        state: At the start of training.
        window: The batches that count.

    Returns:
        At most the current value where the number of batches to come is not known.

    Raises:
        ValueError: The scheduler fails, for example because its times are of a kind that it does not take.
    """
    if scheduler is None:
        return []
    batches, length = batches_of(state) or 0, state.dataloader_len
    # A shallow copy with a clock of its own: schedulers read the state's time and duration only.
    first, later = int(state.timestamp.batch), copy.copy(state)
    found = []
    for batch in np.unique(np.linspace(first, max(first, batches - 1), _LOOKED_AT).round().astype(int)):
        if batches:
            epoch, within = divmod(int(batch), int(length)) if length is not None else (0, int(batch))
            later.timestamp = Timestamp(epoch=epoch, batch=int(batch), batch_in_epoch=within)
        if not window.spans(later):
            continue
        try:
            found.append(float(scheduler(later)))
        except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            name = type(scheduler).__name__
            raise ValueError(
                f"{name} cannot say what a setting is at batch {batch}: {error}. Check its times"
            ) from error
    return found
