"""How long training is, in batches."""

from __future__ import annotations

from composer import State, TimeUnit

__all__ = ["total_batches"]


def total_batches(state: State, epoch_batches: int, epoch_samples: int, batch_size: int) -> int:
    """Batches of the whole training.

    Args:
        state: with ``max_duration`` in epochs, batches or samples.
        epoch_batches: batches of an epoch.
        epoch_samples: examples of an epoch over all ranks; the last batch of an epoch may be smaller than the others.
        batch_size: examples of the other batches, over all ranks.

    Raises:
        ValueError: the duration is in other units, or there is none.
    """
    duration = state.max_duration
    if duration is not None and duration.unit == TimeUnit.EPOCH:
        return int(duration) * epoch_batches
    if duration is not None and duration.unit == TimeUnit.BATCH:
        return int(duration)
    if duration is not None and duration.unit == TimeUnit.SAMPLE:
        whole, rest = divmod(int(duration), epoch_samples)
        return whole * epoch_batches + -(-rest // batch_size)
    raise ValueError(
        f"HistoryCurriculum: max_duration={duration} does not tell the number of batches. Give it in epochs (ep), "
        "batches (ba) or samples (sp)."
    )
