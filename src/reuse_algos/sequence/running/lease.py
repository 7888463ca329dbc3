"""The lease of a sequence: a sign in the archive that one process is running it, and is alive.

It works in any store that can put an object if there is none. Lease number ``n`` is the object
``sequences/NAME/n.json``.
Its holder renews it by putting number ``n + 1``; whoever finds that number taken has lost the lease. A lease that was
not renewed for ``TERM_SECONDS``, as the watching process counts them, may be taken over, by putting the next number. So
clocks of different machines are never compared. The last lease stays when it is released: numbers must not begin again.

Jobs watch the lease, too, and end themselves after half of that time, before anybody can take it over.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, sleep

from reuse_algos.archive.stores.base import Store
from reuse_algos.errors import ArchiveConflictError, ArchiveError, SequenceError
from reuse_algos.sequence.progress import open_store_of

TERM_SECONDS = 180.0
RENEW_SECONDS = 30.0
POLL_SECONDS = 0.25
_GRACE_SECONDS = 1.0  # in which the local jobs of a killed sequence notice that its pipe is closed
_MAX_BYTES = 4096
_NAME = re.compile(r"[1-9][0-9]{0,15}\.json", re.ASCII)


@dataclass(frozen=True)
class LeaseKey:
    """What a job has to know of the lease that it watches.

    Attributes:
        archive: Folder or URL of the archive.
        sequence: Name of the sequence.
        token: Known to the holder and its jobs only.
    """

    archive: str
    sequence: str
    token: str


@dataclass(frozen=True)
class _Found:
    """The newest lease of a sequence; number 0 where there has been none."""

    number: int
    token: str | None = None
    host: str | None = None
    pid: int | None = None
    local: bool = False


class SequenceLease:
    """The lease of a sequence, held by this process from ``acquire`` to ``release`` and renewed by a thread.

    Args:
        archive: Folder or URL of the archive.
        sequence: Name of the sequence.
        local: Whether all jobs end with this process, see :class:`~reuse_algos.sequence.launchers.Launcher`.
        lost: Called once when the lease is lost.
    """

    def __init__(self, archive: str, sequence: str, *, local: bool, lost: Callable[[], None]) -> None:
        self.key = LeaseKey(archive, sequence, secrets.token_hex(8))
        self.is_lost = False
        self._store = open_store_of(archive)
        self._local, self._lost = local, lost
        self._number = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="renew-lease", daemon=True)

    def acquire(self, say: Callable[[str], None] = print) -> None:
        """Take the lease, or wait until its holder is known to be alive or dead.

        Args:
            say: Told why this waits. Default: prints it.

        Raises:
            SequenceError: Another process is running the sequence.
            ArchiveError: The archive cannot be reached.
        """
        first = _newest(self._store, self.key.sequence)
        since, found = monotonic(), first
        # Waiting for a dead one of this machine takes a second: nothing to tell.
        if first.token is not None and not _is_killed(first):
            say(
                f"another process ({first.host}, {first.pid}) has run this sequence: waiting up to "
                f"{TERM_SECONDS:.0f} s to see if it still does"
            )
        while found.token is not None:
            if found.number != first.number:
                raise SequenceError(
                    f"another process is running the sequence {self.key.sequence} in {self._store.location} "
                    f"({found.host}, process {found.pid}). Wait for it, or end it first"
                )
            if monotonic() - since > (_GRACE_SECONDS if _is_killed(found) else TERM_SECONDS):
                break
            # A holder that lives puts a new number within its term, whatever its clock says.
            sleep(POLL_SECONDS)
            found = _newest(self._store, self.key.sequence)
        try:
            self._put(found.number + 1, self.key.token)
        except ArchiveConflictError:
            raise SequenceError(
                f"another process has begun to run the sequence {self.key.sequence} in {self._store.location}"
            ) from None
        self._thread.start()

    def release(self) -> None:
        """Give the lease up. What it protected must have ended."""
        self._done.set()
        # First, so that the thread does not renew what is given up here.
        self._thread.join()
        if not self.is_lost:
            with contextlib.suppress(ArchiveError):  # then it runs out
                self._put(self._number + 1, None)

    def renew(self) -> None:
        """Put the next lease.

        Raises:
            ArchiveConflictError: The lease is lost.
            ArchiveError: The archive cannot be reached.
        """
        self._put(self._number + 1, self.key.token)

    def _keep(self) -> None:
        renewed = monotonic()
        while not self._done.wait(RENEW_SECONDS):
            try:
                self.renew()
                renewed = monotonic()
            except ArchiveConflictError:
                # A put whose answer was lost may have been ours.
                with contextlib.suppress(ArchiveError):
                    found = _newest(self._store, self.key.sequence)
                    if found.token == self.key.token:
                        self._number, renewed = found.number, monotonic()
                        continue
                break
            except ArchiveError:
                if monotonic() - renewed > TERM_SECONDS / 2:  # the jobs end themselves now
                    break
        if not self._done.is_set():
            self.is_lost = True
            self._lost()

    def _put(self, number: int, token: str | None) -> None:
        record = {"token": token, "host": socket.gethostname(), "pid": os.getpid(), "local": self._local}
        path = f"{_folder(self.key.sequence)}/{number}.json"
        self._store.put_if_absent(path, [json.dumps(record).encode()])
        before, self._number = self._number, number
        if self._store.can_delete:
            # Its own lease of before, and the one that it took over.
            for old in {before, number - 1} - {0}:
                with contextlib.suppress(ArchiveError):  # it does no harm
                    self._store.delete(f"{_folder(self.key.sequence)}/{old}.json")


def outlast(key: LeaseKey) -> None:
    """Return once the lease is not held any more, or was not renewed for half of its term."""
    store: Store | None = None
    seen, since = 0, monotonic()
    while True:
        try:
            store = store or open_store_of(key.archive)
            found = _newest(store, key.sequence)
        except ArchiveError:  # no news
            found = None
        if found is not None and found.token != key.token:
            return
        if found is not None and found.number != seen:
            seen, since = found.number, monotonic()
        # Half the term: the rest is for the jobs to end before anybody may take over.
        if monotonic() - since > TERM_SECONDS / 2:
            return
        # Twice per renewal, so that no renewal is seen a whole period late.
        sleep(RENEW_SECONDS / 2)


def _folder(sequence: str) -> str:
    return f"sequences/{sequence}"


def _newest(store: Store, sequence: str) -> _Found:
    """Return the newest lease.

    Raises:
        ArchiveError: It cannot be read, or is not a lease.
    """
    while True:
        numbers = [int(name[:-5]) for name in store.list(_folder(sequence)) if _NAME.fullmatch(name)]
        if not numbers:
            return _Found(0)
        path = f"{_folder(sequence)}/{max(numbers)}.json"
        data = store.get(path, _MAX_BYTES)
        if data is None:  # renewed since it was listed
            continue
        try:
            record = json.loads(data)
            return _Found(max(numbers), record["token"], record["host"], record["pid"], record["local"] is True)
        except (ValueError, KeyError, TypeError):
            raise ArchiveError(f"{store.location}/{path} is not a lease of a sequence. Remove it") from None


def _is_killed(found: _Found) -> bool:
    """Return whether the holder ran on this machine and is gone, and all of its jobs with it."""
    # A process of another machine cannot be asked for, and a job on a cluster may live on without its holder.
    if not found.local or found.host != socket.gethostname() or not isinstance(found.pid, int) or found.pid <= 0:
        return False
    try:
        os.kill(found.pid, 0)
    except OSError as error:  # any other one says that there is such a process
        return isinstance(error, ProcessLookupError)
    return False
