"""Row 1: a process is killed before every change that it makes on the disk."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

from ..traced_os import die_at, fail_at
from .outcome import Outcome, Tally, spread
from .survival import Commit, check_survivors, count_operations, traced, write_run


class CrashError(BaseException):
    """Not an Exception, so that nothing takes it for an error to be handled."""


def case(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """SIGKILL of a forked process, once for each of ``count`` operations (None: for every one)."""

    def interrupt(root: Path, index: int) -> list[Commit]:
        log = root.with_suffix(".log")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # forking beside torch's idle threads; the child uses none of them
            child = os.fork()
        if child == 0:
            try:
                with traced(die_at(index)), log.open("w", buffering=1) as acknowledgements:
                    write_run(root, lambda run_id, g: print(run_id, g, file=acknowledgements))
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            raise RuntimeError(f"the process was to be killed at operation {index}, and ended with {status}")
        return [(run_id, int(generation)) for run_id, generation in map(str.split, log.read_text().splitlines())]

    return _at_each(folder, count, seed, interrupt)


def stops(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """The same by an exception, which also runs what ``finally`` runs."""

    def interrupt(root: Path, index: int) -> list[Commit]:
        acknowledged: list[Commit] = []
        try:
            with traced(fail_at(index, CrashError)):
                write_run(root, lambda *commit: acknowledged.append(commit))
        except CrashError:
            return acknowledged
        raise RuntimeError(f"the run was to be stopped at operation {index}")

    return _at_each(folder, count, seed, interrupt)


def _at_each(folder: Path, count: int | None, seed: int, interrupt: Callable[[Path, int], list[Commit]]) -> Outcome:
    tally = Tally()
    operations = count_operations(folder / "whole")
    tally.notes["operations"] = operations
    for index in spread(operations, count, seed):
        root = folder / f"at-{index}"
        tally.tries += 1
        check_survivors(root, interrupt(root, index), tally, f"operation {index}")
        shutil.rmtree(root)
    return tally.outcome()
