"""Step times of several trainings in one process, made in turn, for the benchmarks that compare the cost of a step.

Every training runs in a thread of its own and a baton goes round after each step, so that whatever else the machine
does meets all of them. A step is everything from the start of one batch to the start of the next one of the same epoch,
loading included; on a GPU the clock waits for the device.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from composer import Callback, State

__all__ = ["StepClock", "SteppedTraining", "epoch_by_turns", "epochs_by_turns", "ratios"]


class StepClock(Callback):
    """Times each step and then lets the next training make its own. Loops without a Trainer call :meth:`tick`.

    Args:
        now: The clock that is read; ``time.process_time`` counts the seconds of the processor, for machines that do
            other work as well. Default: ``time.perf_counter``.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.seconds: list[float] = []
        self.baton = threading.Semaphore(0)
        self.next: StepClock | None = None
        self._began: float | None = None

    def restart(self) -> None:
        """Forget the last step: the first of an epoch has no predecessor in it."""
        self._began = None

    def tick(self) -> None:
        """End of one step, start of the next."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = self.now()
        if self._began is not None:
            self.seconds.append(now - self._began)
        if self.next is not None and self.next is not self:
            self.next.baton.release()
            self.baton.acquire()
        self._began = self.now()

    def epoch_start(self, state: State, logger: Any) -> None:
        """As :meth:`restart`."""
        del state, logger
        self.restart()

    def batch_start(self, state: State, logger: Any) -> None:
        """As :meth:`tick`."""
        del state, logger
        self.tick()


class SteppedTraining(Protocol):
    """A training that goes on by one epoch at a time and has a clock."""

    clock: StepClock

    def epoch(self) -> None:
        """Train one more epoch, ticking at the start of each batch."""


def epoch_by_turns(trainings: Mapping[str, SteppedTraining], threads: int | None = None) -> dict[str, list[float]]:
    """Return one more epoch of each, step by step in turn, in the order of the mapping.

    Args:
        trainings: by name; their epochs have equal numbers of batches.
        threads: of torch, in each of them; None leaves it alone.

    Returns:
        Seconds of the steps by name: one fewer than an epoch has batches.
    """
    ones = list(trainings.values())
    for one, after in zip(ones, [*ones[1:], ones[0]], strict=True):
        one.clock.seconds.clear()
        one.clock.baton = threading.Semaphore(0)
        one.clock.next = after.clock
    with ThreadPoolExecutor(len(ones)) as pool:
        ends = [pool.submit(_epoch_with_baton, one, threads) for one in ones]
        ones[0].clock.baton.release()
        for end in ends:
            end.result()
    for one in ones:
        one.clock.next = None
    return {name: list(one.clock.seconds) for name, one in trainings.items()}


def _epoch_with_baton(training: SteppedTraining, threads: int | None) -> None:
    training.clock.baton.acquire()
    try:
        if threads is not None:
            torch.set_num_threads(threads)  # each thread of Python has a number of its own
        training.epoch()
    finally:
        if training.clock.next is not None:
            training.clock.next.baton.release(1 << 20)  # it may go on without waiting, and pass that on


def epochs_by_turns(
    trainings: Mapping[str, SteppedTraining], epochs: int, threads: int | None = None
) -> dict[str, list[float]]:
    """Return seconds of the steps of several epochs by name; one epoch more is made first and does not count.

    Who comes after whom changes from epoch to epoch.
    """
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    order = list(trainings)
    for number in range(epochs + 1):
        random.Random(number).shuffle(order)
        for name, times in epoch_by_turns({one: trainings[one] for one in order}, threads).items():
            seconds[name] += times if number else []
    return seconds


def ratios(own: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles (25 %, median, 75 %) of the ratio of two trainings' steps, round by round."""
    low, middle, high = statistics.quantiles([x / y for x, y in zip(own, reference, strict=True)], n=4)
    return low, middle, high
