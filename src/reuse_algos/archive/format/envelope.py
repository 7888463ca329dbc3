"""JSON files whose damage is noticed.

A sealed file is ``{"sha256":"<64 hex digits>","content":<JSON object>}`` and a newline. It is ordinary JSON to every
other tool, and each of its bytes is either fixed or covered by the hash, so that a change of any bit is noticed.

The hash guards against damage, not against malice: whoever may write to an archive can seal what they like. So size,
depth and number of items are bounded before a parser sees the content.
"""

from __future__ import annotations

import hashlib
from typing import Protocol, TypeVar

import msgspec
import numpy as np

from reuse_algos.archive.stores.base import MAX_ATOMIC_BYTES
from reuse_algos.errors import ArchiveCorruptError, ArchiveError, ArchiveVersionError

FORMAT = (1, 2)
"""The format version written: a reader refuses a higher major version and reads a higher minor one.

1.1 added the encoding "packed" of signals (:mod:`reuse_algos.archive.signals.packed`) and the FLOPs of training to 1.0.
"""

MAX_SEALED_BYTES = MAX_ATOMIC_BYTES  # a commit must have exactly one winner in every store
MAX_DEPTH = 64
MAX_ITEMS = 500_000

_HEAD, _MIDDLE, _TAIL = b'{"sha256":"', b'","content":', b"}\n"
_HASH_AT = slice(len(_HEAD), len(_HEAD) + 64)
_MIDDLE_AT = slice(_HASH_AT.stop, _HASH_AT.stop + len(_MIDDLE))
_CONTENT_AT = slice(_MIDDLE_AT.stop, -len(_TAIL))

# Brackets and quotes alone say how deep JSON is, so that little is left to be scanned.
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_SCAN_BYTES = 1 << 18
_STEP = np.zeros(256, np.int8)  # how much deeper the JSON is after this byte
_STEP[[ord("["), ord("{")]] = 1
_STEP[[ord("]"), ord("}")]] = -1


class Record(Protocol):
    """What a sealed file holds: a struct that starts with its format version."""

    @property
    def format(self) -> tuple[int, int]:
        """Major and minor version."""
        ...


RecordT = TypeVar("RecordT", bound=Record)


class Expanded(bytes):
    """A sealed file that this process put together of parts that it checked, so that no bound applies to it."""


class _Version(msgspec.Struct):
    format: tuple[int, int]


def seal(record: Record, where: str) -> bytes:
    """Encode a record as a sealed file.

    Args:
        record: A msgspec struct.
        where: The file's name, for error messages.

    Raises:
        ArchiveError: ``record`` holds what JSON or the bounds of this module cannot.
    """
    try:
        sealed = _sealed(msgspec.json.encode(record))
        # Read back once, so that nothing is written that cannot be read.
        unseal(sealed, type(record), where)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{where} cannot be written: {error}") from error
    return sealed


def expand(record: Record) -> Expanded:
    """Encode a record as a sealed file that is only read in this process, however large it is."""
    return Expanded(_sealed(msgspec.json.encode(record)))


def _sealed(content: bytes) -> bytes:
    return b"".join((_HEAD, hashlib.sha256(content).hexdigest().encode(), _MIDDLE, content, _TAIL))


def unseal(data: bytes, record_type: type[RecordT], where: str) -> RecordT:
    """Check a sealed file and decode its content. Unknown fields are ignored: they are from a newer minor version.

    Args:
        data: The whole file.
        record_type: A msgspec struct type with a ``format`` field.
        where: The file's name, for error messages.

    Raises:
        ArchiveCorruptError: The file is damaged, or not of this type, or beyond the bounds.
        ArchiveVersionError: It was written in a newer major format.
    """
    if len(data) > MAX_SEALED_BYTES and not isinstance(data, Expanded):
        raise ArchiveCorruptError(f"{where} has {len(data)} bytes; at most {MAX_SEALED_BYTES} are read")
    content = data[_CONTENT_AT]
    # Every byte is compared: the fixed ones with what they must be, the others through the hash.
    intact = (
        data.startswith(_HEAD)
        and data[_MIDDLE_AT] == _MIDDLE
        and data.endswith(_TAIL)
        and data[_HASH_AT] == hashlib.sha256(content).hexdigest().encode()
    )
    if not intact:
        raise ArchiveCorruptError(f"{where} is damaged: its content does not have the sha256 that it names")
    if not isinstance(data, Expanded):
        check_json_bounds(content, where)
    try:
        record = msgspec.json.decode(content, type=record_type)
    except (ValueError, RecursionError, OverflowError) as error:  # msgspec's and unicode errors are ValueErrors
        # A newer version may have other fields, and its fault is then its version.
        _refuse_newer(_version_of(content), where, record_type)
        raise ArchiveCorruptError(f"{where} is not what it should be: {error}") from error
    _refuse_newer(record.format, where, record_type)
    return record


def check_json_bounds(content: bytes, where: str) -> None:
    """Refuse JSON that would cost a parser much memory or stack, before it is parsed.

    Raises:
        ArchiveCorruptError: It has too many items or is nested too deep.
    """
    # Every item but a first one has a comma before it; commas in texts only make the bound stricter.
    if content.count(b",") > MAX_ITEMS or _is_too_deep(content):
        raise ArchiveCorruptError(f"{where} has more than {MAX_ITEMS} items or is nested over {MAX_DEPTH} levels deep")


def _version_of(content: bytes) -> tuple[int, int]:
    try:
        return msgspec.json.decode(content, type=_Version).format
    except (ValueError, RecursionError, OverflowError):
        # Not even a version can be read: this is damage.
        return FORMAT


def _refuse_newer(version: tuple[int, int], where: str, record_type: type[Record]) -> None:
    known = getattr(record_type, "MAJOR", FORMAT[0])  # a kind of record that came later has a version of its own
    if version[0] > known:
        raise ArchiveVersionError(
            f"{where} has format {version[0]}.{version[1]}; this reuse_algos reads up to {known}.x: upgrade it"
        )


def _is_too_deep(content: bytes) -> bool:
    """Return whether JSON is nested more than MAX_DEPTH levels."""
    # Brackets outside of strings are counted, since a parser could run out of stack.
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:  # so are most records
        return False
    unescaped = content.replace(b"\\\\", b"").replace(b'\\"', b"")  # what quotes are left begin or end a string
    text = unescaped.translate(None, _NOT_STRUCTURE)
    depth, quoted = 0, np.uint8(0)
    # In parts, so that checking a large record takes little memory.
    for start in range(0, len(text), _SCAN_BYTES):
        chunk = np.frombuffer(text, np.uint8, min(_SCAN_BYTES, len(text) - start), start)
        in_string = np.bitwise_xor.accumulate((chunk == ord('"')).astype(np.uint8)) ^ quoted
        depths = depth + np.cumsum(_STEP[chunk] * (1 - in_string.astype(np.int8)), dtype=np.int64)
        if depths.max() > MAX_DEPTH:
            return True
        depth, quoted = int(depths[-1]), in_string[-1]
    return False
