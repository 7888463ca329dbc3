"""Tensors to safetensors files and back: written from memory, read by memory map, checked before use.

safetensors has no checksum and its own reader takes headers of 100 MB. Here a file must have the size and sha256 that
the manifest says, a header of at most 1 MiB, and exactly the tensors that the manifest says, one after the other.
"""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, BinaryIO

import msgspec
import torch
from torch import Tensor

from reuse_algos.archive.format.envelope import check_json_bounds
from reuse_algos.archive.format.records import Count, FileEntry, TensorInfo
from reuse_algos.archive.stores.base import Chunk, Store
from reuse_algos.archive.stores.cache import hash_file, is_verified, remember_verified
from reuse_algos.errors import ArchiveCorruptError, ArchiveError

MAX_HEADER_BYTES = 1 << 20
MAX_DIMENSIONS = 16
MAX_ELEMENTS = 1 << 60

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of the types that an archive holds."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PART_BYTES = 1 << 20
_SMALL_BYTES = 1 << 16  # hashing so much takes less than looking up whether it was hashed before
_LENGTH_BYTES = 8  # a safetensors file begins with the header's length, unsigned and little-endian


class _Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor in a header; the offsets count from the header's end."""

    dtype: str
    shape: tuple[Count, ...]
    data_offsets: Annotated[tuple[Count, Count], "first byte, one past the last byte"]


