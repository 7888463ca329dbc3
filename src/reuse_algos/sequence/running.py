"""Training what a sequence still lacks, one step after the other, each in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from reuse_algos.archive import RunArchive
from reuse_algos.errors import SequenceError
from reuse_algos.sequence.plan import Plan, PlannedStep
from reuse_algos.sequence.progress import CHECKPOINTS, RECIPE, StepState, look_up_states

__all__ = ["LOG", "StepRunner", "run_sequence", "step_process"]

LOG = "log.txt"

StepRunner = Callable[[PlannedStep, int, int], int]
"""Trains a step by the recipe in its folder: (step, processes, descriptor of the sequence's lock) -> exit status."""

_LOCK = "lock"
_LOCK_SECONDS = 20.0  # that the processes of a killed sequence may take to notice
_STOP_SECONDS = 60.0
_LAST_LINES = 12


class _Dumper(yaml.SafeDumper):
    """Texts in quotes, since YAML 1.1, which PyYAML writes, takes other words for numbers than YAML 1.2 does."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def run_sequence(
    plan: Plan, *, say: Callable[[str], None] = print, runner: StepRunner | None = None
) -> list[StepState]:
    """Train every step that has no finished run yet, in order.

    Whatever is killed can be started again: a step whose run is finished is not trained again, one that was interrupted
    goes on from its newest checkpoint.

    Args:
        plan: the sequence.
        say: told what is going on, a line at a time.
        runner: trains one step; by default :func:`step_process`.

    Returns:
        All steps, finished.

    Raises:
        SequenceError: a step fails (the end of its log is in the message), the sequence is being run elsewhere, or what
            was trained before is not what the file now says.
        ArchiveError: the archive cannot be read or made.
    """
    runner = runner or step_process
    folder = Path(plan.config.folder)
    with _locked(folder) as lock:
        archive = RunArchive(plan.config.archive)
        states = look_up_states(plan, archive)
        for number, found in enumerate(states, start=1):
            step, head = found.step, f"[{number}/{len(states)}] {found.step.title}"
            if found.run is not None:
                say(f"{head}: finished before ({found.run.id})")
                _drop_checkpoints(step)
                continue
            say(f"{head}: {'goes on where it was interrupted' if found.state == 'interrupted' else 'starts'}")
            states[number - 1] = done = _train(plan, step, archive, runner, lock)
            assert done.run is not None
            say(f"{head}: {_summary(done)}")
        return states


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


def _train(plan: Plan, step: PlannedStep, archive: RunArchive, runner: StepRunner, lock: int) -> StepState:
    step.folder.mkdir(parents=True, exist_ok=True)
    partly = step.folder / f"{RECIPE}.part"
    partly.write_text(yaml.dump(step.values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
    partly.replace(step.folder / RECIPE)
    status = runner(step, plan.config.ranks, lock)
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


def step_process(step: PlannedStep, ranks: int, lock: int) -> int:
    """Train a step in a process of its own (``ranks`` of them), with what it prints in ``log.txt`` of its folder."""
    python = [sys.executable]
    launcher = ["-m", "composer.cli.launcher", "-n", str(ranks)] if ranks > 1 else []
    command = [*python, *launcher, "-m", "reuse_algos.sequence.step_process", str(step.folder / RECIPE)]
    with (step.folder / LOG).open("ab") as log:
        # The launcher must not hold the pipe's other end, nor the next step's process: Popen closes all but these.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,)
        )
        try:
            return process.wait()
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
