"""Training what a sequence still lacks, in order, each step in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_algos.archive import RunArchive
from reuse_algos.errors import SequenceError
from reuse_algos.sequence.plan import Plan, waits_for
from reuse_algos.sequence.processes import Halt, Harvester, StepRunner, harvest_process, step_process
from reuse_algos.sequence.progress import StepState, look_up_states
from reuse_algos.sequence.step_work import StepWork, drop_checkpoints

__all__ = ["run_sequence"]

_LOCK = "lock"
_LOCK_SECONDS = 20.0  # that the processes of a killed sequence may take to notice


def run_sequence(
    plan: Plan,
    *,
    jobs: int = 1,
    time_limit: float | None = None,
    arms: Collection[str] | None = None,
    say: Callable[[str], None] = print,
    finished: Callable[[StepState], None] | None = None,
    runner: StepRunner | None = None,
    harvester: Harvester | None = None,
) -> list[StepState]:
    """Train every step that has no finished run yet, in order, and harvest what its arm says.

    Whatever is killed can be started again: a step whose run is finished is not trained again, one that was interrupted
    goes on from its newest checkpoint.

    Args:
        plan: the sequence.
        jobs: how many steps are trained at the same time; a step never starts before those that it reuses are finished,
            nor before one that would see its run too early. They share the machine, so seconds tell less.
        time_limit: seconds after which no further step starts, and those that are being trained are ended, to go on
            from their newest checkpoints; None: until all is finished.
        arms: train these arms, and what they reuse, only; None: all.
        say: told what is going on, a line at a time.
        finished: told of every finished step, also of those that were finished before.
        runner: trains one step; by default :func:`step_process`.
        harvester: harvests one signal of a step's run; by default :func:`harvest_process`.

    Returns:
        All steps; finished, unless there were a time limit or a choice of arms.

    Raises:
        SequenceError: a step or a harvest fails (the end of its log is in the message), the sequence is being run
            elsewhere, or what was trained before is not what the file now says.
        ArchiveError: the archive cannot be read or made.
    """
    if jobs < 1:
        raise SequenceError(f"jobs must be at least 1, not {jobs}")
    with _locked(Path(plan.config.folder)) as lock:
        archive = RunArchive(plan.config.archive, create=True)
        states = look_up_states(plan, archive)
        halt = Halt(time_limit)
        how: dict[str, Any] = {"halt": halt, "threads": _threads(jobs)}
        step_work = StepWork(
            plan, archive, lock, halt,
            runner or functools.partial(step_process, **how),
            harvester or functools.partial(harvest_process, **how),
        )  # fmt: skip
        work = _Work(step_work, states, jobs, say, finished or (lambda state: None))
        work.do(plan.needed(arms))
        return states


def _threads(jobs: int) -> int | None:
    """How many threads each of several jobs may use, so that together they use the machine's cores once."""
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)


@dataclass
class _Work:
    """One call of :func:`run_sequence`: what is being trained, and what has become of it."""

    step_work: StepWork
    states: list[StepState]
    jobs: int
    say: Callable[[str], None]
    finished: Callable[[StepState], None]

    def do(self, wanted: Sequence[int]) -> None:
        """Train what is wanted, ``jobs`` at a time; the first failure lets the others come to their end."""
        for place in wanted:
            found = self.states[place]
            if found.run is not None:
                drop_checkpoints(found.step)
            if found.run is not None and found.state == "finished":
                self.say(f"{self._head(place)}: finished before ({found.run.id})")
                self.finished(found)
        waiting = [place for place in wanted if self.states[place].state != "finished"]
        halt = self.step_work.halt
        going: dict[Future[StepState], int] = {}
        failure: Exception | None = None
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while (waiting and failure is None and not halt.now) or going:
                    while failure is None and not halt.now and len(going) < self.jobs:
                        place = self._next(waiting, going.values())
                        if place is None:
                            break
                        waiting.remove(place)
                        self._say_how(place)
                        going[pool.submit(self.step_work.complete, self.states[place], self._teller(place))] = place
                    for done in wait(going, return_when=FIRST_COMPLETED).done:
                        place = going.pop(done)
                        try:
                            self._note(place, done.result())
                        except Exception as error:  # whatever it is, the other trainings are not lost for it
                            failure = failure or error
            except BaseException:
                halt.interrupt()
                raise
        if failure is not None:
            raise failure

    def _next(self, waiting: Sequence[int], going: Iterable[int]) -> int | None:
        """The first step that need not wait for an earlier one."""
        open_places = sorted({*waiting, *going})
        for place in waiting:
            step = self.states[place].step
            if not any(waits_for(step, self.states[other].step) for other in open_places if other < place):
                return place
        return None

    def _say_how(self, place: int) -> None:
        found = self.states[place]
        how = {"interrupted": "goes on where it was interrupted", "to harvest": "was trained before"}
        self.say(f"{self._head(place)}: {how.get(found.state, 'starts')}")

    def _note(self, place: int, state: StepState) -> None:
        self.states[place] = state
        if state.state != "finished":
            what = "interrupted" if state.run is None else "trained, but not harvested to the end"
            self.say(f"{self._head(place)}: {what}, as the time is up")
        else:
            self.say(f"{self._head(place)}: {_summary(state)}")
            if state.step.harvests and state.run is not None and state.run.manifest.health != "ok":
                self.say(f"{self._head(place)}: not harvested, since the run is {state.run.manifest.health}")
            self.finished(state)

    def _teller(self, place: int) -> Callable[[str], None]:
        return lambda words: self.say(f"{self._head(place)}: {words}")

    def _head(self, place: int) -> str:
        return f"[{place + 1}/{len(self.states)}] {self.states[place].step.title}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the folder of the sequence; the descriptor is handed on, so that a step left behind holds it too."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SequenceError(f"{folder} cannot be the folder of the sequence: {error.strerror}") from error
    try:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise SequenceError(
                        f"another process is running the sequence in {folder}. Wait for it, or end it first"
                    ) from None
                time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)


def _summary(state: StepState) -> str:
    run = state.run
    assert run is not None
    manifest: Any = run.manifest
    metric = f"{manifest.monitor.rsplit('/', 1)[-1]} {run.final_metric():.4f}, " if manifest.monitor else ""
    seconds = manifest.cost.train_seconds + manifest.cost.setup_seconds
    return f"{metric}{manifest.progress.epoch} epochs, {manifest.progress.batch} steps, {seconds:.1f} s ({run.id})"
