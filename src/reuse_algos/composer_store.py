"""An archive in a store that only Composer reaches: Oracle's, Databricks' and any other ``composer`` object store.

Composer's object stores can upload, download and list. They cannot refuse to replace an object, they say nothing of an
object's age, and they delete nothing. So one writer per run is allowed, with a warning; garbage collection
finds nothing old; and objects are removed with the provider's own tools. It stands between the archive, which
knows nothing of Composer, and the layers above, which know nothing of stores. Where obstore reaches a store (``s3://``,
``gs://``, ``az://``) the archive uses that instead.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from composer.utils import ObjectStore, ObjectStoreTransientError
from composer.utils.file_helpers import maybe_create_object_store_from_uri, parse_uri

from reuse_algos.archive.format.names import is_safe_name
from reuse_algos.archive.stores.base import Chunk, Store, StoredObject, require_writable, split_path
from reuse_algos.archive.stores.cache import open_cached
from reuse_algos.errors import (
    ArchiveConflictError,
    ArchiveCorruptError,
    ArchiveError,
    ArchivePermissionError,
    ArchiveWarning,
)

_STREAM_BYTES = 1 << 20
_TRIES = 3

_Result = TypeVar("_Result")


def open_composer_store(location: str, *, create: bool, read_only: bool) -> Store:
    """Open a URL that Composer understands: the entry point of ``oci://`` and ``dbfs:/``.

    Args:
        location: The URL, such as ``oci://bucket/prefix`` or ``dbfs:/Volumes/catalog/schema/volume/prefix``.
        create: Has no effect: the bucket or volume must exist.
        read_only: Refuse every write.

    Raises:
        ArchiveError: Composer cannot open it: a package, a credential or a part of the URL is missing.
    """
    try:
        _, _, prefix = parse_uri(location)
        objects = maybe_create_object_store_from_uri(location)
    except Exception as error:  # of many libraries, each with its own
        raise ArchiveError(f"cannot open {location} with Composer's object stores: {_said(error)}") from error
    if objects is None:
        raise ArchiveError(f"{location!r} is not the URL of an object store")
    return ComposerStore(objects, prefix, location=location, read_only=read_only)


class ComposerStore(Store):
    """A Composer object store, or a prefix in one.

    Args:
        objects: The object store.
        prefix: What the name of each object of the archive begins with, without a slash at the end.
        location: Its URL, for messages; by default what ``objects`` says.
        read_only: Refuse every write.
    """

    can_delete = False

    def __init__(
        self, objects: ObjectStore, prefix: str = "", *, location: str | None = None, read_only: bool = False
    ) -> None:
        self.read_only = read_only
        self._objects = objects
        self._prefix = prefix.strip("/")
        location = objects.get_uri(self._prefix) if location is None else location
        self._location = location if location.endswith("//") else location.rstrip("/")
        self._warned = False

    @property
    def location(self) -> str:
        return self._location

    def get(self, path: str, max_bytes: int) -> bytes | None:
        size = self.size(path)
        if size is None:
            return None
        if size > max_bytes:
            raise ArchiveCorruptError(f"{self._where(path)} has {size} bytes; at most {max_bytes} are read")
        return b"".join(self.stream(path))

    def open(self, path: str, size: int, sha256: str) -> io.FileIO:
        self._key(path)
        return open_cached(self._where(path), size, sha256, lambda: self.stream(path))

    def stream(self, path: str) -> Iterator[bytes]:
        # To a temporary file first: Composer downloads in no other way.
        key = self._key(path)
        with tempfile.TemporaryDirectory(prefix="reuse_algos-") as folder:
            target = os.path.join(folder, "object")
            found = self._ask(
                path, "read", lambda: self._objects.download_object(key, target, overwrite=True) or target
            )
            if found is None:
                raise ArchiveCorruptError(f"{self._where(path)} is missing: the archive is damaged")
            with open(target, "rb") as file:
                while part := file.read(_STREAM_BYTES):
                    yield part

    def size(self, path: str) -> int | None:
        key = self._key(path)
        return self._ask(path, "read", lambda: self._objects.get_object_size(key))

    def list(self, prefix: str) -> list[str]:
        # Composer lists all depths at once, so this costs as much as `walk` does without its sizes.
        return sorted({path[len(prefix) + 1 :].split("/")[0] for path in self._below(prefix)})

    def walk(self, prefix: str) -> Iterator[StoredObject]:
        # Composer does not tell the age of an object, so each counts as written just now: garbage collection finds
        # nothing old enough.
        now = time.time()
        for path in self._below(prefix):
            size = self.size(path)
            if size is not None:
                yield StoredObject(path, size, now)

    def put_if_absent(self, path: str, chunks: Iterable[Chunk]) -> None:
        # Two writers of one name at the same moment both succeed, and the later one's bytes stay: one writer per run.
        # What was written is read back, since Composer checks neither length nor content.
        key = self._key(path)
        require_writable(self.read_only, "write", self._where(path))
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.location} is reached through Composer, which cannot refuse to replace an object: one writer "
                "per run only, for of two that commit at once the later one wins",
                ArchiveWarning,
                stacklevel=3,
            )
        if self.size(path) is not None:
            raise ArchiveConflictError(f"{self._where(path)} exists: another writer was first")
        with tempfile.TemporaryDirectory(prefix="reuse_algos-") as folder:
            source, digest, size = os.path.join(folder, "object"), hashlib.sha256(), 0
            with open(source, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
            for _ in range(_TRIES):
                self._ask(path, "write", lambda: self._objects.upload_object(key, source))
                if self._holds(path, size, digest.hexdigest()):
                    return
        raise ArchiveError(f"cannot write {self._where(path)}: it did not arrive as it was sent, {_TRIES} times")

    def delete(self, path: str) -> None:
        split_path(path, temporary=True)
        require_writable(self.read_only, "delete", self._where(path))
        if self.size(path) is not None:
            raise ArchiveError(
                f"cannot delete {self._where(path)}: Composer's object stores have no way to; remove it with the "
                "provider's own tool"
            )

    def _holds(self, path: str, size: int, sha256: str) -> bool:
        if self.size(path) != size:
            return False
        digest = hashlib.sha256()
        for part in self.stream(path):
            digest.update(part)
        return digest.hexdigest() == sha256

    def _below(self, prefix: str) -> list[str]:
        begin = f"{self._key(prefix)}/"
        found = self._ask(prefix, "list", lambda: self._objects.list_objects(begin)) or []
        # Some list names as they were given, some with a prefix of their own before, some with a slash before all.
        own = getattr(self._objects, "prefix", "")
        begins = (begin, f"{own.strip('/')}/{begin}") if isinstance(own, str) else (begin,)
        keys = [key.lstrip("/") for key in found]
        rest = [key[len(start) :] for key in keys for start in begins if key.startswith(start)]
        return sorted(f"{prefix}/{name}" for name in rest if all(map(is_safe_name, name.split("/"))))

    def _ask(self, path: str, action: str, use: Callable[[], _Result]) -> _Result | None:
        """Call Composer: its result, or None if there is no such object."""
        for attempt in range(_TRIES):
            try:
                return use()
            except FileNotFoundError as error:
                if action == "write" or "NoSuchBucket" in f"{error} {error.__cause__}":
                    raise ArchiveError(f"cannot {action} {self._where(path)}: {_said(error)}") from error
                return None
            except ObjectStoreTransientError as error:
                if attempt + 1 == _TRIES:
                    raise ArchiveError(
                        f"cannot {action} {self._where(path)}: {_said(error)}, {_TRIES} times: try later"
                    ) from error
                time.sleep(0.2 * 2**attempt)
            except Exception as error:  # each of Composer's object stores lets through what its library raises
                said = f"{type(error).__name__} {error}"
                refused = isinstance(error, PermissionError) or any(word in said for word in _REFUSED)
                kind = ArchivePermissionError if refused else ArchiveError
                raise kind(f"cannot {action} {self._where(path)}: {_said(error)}") from error
        return None

    def _where(self, path: str) -> str:
        return f"{self.location}/{path}"

    def _key(self, path: str) -> str:
        clean = "/".join(split_path(path))
        return f"{self._prefix}/{clean}" if self._prefix else clean


_REFUSED = ("AccessDenied", "Forbidden", "InvalidAccessKeyId", "NoCredentials", "PermissionDenied", "SignatureDoesNot")


def _said(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
