"""Row 3: the disk is full, broken, read-only or forbidden, at every call."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from reuse_algos.archive import RunArchive
from reuse_algos.archive.stores import local
from reuse_algos.errors import ArchiveError, ArchivePermissionError, ArchiveWarning

from ..small_runs import manifest_of, put_files, use_everything
from ..traced_os import fail_at
from .outcome import Outcome, Tally, spread
from .survival import traced

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES)
_FORBIDDEN, _FULL = (errno.EROFS, errno.EACCES), (errno.ENOSPC, errno.EDQUOT)


def case(folder: Path, count: int | None = None, seed: int = 0, numbers: Sequence[int] = ERRORS) -> Outcome:
    """Each error at each call that changes the disk, and at each call that reads (``count`` of these, None: all)."""
    tally = Tally()
    _writing(folder / "writing", count, seed, numbers, tally)
    _reading(folder / "reading", count, seed, numbers, tally)
    return tally.outcome()


def _writing(root: Path, count: int | None, seed: int, numbers: Sequence[int], tally: Tally) -> None:
    """An error is an ArchiveError, old runs stay readable, and the same writer succeeds when it tries again."""
    with traced() as operations:
        archive = RunArchive(root, create=True)
        old = archive.start_run("old")
        old.commit(manifest_of(put_files(old)))
        new = archive.start_run("new")
        before = operations.count
        new.commit(manifest_of(put_files(new)))
        calls = operations.count - before
    pairs = [(number, index) for number in numbers for index in range(calls)]
    for number, index in (pairs[at] for at in spread(len(pairs), count, seed)):
        tally.tries += 1
        when = f"{errno.errorcode[number]} at operation {index}"
        writer = archive.start_run("failing")
        with traced(fail_at(index, lambda number=number: OSError(number, os.strerror(number)))):
            try:
                writer.commit(manifest_of(put_files(writer)))
            except Exception as error:  # or none: removing a temporary file may fail without harm
                _check(error, number, archive, tally, when)
        with traced():
            try:
                use_everything(archive, old.run_id)
                writer.commit(manifest_of(put_files(writer)))
                writer.finish()
                use_everything(archive, writer.run_id)
            except Exception as error:
                tally.lose(f"{when}, afterwards: {error!r}")
    for problem in archive.verify().problems:
        tally.tear(str(problem))


def _check(error: Exception, number: int, archive: RunArchive, tally: Tally, when: str) -> None:
    good = (
        isinstance(error, ArchiveError)
        and error.errno == number
        and str(archive.root) in str(error)
        and isinstance(error, ArchivePermissionError) == (number in _FORBIDDEN)
        and ("free some space" in str(error)) == (number in _FULL)
    )
    tally.check(good, f"{when}: {error!r}")


class FailingReads:
    """``os``, with the calls that read counted, and one of them failing."""

    def __init__(self, target: int = -1, number: int = 0) -> None:
        self.target, self.number, self.count = target, number, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("open", "stat", "fstat", "listdir"):
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            index, self.count = self.count, self.count + 1
            if index == self.target:
                raise OSError(self.number, os.strerror(self.number))
            return real(*arguments, **options)

        return call


@contextmanager
def _failing_reads(target: int = -1, number: int = 0) -> Iterator[FailingReads]:
    real, mine = local.os, FailingReads(target, number)
    cast(Any, local).os = mine
    try:
        yield mine
    finally:
        cast(Any, local).os = real


def _reading(root: Path, count: int | None, seed: int, numbers: Sequence[int], tally: Tally) -> None:
    """What cannot be read is an error, and never looks like something that is not there."""
    with traced():
        archive = RunArchive(root, create=True)
        writer = archive.start_run("toy")
        writer.commit(manifest_of(put_files(writer)))
        writer.finish()
    run_id = writer.run_id

    def use() -> None:
        archive = RunArchive(root, create=True)
        use_everything(archive, run_id)
        if archive.run_ids() != [run_id] or not archive.run(run_id).finished:
            raise LookupError("the run seems not to be there")
        if archive.faults:  # of one run, which did not stop the others
            raise ArchiveError(f"{archive.faults}")

    def verify() -> None:
        if problems := RunArchive(root).verify().problems:
            raise ArchiveError(problems[0].what)

    actions: list[Callable[[], None]] = [use, verify]
    for action in actions:
        with _failing_reads() as calls:
            action()
        pairs = [(number, index) for number in numbers for index in range(calls.count)]
        for number, index in (pairs[at] for at in spread(len(pairs), count, seed)):
            tally.tries += 1
            when = f"{errno.errorcode[number]} at reading call {index} of {action.__name__}"
            try:
                with _failing_reads(index, number), warnings.catch_warnings():
                    warnings.simplefilter("ignore", ArchiveWarning)
                    action()
            except ArchiveError as error:
                tally.check(str(root) in str(error) or run_id in str(error), f"{when}: {error!r}")
            except Exception as error:
                tally.miss(f"{when}: {error!r}")
            else:
                tally.miss(f"{when}: no error")
            try:
                action()
            except Exception as error:
                tally.lose(f"{when}, afterwards: {error!r}")
