"""Training what a sequence still lacks, in order, each step in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reuse_algos.archive import RunArchive
from reuse_algos.errors import SequenceError, nearest
from reuse_algos.sequence.plan import Plan, PlannedStep, reuses, waits_for
from reuse_algos.sequence.progress import CHECKPOINTS, RECIPE, StepState, look_up_states

__all__ = ["LOG", "Halt", "StepRunner", "run_sequence", "step_process"]

LOG = "log.txt"

StepRunner = Callable[[PlannedStep, int, int], int]
"""Trains a step by the recipe in its folder: (step, processes, descriptor of the sequence's lock) -> exit status."""

_LOCK = "lock"
_LOCK_SECONDS = 20.0  # that the processes of a killed sequence may take to notice
_STOP_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_ENDED = 143  # as of a process that is ended by a signal to terminate
_LAST_LINES = 12


class _Dumper(yaml.SafeDumper):
    """Texts in quotes, since YAML 1.1, which PyYAML writes, takes other words for numbers than YAML 1.2 does."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def run_sequence(
    plan: Plan,
    *,
    jobs: int = 1,
    time_limit: float | None = None,
    arms: Collection[str] | None = None,
    say: Callable[[str], None] = print,
    finished: Callable[[StepState], None] | None = None,
    runner: StepRunner | None = None,
) -> list[StepState]:
    """Train every step that has no finished run yet, in order.

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

    Returns:
        All steps; finished, unless there were a time limit or a choice of arms.

    Raises:
        SequenceError: a step fails (the end of its log is in the message), the sequence is being run elsewhere, or what
            was trained before is not what the file now says.
        ArchiveError: the archive cannot be read or made.
    """
    if jobs < 1:
        raise SequenceError(f"jobs must be at least 1, not {jobs}")
    with _locked(Path(plan.config.folder)) as lock:
        archive = RunArchive(plan.config.archive)
        states = look_up_states(plan, archive)
        halt = Halt(time_limit)
        train = runner or functools.partial(step_process, halt=halt, threads=_threads(jobs))
        work = _Work(plan, archive, states, jobs, lock, train, halt, say, finished or (lambda state: None))
        work.do(_wanted(plan, arms))
        return states


def _threads(jobs: int) -> int | None:
    """How many threads each of several jobs may use, so that together they use the machine's cores once."""
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)


def _wanted(plan: Plan, arms: Collection[str] | None) -> set[int]:
    """Places in the plan of the steps of some arms, and of all that they reuse."""
    if arms is None:
        return set(range(len(plan.steps)))
    unknown = [arm for arm in arms if arm not in plan.config.arms]
    if unknown:
        raise SequenceError(
            f"{plan.config.source} has no arm {', '.join(unknown)}.{nearest(unknown[0], plan.config.arms)}"
        )
    wanted: set[int] = set()
    for place in reversed(range(len(plan.steps))):
        step = plan.steps[place]
        if step.arm in arms or any(reuses(plan.steps[later], step) for later in wanted):
            wanted.add(place)
    return wanted


@dataclass
class _Work:
    """One call of :func:`run_sequence`: what is being trained, and what has become of it."""

    plan: Plan
    archive: RunArchive
    states: list[StepState]
    jobs: int
    lock: int
    runner: StepRunner
    halt: Halt
    say: Callable[[str], None]
    finished: Callable[[StepState], None]

    def do(self, wanted: set[int]) -> None:
        """Train what is wanted, ``jobs`` at a time; the first failure lets the others come to their end."""
        for place in sorted(wanted):
            found = self.states[place]
            if found.run is not None:
                self.say(f"{self._head(place)}: finished before ({found.run.id})")
                _drop_checkpoints(found.step)
                self.finished(found)
        waiting = [place for place in sorted(wanted) if self.states[place].run is None]
        going: dict[Future[StepState], int] = {}
        failure: Exception | None = None
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while (waiting and failure is None and not self.halt.now) or going:
                    while failure is None and not self.halt.now and len(going) < self.jobs:
                        place = self._next(waiting, going.values())
                        if place is None:
                            break
                        waiting.remove(place)
                        going[pool.submit(self._train, place)] = place
                    for done in wait(going, return_when=FIRST_COMPLETED).done:
                        place = going.pop(done)
                        try:
                            self._note(place, done.result())
                        except Exception as error:  # whatever it is, the other trainings are not lost for it
                            failure = failure or error
            except BaseException:
                self.halt.interrupt()
                raise
        if failure is not None:
            raise failure

    def _next(self, waiting: Sequence[int], going: Iterable[int]) -> int | None:
        """The first step that need not wait for an earlier one."""
        open_places = sorted({*waiting, *going})
        for place in waiting:
            step = self.plan.steps[place]
            if not any(waits_for(step, self.plan.steps[other]) for other in open_places if other < place):
                return place
        return None

    def _train(self, place: int) -> StepState:
        found = self.states[place]
        how = "goes on where it was interrupted" if found.state == "interrupted" else "starts"
        self.say(f"{self._head(place)}: {how}")
        return _train(self.plan, found.step, self.archive, self.runner, self.lock, self.halt)

    def _note(self, place: int, state: StepState) -> None:
        self.states[place] = state
        if state.run is None:
            self.say(f"{self._head(place)}: interrupted, as the time is up")
        else:
            self.say(f"{self._head(place)}: {_summary(state)}")
            self.finished(state)

    def _head(self, place: int) -> str:
        return f"[{place + 1}/{len(self.states)}] {self.states[place].step.title}"


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


def _train(plan: Plan, step: PlannedStep, archive: RunArchive, runner: StepRunner, lock: int, halt: Halt) -> StepState:
    step.folder.mkdir(parents=True, exist_ok=True)
    partly = step.folder / f"{RECIPE}.part"
    partly.write_text(yaml.dump(step.values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
    partly.replace(step.folder / RECIPE)
    status = runner(step, plan.config.ranks, lock)
    if status and halt.now:
        return StepState(step, "interrupted")
    if status:
        raise SequenceError(
            f"{step.title} failed (exit status {status}). {_end_of_log(step)}\n"
            "Once its cause is gone, the same command goes on from here"
        )
    found = archive.runs(tags={key: step.tags[key] for key in ("sequence", "arm", "step")}, unhealthy=True)
    if not found:
        raise SequenceError(
            f"{step.title} ended without an error, but {archive.location} has no finished run of it. "
            f"{_end_of_log(step)}"
        )
    _drop_checkpoints(step)
    return StepState(step, "finished", found[0])


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
            status = (halt or Halt()).wait(process)
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


def _drop_checkpoints(step: PlannedStep) -> None:
    """Checkpoints of a step serve to finish it; what later runs need of it is in the archive."""
    shutil.rmtree(step.folder / CHECKPOINTS, ignore_errors=True)


def _end_of_log(step: PlannedStep) -> str:
    path = step.folder / LOG
    try:
        lines = path.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    except OSError:
        return ""
    return "\n".join([f"The end of {path}:", *(f"  {line}" for line in lines)])


def _summary(state: StepState) -> str:
    run = state.run
    assert run is not None
    manifest: Any = run.manifest
    metric = f"{manifest.monitor.rsplit('/', 1)[-1]} {run.final_metric():.4f}, " if manifest.monitor else ""
    seconds = manifest.cost.train_seconds + manifest.cost.setup_seconds
    return f"{metric}{manifest.progress.epoch} epochs, {manifest.progress.batch} steps, {seconds:.1f} s ({run.id})"
