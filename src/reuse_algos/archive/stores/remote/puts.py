"""Writing an object to a store once: who was first wins, and what was written is checked.

What is at most as large as a sealed record goes up in one conditional request (``If-None-Match: *``), which the store
refuses if the name is taken: so a commit has exactly one winner. What is larger goes up in parts that become visible
together; such files are named by their content, so two writers of one name write the same.

A conditional put is not repeated by obstore but here, and obstore is told to send it once. It would hide a repetition:
a put that was carried out, and whose answer was lost, is then refused because of itself and looks like another writer's
victory. Here it is known when a request may have been carried out. Only then is the object read back and compared, and
ours means success; without such a doubt, what is there is another's, whatever its bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from reuse_algos.archive.stores.base import MAX_ATOMIC_BYTES, Chunk
from reuse_algos.archive.stores.remote.client import ObjectClient, pause
from reuse_algos.archive.stores.remote.errors import Fault
from reuse_algos.errors import ArchiveConflictError, ArchiveError, ArchiveWarning

_SHORT_BYTES = 1 << 20  # up to here a request must be answered within seconds
_SHORT_SECONDS, _WHOLE_SECONDS, _LONG_SECONDS = 5, 40, 300
_PART_BYTES = 16 << 20  # S3 takes 10,000 parts: 160 GB
_PARTS_AT_ONCE = 4
_TRIES = 4
_SECONDS = 8  # no further try is begun after this
_PARTS_SECONDS = 60  # nor of what goes up in parts, each of which is sent again by itself, after this
_PROBE = b"Shows that this store refuses to replace an object. It may be deleted.\n"

_TORN = Fault("it did not arrive as it was sent, again and again: try later", transient=True)


class Content(NamedTuple):
    """What an object is to be: its size, its sha256, and the entity tag that S3 gives it unless it is encrypted."""

    size: int
    sha256: str
    e_tag: str


class ObjectWriter:
    """Puts objects. May be used by several threads.

    Args:
        client: The store.
        probe_key: Where to try out whether the store refuses to replace an object, before the first put.
    """

    def __init__(self, client: ObjectClient, probe_key: str) -> None:
        self._client = client
        self._probe_key = probe_key
        self._is_conditional: bool | None = None  # not known before the probe
        self._probe_lock = threading.Lock()

    def put_if_absent(self, key: str, chunks: Iterable[Chunk]) -> None:
        """Write an object that is complete and checked when this returns.

        Raises:
            ArchiveConflictError: There is one of this name; it was left as it is.
            ArchiveError: It could not be written. It may be there all the same, complete, if the store was silent.
        """
        source = iter(chunks)
        begin, size = [], 0
        for chunk in source:
            begin.append(chunk)
            size += len(chunk)
            if size > MAX_ATOMIC_BYTES:
                break
        self._probe()
        if size <= MAX_ATOMIC_BYTES:
            self._put_whole(key, b"".join(begin))
        else:
            self._put_parts(key, itertools.chain(begin, source), None if source is chunks else chunks)

    def _put_whole(self, key: str, data: bytes) -> None:
        content = Content(len(data), hashlib.sha256(data).hexdigest(), _md5(data).hexdigest())
        began, in_doubt, attempt = time.monotonic(), False, 0
        while True:
            attempt += 1
            e_tag, fault = self._create(key, data)
            if fault is None:
                if self._is_stored(key, content, e_tag):
                    return
                if not self._is_conditional:
                    self._refuse(key)  # or of a second writer, which replaced it
                self._client.delete(key)  # ours, and damaged on its way: no reader took it for sound
                fault = _TORN
            elif fault.exists:
                if in_doubt and self._is_stored(key, content):
                    return
                if self._client.size(key) is not None:
                    self._refuse(key)
                # Refused, and not there: S3 says 409 while another request for this name is under way.
                fault = replace(fault, reason="another request for this name does not end: try later", transient=True)
            else:
                in_doubt = in_doubt or (fault.transient and fault.received)
            if not fault.transient or attempt == _TRIES or time.monotonic() - began > _SECONDS:
                break
            pause(attempt)
        with contextlib.suppress(ArchiveError):  # report the write error, not the failed read-back
            if in_doubt and self._is_stored(key, content):
                return
        fault.stop("write", self._client.where(key))

    def _put_parts(self, key: str, first: Iterator[Chunk], whole: Iterable[Chunk] | None) -> None:
        if self._client.size(key) is not None:
            self._refuse(key)
        began = time.monotonic()
        client = self._client.writer(3, _LONG_SECONDS)
        for attempt in itertools.count(1):
            source = _Source(first if whole is None else whole)

            def put(source: _Source = source) -> str:
                parts = iter(source)
                result = client.put(
                    key, parts, use_multipart=True, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE
                )
                return result["e_tag"] or ""

            e_tag, fault = self._client.attempt(put)
            if source.error is not None:
                raise source.error
            if fault is None:
                if self._is_stored(key, source.content, e_tag or ""):
                    return
                self._client.delete(key)
                fault = _TORN
            elif fault.received and source.is_read and self._is_stored(key, source.content):
                return  # only the last answer was lost
            # What came from an iterator is used up by the first try.
            used = whole is None or time.monotonic() - began > _PARTS_SECONDS
            if used or not (fault.transient or fault.missing) or attempt == _TRIES:
                fault.stop("write", self._client.where(key))
            pause(attempt)

    def _create(self, key: str, data: bytes) -> tuple[str, Fault | None]:
        """Put once, unless the name is taken; the entity tag, or what went wrong."""
        client = self._client.writer(0, _SHORT_SECONDS if len(data) <= _SHORT_BYTES else _WHOLE_SECONDS)
        mode = "create"
        if self._is_conditional is False:
            if self._client.size(key) is not None:
                return "", Fault("it exists", exists=True)
            mode = "overwrite"
        result, fault = self._client.attempt(lambda: client.put(key, data, mode=mode, use_multipart=False))
        if fault is not None and fault.untagged:  # it was put, and is read back as it cannot be checked by its tag
            return "", None
        return (result or {}).get("e_tag") or "", fault

    def _is_stored(self, key: str, content: Content, e_tag: str = "") -> bool | None:
        """Return whether the object is what it is to be; None if there is none.

        The entity tag that S3 answers with is the MD5 of what it has stored, unless it encrypts. Where it is not, all
        is read back.
        """
        if e_tag.strip('"') == content.e_tag:
            return True
        size = self._client.size(key)
        if size != content.size:
            return None if size is None else False
        digest = hashlib.sha256()
        # What is as small as a record is read within the time for one, also if it comes byte by byte.
        whole = self._client.get(key, content.size) if content.size <= MAX_ATOMIC_BYTES else None
        for part in self._client.stream(key) if whole is None else [whole]:
            digest.update(part)
        return digest.hexdigest() == content.sha256

    def _probe(self) -> None:
        """Find out once whether the store refuses to replace an object."""
        with self._probe_lock:
            if self._is_conditional is not None:
                return
            if not (self._is_refused() or self._is_refused()):
                self._is_conditional = False
                warnings.warn(
                    f"{self._client.address.location} replaces objects where it should refuse to (it ignores "
                    "If-None-Match): one writer per run only, for of two that commit at once the later one wins. Keep "
                    "the archive in a store with conditional puts",
                    ArchiveWarning,
                    stacklevel=5,
                )
            else:
                self._is_conditional = True

    def _is_refused(self) -> bool:
        """Return whether the store refuses to put the probe; False if it is there now."""
        began, attempt = time.monotonic(), 0
        while True:
            attempt += 1
            _, fault = self._create(self._probe_key, _PROBE)
            if fault is None or fault.unsupported:
                return False
            if fault.exists:
                return True
            if not fault.transient or attempt == _TRIES or time.monotonic() - began > _SECONDS:
                fault.stop("write", self._client.where(self._probe_key))
            pause(attempt)

    def _refuse(self, key: str) -> None:
        raise ArchiveConflictError(f"{self._client.where(key)} exists: another writer was first")


class _Source:
    """Chunks on their way into parts."""

    # No copy of the whole is made, so what went by is hashed on its way.

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = chunks
        self._digest, self._part, self._parts = hashlib.sha256(), _md5(), []
        self._size = 0
        self.is_read = False
        self.error: Exception | None = None  # of the chunks' own, not of the store

    def __iter__(self) -> Iterator[memoryview]:
        try:
            for chunk in self._chunks:
                rest = memoryview(chunk)
                while rest:
                    piece = rest[: _PART_BYTES - self._size % _PART_BYTES]
                    rest = rest[len(piece) :]
                    self._add(piece)
                    yield piece
        except Exception as error:
            self.error = error
            raise
        self.is_read = True

    def _add(self, piece: memoryview) -> None:
        self._size += len(piece)
        self._digest.update(piece)
        self._part.update(piece)
        if self._size % _PART_BYTES == 0:
            self._parts.append(self._part.digest())
            self._part = _md5()

    @property
    def content(self) -> Content:
        """What went by."""
        parts = [*self._parts, self._part.digest()] if self._size % _PART_BYTES else self._parts
        return Content(self._size, self._digest.hexdigest(), f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}")


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)
