"""When an algorithm is on."""

from __future__ import annotations

from composer import State, Time, TimeUnit

__all__ = ["is_on", "reached"]


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
