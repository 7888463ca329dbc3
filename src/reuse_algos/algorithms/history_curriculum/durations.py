"""How long training is, in batches, and whether learning rate schedules reckon with that length."""

from __future__ import annotations

import math

from composer import State, Time, TimeUnit
from composer.optim.scheduler import compile_composer_scheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from reuse_algos.data.trainer import scheduler_steps
from reuse_algos.errors import DataError
from reuse_algos.training.window import Window


def total_batches(state: State, epoch_batches: int, epoch_samples: int, batch_size: int) -> int:
    """Return the number of batches of the whole training.

    Args:
        state: With ``max_duration`` in epochs, batches or samples.
        epoch_batches: Batches of an epoch.
        epoch_samples: Examples of an epoch over all ranks; the last batch of an epoch may be smaller than the others.
        batch_size: Examples of the other batches, over all ranks.

    Raises:
        ValueError: The duration is in other units, or there is none.
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
        f"HistoryCurriculum: max_duration={duration} does not give the number of batches. Give it in epochs (ep), "
        "batches (ba) or samples (sp)."
    )


def epochs_of(when: Window, epochs: float, epoch_batches: int, epoch_samples: int) -> tuple[int, int]:
    """Return the epochs in which a strategy is on: from the first up to, but without, the second.

    Whole epochs, so both times are rounded down. Where the strategy stops before the end, there is at least one whole
    epoch of all data after it; and where it is on at all in a training of two epochs or more, it is on in one of them.

    Args:
        when: Start and stop, in ``dur``, ``ep``, ``ba`` or ``sp``.
        epochs: Length of training.
        epoch_batches: Batches of an epoch.
        epoch_samples: Examples of an epoch over all ranks.

    Raises:
        ValueError: A time is in another unit.

    >>> epochs_of(Window(stop="0.875dur"), 20, 10, 100)
    (0, 17)
    """
    length = {TimeUnit.EPOCH: 1.0, TimeUnit.BATCH: epoch_batches, TimeUnit.SAMPLE: epoch_samples}

    def place(time: Time) -> float:
        if time.unit == TimeUnit.DURATION:
            return time.value * epochs
        if time.unit not in length:
            raise ValueError(f"HistoryCurriculum: when is given in dur, ep, ba or sp, got {time}")
        return time.value / length[time.unit]

    start, stop = place(Time.from_input(when.start)), place(Time.from_input(when.stop))
    # Rounding leaves 0.29 of 100 epochs just below 29.
    whole = math.floor(epochs + 1e-9)
    first = math.floor(start + 1e-9)
    if stop >= epochs:
        return first, math.ceil(epochs)
    past = min(math.floor(stop + 1e-9), max(0, whole - 1))
    return first, max(past, first + 1) if whole >= 2 and stop > start else past


def refuse_single_row(model: nn.Module, rows: int, batch_size: int) -> None:
    """Refuse epochs whose last batch is a single row where batch norm cannot take one.

    Args:
        model: The trainer's.
        rows: Examples of an epoch on each rank.
        batch_size: Examples of a batch on each rank.

    Raises:
        DataError: The last batch is one row, and the model has a ``BatchNorm1d``.
    """
    # Over images a single row has a statistic, its own pixels' mean; over vectors it has none, and torch raises in the
    # middle of the first epoch.
    if rows % batch_size == 1 and any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        raise DataError(
            f"epochs of {rows} examples in batches of {batch_size} end in a batch of one row, and batch norm needs "
            "more for its statistics. Keep one example more or fewer, change the batch size, or set drop_last: true in "
            "the DataLoader."
        )


def check_schedulers(state: State, epoch_batches: int, full_batches: int) -> None:
    """Refuse torch schedulers that would not end where training does, as epochs are shorter (FIT_START).

    A torch scheduler counts its own steps. Stepped after every batch it reckons with ``max_duration`` in batches (or
    samples), stepped after every epoch with one in epochs; in the other two cases the shorter epochs change the number
    of steps. Composer's schedulers follow the training time and are right in all of them.

    Raises:
        DataError: A scheduler would take another number of steps than without the curriculum.
    """
    counting = [one for one in state.schedulers if isinstance(one, LRScheduler) and not _follows_time(one)]
    duration = state.max_duration
    if not counting or epoch_batches == full_batches or duration is None:
        return
    in_epochs = duration.unit == TimeUnit.EPOCH
    steps_after = scheduler_steps(state)
    if steps_after is None:
        raise DataError(
            "epochs are shorter here, and it cannot be told whether the torch schedulers take a step after every batch "
            "or every epoch. Take Composer's schedulers, which follow the training time."
        )
    if steps_after == (TimeUnit.EPOCH if in_epochs else TimeUnit.BATCH):
        return
    steps, other = ("batch", "epoch") if in_epochs else ("epoch", "batch")
    told = f"max_duration='{int(duration) * epoch_batches}ba'" if in_epochs else "max_duration in epochs"
    raise DataError(
        f"the scheduler {type(counting[0]).__name__} takes a step after every {steps}, and epochs have {epoch_batches} "
        f"batches here instead of {full_batches}: within max_duration='{duration}' it would come to another place of "
        f"its schedule. Set {told} and make the scheduler for as many steps; or step it after every {other} "
        f"(step_schedulers_every_batch={not in_epochs}) and count in those; or take one of Composer's schedulers, "
        "which follow the training time."
    )


def _follows_time(scheduler: LRScheduler) -> bool:
    """Return whether this is one of Composer's schedulers, compiled: its rules ask the State for the time."""
    # By the module of the rule, as Composer's closure and a lambda of the user have the same type.
    return type(scheduler) is LambdaLR and all(
        getattr(rule, "__module__", None) == compile_composer_scheduler.__module__ for rule in scheduler.lr_lambdas
    )
