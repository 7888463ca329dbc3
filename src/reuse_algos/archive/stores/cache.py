"""Remote files on this host, by their content: fetched once, checked on the way, never changed in place.

They are below ``$XDG_CACHE_HOME/reuse_algos/files`` (``~/.cache/reuse_algos/files`` where that is not set), each named
by its sha256. Beyond ``$REUSE_ALGOS_CACHE_GIB`` (50 where that is not set) the files used longest ago are deleted. The
directory may be emptied at any time (``rm -r``): what a process has mapped stays with it until it lets go.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import filelock

from reuse_algos.archive.format.names import temporary_name
from reuse_algos.errors import ArchiveCorruptError, ArchiveError

_READ_BYTES = 1 << 20
_seen: set[str] = set()
_FETCHES = 3
# For another process that fetches the same file. After that the file is fetched twice, which costs time only.
_LOCK_SECONDS = 900

CACHE_VARIABLE = "REUSE_ALGOS_CACHE_GIB"
DEFAULT_CACHE_GIB = 50.0

MAX_VERIFIED = 100_000
"""The most files that a host remembers as verified: each takes an empty file of its own."""


def open_cached(where: str, size: int, sha256: str, fetch: Callable[[], Iterable[bytes]]) -> io.FileIO:
    """Open a file from the cache, after fetching it if it is not there, or no longer what it was.

    Args:
        where: The remote file, for messages.
        size: Its size in bytes.
        sha256: Its hash, 64 hex digits.
        fetch: Begins to read the remote file from its start, in parts.

    Raises:
        ArchiveCorruptError: The remote file is missing or not what it should be, three times in a row.
        ArchiveError: It could not be read, or the cache could not be written.
    """
    folder = cache_directory("files")
    if folder is None:
        raise ArchiveError(f"cannot fetch {where}: there is no home directory; set XDG_CACHE_HOME to a folder to fill")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ArchiveCorruptError(f"{where} cannot have the sha256 {sha256[:100]!r}")
    path, fault, written = folder / sha256[:2] / sha256, "", None
    with _errors(where, folder):
        # Most files are there, and need no lock.
        if file := _open_sound(path, size, sha256):
            return file
        path.parent.mkdir(parents=True, exist_ok=True)
        if sha256.startswith("0"):  # one file in 16: looking through the cache each time would cost more than it saves
            prune_directory(folder, max(_cache_bytes() - size, 0))
        with _one_at_a_time(path):
            # A damaged transfer is fetched again; a damaged original fails every time.
            for _ in range(_FETCHES):
                # Another process may have fetched it while this one waited for the lock.
                if file := _open_sound(path, size, sha256):
                    return file
                fault, written = _fetch(path, size, sha256, fetch())
                if not fault and (file := _open_sound(path, size, sha256, written)):
                    return file
    raise ArchiveCorruptError(f"{where} is damaged: {fault or 'its copy was changed'}; it was fetched {_FETCHES} times")


def _open_sound(path: Path, size: int, sha256: str, written: tuple[int, int] | None = None) -> io.FileIO | None:
    """Open a cached file if it is sound, else remove it.

    Args:
        path: The file.
        size: What it should have.
        sha256: What it should have.
        written: Device and inode of the file that was just written and hashed: it need not be read again.
    """
    try:
        file = io.FileIO(str(path), "rb", opener=_open_regular)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        os.unlink(path)  # a link, which this cache does not make
        return None
    try:
        status = os.fstat(file.fileno())
        sound = stat.S_ISREG(status.st_mode) and status.st_size == size
        if sound and not is_verified(file, str(path), sha256):
            sound = written == (status.st_dev, status.st_ino) or hash_file(file) == sha256
            if sound:
                remember_verified(file, str(path), sha256)
        if sound:
            file.seek(0)
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    with contextlib.suppress(FileNotFoundError):  # another process saw the same
        os.unlink(path)
    return None


def _open_regular(path: str, flags: int) -> int:
    # A FIFO that somebody put here must not block, nor a link lead elsewhere.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _fetch(path: Path, size: int, sha256: str, parts: Iterable[bytes]) -> tuple[str, tuple[int, int] | None]:
    """Write the parts to a cached file if they are sound.

    Returns:
        What is wrong with the parts, empty if nothing; and device and inode of the new file, None if there is none.
    """
    temporary = path.with_name(temporary_name())
    digest, length = hashlib.sha256(), 0
    # Never writable: processes map it.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            for part in parts:
                length += len(part)
                if length > size:
                    return f"it has more than the {size} bytes that it should have", None
                digest.update(part)
                rest = memoryview(part)
                while rest:
                    rest = rest[file.write(rest) :]
            if length != size:
                return f"it has {length} bytes and should have {size}", None
            if digest.hexdigest() != sha256:
                return f"its sha256 is {digest.hexdigest()} and should be {sha256}", None
            # That it is sound will be remembered, so a power cut must not leave it with its size and without its bytes.
            os.fsync(file.fileno())
            status = os.fstat(file.fileno())
        # One step, so that no process ever opens half of a file.
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    return "", (status.st_dev, status.st_ino)


def _cache_bytes() -> int:
    try:
        return int(float(os.environ.get(CACHE_VARIABLE, "")) * 2**30)
    except (ValueError, OverflowError):
        return int(DEFAULT_CACHE_GIB * 2**30)


def prune_directory(folder: Path, max_bytes: int) -> None:
    """Delete the files below a folder that were used longest ago, until the others take at most so many bytes.

    What cannot be deleted is left. A file that a process has open stays with that process.
    """
    found, total = [], 0
    for directory, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):  # another process prunes too
                status = os.lstat(path)
                # A file system without access times keeps the time of writing only.
                found.append((max(status.st_atime_ns, status.st_mtime_ns), status.st_size, path))
                total += status.st_size
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
        total -= size


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Keep other processes of this host from fetching the same file."""
    # Where the lock cannot be had, several fetch it, which costs time only.
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):  # filelock's Timeout is an OSError, too
            stack.enter_context(filelock.FileLock(f"{path}.lock", timeout=_LOCK_SECONDS))
        yield


