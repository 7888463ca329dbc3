"""The archive: open it, select runs, start and resume them, check them for damage."""

from __future__ import annotations

import datetime
import math
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from reuse_algos.archive.envelope import MAX_SEALED_BYTES, seal, unseal
from reuse_algos.archive.generations import list_generations, read_latest, read_manifest
from reuse_algos.archive.manifest import ArchiveRecord, Manifest, is_safe_name
from reuse_algos.archive.metrics import resolve_metric
from reuse_algos.archive.run import PriorRun
from reuse_algos.archive.run_writer import RunWriter, utc_now
from reuse_algos.archive.store import open_store
from reuse_algos.archive.verify import Problem, VerifyReport, verify_runs
from reuse_algos.errors import (
    ArchiveConflictError,
    ArchiveError,
    ArchiveWarning,
    RunNotFoundError,
    SignalNotFoundError,
    nearest,
)

__all__ = ["RunArchive"]

_IDENTITY = "archive.json"


class RunArchive:
    """A directory of committed runs, shared by any number of readers and writers at once.

    Args:
        path: The directory.
        create: Make the archive if there is none.
        read_only: Refuse every write, and make nothing.

    Raises:
        ArchiveError: There is no archive and none may be made, or ``path`` is remote.
        ArchiveNotADirectoryError: ``path`` is a file.
        ArchivePermissionError: It may not be read, or may not be made.
        ArchiveVersionError: It was made by a newer major version.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True, read_only: bool = False) -> None:
        self._store = open_store(path, create=create, read_only=read_only)
        self._warned: set[str] = set()
        self.root = Path(self._store.location)
        self.archive_id = self._identity(create and not read_only)

    def __repr__(self) -> str:
        return f"RunArchive({str(self.root)!r})"

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
            raise ArchiveError(f"there is no archive at {self.root}: check the path, or let it be created")
        return unseal(data, ArchiveRecord, f"{self.root}/{_IDENTITY}").archive_id

    def run_ids(self) -> list[str]:
        """Ids of all committed runs, damaged ones included, sorted."""
        return [run_id for run_id in self._candidates() if list_generations(self._store, run_id)]

    def runs(
        self,
        *,
        tags: Mapping[str, object] | None = None,
        run_name: str | None = None,
        order: Literal["best", "latest", "first"] = "latest",
        metric: str | None = None,
        limit: int | None = None,
        unfinished: bool = False,
        unhealthy: bool = False,
    ) -> list[PriorRun]:
        """Select runs. A damaged run is left out with one :class:`~reuse_algos.errors.ArchiveWarning`.

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
            ArchiveError: The archive could not be listed.
        """
        if order not in ("best", "latest", "first"):
            raise ArchiveError(f"order {order!r} is not known.{nearest(order, ('best', 'latest', 'first'))}")
        selected = [
            run
            for run in self._readable_runs()
            if (unfinished or run.finished)
            and (unhealthy or run.health == "ok")
            and (run_name is None or run.run_name == run_name)
            and _tags_match(run.tags, tags or {})
        ]
        if order == "best":
            selected = self._best_first(selected, metric)
        else:
            selected.sort(key=lambda run: run.id)
            selected.sort(key=lambda run: run.manifest.created_at, reverse=order == "latest")
        return selected[:limit]

    def run(self, run_id: str) -> PriorRun:
        """One run by its id, or by its name if no other run has it.

        Raises:
            RunNotFoundError: There is no such run, or several of this name.
            ArchiveCorruptError: The run is damaged.
            ArchiveVersionError: It was written by a newer major version.
        """
        if is_safe_name(run_id) and (latest := read_latest(self._store, run_id)):
            return PriorRun(self._store, *latest)
        named = [run for run in self._readable_runs() if run.run_name == run_id]
        if len(named) == 1:
            return named[0]
        if named:
            ids = ", ".join(run.id for run in named)
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

    def verify(self, run_id: str | None = None, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Check runs for damage: read every generation, and hash every file anew.

        Args:
            run_id: The run; all by default.
            progress: Called with the bytes hashed so far and the bytes to hash in all.

        Returns:
            What was found; damage is never raised.

        Raises:
            RunNotFoundError: There is no such run.
        """
        try:
            self._identity(create=False)
            run_ids = self._candidates()
        except ArchiveError as error:
            return VerifyReport(problems=[Problem("", _IDENTITY, str(error))])
        if run_id is not None and run_id not in run_ids:
            raise self._not_found(run_id)
        return verify_runs(self._store, run_ids if run_id is None else [run_id], progress)

    def _candidates(self) -> list[str]:
        return [name for name in self._store.list("runs") if is_safe_name(name)]

    def _readable_runs(self) -> Iterator[PriorRun]:
        for run_id in self._candidates():
            try:
                if latest := read_latest(self._store, run_id):
                    yield PriorRun(self._store, *latest)
            except ArchiveError as error:
                self._warn(run_id, error)

    def _best_first(self, runs: list[PriorRun], metric: str | None) -> list[PriorRun]:
        monitors = {(run.manifest.monitor, run.manifest.monitor_mode) for run in runs if run.manifest.monitor}
        if metric is None and len(monitors) > 1:
            names = ", ".join(sorted(f"{name} ({mode})" for name, mode in monitors))
            raise SignalNotFoundError(f"the runs have different monitors, say by which metric to order them: {names}")
        if metric is not None and runs:
            metric = resolve_metric(metric, {name for run in runs for name in run.metric_names}, "the runs have")
        valued: list[tuple[float, str, PriorRun]] = []
        for run in runs:
            name = metric or run.manifest.monitor
            if name is None or name not in run.metric_names:
                continue
            try:
                value = run.final_metric(name)
            except ArchiveError as error:
                self._warn(run.id, error)
                continue
            if math.isfinite(value):
                valued.append((-value if run.metric_mode(name) == "max" else value, run.id, run))
        return [run for *_, run in sorted(valued, key=lambda item: item[:2])]

    def _warn(self, run_id: str, error: ArchiveError) -> None:
        if run_id not in self._warned:
            self._warned.add(run_id)
            warnings.warn(f"run {run_id} is left out: {error}", ArchiveWarning, stacklevel=3)

    def _not_found(self, run_id: str) -> RunNotFoundError:
        known = [name for run in self._readable_runs() for name in (run.id, run.run_name)]
        return RunNotFoundError(f"there is no run {run_id!r} in {self.root}.{nearest(run_id, known)}")


def _tags_match(tags: Mapping[str, str], wanted: Mapping[str, object]) -> bool:
    for key, value in wanted.items():
        accepted = value if isinstance(value, list | tuple | set | frozenset) else [value]
        if tags.get(key) not in {str(item) for item in accepted}:
            return False
    return True


def _as_utc(time: str | datetime.datetime) -> str:
    if isinstance(time, str):
        try:
            time = datetime.datetime.fromisoformat(time.replace("Z", "+00:00"))
        except ValueError as error:
            raise ArchiveError(f"{time!r} is not a time in ISO 8601") from error
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.timezone.utc)
    return time.astimezone(datetime.timezone.utc).isoformat(timespec="microseconds")
