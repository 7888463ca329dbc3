"""Removing a whole run."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from reuse_algos.archive.format.names import INDEX, final_path, is_lease, is_marker, is_safe_name, run_prefix
from reuse_algos.archive.index.update import note_change
from reuse_algos.archive.stores.base import Store, StoredObject, require_deletion
from reuse_algos.archive.upkeep.leases import MIN_AGE_SECONDS, Marker, put_at, read_markers
from reuse_algos.errors import ArchiveConflictError, ArchiveError, RunNotFoundError

_ROUNDS = 5


@dataclass(frozen=True)
class RemovalReport:
    """What was removed: the run, the number of its objects, and their size in bytes."""

    run_id: str
    files: int
    bytes: int


def remove_run(
    store: Store, run_id: str, *, force: bool = False, progress: Callable[[int, int], None] | None = None
) -> RemovalReport:
    """Delete a run and everything in its folder. If it is interrupted, call it again.

    Args:
        store: The archive's store.
        run_id: The run, which may be damaged.
        force: Also remove a run that may still be written; its writer fails at its next commit. Default: False.
        progress: Called with the number of objects deleted so far and the number of objects. Default: None.

    Raises:
        RunNotFoundError: There is nothing of this run.
        ArchiveConflictError: The run may still be written, and ``force`` was not given; nothing was removed.
        ArchiveError: The archive cannot be read or written, or its store cannot delete.
    """
    prefix = run_prefix(run_id)
    if not is_safe_name(run_id) or not (before := list(store.walk(prefix))):
        raise RunNotFoundError(f"there is nothing of a run {run_id!r} in {store.location}")
    require_deletion(store)
    if not force:  # before the marker, which stops the run's writer
        _refuse_if_busy(store, run_id, before, time.time())
    marker = Marker(store, run_id, everything=True)
    if not force:
        try:
            objects = list(store.walk(prefix))
            if objects:  # otherwise another removal was first, and removed the marker too
                _refuse_if_busy(store, run_id, objects, put_at(store, objects, marker.path), marker.path)
        except BaseException:
            marker.withdraw()
            raise
    if store.list(INDEX):  # a run of this id that comes back, as a copy does, may be another one
        note_change(store, run_id, secrets.token_hex(8), 0)
    sizes: dict[str, int] = {}
    for _ in range(_ROUNDS):  # again, as a writer may have put a file since
        found = [item for item in store.walk(prefix) if item.path != marker.path]
        if not found:
            break
        for item in sorted(found, key=lambda item: _order(item.path, run_id)):
            store.delete(item.path)
            sizes[item.path] = item.size
            if progress is not None:
                progress(len(sizes), max(len(before), len(sizes)))
    else:
        raise ArchiveError(f"run {run_id} is written faster than it can be removed: stop its process, and try again")
    marker.withdraw()
    return RemovalReport(run_id, len(sizes), sum(sizes.values()))


def _order(path: str, run_id: str) -> tuple[int, str]:
    inside = path[len(run_prefix(run_id)) + 1 :]
    # First, so that readers of finished runs no longer see it.
    if path == final_path(run_id):
        return 0, path
    # In order: no reader may take an older generation for the newest.
    if inside.startswith("manifests/"):
        return 1, path
    # While a marker is there, no writer commits.
    return (3 if is_marker(inside) else 2), path


def _refuse_if_busy(store: Store, run_id: str, objects: list[StoredObject], now: float, marker: str = "") -> None:
    """Refuse a run whose writer may be alive, unless its removal had begun before."""
    if any(found.everything for path, found in read_markers(store, run_id).items() if path != marker):
        return
    start = len(run_prefix(run_id)) + 1
    finished = any(found.path == final_path(run_id) for found in objects)
    signs = [
        found
        for found in objects
        if not is_marker(found.path[start:]) and (not finished or is_lease(found.path[start:]))
    ]
    newest = max(signs, key=lambda found: found.modified, default=None)
    if newest is not None and now - newest.modified < MIN_AGE_SECONDS:
        raise ArchiveConflictError(
            f"run {run_id} may still be written: {newest.path} is {_said(now - newest.modified)} old. Let the run end, "
            "wait a day, or force its removal"
        )


def _said(seconds: float) -> str:
    return f"{max(seconds, 0) / 60:.0f} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:.0f} hours"
