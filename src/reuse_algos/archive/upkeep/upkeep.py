"""What an archive offers to keep itself in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping

from reuse_algos.archive.format.generations import list_runs
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.upkeep.collect import GarbageReport, collect_garbage
from reuse_algos.archive.upkeep.copying import CopyReport, copy_runs
from reuse_algos.archive.upkeep.leases import MIN_AGE_SECONDS
from reuse_algos.archive.upkeep.problems import VerifyReport
from reuse_algos.archive.upkeep.removal import RemovalReport, remove_run
from reuse_algos.archive.upkeep.verify import verify_archive
from reuse_algos.errors import ArchiveError, RunNotFoundError


class Upkeep:
    """The methods of :class:`~reuse_algos.archive.run_archive.RunArchive` that check, collect, remove and copy runs.

    Args:
        store: The archive's store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def location(self) -> str:
        """Where the archive is: a directory or a URL."""
        return self._store.location

    def verify(
        self,
        run_id: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        records: Callable[[int, int], None] | None = None,
        *,
        quick: bool = False,
    ) -> VerifyReport:
        """Check runs for damage: read every generation, and hash every file again.

        Args:
            run_id: The run. Default: all.
            progress: Called with the bytes hashed so far and the bytes to hash in all. Default: None.
            records: Called before that with the number of runs whose manifests were read and the number of runs.
                Default: None.
            quick: Read the newest generation only, look at sizes and hash nothing, and hold the index against the runs.
                Default: False.

        Returns:
            What was found. Damage is never raised.

        Raises:
            RunNotFoundError: There is no such run.
            ArchiveError: The store is out of reach as a whole.
        """
        if run_id is not None:
            with contextlib.suppress(ArchiveError):  # what cannot be listed is damage, which is reported below
                if run_id not in self._candidates():
                    raise self._not_found(run_id)
        return verify_archive(self._store, run_id, progress, records, quick=quick)

    def collect_garbage(
        self,
        *,
        delete: bool = False,
        min_age_seconds: float = MIN_AGE_SECONDS,
        thin: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> GarbageReport:
        """Find what no manifest lists, and delete it if asked to.

        Args:
            delete: Really delete; otherwise nothing is written at all. Default: False.
            min_age_seconds: A run in which anything is younger is left alone; at least an hour. Default: a day.
            thin: Also delete the superseded generations of runs that ended: what only they list goes too, and nobody
                can go back to them. Default: False.
            progress: Called with the number of runs looked at so far and the number of runs. Default: None.

        Raises:
            ArchiveError: The age is too short, or the archive cannot be read or written.
        """
        return collect_garbage(
            self._store, delete=delete, min_age_seconds=min_age_seconds, thin=thin, progress=progress
        )

    def remove_run(
        self, run_id: str, *, force: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> RemovalReport:
        """Delete a run and all that is in its folder.

        Args:
            run_id: The run, which may be damaged.
            force: Also remove a run that may still be written; its writer fails at its next commit. Default: False.
            progress: Called with the number of objects deleted so far and the number of objects. Default: None.

        Raises:
            RunNotFoundError: There is nothing of this run.
            ArchiveConflictError: The run may still be written, and ``force`` was not given; nothing was removed.
            ArchiveError: The archive cannot be read or written.
        """
        return remove_run(self._store, run_id, force=force, progress=progress)

    def copy_to(
        self,
        target: Upkeep,
        run_ids: Iterable[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        recheck: bool = True,
        known: set[str] | None = None,
        tags: Mapping[str, object] | None = None,
    ) -> CopyReport:
        """Copy committed runs into another archive (:func:`~reuse_algos.archive.upkeep.copying.copy_runs`).

        Args:
            target: The other archive. Nothing in it is ever replaced.
            run_ids: The runs. Default: all.
            progress: Called with the bytes copied or checked so far and the bytes in all. Default: None.
            recheck: Hash also the files that an earlier copy brought; otherwise compare their sizes. Default: True.
            known: Paths that an earlier call between the two archives proved. They are passed over, and this call's
                are added. Default: None.
            tags: Copy only runs with these tags; a list of values matches any of them. Default: None.

        Returns:
            What was copied. A damaged run, or one that differs from a run of the same id in the target, is a problem
            of the report.

        Raises:
            RunNotFoundError: There is no such run here.
            ArchiveError: One of the archives cannot be read or written.
        """
        return copy_runs(self._store, target._store, run_ids, progress, recheck=recheck, known=known, tags=tags)

    def _candidates(self) -> list[str]:
        return list_runs(self._store)

    def _not_found(self, run_id: str) -> RunNotFoundError:
        """Return the error for a run that does not exist; an archive names those that are near."""
        return RunNotFoundError(f"there is no run {run_id!r} in {self.location}")
