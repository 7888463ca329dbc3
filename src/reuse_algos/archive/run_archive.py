"""The archive: open it, select runs, start and resume them, check them for damage."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from reuse_algos.archive.format.envelope import MAX_SEALED_BYTES, seal, unseal
from reuse_algos.archive.format.generations import list_generations, read_latest, read_manifest
from reuse_algos.archive.format.manifest import ArchiveRecord, Manifest
from reuse_algos.archive.format.names import is_safe_name
from reuse_algos.archive.run import PriorRun
from reuse_algos.archive.run_writer import RunWriter, utc_now
from reuse_algos.archive.selection import Order, scan, select, tags_match
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.local import LocalStore
from reuse_algos.archive.stores.opening import open_store
from reuse_algos.archive.upkeep.collect import GarbageReport, collect_garbage
from reuse_algos.archive.upkeep.copying import CopyReport, copy_runs
from reuse_algos.archive.upkeep.leases import MIN_AGE_SECONDS
from reuse_algos.archive.upkeep.removal import RemovalReport, remove_run
from reuse_algos.archive.upkeep.verify import VerifyReport, verify_archive
from reuse_algos.errors import (
    ArchiveConflictError,
    ArchiveError,
    ArchiveWarning,
    RunNotFoundError,
    nearest,
)

__all__ = ["RunArchive"]

_IDENTITY = "archive.json"


class RunArchive:
    """Committed runs in a directory or an object store, shared by any number of readers and writers at once.

    Args:
        path: The directory, a URL such as ``s3://bucket/prefix`` (see
            :func:`~reuse_algos.archive.stores.opening.open_store`), or a store; for a store of its own ``read_only`` is
            decided where it was opened.
        create: Make the archive if there is none. A bucket is not made.
        read_only: Refuse every write, and make nothing.

    Raises:
        ArchiveError: There is no archive and none may be made, or its store cannot be reached.
        ArchiveNotADirectoryError: ``path`` is a file.
        ArchivePermissionError: It may not be read, or may not be made.
        ArchiveVersionError: It was made by a newer major version.
    """

    def __init__(self, path: str | os.PathLike[str] | Store, *, create: bool = True, read_only: bool = False) -> None:
        if isinstance(path, str | os.PathLike):
            self._store = open_store(path, create=create, read_only=read_only)
        else:
            self._store = path
        self._warned: set[str] = set()
        self.archive_id = self._identity(create and not read_only)

    def __repr__(self) -> str:
        return f"RunArchive({self.location!r})"

    @property
    def location(self) -> str:
        """Where the archive is: a directory or a URL."""
        return self._store.location

    @property
    def root(self) -> Path:
        """The directory of a local archive.

        Raises:
            ArchiveError: The archive is remote.
        """
        if not isinstance(self._store, LocalStore):
            raise ArchiveError(f"{self.location} is no local directory: use `location`")
        return self._store.root

    def _identity(self, create: bool) -> str:
        data = self._store.get(_IDENTITY, MAX_SEALED_BYTES)
        if data is None and create:
            record = ArchiveRecord(archive_id=secrets.token_hex(16), created_at=utc_now())
            try:
                self._store.put_if_absent(_IDENTITY, [seal(record, _IDENTITY)])
            except ArchiveConflictError:  # another process made the archive at the same moment
                data = self._store.get(_IDENTITY, MAX_SEALED_BYTES)
            else:
                return record.archive_id
        if data is None:
            raise ArchiveError(f"there is no archive at {self.location}: check the path, or let it be created")
        return unseal(data, ArchiveRecord, f"{self.location}/{_IDENTITY}").archive_id

    def run_ids(self, *, uncommitted: bool = False) -> list[str]:
        """Ids of all committed runs, damaged ones included, sorted.

        Args:
            uncommitted: Also of what is no run (yet, or any more), but has files.
        """
        candidates = self._candidates()
        return candidates if uncommitted else [name for name in candidates if list_generations(self._store, name)]

    def runs(
        self,
        *,
        tags: Mapping[str, object] | None = None,
        run_name: str | None = None,
        order: Order = "latest",
        metric: str | None = None,
        limit: int | None = None,
        unfinished: bool = False,
        unhealthy: bool = False,
    ) -> list[PriorRun]:
        """Select runs. A damaged run is left out with one :class:`~reuse_algos.errors.ArchiveWarning`.

        Each run costs one listing and two small reads, and no more than ``limit`` runs are in memory at once.

        Args:
            tags: Each must match; a list of values matches any of them.
            run_name: Must match.
            order: ``"latest"`` or ``"first"`` by the time they were started, or ``"best"`` by the final value of
                ``metric``, which leaves out runs without a finite one. Ties go by id.
            metric: For ``"best"``; by default each run's own monitor, which must then be the same for all.
            limit: At most so many.
            unfinished: Also take runs that have not ended.
            unhealthy: Also take runs that diverged or trained nothing.

        Raises:
            SignalNotFoundError: No run that fits has this metric, or several of this name, or the monitors differ.
            ArchiveError: The archive could not be listed, or a run not be read for a reason other than damage.
        """
        if order not in ("best", "latest", "first"):
            raise ArchiveError(f"order {order!r} is not known.{nearest(order, ('best', 'latest', 'first'))}")
        fitting = (
            found
            for found in scan(self._store, self._candidates(), self._warn)
            if (unfinished or found.latest.final is not None)
            and (unhealthy or found.summary.health == "ok")
            and (run_name is None or found.summary.run_name == run_name)
            and tags_match(found.summary.tags, tags or {})
        )
        return select(self._store, fitting, order, metric, limit, self._warn)

    def run(self, run_id: str) -> PriorRun:
        """One run by its id, or by its name if no other run has it.

        Raises:
            RunNotFoundError: There is no such run, or several of this name.
            ArchiveCorruptError: The run is damaged.
            ArchiveVersionError: It was written by a newer major version.
            ArchiveError: A run could not be read.
        """
        if is_safe_name(run_id) and (latest := read_latest(self._store, run_id)):
            return PriorRun(self._store, *latest)
        latest, named = None, []
        for found in scan(self._store, self._candidates(), self._warn):
            if found.summary.run_name == run_id:
                latest = found.latest
                named.append(latest.run_id)
        if latest is not None and len(named) == 1:
            return PriorRun(self._store, latest.manifest(), latest.final)
        if named:
            ids = ", ".join(named)
            raise RunNotFoundError(f"{len(named)} runs are named {run_id!r}; give one of their ids: {ids}")
        raise self._not_found(run_id)

    def start_run(self, run_name: str, *, created_at: str | datetime.datetime | None = None) -> RunWriter:
        """Begin a new run. Nothing is visible before its first commit.

        Args:
            run_name: Need not be unique.
            created_at: When the run was started (UTC if it does not say); now by default.
        """
        slug = re.sub(r"[^a-z0-9._-]+", "-", run_name.lower()).strip("-._")[:64] or "run"
        return RunWriter(
            self._store,
            self.archive_id,
            f"{slug}-{secrets.token_hex(5)}",
            attempt=1,
            run_name=run_name,
            created_at=utc_now() if created_at is None else _as_utc(created_at),
            generation=0,
        )

    def resume_run(self, run_id: str, generation: int | None = None) -> tuple[RunWriter, Manifest]:
        """Take over a run as a new attempt, from where its checkpoint was.

        The base generation is committed again at once, as the new attempt's first. So later rows are dropped for
        readers too, and an attempt that still runs elsewhere fails at its next commit.

        Args:
            run_id: The run.
            generation: The newest one that the checkpoint knows of; by default the newest there is.

        Returns:
            The writer, and the base manifest: the newest generation that is not later than ``generation``.

        Raises:
            RunNotFoundError: There is no such run, or none of its generations is old enough.
            ArchiveConflictError: Another attempt resumed it at the same moment.
            ArchiveCorruptError: The run is damaged.
        """
        latest = read_latest(self._store, run_id) if is_safe_name(run_id) else None
        if latest is None:
            raise self._not_found(run_id)
        newest = latest[0]
        usable = [g for g in list_generations(self._store, run_id) if generation is None or g <= generation]
        if not usable:
            raise RunNotFoundError(f"run {run_id} has no generation up to {generation} to resume from")
        base = newest if usable[-1] == newest.generation else read_manifest(self._store, run_id, usable[-1])
        writer = RunWriter(
            self._store,
            self.archive_id,
            run_id,
            attempt=newest.attempt + 1,
            run_name=base.run_name,
            created_at=base.created_at,
            generation=newest.generation,
        )
        writer.commit(base)
        return writer, base

    def join_run(self, run_id: str, attempt: int) -> RunWriter:
        """A writer for another rank of a run: it puts files, and the rank that started the run commits them.

        Raises:
            RunNotFoundError: ``run_id`` cannot be the id of a run.
        """
        if not is_safe_name(run_id):
            raise RunNotFoundError(f"{run_id!r} cannot be the id of a run")
        return RunWriter(self._store, self.archive_id, run_id, attempt)

    def verify(
        self,
        run_id: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        records: Callable[[int, int], None] | None = None,
    ) -> VerifyReport:
        """Check runs for damage: read every generation, and hash every file anew.

        Args:
            run_id: The run; all by default.
            progress: Called with the bytes hashed so far and the bytes to hash in all.
            records: Called before that, with the number of runs whose manifests were read and the number of runs.

        Returns:
            What was found; damage is never raised.

        Raises:
            RunNotFoundError: There is no such run.
            ArchiveError: The store is out of reach as a whole.
        """
        if run_id is not None:
            with contextlib.suppress(ArchiveError):  # what cannot be listed is damage, which is reported below
                if run_id not in self._candidates():
                    raise self._not_found(run_id)
        return verify_archive(self._store, run_id, progress, records)

    def collect_garbage(
        self,
        *,
        delete: bool = False,
        min_age_seconds: float = MIN_AGE_SECONDS,
        progress: Callable[[int, int], None] | None = None,
    ) -> GarbageReport:
        """Find what no manifest lists, and delete it if asked to:
        :func:`~reuse_algos.archive.upkeep.collect.collect_garbage`.

        Args:
            delete: Really delete. Else nothing is written at all.
            min_age_seconds: A run in which anything is younger is left alone; at least an hour.
            progress: Called with the number of runs looked at so far and the number of runs.

        Raises:
            ArchiveError: The age is too short, or the archive cannot be read or written.
        """
        return collect_garbage(self._store, delete=delete, min_age_seconds=min_age_seconds, progress=progress)

    def remove_run(
        self, run_id: str, *, force: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> RemovalReport:
        """Delete a run and all that is in its folder: :func:`~reuse_algos.archive.upkeep.removal.remove_run`.

        Args:
            run_id: The run; it may be damaged.
            force: Also remove a run that may still be written. Its writer fails at its next commit.
            progress: Called with the number of objects deleted so far and the number of objects.

        Raises:
            RunNotFoundError: There is nothing of this run.
            ArchiveConflictError: The run may still be written, and ``force`` was not given; nothing was removed.
            ArchiveError: The archive cannot be read or written.
        """
        return remove_run(self._store, run_id, force=force, progress=progress)

    def copy_to(
        self,
        target: RunArchive,
        run_ids: Iterable[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        recheck: bool = True,
        known: set[str] | None = None,
        tags: Mapping[str, object] | None = None,
    ) -> CopyReport:
        """Copy committed runs into another archive: :func:`~reuse_algos.archive.upkeep.copying.copy_runs`.

        Args:
            target: Where they are to be. Nothing in it is ever replaced.
            run_ids: Which; all by default.
            progress: Called with the bytes copied or checked so far and the bytes in all.
            recheck: Hash also the files that an earlier copy brought. Else their sizes must do.
            known: Paths that an earlier call between these two proved; this call passes them over and adds its own.
            tags: Of the runs, only those with these, as in :meth:`runs`.

        Returns:
            What was copied. A run that is damaged (so that perhaps its tags cannot be told), or is another one there,
            is a problem of the report.

        Raises:
            RunNotFoundError: There is no such run here.
            ArchiveError: One of the archives cannot be read or written.
        """
        return copy_runs(self._store, target._store, run_ids, progress, recheck=recheck, known=known, tags=tags)

    def _candidates(self) -> list[str]:
        return [name for name in self._store.list("runs") if is_safe_name(name)]

    def _warn(self, run_id: str, error: ArchiveError) -> None:
        if run_id not in self._warned:
            self._warned.add(run_id)
            warnings.warn(f"run {run_id} is left out: {error}", ArchiveWarning, stacklevel=3)

    def _not_found(self, run_id: str) -> RunNotFoundError:
        found = scan(self._store, self._candidates(), self._warn)
        known = [name for run in found for name in (run.summary.run_id, run.summary.run_name)]
        return RunNotFoundError(f"there is no run {run_id!r} in {self.location}.{nearest(run_id, known)}")


def _as_utc(time: str | datetime.datetime) -> str:
    if isinstance(time, str):
        try:
            time = datetime.datetime.fromisoformat(time.replace("Z", "+00:00"))
        except ValueError as error:
            raise ArchiveError(f"{time!r} is not a time in ISO 8601") from error
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.timezone.utc)
    return time.astimezone(datetime.timezone.utc).isoformat(timespec="microseconds")
