"""Training what a sequence still lacks, in order, each step in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_algos.archive import RunArchive
from reuse_algos.errors import SequenceError
from reuse_algos.sequence.launchers import Launcher, LocalLauncher
from reuse_algos.sequence.planning.order import waits_for
from reuse_algos.sequence.planning.plan import Plan
from reuse_algos.sequence.progress import StepState, drop_losers, look_up_states
from reuse_algos.sequence.running.halt import STOP_SECONDS, Halt
from reuse_algos.sequence.running.lease import SequenceLease
from reuse_algos.sequence.running.steps import StepWork, drop_checkpoints


def run_sequence(
    plan: Plan,
    *,
    jobs: int = 1,
    time_limit: float | None = None,
    arms: Collection[str] | None = None,
    say: Callable[[str], None] = print,
    finished: Callable[[StepState], None] | None = None,
    launcher: Launcher | None = None,
) -> list[StepState]:
    """Train every step that has no finished run yet, in order, and harvest what its arm says.

    Whatever is killed can be started again: a step whose run is finished is not trained again, one that was interrupted
    goes on from its newest checkpoint.

    Args:
        plan: The sequence.
        jobs: Steps that are trained at the same time; a step never starts before those that it reuses are finished,
            nor before one that would see its run too early. They share the machine, so seconds tell less. Default: 1.
        time_limit: Seconds after which no further step starts, and those that are being trained are ended, to go on
            from their newest checkpoints. Default: None, until all is finished.
        arms: Train these arms, and what they reuse, only. Default: None, all of them.
        say: Told what is going on, a line at a time. Default: prints it.
        finished: Told of every finished step, also of those that were finished before. Default: None.
        launcher: Runs the jobs. Default: each is a process on this machine.

    Returns:
        All steps; finished (or dropped by a search), unless there were a time limit or a choice of arms.

    Raises:
        SequenceError: A step or a harvest failed (the end of its log is in the message; steps that do not wait for it
            were trained all the same), the sequence is being run elsewhere, or what was trained before is not what the
            file now says.
        ArchiveError: The archive cannot be read or made.
    """
    if jobs < 1:
        raise SequenceError(f"jobs must be at least 1, not {jobs}")
    launcher = LocalLauncher(_threads(jobs)) if launcher is None else launcher
    _make_folder(Path(plan.config.folder))
    archive = RunArchive(plan.config.archive, create=True)
    halt = Halt(time_limit)
    lease = SequenceLease(plan.config.archive, plan.config.name, local=launcher.local, lost=lambda: halt.stop(0.0))
    # Two processes of one sequence would train every step twice.
    lease.acquire(say)
    try:
        states = look_up_states(plan, archive)
        step_work = StepWork(plan, archive, halt, launcher, lease.key)
        work = _Work(step_work, states, jobs, say, finished or (lambda state: None))
        work.do(plan.needed(arms))
    finally:
        lease.release()
    # Said only when all jobs have ended, as the lease protects what they write.
    if lease.is_lost:
        raise SequenceError(
            f"the lease of the sequence {plan.config.name} in {archive.location} was lost: another process has taken "
            "it over, or the archive could not be reached. The same command goes on from here"
        )
    return states


def _make_folder(folder: Path) -> None:
    """Make the sequence's folder, before anything is trained that could not be kept there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SequenceError(f"{folder} cannot be the folder of the sequence: {error.strerror}") from error


def _threads(jobs: int) -> int | None:
    """Return the threads of each of several jobs."""
    # Together they use the machine's cores once.
    # By default each process takes all cores, and several would only wait for each other.
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
        """Train what is wanted, ``jobs`` at a time; where a step fails, those that do not wait for it go on."""
        for place in wanted:
            found = self.states[place]
            if found.run is not None:
                # A process that was killed between its commit and this left them behind.
                drop_checkpoints(found.step)
            if found.run is not None and found.state == "finished":
                how = "the archive holds it" if found.held else "finished before"
                self.say(f"{self._head(place)}: {how} ({found.run.id})")
                self.finished(found)
        waiting = [place for place in wanted if self.states[place].state not in ("finished", "stopped")]
        halt = self.step_work.halt
        going: dict[Future[StepState], int] = {}
        failed: dict[int, Exception] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while (waiting and not halt.now) or going:
                    while not halt.now and len(going) < self.jobs:
                        place = self._next(waiting, [*going.values(), *failed])
                        if place is None:
                            break
                        waiting.remove(place)
                        self._say_how(place)
                        going[pool.submit(self.step_work.complete, self.states[place], self._teller(place))] = place
                    if not going:  # what is left waits for a step that failed
                        break
                    # The first that ends may be what others wait for.
                    for done in wait(going, return_when=FIRST_COMPLETED).done:
                        place = going.pop(done)
                        try:
                            self._note(place, done.result())
                            waiting = self._without_losers(waiting)
                        except Exception as error:  # whatever it is, the other trainings are not lost for it
                            failed[place] = error
                            self.say(f"{self._head(place)}: failed")
            except BaseException:
                # Ctrl-C, for one: no training may outlive the process that knows of it.
                # It reaches local jobs, too, which then end by themselves; those of a cluster would go on till the end.
                halt.stop(STOP_SECONDS if self.step_work.launcher.local else 0.0)
                raise
        if failed:
            raise _first_of(list(failed.values()), len(waiting))

    def _next(self, waiting: Sequence[int], going: Iterable[int]) -> int | None:
        """Return the first step that need not wait for an earlier one."""
        # A step that is still in training, or has failed, may be the one that a later step is to reuse.
        open_places = sorted({*waiting, *going})
        for place in waiting:
            step = self.states[place].step
            if not any(waits_for(step, self.states[other].step) for other in open_places if other < place):
                return place
        return None

    def _without_losers(self, waiting: Sequence[int]) -> list[int]:
        """Return what is still to be trained, now that a rung of a search may have ended."""
        # The archive decides, as it would after a restart.
        self.states[:] = drop_losers(self.step_work.plan.config, self.states)
        dropped = [place for place in waiting if self.states[place].state == "stopped"]
        for place in dropped:
            self.say(f"{self._head(place)}: dropped, since other values did better in the rung before")
        return [place for place in waiting if place not in dropped]

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


def _first_of(failures: Sequence[Exception], left: int) -> Exception:
    """Return the first failure, with what else has come of it."""
    others = [f"other steps that failed: {len(failures) - 1}"] if len(failures) > 1 else []
    others += [f"steps not begun: {left}"] if left else []
    if not others or not isinstance(failures[0], SequenceError):
        return failures[0]
    told = SequenceError(f"{failures[0]}\n{', '.join(others)}")
    told.__cause__ = failures[0]
    return told


def _summary(state: StepState) -> str:
    run = state.run
    assert run is not None
    manifest: Any = run.manifest
    metric = f"{manifest.monitor.rsplit('/', 1)[-1]} {run.final_metric():.4f}, " if manifest.monitor else ""
    seconds = manifest.cost.train_seconds + manifest.cost.setup_seconds
    return f"{metric}{manifest.progress.epoch} epochs, {manifest.progress.batch} steps, {seconds:.1f} s ({run.id})"
