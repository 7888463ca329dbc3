"""Hash each archived file once per host, not once per process.

A file whose hash was found right is remembered by everything that changes when the file does: real path, device, inode,
size, modification and change time. The memory is kept outside the archive, which may be read-only or not ours. It is a
cache: losing it costs time only, and :meth:`RunArchive.verify <reuse_algos.archive.RunArchive.verify>` does not use it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from pathlib import Path

__all__ = ["cache_directory", "hash_file", "is_verified", "remember_verified"]

_READ_BYTES = 1 << 20
_seen: set[str] = set()


def hash_file(file: io.FileIO) -> str:
    """Sha256 of a file, open for reading, from its beginning, in hex."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    file.seek(0)
    while count := file.readinto(buffer):  # type: ignore[attr-defined]  # raw files have it, io.FileIO does not say so
        digest.update(buffer[:count])
    return digest.hexdigest()


def is_verified(file: io.FileIO, path: str, sha256: str) -> bool:
    """Whether this very file was found to have this hash before, by this process or by another on this host."""
    key = _key(file, path, sha256)
    if key in _seen:
        return True
    cache = cache_directory("verified")
    if cache is None or not os.path.exists(cache / key):
        return False
    _seen.add(key)
    return True


def remember_verified(file: io.FileIO, path: str, sha256: str) -> None:
    """Remember that this file has this hash. A cache that cannot be written is not an error."""
    key = _key(file, path, sha256)
    _seen.add(key)
    cache = cache_directory("verified")
    if cache is not None:
        with contextlib.suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
            (cache / key).touch()


def _key(file: io.FileIO, path: str, sha256: str) -> str:
    status = os.fstat(file.fileno())
    identity = (
        os.path.realpath(path),
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        sha256,
    )
    return hashlib.sha256(repr(identity).encode()).hexdigest()


def cache_directory(name: str) -> Path | None:
    """This library's directory for one kind of cache on this host; None if there is no home to put it in.

    It is below ``$XDG_CACHE_HOME/reuse_algos``, or ``~/.cache/reuse_algos`` where that is not set.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: relative ones are to be ignored
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        base = os.path.join(home, ".cache")
    return Path(base, "reuse_algos", name)