@contextlib.contextmanager
def _errors(where: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except ArchiveError:
        raise
    except OSError as error:
        advice = "empty it, or set XDG_CACHE_HOME to a folder with more space"
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            advice = "set XDG_CACHE_HOME to a folder that can be written"
        failure = ArchiveError(f"cannot fetch {where} into the cache {folder}: {error.strerror or error}; {advice}")
        failure.errno = error.errno
        raise failure from error


def hash_file(file: io.FileIO) -> str:
    """Return the sha256 of a file that is open for reading, from its beginning, in hex."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    file.seek(0)
    while count := file.readinto(buffer):  # type: ignore[attr-defined]  # raw files have it, io.FileIO does not say so
        digest.update(buffer[:count])
    return digest.hexdigest()


def is_verified(file: io.FileIO, path: str, sha256: str) -> bool:
    """Return whether this very file was found to have this hash before, by any process of this host."""
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
            if key.startswith("00"):  # one key in 256: listing the directory each time would cost more than it saves
                _forget_oldest(cache)


def _forget_oldest(cache: Path) -> None:
    """Remove the oldest half of what is remembered, once there is more than the bound; such files are hashed again."""
    with os.scandir(cache) as entries:
        found = [(entry.stat(follow_symlinks=False).st_mtime_ns, entry.name) for entry in entries]
    if len(found) > MAX_VERIFIED:
        for _, name in sorted(found)[: len(found) // 2]:
            with contextlib.suppress(OSError):  # another process prunes too
                os.unlink(cache / name)


def _key(file: io.FileIO, path: str, sha256: str) -> str:
    status = os.fstat(file.fileno())
    # A file that is written to or replaced differs in one of these.
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
    """Return this library's directory for one kind of cache on this host; None if there is no home directory.

    It is below ``$XDG_CACHE_HOME/reuse_algos``, or ``~/.cache/reuse_algos`` where that is not set.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: relative ones are to be ignored
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        base = os.path.join(home, ".cache")
    return Path(base, "reuse_algos", name)
