"""The processes of a sequence: to train a step, and to harvest a signal; they end with what started them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from reuse_algos.archive import PriorRun
from reuse_algos.sequence.harvests import Harvest
from reuse_algos.sequence.plan import PlannedStep
from reuse_algos.sequence.progress import RECIPE

__all__ = ["LOG", "Halt", "Harvester", "StepRunner", "harvest_process", "step_process"]

LOG = "log.txt"

StepRunner = Callable[[PlannedStep, int, int], int]
"""Trains a step by the recipe in its folder: (step, processes, descriptor of the sequence's lock) -> exit status."""

Harvester = Callable[[PlannedStep, PriorRun, Harvest, int], int]
"""Harvests one signal: (step, its run, what, descriptor of the sequence's lock) -> exit status."""

_STOP_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_ENDED = 143  # as of a process that is ended by a signal to terminate


class Halt:
    """When trainings are to be ended before their end.

    Args:
        time_limit: seconds from now; None: never, unless :meth:`interrupt` is called.
    """

    def __init__(self, time_limit: float | None = None) -> None:
        self._until = math.inf if time_limit is None else time.monotonic() + time_limit
        self._interrupted = threading.Event()

    @property
    def now(self) -> bool:
        """Whether it is time."""
        return self.interrupted or time.monotonic() >= self._until

    @property
    def interrupted(self) -> bool:
        """Whether somebody pressed Ctrl-C: then the trainings know by themselves, and close what they have open."""
        return self._interrupted.is_set()

    def interrupt(self) -> None:
        """End everything soon."""
        self._interrupted.set()

    def wait(self, process: subprocess.Popen[bytes]) -> int | None:
        """Exit status of a process, or None when it is time to end it first."""
        while not self.now:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(min(_LOOK_SECONDS, max(0.0, self._until - time.monotonic())))
        if self.interrupted:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
        return process.poll()


def harvest_process(
    step: PlannedStep,
    run: PriorRun,
    harvest: Harvest,
    lock: int,
    *,
    halt: Halt | None = None,
    threads: int | None = None,
) -> int:
    """Harvest one signal of a step's run in a process of its own, with what it prints in the step's ``log.txt``.

    Args:
        step: whose run it is; its recipe is in its folder.
        run: the run.
        harvest: what to harvest.
        lock: as in :func:`step_process`.
        halt: likewise.
        threads: likewise.
    """
    asked = {
        "recipe": str(step.folder / RECIPE),
        "run_id": run.id,
        "signal": harvest.signal,
        "config": dataclasses.asdict(harvest.config),
    }
    command = [sys.executable, "-m", "reuse_algos.sequence.harvest_process", json.dumps(asked)]
    return _process(command, step, lock, halt or Halt(), threads)


def step_process(
    step: PlannedStep, ranks: int, lock: int, *, halt: Halt | None = None, threads: int | None = None
) -> int:
    """Train a step in a process of its own (``ranks`` of them), with what it prints in ``log.txt`` of its folder.

    Args:
        step: what to train; its recipe is in its folder.
        ranks: processes.
        lock: descriptor of the sequence's lock, which the step holds, too.
        halt: when to end it before its end.
        threads: of torch, where ``OMP_NUM_THREADS`` does not say it; None leaves it to torch.
    """
    python = [sys.executable]
    launcher = ["-m", "composer.cli.launcher", "-n", str(ranks)] if ranks > 1 else []
    command = [*python, *launcher, "-m", "reuse_algos.sequence.step_process", str(step.folder / RECIPE)]
    return _process(command, step, lock, halt or Halt(), threads)


def _process(command: Sequence[str], step: PlannedStep, lock: int, halt: Halt, threads: int | None) -> int:
    """Exit status of a command, which is ended when it is time, or when this process is gone."""
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    with (step.folder / LOG).open("ab") as log:
        # The launcher must not hold the pipe's other end, nor the next step's process: Popen closes all but these.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            env={**environment, **os.environ},
        )
        try:
            status = halt.wait(process)
            return _ENDED if status is None else status
        except KeyboardInterrupt:
            # A terminal has told the step's process, too: let it close what it has open.
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(_STOP_SECONDS)
            raise
        finally:
            if process.stdin is not None:
                process.stdin.close()
            if process.poll() is None:
                process.kill()
                process.wait()
