"""How writers and deletions stay out of each other's way in one run, without a lock.

Each raises a flag of its own first, and only then looks for the other's:

- A writer about to commit puts a *lease*, looks for *markers* that name a file that it is about to commit, checks that
  the files are there, and puts the manifest.
- A deletion puts a *marker* that names its files, looks at the run again, gives up if anything in it is young (a lease,
  for example), deletes, and removes the marker last.

If a file is deleted that a writer wants to commit, there are three cases. The marker came before the writer's look: the
writer stops. The lease came before the deletion's second look: the deletion stops. The marker is gone again: then the
file is gone too, and the writer notices. A file that the writer itself put a moment ago serves as a lease, and a file
that it has committed needs none. So an ordinary commit puts no lease.

The store must show a put or a deletion to everybody at once; object stores promise that too. Clocks may differ, but not
run at very different speeds: an age is the difference of two times of the store's own clock.

A marker that a killed collection left behind is harmless, as it names only files that no manifest lists. The marker of
a removal (``everything``) stays until the removal is run again. Until then every commit to the run fails, collections
pass the run over if it has a manifest, and ``verify`` reports it: a partly deleted run must not be written.

In a store that cannot delete (``can_delete``) there are no markers, and leases stay.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

from reuse_algos.archive.format.envelope import MAX_SEALED_BYTES, seal, unseal
from reuse_algos.archive.format.names import is_marker, lease_path, marker_path, run_prefix
from reuse_algos.archive.format.records import LeaseRecord, MarkerRecord
from reuse_algos.archive.stores.base import Store, StoredObject
from reuse_algos.errors import ArchiveConflictError, ArchiveCorruptError, ArchiveError

MIN_AGE_SECONDS = 24 * 3600.0
"""Files of at least this age may be deleted."""

SHORTEST_AGE_SECONDS = 3600.0
"""The shortest age that a user may ask for instead."""

TRUST_SECONDS = 1800.0
"""How long a check may be relied on: well below the shortest age at which files are deleted."""

RENEW_SECONDS = 900.0
RETRY_SECONDS = 180.0  # after a renewal that failed: a store that is down takes many seconds to say so
WAIT_SECONDS = 30.0  # deleting the garbage of one run takes seconds
POLL_SECONDS = 0.25


class Stopwatch:
    """Seconds since it was made, by whichever of two clocks ran further.

    The monotonic clock stops while the computer sleeps, and the wall clock can be set back.
    """

    def __init__(self) -> None:
        self._wall, self._steady = time.time(), time.monotonic()

    def seconds(self) -> float:
        """Return the seconds since it was made."""
        return max(time.time() - self._wall, time.monotonic() - self._steady)


class Lease:
    """The lease of one writer in one run. Several threads may use it.

    Args:
        store: The archive's store.
        run_id: The run.
        attempt: Of the writer, from 1.
        token: 16 hex digits that no other writer has.
    """

    def __init__(self, store: Store, run_id: str, attempt: int, token: str) -> None:
        self._store, self._run_id, self._attempt, self._token = store, run_id, attempt, token
        # A number of its own for each lease: put-if-absent never writes one path twice.
        self._numbers = itertools.count(1)
        self._held: list[str] = []
        self._unsure: str | None = None  # a lease whose put failed, and which may have become visible all the same
        self._failed: Stopwatch | None = None  # since the last renewal, if that failed
        self._alive = Stopwatch()  # since this writer last put something; before, there is nothing to protect
        self._safe: dict[str, Stopwatch | None] = {}  # files that this writer has put, or (None) committed
        self._lock = threading.Lock()

    def renew(self) -> None:
        """Put a new lease, and remove the one before.

        Raises:
            ArchiveError: It could not be written.
        """
        with self._lock:
            watch = Stopwatch()  # before, so that it never shows less than the lease's age
            path = self._unsure or self._new_path()
            try:
                try:
                    self._put(path)
                # Nobody else has this writer's token, so the lease that is in the way is its own.
                except ArchiveConflictError:  # the put that seemed to fail did not: it is there, and as old as that
                    self._held.append(path)
                    path, self._unsure = self._new_path(), None
                    self._put(path)
            except BaseException:
                self._unsure, self._failed = path, Stopwatch()  # to be tried again: so these do not become many
                raise
            self._unsure = self._failed = None
            self._held.append(path)
            # The new one first, then the old one goes: between the two a collection always sees one.
            self._drop(keep=1)
            self._alive = watch

    def renew_if_due(self) -> None:
        """Renew the lease if this writer has put nothing for a quarter of an hour.

        After a renewal that failed it does nothing for three minutes, as each try may take long.
        """
        if self._alive.seconds() > RENEW_SECONDS and (self._failed is None or self._failed.seconds() > RETRY_SECONDS):
            self.renew()

    def note_put(self, path: str, since: Stopwatch) -> None:
        """Note that the writer put a file that was not there before.

        Args:
            path: Its path, relative to the archive.
            since: Made before it was put.
        """
        with self._lock:
            self._safe[path] = self._alive = since
            self._failed = None

    def note_committed(self, paths: Iterable[str]) -> None:
        """Note that the writer has committed files, and remove the lease."""
        with self._lock:
            self._drop()
            fresh = {path: since for path, since in self._safe.items() if since is not None and _is_young(since)}
            self._safe = fresh | dict.fromkeys(paths)  # those of earlier commits are not asked about again

    def release(self) -> None:
        """Remove the lease, and give up what it protected."""
        with self._lock:
            self._drop()

    def guard(self, paths: AbstractSet[str], check: Callable[[AbstractSet[str]], None]) -> Stopwatch:
        """Check that files are there and will stay there for the commit that follows.

        Args:
            paths: The files, relative to the archive.
            check: Raises if they are not there. It is given those of them that this writer has not committed before;
                the others are there unless the whole run was removed.

        Returns:
            The time since the check began. What it found may be trusted for :data:`TRUST_SECONDS`.

        Raises:
            ArchiveConflictError: The run is being removed.
            ArchiveError: A file is being deleted, or what ``check`` raises.
        """
        while True:
            watch = Stopwatch()
            if not all(self._is_safe(path) for path in paths):
                self.renew()
            # Only now, with the flag raised: a deletion that looked before has its marker up, and is seen here.
            refuse_condemned(self._store, self._run_id, paths)
            check({path for path in paths if self._safe.get(path, watch) is not None})
            if watch.seconds() < TRUST_SECONDS:  # else this process was stopped on the way: all may have changed
                return watch

    def _is_safe(self, path: str) -> bool:
        """Return whether a file needs no lease."""
        # What was put a moment ago is young in the store, too, and what is committed is listed by a manifest.
        if path not in self._safe:
            return False
        since = self._safe[path]
        return since is None or _is_young(since)

    def _new_path(self) -> str:
        return lease_path(self._run_id, self._attempt, self._token, next(self._numbers))

    def _put(self, path: str) -> None:
        self._store.put_if_absent(path, [seal(LeaseRecord(run_id=self._run_id, attempt=self._attempt), path)])

    def _drop(self, keep: int = 0) -> None:
        if not keep and self._unsure is not None:
            self._held.append(self._unsure)
            self._unsure = None
        while len(self._held) > keep:
            if self._store.can_delete:
                with contextlib.suppress(ArchiveError):  # a collection removes it later
                    self._store.delete(self._held[0])
            # Forgotten even where the deletion failed: it is out of date, and is not to be tried at every commit.
            self._held.pop(0)


def _is_young(since: Stopwatch) -> bool:
    # And will be for TRUST_SECONDS more, which is together less than SHORTEST_AGE_SECONDS.
    return since.seconds() < RENEW_SECONDS


class Marker:
    """A flag in a run that names what is being deleted. Constructing it writes it.

    Args:
        store: The archive's store.
        run_id: The run.
        everything: The whole run.
        paths: Else these files, relative to the archive.

    Raises:
        ArchiveError: It could not be written.
    """

    def __init__(self, store: Store, run_id: str, *, everything: bool = False, paths: Iterable[str] = ()) -> None:
        self.path = marker_path(run_id)
        self._store = store
        record = MarkerRecord(run_id=run_id, everything=everything, paths=list(paths))
        store.put_if_absent(self.path, [seal(record, self.path)])

    def withdraw(self) -> None:
        """Remove the marker, after the last deletion succeeded.

        Keep it after a deletion that failed, which may still be under way.
        """
        self._store.delete(self.path)


def put_at(store: Store, objects: Iterable[StoredObject], path: str) -> float:
    """Return when an object was put, seconds since 1970 by the store's clock.

    Of an object that was just put, this is the store's time now.

    Raises:
        ArchiveCorruptError: It is not among what the store lists.
    """
    for found in objects:
        if found.path == path:
            return found.modified
    raise ArchiveCorruptError(
        f"{store.location} does not list {path}, which was just written: nothing can be deleted safely there"
    )


def read_markers(store: Store, run_id: str) -> dict[str, MarkerRecord]:
    """Return the markers in a run by their paths.

    Raises:
        ArchiveCorruptError: One is damaged.
        ArchiveVersionError: One was written in a newer major format.
    """
    markers = {}
    for name in store.list(f"{run_prefix(run_id)}/gc"):
        path = f"{run_prefix(run_id)}/gc/{name}"
        if not is_marker(f"gc/{name}"):
            continue
        data = store.get(path, MAX_SEALED_BYTES)
        if data is not None:  # else it was taken away since it was listed
            marker = unseal(data, MarkerRecord, path)
            if marker.run_id != run_id:
                raise ArchiveCorruptError(f"{store.location}/{path} is in the wrong place: it is of {marker.run_id!r}")
            markers[path] = marker
    return markers


def refuse_condemned(store: Store, run_id: str, paths: AbstractSet[str]) -> None:
    """Check that no file is about to be deleted; wait up to half a minute for a deletion to end.

    Args:
        store: The archive's store.
        run_id: The run.
        paths: The files, relative to the archive.

    Raises:
        ArchiveConflictError: The whole run is being removed.
        ArchiveError: One of the files is still about to be deleted.
    """
    watch = Stopwatch()
    while blocked := _blocked(store, run_id, paths):
        if watch.seconds() > WAIT_SECONDS:
            raise blocked
        # Not refused at once: a collection holds its marker for seconds, and a long training would fail for that.
        time.sleep(POLL_SECONDS)


def _blocked(store: Store, run_id: str, paths: AbstractSet[str]) -> ArchiveError | None:
    """Return why these files of a run cannot be committed now, or None."""
    for where, marker in read_markers(store, run_id).items():
        if marker.everything:
            return ArchiveConflictError(
                f"run {run_id} is being removed from {store.location} (see {where}); stop this process"
            )
        if doomed := next((path for path in marker.paths if path in paths), None):
            return ArchiveError(
                f"run {run_id} cannot be committed: {doomed} was unused for so long that it is being deleted. Run "
                f"`reuse-algos gc {store.location} --delete` to its end, and write the file again"
            )
    return None
