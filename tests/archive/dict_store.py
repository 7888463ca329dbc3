"""A store in memory with a clock that can be set, which lists in pages as object stores do."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from reuse_algos.archive import Store, StoredObject
from reuse_algos.archive.format.envelope import seal
from reuse_algos.archive.format.names import IDENTITY
from reuse_algos.archive.format.records import ArchiveRecord
from reuse_algos.archive.stores.base import Chunk
from reuse_algos.archive.upkeep import collect, leases, removal
from reuse_algos.errors import ArchiveConflictError, ArchiveCorruptError

IDENTITY_RECORD = seal(ArchiveRecord(archive_id="a" * 32, created_at="2026-01-01"), IDENTITY)
"""What every store in memory has from the start; it is not among the objects, so that tests count runs only."""


class Clock:
    """The ``time`` module as far as it is used, but it goes by itself only where somebody sleeps or waits."""

    def __init__(self) -> None:
        self.passed = 0.0

    def time(self) -> float:
        return 1.7e9 + self.passed

    def monotonic(self) -> float:
        return 50.0 + self.passed

    def sleep(self, seconds: float) -> None:
        self.passed += seconds


@contextmanager
def keeping_time(clock: Clock) -> Iterator[None]:
    """Let writers and those who delete go by a clock of the test's own."""
    modules = [cast(Any, module) for module in (leases, collect, removal)]
    for module in modules:
        module.time = clock
    try:
        yield
    finally:
        for module in modules:
            module.time = time


class DictStore(Store):
    """What a :class:`~reuse_algos.archive.Store` must be, as plainly as possible.

    Args:
        skew: Seconds that the store's clock is ahead of this machine's.
        clock: This machine's clock; the real one by default.
        page: So many objects are listed at once; the next page is what there is then.
        before: Called with each request, ``"put PATH"`` and the like, before it takes effect.
    """

    def __init__(
        self,
        *,
        skew: float = 0.0,
        page: int = 1000,
        before: Callable[[str], None] = lambda request: None,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or time
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.skew, self.page, self.before = skew, page, before
        self._lock = threading.Lock()

    @property
    def location(self) -> str:
        return "dict://memory"

    def now(self) -> float:
        return self._clock.time() + self.skew

    def age(self, seconds: float) -> None:
        """Let everything that is there be so much older."""
        self.objects = {path: (data, modified - seconds) for path, (data, modified) in self.objects.items()}

    def get(self, path: str, max_bytes: int) -> bytes | None:
        self.before(f"get {path}")
        data, _ = self.objects.get(path, (IDENTITY_RECORD if path == IDENTITY else None, 0))
        if data is not None and len(data) > max_bytes:
            raise ArchiveCorruptError(f"{path} has {len(data)} bytes; at most {max_bytes} are read")
        return data

    def open(self, path: str, size: int, sha256: str) -> io.FileIO:
        data = b"".join(self.stream(path))
        if (len(data), hashlib.sha256(data).hexdigest()) != (size, sha256):
            raise ArchiveCorruptError(f"{path} is damaged")
        descriptor = os.memfd_create("object")
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return io.FileIO(descriptor, "rb")

    def stream(self, path: str) -> Iterator[bytes]:
        self.before(f"stream {path}")
        if path not in self.objects:
            raise ArchiveCorruptError(f"{path} is missing: the archive is damaged")
        data = self.objects[path][0]
        yield from (data[start : start + 1000] for start in range(0, len(data), 1000))

    def size(self, path: str) -> int | None:
        self.before(f"size {path}")
        return len(self.objects[path][0]) if path in self.objects else None

    def list(self, prefix: str) -> list[str]:
        names = {found.path[len(prefix) + 1 :].split("/")[0] for found in self._pages(prefix, "list")}
        return sorted(names)

    def walk(self, prefix: str) -> Iterator[StoredObject]:
        yield from self._pages(prefix, "walk")

    def put_if_absent(self, path: str, chunks: Iterable[Chunk]) -> None:
        data = b"".join(bytes(chunk) for chunk in chunks)
        self.before(f"put {path}")
        with self._lock:
            if path in self.objects:
                raise ArchiveConflictError(f"{path} exists: another writer was first")
            self.objects[path] = (data, self.now())

    def delete(self, path: str) -> None:
        self.before(f"delete {path}")
        self.objects.pop(path, None)

    def _pages(self, prefix: str, request: str) -> Iterator[StoredObject]:
        last = ""
        while True:
            self.before(f"{request} {prefix}")
            names = sorted(path for path in list(self.objects) if path.startswith(f"{prefix}/") and path > last)
            page = names[: self.page]
            yield from [
                StoredObject(path, len(data), modified) for path in page for data, modified in [self.objects[path]]
            ]
            if len(names) <= self.page:
                return
            last = page[-1]