def describe(tensors: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """Return types and shapes of tensors, in the order in which :func:`tensor_chunks` writes them.

    Raises:
        ArchiveError: A tensor is of a type that an archive cannot hold.
    """
    infos = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided or tensor.is_meta or name == "__metadata__":
            raise ArchiveError(
                f"tensor {name!r} ({tensor.dtype}, {tensor.layout}, on {tensor.device}) cannot be archived: archives "
                f"hold dense tensors with data, of the types {', '.join(DTYPES)}"
            )
        infos[name] = TensorInfo(dtype=_NAMES[tensor.dtype], shape=tuple(tensor.shape))
    # Wide types first, as safetensors itself does, so that every tensor is aligned.
    return dict(sorted(infos.items(), key=lambda item: (-DTYPES[item[1].dtype].itemsize, item[0])))


def tensor_chunks(tensors: Mapping[str, Tensor]) -> list[Chunk]:
    """Return a safetensors file in parts: views of the tensors' memory where it is on the CPU and contiguous.

    Raises:
        ArchiveError: A tensor is of a type that an archive cannot hold, or the header is larger than 1 MiB.
    """
    slots, parts, end = {}, [], 0
    for name, info in describe(tensors).items():
        part = _bytes_of(tensors[name])
        slots[name] = _Slot(info.dtype, info.shape, (end, end + len(part)))
        parts.append(part)
        end += len(part)
    header = msgspec.json.encode(slots)
    # safetensors pads its headers too, so that the data begins at a multiple of 8.
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise ArchiveError(f"{len(slots)} tensors need a header of over {MAX_HEADER_BYTES} bytes: split them up")
    return [len(header).to_bytes(_LENGTH_BYTES, "little"), header, *parts]


def header_parts(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of tensors in groups whose file headers stay well below :data:`MAX_HEADER_BYTES`.

    Raises:
        ArchiveError: A tensor is of a type that an archive cannot hold.
    """
    parts: list[list[str]] = [[]]
    room = MAX_HEADER_BYTES // 2
    for name, info in describe(tensors).items():
        # Offsets have up to 19 digits each; a name may double in size when it is escaped.
        size = 2 * len(name.encode()) + 24 * len(info.shape) + 100
        if parts[-1] and size > room:
            parts.append([])
            room = MAX_HEADER_BYTES // 2
        parts[-1].append(name)
        room -= size
    return parts


def hash_chunks(chunks: list[Chunk]) -> tuple[int, str]:
    """Return size in bytes and sha256 in hex of a file in parts."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return sum(map(len, chunks)), digest.hexdigest()


def open_tensors(store: Store, path: str, entry: FileEntry) -> dict[str, Tensor]:
    """Memory map a file after checking it. No data is copied, and pages are read when they are used.

    The tensors may be written to without an error, but such changes are private to this process and never reach the
    file.

    Args:
        store: The store that has the file.
        path: The path of the file.
        entry: The manifest's record of the file.

    Raises:
        ArchiveCorruptError: The file is missing or is not what ``entry`` says.
        ArchiveError: It could not be read.
    """
    where = f"{store.location}/{path}"
    with store.open(path, entry.bytes, entry.sha256) as file:
        slots = _checked_slots(file, os.fstat(file.fileno()).st_size, entry, where)
        if entry.bytes <= _SMALL_BYTES:
            # Read and hashed in one go: to map such a file would cost more than it saves.
            memory = bytearray(entry.bytes)
            file.seek(0)
            _read_fully(file, memory, where)
            _check_digest(hashlib.sha256(memory).hexdigest(), entry, where)
            start = _data_start(slots, entry)
            return {name: _mapped(memory, start, slot) for name, slot in slots.items()}
        local = file.name if isinstance(file.name, str) else where  # a remote file's copy on this host has a name
        if not is_verified(file, local, entry.sha256):
            _check_hash(file, entry, where)
            remember_verified(file, local, entry.sha256)
        try:
            memory = mmap.mmap(file.fileno(), entry.bytes, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise ArchiveError(f"cannot map {where}: {error.strerror or error}") from error
    start = _data_start(slots, entry)
    return {name: _mapped(memory, start, slot) for name, slot in slots.items()}


def tensor_parts(store: Store, path: str, entry: FileEntry, name: str) -> Iterator[Tensor]:
    """Read one tensor in parts of some rows each, one after the other and without a memory map.

    Looking through all of a large tensor leaves nothing in memory this way. The content is not hashed here: open the
    file by :func:`open_tensors` first.

    Args:
        store: The store that has the file.
        path: The path of the file.
        entry: The manifest's record of the file.
        name: The tensor, which has at least one dimension.

    Raises:
        ArchiveCorruptError: The file is missing or is not what ``entry`` says.
        ArchiveError: It could not be read.
    """
    where = f"{store.location}/{path}"
    with store.open(path, entry.bytes, entry.sha256) as file:
        slots = _checked_slots(file, os.fstat(file.fileno()).st_size, entry, where)
        slot, start = slots[name], _data_start(slots, entry)
        count, *columns = slot.shape
        row_bytes = DTYPES[slot.dtype].itemsize * math.prod(columns)
        rows = max(_PART_BYTES // max(row_bytes, 1), 1)
        file.seek(start + slot.data_offsets[0])
        for begin in range(0, count if row_bytes else 0, rows):
            part = bytearray(min(rows, count - begin) * row_bytes)
            _read_fully(file, part, where)
            yield torch.frombuffer(part, dtype=DTYPES[slot.dtype]).view(-1, *columns)


def verify_file(store: Store, path: str, entry: FileEntry, progress: Callable[[int], None] | None = None) -> None:
    """Check a file in full, without trusting an earlier check.

    Args:
        store: The store that has the file.
        path: The path of the file.
        entry: The manifest's record of the file.
        progress: Called with the number of bytes of each part read. Default: None.

    Raises:
        ArchiveCorruptError: The file is missing or is not what ``entry`` says.
        ArchiveError: It could not be read.
    """
    where = f"{store.location}/{path}"
    # In parts: weights may be larger than memory.
    digest, size, head = hashlib.sha256(), 0, bytearray()
    for part in store.stream(path):
        digest.update(part)
        size += len(part)
        # No header of a permitted length goes on beyond this.
        head += part[: _LENGTH_BYTES + MAX_HEADER_BYTES - len(head)]
        if progress is not None:
            progress(len(part))
    _check_digest(digest.hexdigest(), entry, where)
    _checked_slots(io.BytesIO(head), size, entry, where)


def _bytes_of(tensor: Tensor) -> memoryview:
    # Conjugate and negative views are lazy: their memory holds other numbers than they show.
    whole = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    flat = whole.as_strided((whole.numel(),), (1,))  # a view must not keep the odd strides that length 0 and 1 may have
    return flat.view(torch.uint8).numpy().data


def _mapped(memory: mmap.mmap | bytearray, start: int, slot: _Slot) -> Tensor:
    dtype, count = DTYPES[slot.dtype], math.prod(slot.shape)
    # torch.frombuffer refuses an empty buffer.
    if count == 0:
        return torch.empty(slot.shape, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=start + slot.data_offsets[0])
    return flat.view(slot.shape)


def _data_start(slots: Mapping[str, _Slot], entry: FileEntry) -> int:
    return entry.bytes - max((slot.data_offsets[1] for slot in slots.values()), default=0)


def _read_fully(file: io.FileIO, buffer: bytearray, where: str) -> None:
    rest = memoryview(buffer)
    while rest:
        try:
            count = file.readinto(rest)  # type: ignore[attr-defined]  # raw files have it, io.FileIO does not say so
        except OSError as error:
            raise ArchiveError(f"cannot read {where}: {error.strerror or error}") from error
        if not count:
            raise ArchiveCorruptError(f"{where} became shorter while it was read: the archive is damaged")
        rest = rest[count:]


def _check_hash(file: io.FileIO, entry: FileEntry, where: str) -> None:
    try:
        found = hash_file(file)
    except OSError as error:
        raise ArchiveError(f"cannot read {where}: {error.strerror or error}") from error
    _check_digest(found, entry, where)


def _check_digest(found: str, entry: FileEntry, where: str) -> None:
    if found != entry.sha256:
        raise ArchiveCorruptError(f"{where} is damaged: its sha256 is {found}, the manifest says {entry.sha256}")


def _checked_slots(file: BinaryIO | io.FileIO, size: int, entry: FileEntry, where: str) -> dict[str, _Slot]:
    """Return where each tensor is, after checking size and header against the manifest and against each other.

    Args:
        file: The file, or a beginning of it that holds any header of a permitted length.
        size: Bytes in the whole file.
        entry: What the manifest says of it.
        where: Its name, for messages.
    """
    if size != entry.bytes:
        raise ArchiveCorruptError(f"{where} has {size} bytes, the manifest says {entry.bytes}")
    try:
        slots, data_start = _read_header(file, size, where)
    except OSError as error:
        # An ArchiveError is an OSError, and says already what is wrong.
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveCorruptError(f"{where} cannot be read: {error.strerror or error}") from error
    found = {name: TensorInfo(dtype=slot.dtype, shape=slot.shape) for name, slot in slots.items()}
    if found != entry.tensors:
        odd = sorted(name for name in found.keys() | entry.tensors.keys() if found.get(name) != entry.tensors.get(name))
        raise ArchiveCorruptError(
            f"{where} does not hold the tensors that the manifest says; first difference: {odd[0]!r}"
        )
    end = data_start
    # In the order of their places, so that gaps and overlaps show.
    for name, slot in sorted(slots.items(), key=lambda item: item[1].data_offsets):
        _check_slot(slot, end - data_start, data_start, f"{where}: tensor {name[:200]!r}")
        end = data_start + slot.data_offsets[1]
    if end != size:
        raise ArchiveCorruptError(f"{where} has {size - end} bytes that belong to no tensor")
    return slots


def _read_header(file: BinaryIO | io.FileIO, size: int, where: str) -> tuple[dict[str, _Slot], int]:
    file.seek(0)
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):
        raise ArchiveCorruptError(
            f"{where} says that its header has {length} bytes; at most {MAX_HEADER_BYTES} are read"
        )
    header = file.read(length)
    check_json_bounds(header, where)
    try:
        slots = msgspec.json.decode(header, type=dict[str, _Slot])
    except (ValueError, RecursionError, OverflowError) as error:
        raise ArchiveCorruptError(f"{where} has no valid safetensors header: {error}") from error
    return slots, _LENGTH_BYTES + length


def _check_slot(slot: _Slot, expected_begin: int, data_start: int, where: str) -> None:
    begin, end = slot.data_offsets
    if slot.dtype not in DTYPES:
        raise ArchiveCorruptError(f"{where} is of the unknown type {slot.dtype[:40]!r}")
    # A length of 0 must not hide lengths that overflow.
    if len(slot.shape) > MAX_DIMENSIONS or math.prod(max(length, 1) for length in slot.shape) > MAX_ELEMENTS:
        raise ArchiveCorruptError(f"{where} has an impossible shape")
    item_bytes = DTYPES[slot.dtype].itemsize
    if begin != expected_begin or end - begin != math.prod(slot.shape) * item_bytes:
        raise ArchiveCorruptError(f"{where} is not where it should be in the file")
    if (data_start + begin) % item_bytes:
        raise ArchiveCorruptError(f"{where} is not aligned to its type")
