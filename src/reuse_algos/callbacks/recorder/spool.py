"""Recording where the archive may be out of reach: into a local folder first, and from there to the archive."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from reuse_algos.archive import RunArchive
from reuse_algos.errors import ArchiveConflictError, ArchiveError, ArchiveWarning, RunNotFoundError
from reuse_algos.training.ranks import on_every_rank, on_rank_zero

_RETRY_SECONDS = 600.0  # an unreachable store takes seconds to say so, and a checkpoint may come every few seconds
_SLICE_SECONDS = 2.0  # other ranks wait for rank 0 no longer than this at a time, however long its upload takes


class _Errand:
    """Work in a thread of its own, which ends with the process."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="spool", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.error = error

    def wait(self, seconds: float) -> bool:
        """Return whether it is done, after waiting so long at most."""
        self._thread.join(seconds)
        return not self._thread.is_alive()


class Spool:
    """A local archive that takes the record of a run, and passes each commit on to the archive proper.

    That happens beside the training, which never waits for it but at its end. What could not be passed on stays in the
    folder, complete: ``reuse-algos copy FOLDER ARCHIVE`` does it later. What was passed on stays as well, as nothing is
    deleted by training; ``reuse-algos rm`` does that.

    Args:
        target: The archive proper, or where it is. It is opened when it is needed.
        folder: The local folder. All ranks must see the same one.

    Raises:
        ArchiveError: The folder cannot be written.
    """

    def __init__(self, target: RunArchive | str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
        self.archive = RunArchive(Path(folder), create=True)
        self._target = target if isinstance(target, RunArchive) else None
        self.location = target.location if isinstance(target, RunArchive) else os.fspath(target)
        self._failed_at: float | None = None
        self._known: set[str] = set()  # what was copied by this process, and need not be looked at again
        self._errand: _Errand | None = None  # on rank 0

    def begin(self) -> None:
        """Make sure that all ranks write into one folder, and say at once if the archive is out of reach.

        Raises:
            ArchiveError: On every rank, where they do not.
        """
        # Two folders of one name on two machines look alike; their archive ids do not.
        ids = on_every_rank(lambda: self.archive.archive_id)
        if len(set(ids)) > 1:
            raise ArchiveError(
                f"the ranks do not share the folder {self.archive.location}, so the parts of the record would be on "
                "several machines: set `spool` to a folder that all of them see"
            )
        self._start(lambda: None)
        # Waited for here, so that an unreachable archive is known before hours of training.
        self._finish("the archive cannot be reached")

    def fetch(self, run_id: str) -> None:
        """Bring what the archive has of a run, to go on with it here. It may be out of reach if the run is here.

        Raises:
            ArchiveError: The run is neither here nor can it be had.
            RunNotFoundError: It is neither here nor there.
            ArchiveConflictError: Here and there are different runs of this id.
        """

        def work() -> None:
            try:
                self._copy(self._open(), self.archive, run_id)
            except ArchiveConflictError:
                raise
            except (ArchiveError, RunNotFoundError):
                # What the spool has of the run is enough to go on.
                if run_id not in self.archive.run_ids():
                    raise

        def result() -> None:
            errand, self._errand = self._errand, None
            if errand is not None and errand.error is not None:
                raise errand.error

        self._start(work, open_first=False)
        self._wait()
        on_rank_zero(result)

    def push(self, run_id: str, *, last: bool = False) -> None:
        """Pass on what was committed, in the background. A failure becomes an :class:`ArchiveWarning` at a later call.

        Args:
            run_id: The run.
            last: Wait until it is done, and try even if it failed a short time ago.

        Raises:
            ArchiveConflictError: Another attempt took over this run, which is not a failure of the archive.
        """
        failure = f"run {run_id} could not be passed on to the archive"

        def work() -> None:
            self._copy(self.archive, self._open(), run_id)

        if last:
            self._wait()
            self._start(work)
            self._finish(failure, last=True)
        else:
            on_rank_zero(lambda: self._report(failure))
            self._start(work, unless_failed=True)

    def wait(self, seconds: float) -> bool:
        """Return whether nothing is being passed on any more, after waiting so long at most. On rank 0."""
        return self._errand is None or self._errand.wait(seconds)

    def _start(self, work: Callable[[], None], *, open_first: bool = True, unless_failed: bool = False) -> None:
        """Begin an errand on rank 0. Where one is under way, its successor does this work as well."""

        def errand() -> None:
            if open_first:
                self._open()
            work()

        def begin() -> None:
            recently = self._failed_at is not None and time.monotonic() - self._failed_at < _RETRY_SECONDS
            if self.wait(0) and not (unless_failed and recently):
                self._errand = _Errand(errand)

        on_rank_zero(begin)

    def _wait(self) -> None:
        while not on_rank_zero(lambda: self.wait(_SLICE_SECONDS)):
            pass

    def _finish(self, failure: str, *, last: bool = False) -> None:
        self._wait()
        on_rank_zero(lambda: self._report(failure, last=last))

    def _report(self, failure: str, *, last: bool = False) -> None:
        """Warn, once, where the last errand failed."""
        if self._errand is None or not self._errand.wait(0):
            return
        error, self._errand = self._errand.error, None
        if error is None:
            self._failed_at = None
        elif isinstance(error, ArchiveError) and not isinstance(error, ArchiveConflictError):
            self._failed_at = time.monotonic()
            later = "It is tried again with later commits, and at the end."
            if last:
                later = f"When the archive is back: reuse-algos copy {self.archive.location} {self.location}"
            warnings.warn(
                f"{failure}: {error}. The record is kept in {self.archive.location}, and training goes on. {later}",
                ArchiveWarning,
                stacklevel=2,
            )
        else:
            raise error

    def _open(self) -> RunArchive:
        if self._target is None:
            self._target = RunArchive(self.location, create=True)
        return self._target

    def _copy(self, source: RunArchive, target: RunArchive, run_id: str) -> None:
        # Sizes are enough here: what was copied was hashed on its way by this process.
        report = source.copy_to(target, [run_id], recheck=False, known=self._known)
        for problem in report.problems:
            raise (ArchiveConflictError if problem.conflict else ArchiveError)(problem.what)
