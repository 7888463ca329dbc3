"""An archive in S3, Google Cloud Storage or Azure, through obstore."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator

from reuse_algos.archive.format.names import is_safe_name
from reuse_algos.archive.stores.base import Chunk, Store, StoredObject, require_writable, split_path
from reuse_algos.archive.stores.cache import open_cached
from reuse_algos.archive.stores.remote.client import ObjectClient
from reuse_algos.archive.stores.remote.config import parse_address
from reuse_algos.archive.stores.remote.puts import ObjectWriter

_PROBE_PATH = "index/conditional-put"


class ObjectStore(Store):
    """A bucket, or a prefix in one.

    Credentials, region and endpoint come from the environment variables that the provider's own tools use; for S3 also
    from the profile or the role that boto3 finds, if it is installed. Before the first write it is tried out once
    whether the store refuses to replace an object; one that does not is used with an ``ArchiveWarning``.

    Args:
        location: ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``. The bucket must exist.
        read_only: Refuse every write.

    Raises:
        ArchiveError: obstore is not installed, or the location or the configuration makes no sense.
        ArchivePermissionError: There are no credentials.
    """

    concurrency = 16  # small reads that are worth having under way at once: each waits for the network

    def __init__(self, location: str, *, read_only: bool = False) -> None:
        self.read_only = read_only
        self._address = parse_address(location)
        self._client = ObjectClient(self._address)
        self._writer = ObjectWriter(self._client, self._join(_PROBE_PATH))

    def __reduce__(self) -> tuple[Callable[..., ObjectStore], tuple[str, bool]]:
        return _reopen, (self.location, self.read_only)

    @property
    def location(self) -> str:
        return self._address.location

    def get(self, path: str, max_bytes: int) -> bytes | None:
        return self._client.get(self._key(path), max_bytes)

    def open(self, path: str, size: int, sha256: str) -> io.FileIO:
        key = self._key(path)
        return open_cached(self._client.where(key), size, sha256, lambda: self._client.stream(key))

    def stream(self, path: str) -> Iterator[bytes]:
        return self._client.stream(self._key(path))

    def size(self, path: str) -> int | None:
        return self._client.size(self._key(path))

    def list(self, prefix: str) -> list[str]:
        names = self._client.names(self._key(prefix))
        return sorted(name for name in names if is_safe_name(name))

    def walk(self, prefix: str) -> Iterator[StoredObject]:
        # The parts of an upload that was broken off are not objects: a lifecycle rule of the bucket removes them.
        key = self._key(prefix)
        begin = len(key) - len(prefix)
        for item in self._client.walk(key):
            path = item["path"][begin:]
            if item["path"].startswith(f"{key}/") and all(map(is_safe_name, path.split("/"))):
                yield StoredObject(path, item["size"], item["last_modified"].timestamp())

    def put_if_absent(self, path: str, chunks: Iterable[Chunk]) -> None:
        key = self._key(path)
        require_writable(self.read_only, "write", self._client.where(key))
        self._writer.put_if_absent(key, chunks)

    def delete(self, path: str) -> None:
        key = self._join("/".join(split_path(path, temporary=True)))
        require_writable(self.read_only, "delete", self._client.where(key))
        self._client.delete(key)

    def _key(self, path: str) -> str:
        return self._join("/".join(split_path(path)))

    def _join(self, path: str) -> str:
        return f"{self._address.prefix}/{path}" if self._address.prefix else path


def _reopen(location: str, read_only: bool) -> ObjectStore:
    return ObjectStore(location, read_only=read_only)
