"""Requests to an object store, with errors that say what to do."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from reuse_algos.archive.stores.remote.config import Address, configure, connect, obstore_error
from reuse_algos.archive.stores.remote.errors import Fault, read_fault
from reuse_algos.archive.stores.remote.odd_keys import names_around, objects_around
from reuse_algos.errors import ArchiveCorruptError, ArchiveError

_STREAM_BYTES = 1 << 20
_PAGE = 1000
_TRIES = 3
_SECONDS = 6  # no further try is begun after this
_RECORD_SECONDS = 20  # the most that anything but a data file may take to come: with other tries, half a minute

_Result = TypeVar("_Result")
_process = 0  # id of the process that sent the first request


def pause(attempt: int) -> None:
    """Wait before the next try: longer each time, and never as long as another process does."""
    # Not the global generator, which ranks may have seeded alike.
    time.sleep(random.Random().uniform(0.05, 0.2) * 2**attempt)


class ObjectClient:
    """The requests that an archive needs, of one bucket. Keys are whole, with the archive's prefix.

    Args:
        address: The bucket.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._clients: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()
        self._settings = configure(address)
        # Data files may take as long as their bytes keep coming; all else is small.
        self._reader = connect(address, self._settings, retries=3, seconds=None)
        self._asker = connect(address, self._settings, retries=3, seconds=_RECORD_SECONDS)

    def writer(self, retries: int, seconds: int) -> Any:
        """Return an obstore client with this many retries and this timeout in seconds (cached)."""
        with self._lock:
            if (retries, seconds) not in self._clients:
                self._clients[retries, seconds] = connect(
                    self.address, self._settings, retries=retries, seconds=seconds, silence=False
                )
            return self._clients[retries, seconds]

    def where(self, key: str) -> str:
        """Return the URL of an object."""
        begin = len(self.address.prefix) + 1 if self.address.prefix else 0
        return f"{self.address.location}/{key[begin:]}"

    def attempt(self, use: Callable[[], _Result]) -> tuple[_Result | None, Fault | None]:
        """Send a request: its result, or what went wrong."""
        _check_process(self.address.location)
        try:
            return _interruptible(use), None
        except ArchiveError:
            raise
        except (obstore_error(), OSError) as error:
            return None, read_fault(error, self.address.provider, self.address.bucket)

    def call(self, key: str, action: str, use: Callable[[], _Result]) -> _Result | None:
        """Send a request that may be repeated: its result, or None if there is no such object.

        obstore repeats what got no answer or a bad one, but not what got half of one.

        Raises:
            ArchiveError: Anything else went wrong.
        """
        began = time.monotonic()
        for attempt in itertools.count(1):
            result, fault = self.attempt(use)
            if fault is None or fault.missing:
                return result
            if not fault.transient or attempt == _TRIES or time.monotonic() - began > _SECONDS:
                fault.stop(action, self.where(key))
            pause(attempt)

    def get(self, key: str, max_bytes: int) -> bytes | None:
        """Return a whole object, or None if there is none.

        Raises:
            ArchiveCorruptError: It has more than ``max_bytes``.
            ArchiveError: It could not be read.
        """

        def read() -> bytes:
            found = self._asker.get(key)
            size = found.meta["size"]
            if size > max_bytes:
                raise ArchiveCorruptError(f"{self.where(key)} has {size} bytes; at most {max_bytes} are read")
            data = bytes(found.bytes())
            self._check_length(key, len(data), size)
            return data

        return self.call(key, "read", read)

    def stream(self, key: str) -> Iterator[bytes]:
        """Read an object in parts.

        Raises:
            ArchiveCorruptError: There is none.
            ArchiveError: It could not be read.
        """
        found = self.call(key, "read", lambda: self._reader.get(key))
        if found is None:
            raise ArchiveCorruptError(f"{self.where(key)} is missing: the archive is damaged")
        parts, length = iter(found.stream(_STREAM_BYTES)), 0
        while part := self._next(key, "read", parts, b""):
            length += len(part)
            yield bytes(part)
        self._check_length(key, length, found.meta["size"])

    def size(self, key: str) -> int | None:
        """Return the bytes in an object, or None if there is none.

        Raises:
            ArchiveError: It could not be told.
        """
        found = self.call(key, "read", lambda: self._asker.head(key))
        if found is not None:
            return found["size"]
        # An answer to HEAD cannot say whether the object or the whole bucket is missing; one to GET does.
        found = self.call(key, "read", lambda: self._asker.get(key))
        return None if found is None else found.meta["size"]

    def names(self, key: str) -> set[str]:
        """Return the names directly below a key.

        Raises:
            ArchiveError: They could not be listed.
        """
        try:
            found = self.call(key, "list", lambda: self._asker.list_with_delimiter(key))
        except ArchiveCorruptError as error:  # a key that is not a path
            return names_around(self.address, key, error)
        if found is None:
            return set()
        keys = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        return {name[len(key) + 1 :] for name in keys if name.startswith(f"{key}/")}

    def walk(self, key: str) -> Iterator[dict[str, Any]]:
        """Return what obstore says of each object below a key.

        Raises:
            ArchiveError: Not all could be listed; what came before was right.
        """

        def begin() -> tuple[Iterator[Any], Any]:
            pages = iter(self._asker.list(key, chunk_size=_PAGE))
            return pages, next(pages, ())

        last = ""
        try:
            pages, page = self.call(key, "list", begin) or (iter(()), ())
            while page:
                yield from page
                last = page[-1]["path"]
                page = self._next(key, "list", pages, ())
        except ArchiveCorruptError as error:  # a key that is not a path
            yield from objects_around(self.address, key, last, error)

    def delete(self, key: str) -> None:
        """Remove an object. It is not an error if there is none.

        Raises:
            ArchiveError: It could not be removed.
        """
        self.call(key, "delete", lambda: self._asker.delete(key))

    def _next(self, key: str, action: str, parts: Iterator[Any], end: Any) -> Any:
        """Return the next part of an iterator of obstore."""
        # Never tried twice: after an error the iterator may end as if all had come.
        part, fault = self.attempt(lambda: next(parts, end))
        if fault is not None:
            fault.stop(action, self.where(key))
        return part

    def _check_length(self, key: str, length: int, size: int) -> None:
        if length != size:
            raise ArchiveError(f"cannot read {self.where(key)}: {length} of its {size} bytes came")


def _interruptible(use: Callable[[], _Result]) -> _Result:
    """Call, so that Ctrl-C works meanwhile."""
    # obstore never looks for signals while it waits; the join of a thread does.
    if threading.current_thread() is not threading.main_thread():
        return use()
    results: list[_Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(use())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="archive-request", daemon=True)  # not to be waited for after Ctrl-C
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _check_process(location: str) -> None:
    """Refuse to go on in a fork of a process that used obstore: its threads are not there, and it would wait forever.

    Raises:
        ArchiveError: This is such a process.
    """
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise ArchiveError(
            f"cannot use {location} here: this process was forked from one that uses an object store; start it with "
            "the method 'spawn' or 'forkserver', or read what it needs before the fork"
        )
