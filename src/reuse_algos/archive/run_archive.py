"""The archive: opening it, selecting runs, starting and resuming them, keeping it in order."""

from __future__ import annotations

import datetime
import os
import re
import secrets
from pathlib import Path

from reuse_algos.archive.format.envelope import seal
from reuse_algos.archive.format.generations import list_generations, read_identity, read_latest, read_manifest
from reuse_algos.archive.format.labels import check_labels
from reuse_algos.archive.format.manifest import Manifest
from reuse_algos.archive.format.names import IDENTITY, is_safe_name
from reuse_algos.archive.format.records import ArchiveRecord
from reuse_algos.archive.format.summary import summary_of
from reuse_algos.archive.run_reader import RunReader
from reuse_algos.archive.run_writer import RunWriter, utc_now
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.local import LocalStore
from reuse_algos.archive.stores.opening import open_store
from reuse_algos.errors import ArchiveConflictError, ArchiveError, ArchiveNotFoundError, RunNotFoundError


class RunArchive(RunReader):
    """Committed runs in a directory or an object store, shared by any number of readers and writers at once.

    Args:
        path: The directory, a URL such as ``s3://bucket/prefix`` (see
            :func:`~reuse_algos.archive.stores.opening.open_store`), or a store; for a store of its own ``read_only`` is
            decided where it was opened.
        create: Make the archive if there is none; writers ask for it. A bucket is not made. Default: False.
        read_only: Refuse every write, and make nothing. Default: False.

    Raises:
        ArchiveError: There is no archive and none may be made, or its store cannot be reached.
        ArchiveNotADirectoryError: ``path`` is a file.
        ArchivePermissionError: It may not be read, or may not be made.
        ArchiveVersionError: It was made by a newer major version.
    """

    def __init__(self, path: str | os.PathLike[str] | Store, *, create: bool = False, read_only: bool = False) -> None:
        if isinstance(path, str | os.PathLike):
            path = open_store(path, create=create, read_only=read_only)
        super().__init__(path)
        self.archive_id = self._identity(create and not read_only)

    def __repr__(self) -> str:
        return f"RunArchive({self.location!r})"

    @property
    def root(self) -> Path:
        """Directory of a local archive.

        Raises:
            ArchiveError: The archive is remote.
        """
        if not isinstance(self._store, LocalStore):
            raise ArchiveError(f"{self.location} is not a local directory: use `location`")
        return self._store.root

    def _identity(self, create: bool) -> str:
        found = read_identity(self._store)
        # Two processes may make the archive at once: one of them wins, and the other reads what it wrote.
        if found is None and create:
            record = ArchiveRecord(archive_id=secrets.token_hex(16), created_at=utc_now())
            try:
                self._store.put_if_absent(IDENTITY, [seal(record, IDENTITY)])
            except ArchiveConflictError:  # another process made the archive at the same moment
                found = read_identity(self._store)
            else:
                return record.archive_id
        if found is None:
            raise ArchiveNotFoundError(f"there is no archive at {self.location}: check the path, or pass create=True")
        return found

    def start_run(self, run_name: str, *, created_at: str | datetime.datetime | None = None) -> RunWriter:
        """Begin a new run. Nothing is visible before its first commit.

        Args:
            run_name: The name, which need not be unique.
            created_at: When the run was started; UTC if it names no zone. Default: now.

        Raises:
            ArchiveError: The name holds control characters, or ``created_at`` is not a time.
        """
        check_labels(run_name, {})
        # The id is part of paths, and still shows in a listing which run it is.
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
            run_id: The id of the run.
            generation: The newest generation that the checkpoint knows of. Default: the newest there is.

        Returns:
            The writer, and the base manifest: the newest generation that is not later than ``generation``.

        Raises:
            RunNotFoundError: There is no such run, or none of its generations is old enough.
            ArchiveConflictError: Another attempt resumed it at the same moment.
            ArchiveCorruptError: The run is damaged.
        """
        # An id becomes part of a path, so only safe names are looked up.
        latest = read_latest(self._store, run_id) if is_safe_name(run_id) else None
        if latest is None:
            raise self._not_found(run_id)
        newest, final = latest
        usable = [g for g in list_generations(self._store, run_id) if generation is None or g <= generation]
        if not usable:
            raise RunNotFoundError(f"run {run_id} has no generation up to {generation} to resume from")
        # The newest was read already, and may be a megabyte in a bucket.
        base = newest if usable[-1] == newest.generation else read_manifest(self._store, run_id, usable[-1])
        writer = RunWriter(
            self._store,
            self.archive_id,
            run_id,
            # Of the newest generation and not of the base: two attempts with one number would write files of one
            # name.
            attempt=newest.attempt + 1,
            run_name=base.run_name,
            created_at=base.created_at,
            generation=newest.generation,
            ended=final and summary_of(newest, final),
        )
        writer.commit(base)
        return writer, base

    def join_run(self, run_id: str, attempt: int) -> RunWriter:
        """Return a writer for another rank: it puts files, and the rank that started the run commits them.

        Raises:
            RunNotFoundError: ``run_id`` cannot be the id of a run.
        """
        if not is_safe_name(run_id):
            raise RunNotFoundError(f"{run_id!r} cannot be the id of a run")
        return RunWriter(self._store, self.archive_id, run_id, attempt)


def _as_utc(time: str | datetime.datetime) -> str:
    if isinstance(time, str):
        try:
            time = datetime.datetime.fromisoformat(time.replace("Z", "+00:00"))
        except ValueError as error:
            raise ArchiveError(f"{time!r} is not a time in ISO 8601") from error
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.timezone.utc)
    return time.astimezone(datetime.timezone.utc).isoformat(timespec="microseconds")
