"""Recording where the archive may be out of reach: into a local folder first, and from there to the archive."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from reuse_algos.archive import RunArchive
from reuse_algos.errors import ArchiveConflictError, ArchiveError, ArchiveWarning, RunNotFoundError
from reuse_algos.ranks import on_every_rank, on_rank_zero

__all__ = ["Spool"]

_RETRY_SECONDS = 600.0  # an unreachable store takes seconds to say so, and a checkpoint may come every few seconds


class Spool:
    """A local archive that takes the record of a run, and passes each commit on to the archive proper.

    What could not be passed on stays in the folder, complete: ``reuse-algos copy FOLDER ARCHIVE`` does it later. What
    was passed on stays as well, as nothing is deleted by training; ``reuse-algos rm`` does that.

    Args:
        target: the archive proper, or where it is. It is opened when it is needed.
        folder: the local folder. All ranks must see the same one.

    Raises:
        ArchiveError: the folder cannot be written.
    """

    def __init__(self, target: RunArchive | str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
        self.archive = RunArchive(Path(folder))
        self._target = target if isinstance(target, RunArchive) else None
        self.location = target.location if isinstance(target, RunArchive) else os.fspath(target)
        self._failed_at: float | None = None
        self._known: set[str] = set()  # what was copied by this process, and need not be looked at again

    def begin(self) -> None:
        """Make sure that all ranks write into one folder, and say at once if the archive is out of reach.

        Raises:
            ArchiveError: on every rank, where they do not.
        """
        ids = on_every_rank(lambda: self.archive.archive_id)
        if len(set(ids)) > 1:
            raise ArchiveError(
                f"the ranks do not share the folder {self.archive.location}, so the parts of the record would be on "
                "several machines: set `spool` to a folder that all of them see"
            )
        on_rank_zero(lambda: self._attempt(lambda: None, "the archive cannot be reached", last=False))

    def fetch(self, run_id: str) -> None:
        """Bring what the archive has of a run, to go on with it here. It may be out of reach if the run is here.

        Raises:
            ArchiveError: the run is neither here nor can it be had.
            ArchiveConflictError: here and there are different runs of this id.
        """

        def work() -> None:
            try:
                self._copied(self._open(), self.archive, run_id)
            except ArchiveConflictError:
                raise
            except (ArchiveError, RunNotFoundError):
                if run_id not in self.archive.run_ids():
                    raise

        on_rank_zero(work)

    def push(self, run_id: str, *, last: bool = False) -> None:
        """Pass on what was committed. A failure is an :class:`~reuse_algos.errors.ArchiveWarning`.

        Args:
            run_id: the run.
            last: try even if it failed a short time ago.

        Raises:
            ArchiveConflictError: another attempt took over this run: that is no failure of the archive.
        """

        def work() -> None:
            waited = None if self._failed_at is None else time.monotonic() - self._failed_at
            if waited is not None and waited < _RETRY_SECONDS and not last:
                return
            self._attempt(
                lambda: self._copied(self.archive, self._open(), run_id),
                f"run {run_id} could not be passed on to the archive",
                last=last,
            )

        on_rank_zero(work)

    def _attempt(self, action: Callable[[], None], failure: str, *, last: bool) -> None:
        try:
            self._open()
            action()
            self._failed_at = None
        except ArchiveConflictError:
            raise
        except ArchiveError as error:
            self._failed_at = time.monotonic()
            later = "It is tried again with later commits, and at the end."
            if last:
                later = f"When the archive is back: reuse-algos copy {self.archive.location} {self.location}"
            warnings.warn(
                f"{failure}: {error}. The record is kept in {self.archive.location}, and training goes on. {later}",
                ArchiveWarning,
                stacklevel=2,
            )

    def _open(self) -> RunArchive:
        if self._target is None:
            self._target = RunArchive(self.location)
        return self._target

    def _copied(self, source: RunArchive, target: RunArchive, run_id: str) -> None:
        report = source.copy_to(target, [run_id], recheck=False, known=self._known)
        for problem in report.problems:
            raise (ArchiveConflictError if problem.conflict else ArchiveError)(problem.what)
