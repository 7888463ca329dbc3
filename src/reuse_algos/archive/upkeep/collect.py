"""Garbage collection: delete files that crashed or abandoned writers left, and that no manifest lists.

A run is collected only if nothing in it is young. :mod:`reuse_algos.archive.upkeep.leases` explains why that is safe
against a writer that continues at the same moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from reuse_algos.archive.format.generations import list_generations, list_runs, read_final, read_identity, read_manifest
from reuse_algos.archive.format.manifest import FORMAT
from reuse_algos.archive.format.names import (
    is_data,
    is_lease,
    is_manifest,
    is_marker,
    is_temporary,
    manifest_path,
    run_prefix,
    thinned_generation,
)
from reuse_algos.archive.index.update import sweep_index, update_index
from reuse_algos.archive.stores.base import Store, StoredObject, require_deletion
from reuse_algos.archive.stores.checks import DAMAGE, refusals_as_damage
from reuse_algos.archive.upkeep.leases import (
    MIN_AGE_SECONDS,
    SHORTEST_AGE_SECONDS,
    TRUST_SECONDS,
    Marker,
    Stopwatch,
    put_at,
    read_markers,
)
from reuse_algos.archive.upkeep.problems import Problem, Report
from reuse_algos.archive.upkeep.thinning import first_of, thin_run
from reuse_algos.errors import ArchiveConflictError, ArchiveCorruptError, ArchiveError, ArchiveVersionError

BATCH = 10_000  # files that one marker names: it stays far below the largest file that is read


@dataclass
class GarbageReport(Report):
    """What was, or would be, collected.

    Attributes:
        runs: Number of runs looked at, including those that were never committed.
        kept: Number of files that a manifest lists.
        collected: Path and size in bytes of each object that was deleted, or in a dry run would be.
        busy: Runs in which something is young. Nothing in them was deleted.
        unknown: Paths that do not belong to an archive. They were kept.
        shards: Number of shards that were added to the index.
        problems: Runs that are damaged, of a newer version, or not readable by this user. Nothing in them was deleted.
    """

    runs: int = 0
    kept: int = 0
    collected: list[tuple[str, int]] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    shards: int = 0

    @property
    def bytes(self) -> int:
        """Size of what was collected."""
        return sum(size for _, size in self.collected)


@dataclass(frozen=True)
class RunGarbage:
    """What can be collected of one run.

    Attributes:
        busy: Whether something in it is young, so that nothing can be collected.
        kept: Number of files that a manifest lists.
        files: Data files that no manifest lists, and temporary files.
        tidy: Old leases, and markers that killed collections left. They are deleted last.
        unknown: Paths that do not belong to an archive.
    """

    busy: bool
    kept: int
    files: list[StoredObject]
    tidy: list[StoredObject]
    unknown: list[str]


def plan_run(
    objects: Iterable[StoredObject], run_id: str, referenced: Collection[str], *, now: float, min_age_seconds: float
) -> RunGarbage:
    """Decide what of a run is garbage. Nothing is read.

    Args:
        objects: All objects of the run.
        run_id: The run.
        referenced: Paths, relative to the archive, that a manifest of the run lists.
        now: The time by the store's clock, in seconds since 1970.
        min_age_seconds: An object younger than this makes the whole run busy.
    """
    start = len(run_prefix(run_id)) + 1
    busy, kept, files, tidy, unknown = False, 0, [], [], []
    for found in objects:
        path = found.path[start:]
        old = now - found.modified >= min_age_seconds
        if is_marker(path):
            # Another collection deletes the same files, so its marker does not make the run busy. It is tidied later.
            if now - found.modified >= max(min_age_seconds, MIN_AGE_SECONDS):
                tidy.append(found)
            continue
        if thinned_generation(path) is not None:  # put by a collection, and no sign of a writer
            continue
        busy = busy or not old
        if is_lease(path):
            tidy.append(found)
        elif is_data(path) or is_temporary(path.rpartition("/")[2]):
            if found.path in referenced:
                kept += 1
            else:
                files.append(found)
        elif path != "final.json" and not is_manifest(path):
            unknown.append(found.path)
    return RunGarbage(busy, kept, [] if busy else files, [] if busy else tidy, unknown)


def collect_garbage(
    store: Store,
    *,
    delete: bool = False,
    min_age_seconds: float = MIN_AGE_SECONDS,
    thin: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> GarbageReport:
    """Find files that no manifest lists, and delete them if asked to.

    It may be interrupted, and two may run at once. A dry run uses this machine's clock, as it may not write; a real one
    uses the store's clock.

    Args:
        store: The archive's store.
        delete: Delete. Otherwise nothing is written. Default: False.
        min_age_seconds: A run in which anything is younger is kept whole; at least an hour. Default: a day.
        thin: Also delete the superseded generations of runs that ended. Default: False.
        progress: Called with the number of runs looked at so far and the number of runs. Default: None.

    Raises:
        ArchiveError: The age is too short, or the archive cannot be read or written, or its store cannot delete.
    """
    if delete:
        require_deletion(store)
    if min_age_seconds < SHORTEST_AGE_SECONDS:
        raise ArchiveError(
            f"what is younger than an hour is never collected, as it may be about to be committed; got "
            f"{min_age_seconds:g} seconds"
        )
    report = GarbageReport()
    run_ids = list_runs(store)
    for number, run_id in enumerate(run_ids, start=1):
        try:
            if thin:
                _thin(store, run_id, delete, min_age_seconds, report)
            _collect_run(store, run_id, delete, min_age_seconds, report)
        except (*DAMAGE, ArchiveConflictError) as error:
            report.problems.append(Problem(run_id, run_prefix(run_id), str(error)))
        if progress is not None:
            progress(number, len(run_ids))
    if delete and (archive_id := read_identity(store)) is not None:
        report.shards = update_index(store, archive_id, everything=True)
        for path, size in sweep_index(store, archive_id, min_age_seconds):
            report.collected.append((path, size))
    return report


def _thin(store: Store, run_id: str, delete: bool, min_age_seconds: float, report: GarbageReport) -> None:
    with refusals_as_damage(store):
        objects = list(store.walk(run_prefix(run_id)))
        # Only whether the run is busy counts here.
        if plan_run(objects, run_id, (), now=time.time(), min_age_seconds=min_age_seconds).busy:
            return
        report.collected += [(item.path, item.size) for item in thin_run(store, run_id, objects, delete=delete)]


def _collect_run(store: Store, run_id: str, delete: bool, min_age_seconds: float, report: GarbageReport) -> None:
    with refusals_as_damage(store):
        found = _look(store, run_id, time.time(), min_age_seconds)
    report.runs += 1
    report.kept += found.kept
    report.unknown += found.unknown
    if found.busy:
        report.busy.append(run_id)
    elif not delete:
        report.collected += [(item.path, item.size) for item in (*found.files, *found.tidy)]
    elif found.files or found.tidy:
        # At least once, for what is only to be tidied.
        for start in range(0, max(len(found.files), 1), BATCH):
            batch = {item.path for item in found.files[start : start + BATCH]}
            if not _delete_batch(store, run_id, batch, min_age_seconds, report):
                report.busy.append(run_id)
                break


def _delete_batch(store: Store, run_id: str, batch: set[str], min_age_seconds: float, report: GarbageReport) -> bool:
    """Delete these files of a run, and old leases and markers; return False if the run is in use after all."""
    watch = Stopwatch()
    marker = Marker(store, run_id, paths=sorted(batch))
    try:
        # A writer that comes later sees the marker; one that came before is seen here.
        found = _look(store, run_id, None, min_age_seconds, marker.path)
    except BaseException:
        marker.withdraw()
        raise
    # What was listed and is not garbage any more on the second look stays.
    doomed = [item for item in found.files if item.path in batch] + found.tidy
    for item in doomed:
        if watch.seconds() > TRUST_SECONDS:  # this process was stopped for long: its marker may be gone
            break
        # If this fails the marker stays, because the request may still be under way.
        store.delete(item.path)
        report.collected.append((item.path, item.size))
    marker.withdraw()
    return not found.busy


def _look(store: Store, run_id: str, now: float | None, min_age_seconds: float, marker: str = "") -> RunGarbage:
    """Return what of a run is garbage at ``now``, or, if that is None, when ``marker`` was put."""
    objects = list(store.walk(run_prefix(run_id)))
    if now is None:
        now = put_at(store, objects, marker)
    referenced = _referenced(store, run_id, {found.path for found in objects})
    return plan_run(objects, run_id, referenced, now=now, min_age_seconds=min_age_seconds)


def _referenced(store: Store, run_id: str, paths: set[str]) -> set[str]:
    """Return every file that a generation lists.

    Raises:
        ArchiveCorruptError: A manifest is missing or damaged, so that the files cannot be known.
        ArchiveVersionError: A newer version wrote a manifest, and may list files in ways that this one does not know.
    """
    prefix = f"{run_prefix(run_id)}/"
    below = [path[len(prefix) :] for path in sorted(paths) if path.startswith(f"{prefix}manifests/")]
    odd = [path for path in below if not is_manifest(path) and not is_temporary(path.rpartition("/")[2])]
    if odd:
        raise ArchiveCorruptError(
            f"{prefix}{odd[0]} is not a manifest that this version knows, so it may list anything"
        )
    final = read_final(store, run_id)
    generations = list_generations(store, run_id)
    if generations and any(marker.everything for marker in read_markers(store, run_id).values()):
        raise ArchiveConflictError(
            f"run {run_id} is being removed, or was when its removal was interrupted: if so, remove it again"
        )
    highest = max([*generations, final.generation if final else 0])
    referenced = set()
    for generation in range(first_of(path[len(prefix) :] for path in paths), highest + 1):  # a gap is an error too
        manifest = read_manifest(store, run_id, generation)
        if manifest.format > FORMAT:
            raise ArchiveVersionError(
                f"{manifest_path(run_id, generation)} has format {manifest.format[0]}.{manifest.format[1]}, and may "
                "list files in ways that this reuse_algos does not know: upgrade it"
            )
        referenced.update(prefix + entry.path for entry in manifest.files)
    return referenced
