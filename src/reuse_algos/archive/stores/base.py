"""The protocol of a store: named, immutable sequences of bytes.

It asks only for what an object store can do: read whole objects, list, delete, and *put if absent*. Nothing is ever
changed or renamed through it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from reuse_algos.archive.format.names import is_safe_name, is_temporary
from reuse_algos.errors import ArchiveCorruptError, ArchiveError, ArchivePermissionError

Chunk = bytes | memoryview
"""A part of a file to be written; a memoryview has one dimension of bytes."""

MAX_ATOMIC_BYTES = 16 << 20
"""The largest object for which every store decides in one step who was first. Records are never larger."""


class StoredObject(NamedTuple):
    """One object of a store.

    Attributes:
        path: Its name.
        size: Bytes.
        modified: When it was written, in seconds since 1970 by the store's own clock, which may differ from this
            machine's.
    """

    path: str
    size: int
    modified: float


class Store(Protocol):
    """Named, immutable sequences of bytes. Names are relative, with ``/`` between safe parts.

    A kind of store is a class that derives from this one. Every method raises an
    :class:`~reuse_algos.errors.ArchiveError` that names the path when it fails, ``ArchivePermissionError`` when it was
    not allowed, and ``ArchiveCorruptError`` for a name or an object that cannot be part of an archive.

    Attributes:
        concurrency: The number of threads that may call the store at once. Default: 1.
        can_delete: Whether objects can be removed at all. Where they cannot, removal and garbage collection are
            refused before they begin, and leases stay. Default: True.
    """

    concurrency: int = 1
    can_delete: bool = True

    @property
    def location(self) -> str:
        """Where the store is, for messages: a directory or a URL without a slash at its end."""
        ...

    def get(self, path: str, max_bytes: int) -> bytes | None:
        """Return the whole object, or None if there is none.

        Raises:
            ArchiveCorruptError: It has more than ``max_bytes``; it was not read.
        """
        ...

    def open(self, path: str, size: int, sha256: str) -> io.FileIO:
        """Open an object as a regular local file with a descriptor, to be memory mapped.

        A remote store fetches it into a cache on this host, named by content, and checks it against ``size`` and
        ``sha256`` on the way. A local store opens the file itself and leaves both checks to the caller.

        Raises:
            ArchiveCorruptError: It is missing, or (remote) not what it should be.
        """
        ...

    def stream(self, path: str) -> Iterator[bytes]:
        """Read the object as it is in the store now, in parts, past any cache.

        Raises:
            ArchiveCorruptError: It is missing.
        """
        ...

    def size(self, path: str) -> int | None:
        """Return the bytes in the object, or None if there is none."""
        ...

    def list(self, prefix: str) -> list[str]:
        """Return the sorted names directly below ``prefix``; empty if there are none."""
        ...

    def walk(self, prefix: str) -> Iterator[StoredObject]:
        """Return every object below ``prefix`` at any depth, in any order, with what crashed writers left behind.

        What cannot be part of an archive (links, devices, unsafe names) is passed over.
        """
        ...

    def put_if_absent(self, path: str, chunks: Iterable[Chunk]) -> None:
        """Write an object that is complete and durable when this returns.

        Raises:
            ArchiveConflictError: There is one of this name, complete and durable. It was left as it is.
        """
        ...

    def delete(self, path: str) -> None:
        """Remove an object, or what :meth:`walk` found left over. It is not an error if there is none."""
        ...


def split_path(path: str, *, temporary: bool = False) -> list[str]:
    """Return the parts of a path.

    Args:
        path: The path.
        temporary: Also accept a last part that names a file which a writer left behind. Default: False.

    Raises:
        ArchiveCorruptError: A part is not a safe name.
    """
    parts = path.split("/")
    leftover = temporary and is_temporary(parts[-1])
    if not all(is_safe_name(part) for part in (parts[:-1] if leftover else parts)):
        raise ArchiveCorruptError(f"{path[:200]!r} cannot be the path of a file in an archive")
    return parts


def require_writable(read_only: bool, action: str, where: object) -> None:
    """Refuse to change a store that was opened read-only.

    Raises:
        ArchivePermissionError: ``read_only`` is set.
    """
    if read_only:
        raise ArchivePermissionError(f"cannot {action} {where}: the archive was opened read-only")


def require_deletion(store: Store) -> None:
    """Refuse to delete in a store that cannot, before a marker is put that nobody could take away again.

    Raises:
        ArchiveError: The store cannot delete.
    """
    if not store.can_delete:
        raise ArchiveError(
            f"cannot delete anything in {store.location}: this kind of store has no way to; nothing was changed. "
            "Remove the files with the provider's own tools"
        )
