"""A store in a local directory."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from reuse_algos.archive.format.names import is_safe_name, is_temporary, temporary_name
from reuse_algos.archive.stores.base import Chunk, Store, StoredObject, require_writable, split_path
from reuse_algos.errors import (
    ArchiveConflictError,
    ArchiveCorruptError,
    ArchiveError,
    ArchiveNotADirectoryError,
    ArchiveNotFoundError,
    ArchivePermissionError,
)

_STREAM_BYTES = 1 << 20
_MAKING_TRIES = 20


class LocalStore(Store):
    """A directory on a POSIX file system with hard links.

    Writing follows one protocol: a temporary file of a new name in the target's directory, written and synced, then
    hard linked to its final name, which fails if that exists; then the directory is synced. A crash at any point leaves
    the final name absent or complete.

    No symbolic link below the root is followed and nothing but regular files is read, so that an archive from elsewhere
    cannot lead out of its directory.

    Args:
        root: The directory. It may itself be reached through symbolic links.
        create: Make it, with its parents, if it is missing.
        read_only: Refuse every write.
    """

    def __init__(self, root: Path, *, create: bool = True, read_only: bool = False) -> None:
        self.root = Path(os.path.abspath(root))
        self.read_only = read_only
        self._durable: set[str] = set()  # directories whose entry in their parent is known to be on disk
        if not self.root.is_dir():
            self._create_root(create and not read_only)

    def _create_root(self, allowed: bool) -> None:
        try:
            if self.root.exists():
                if self.root.is_dir():  # another process made it since this one looked
                    return
                raise ArchiveNotADirectoryError(f"{self.root} is a file; an archive is a directory: give another path")
            if not allowed:
                raise ArchiveNotFoundError(f"there is no archive at {self.root}: check the path, or pass create=True")
            missing = [self.root, *(parent for parent in self.root.parents if not parent.exists())]
            for directory in reversed(missing):
                with contextlib.suppress(FileExistsError):  # another process makes the archive at the same moment
                    os.mkdir(directory)
                # A new directory is on disk once its parent is synced.
                _sync_directory(directory.parent)
        except ArchiveError:
            raise
        except OSError as error:
            _explain(error, self.root, "create the archive")

    @property
    def location(self) -> str:
        return str(self.root)

    def get(self, path: str, max_bytes: int) -> bytes | None:
        with self._errors(path, "read"):
            try:
                file = self._open(path)
            except FileNotFoundError:
                return None
            with file:
                size = os.fstat(file.fileno()).st_size
                if size > max_bytes:
                    raise ArchiveCorruptError(f"{self.root / path} has {size} bytes; at most {max_bytes} are read")
                return file.read(size)

    def open(self, path: str, size: int, sha256: str) -> io.FileIO:
        del size, sha256  # to be checked by the caller, who may know that they were checked before
        with self._errors(path, "read"):
            try:
                return self._open(path)
            except FileNotFoundError as error:
                raise ArchiveCorruptError(f"{self.root / path} is missing: the archive is damaged") from error

    def stream(self, path: str) -> Iterator[bytes]:
        with self._errors(path, "read"), self.open(path, 0, "") as file:
            while part := file.read(_STREAM_BYTES):
                yield part

    def size(self, path: str) -> int | None:
        *parents, name = split_path(path)
        with self._errors(path, "read"):
            try:
                with self._directory(parents) as directory:
                    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                return None
        return self._regular(status, path).st_size

    def list(self, prefix: str) -> list[str]:
        with self._errors(prefix, "list"):
            try:
                with self._directory(split_path(prefix)) as directory:
                    return sorted(os.listdir(directory))
            except FileNotFoundError:
                return []

    def walk(self, prefix: str) -> Iterator[StoredObject]:
        # Through descriptors and not by os.walk: a link that somebody puts in the way is not followed.
        for name in self.list(prefix):
            path = f"{prefix}/{name}"
            # An odd name is not the archive's, and might lead elsewhere.
            if not is_safe_name(name) and not is_temporary(name):
                continue
            with self._errors(path, "list"):
                try:
                    with self._directory(split_path(prefix)) as directory:
                        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                except FileNotFoundError:  # deleted since it was listed, perhaps with its directory
                    continue
            if stat.S_ISDIR(status.st_mode):
                yield from self.walk(path)
            elif stat.S_ISREG(status.st_mode):
                yield StoredObject(path, status.st_size, status.st_mtime)

    def delete(self, path: str) -> None:
        *parents, name = split_path(path, temporary=True)
        require_writable(self.read_only, "delete", self.root / path)
        with self._errors(path, "delete"):
            try:
                with self._directory(parents) as directory:
                    os.unlink(name, dir_fd=directory)
                    # What was deleted must not come back after a power cut.
                    os.fsync(directory)
            except FileNotFoundError:
                return
            self._prune(parents)

    def _prune(self, parents: list[str]) -> None:
        """Remove a directory and those above it, as far as they are empty."""
        # A writer that comes first keeps its directory: rmdir refuses one that is not empty.
        while parents:
            *above, name = parents
            # Whoever makes it again has to sync it again.
            self._durable.discard("/".join(parents))
            try:
                with self._directory(above) as directory:
                    os.rmdir(name, dir_fd=directory)
            except OSError:
                return
            parents = above

    def put_if_absent(self, path: str, chunks: Iterable[Chunk]) -> None:
        *parents, name = split_path(path)
        require_writable(self.read_only, "write", self.root / path)
        with self._errors(path, "write"), contextlib.ExitStack() as in_directory:
            with contextlib.ExitStack() as in_file:
                directory, temporary, file = self._new_file(parents, in_directory, in_file)
                for chunk in chunks:
                    _write(file, chunk)
                os.fsync(file)
                is_new = _link(temporary, name, directory, file)
            os.fsync(directory)  # also when another writer was first: it may not have come this far
        if not is_new:
            raise ArchiveConflictError(f"{self.root / path} exists: another writer was first")

    def _new_file(
        self, parents: list[str], in_directory: contextlib.ExitStack, in_file: contextlib.ExitStack
    ) -> tuple[int, str, int]:
        """Return descriptors of a directory and of a new file in it, with the file's name between them."""
        # A name of random digits: two writers never share one, and readers know it by its form.
        temporary = temporary_name()
        for tries_left in reversed(range(_MAKING_TRIES)):
            try:
                directory = in_directory.enter_context(self._directory(parents, create=True))
                in_file.callback(_unlink_left_over, temporary, directory)
                return directory, temporary, in_file.enter_context(_created(temporary, directory))
            except FileNotFoundError:  # its last file was deleted at this moment, and it with it
                if not tries_left:
                    raise
                in_file.close()
        raise AssertionError("the last try returns or raises")

    def _open(self, path: str) -> io.FileIO:
        *parents, name = split_path(path)
        with self._directory(parents) as directory:
            # Not to block on a FIFO, nor to become the terminal of a device that somebody put here.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=directory)
        try:
            self._regular(os.fstat(descriptor), path)
            return io.FileIO(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise

    def _regular(self, status: os.stat_result, path: str) -> os.stat_result:
        if not stat.S_ISREG(status.st_mode):
            raise ArchiveCorruptError(f"{self.root / path} is not a regular file; no archive has anything else")
        return status

    @contextlib.contextmanager
    def _directory(self, parts: list[str], *, create: bool = False) -> Iterator[int]:
        """Open a directory below the root."""
        # Part by part, so that no symbolic link on the way is followed.
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            descriptor = os.open(self.root, flags)
        except FileNotFoundError as error:
            # Not as a missing file: an unmounted disk must not look like an empty archive.
            raise ArchiveError(f"the archive {self.root} is gone: is its disk mounted?") from error
        try:
            for depth, part in enumerate(parts, start=1):
                if create:
                    self._make_directory(part, descriptor, "/".join(parts[:depth]))
                child = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = child
            yield descriptor
        finally:
            os.close(descriptor)

    def _make_directory(self, name: str, parent: int, path: str) -> None:
        try:
            os.mkdir(name, dir_fd=parent)
        except FileExistsError:
            # Another process made it, and may not have synced it yet.
            if path in self._durable:
                return
        os.fsync(parent)
        self._durable.add(path)

    @contextlib.contextmanager
    def _errors(self, path: str, action: str) -> Iterator[None]:
        try:
            yield
        except ArchiveError:
            raise
        except OSError as error:
            _explain(error, self.root / path, action)


def _unlink_left_over(name: str, directory: int) -> None:
    with contextlib.suppress(OSError):  # a left-over temporary file is never read
        os.unlink(name, dir_fd=directory)


@contextlib.contextmanager
def _created(name: str, directory: int) -> Iterator[int]:
    # Read-only from the start: no archived file is ever changed, and a reader may have mapped it.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(name, flags, 0o444, dir_fd=directory)
    try:
        yield file
    finally:
        os.close(file)


def _write(file: int, chunk: Chunk) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(file, rest) :]


def _link(temporary: str, name: str, directory: int, file: int) -> bool:
    """Give the file its final name; False if that name is taken."""
    try:
        os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        # On NFS the answer to a successful link can be lost and the repeated request then fails.
        return os.fstat(file).st_nlink == 2
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise ArchiveError(
                f"the file system cannot make the hard link {name} that a commit needs: keep the archive on a local "
                "disk or on NFS"
            ) from error
        raise
    return True


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, path: Path, action: str) -> NoReturn:
    """Raise an error of ours that says which path, and what to do."""
    kind: type[ArchiveError] = ArchiveError
    advice = ""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        kind = ArchivePermissionError
        advice = ": open the archive read-only, or ask its owner for access" if action == "write" else ""
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = ": free some space, or use an archive elsewhere"
    elif error.errno in (errno.ELOOP, errno.ENOTDIR):
        kind = ArchiveCorruptError if action != "create the archive" else ArchiveNotADirectoryError
        advice = ": below an archive's directory there are only directories and regular files, and no links"
    failure = kind(f"cannot {action} {path}: {error.strerror or error}{advice}")
    failure.errno = error.errno
    raise failure from error
