"""Deleting the superseded generations of runs that ended, when somebody asks for it.

A note says first from which generation on the run is kept, so that the gap is not taken for damage. The files that only
deleted generations listed are garbage after that, as any other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from reuse_algos.archive.format.envelope import seal
from reuse_algos.archive.format.generations import list_generations, read_latest
from reuse_algos.archive.format.names import manifest_path, run_prefix, thinned_generation, thinned_path
from reuse_algos.archive.format.records import ThinnedRecord
from reuse_algos.archive.stores.base import Store, StoredObject
from reuse_algos.archive.stores.checks import check_sizes
from reuse_algos.errors import ArchiveConflictError


def first_generation(store: Store, run_id: str) -> int:
    """Return the first generation of a run that must be there: 1, or what a thinning left."""
    return first_of(f"thinned/{name}" for name in store.list(f"{run_prefix(run_id)}/thinned"))


def first_of(paths: Iterable[str]) -> int:
    """Return the same from the paths of a run's objects, relative to it."""
    return max((found for path in paths if (found := thinned_generation(path)) is not None), default=1)


def thin_run(store: Store, run_id: str, objects: Iterable[StoredObject], *, delete: bool) -> list[StoredObject]:
    """Delete the generations of an ended run but the newest, after a look at the files of that one.

    Args:
        store: The archive's store.
        run_id: The run, in which nothing is young.
        objects: All objects of the run.
        delete: Really delete. Otherwise nothing is written.

    Returns:
        The manifests that were, or would be, deleted; none of a run that has not ended.

    Raises:
        ArchiveCorruptError: The newest generation is damaged: the others are kept.
        ArchiveError: The store cannot be read or written.
    """
    latest = read_latest(store, run_id)
    if latest is None or latest[1] is None:
        return []
    newest, _ = latest
    old = [generation for generation in list_generations(store, run_id) if generation < newest.generation]
    sizes = {found.path: found for found in objects}
    # A thinning that was interrupted has deleted some of them already.
    doomed = [sizes[path] for path in (manifest_path(run_id, generation) for generation in old) if path in sizes]
    if delete and doomed:
        # The others are what is left where the newest has lost a file.
        check_sizes(store, {f"{run_prefix(run_id)}/{entry.path}": entry.bytes for entry in newest.files})
        path = thinned_path(run_id, newest.generation)
        with contextlib.suppress(ArchiveConflictError):  # an earlier thinning was interrupted
            store.put_if_absent(path, [seal(ThinnedRecord(run_id=run_id, generation=newest.generation), path)])
        for found in doomed:
            store.delete(found.path)
    return doomed
