"""Manifests of runs with many files: a generation names what changed, and refers to the rest by hash.

A list of files that is written whole with every commit grows with the square of the commits. From :data:`PARTS_FROM`
files on, signals and the dataset, of which there may be many, are therefore listed in *parts*: data files of the kind
``parts``, which hold JSON. A part lists a few files, or other parts. What stays the same of a manifest (recipe, model,
and so on) is a part too. Readers put the whole manifest together again; ``gc``, ``verify`` and copying see parts as
files of the run. Such a manifest has format 2, which older versions refuse.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import torch
from torch import Tensor

from reuse_algos.archive.format.envelope import FORMAT, check_json_bounds, expand, seal, unseal
from reuse_algos.archive.format.manifest import Manifest, plain_manifest
from reuse_algos.archive.format.metrics import MetricHistory, metric_names
from reuse_algos.archive.format.names import data_attempt, data_path, manifest_path
from reuse_algos.archive.format.records import CostRecord, FileEntry, Progress, Scalar, TensorInfo
from reuse_algos.errors import ArchiveCorruptError, ArchiveError

PARTS_FROM = 64
"""A run with fewer files is written in one piece, which every version can read."""

MAX_FILES = 200_000
"""The most files of a run: more are refused, and can be foreseen from epochs, ranks and signals."""

PARTS_FORMAT = (2, 0)
KIND = "parts"
MAX_PARTS_BYTES, MAX_DEPTH = 128 << 20, 12

STABLE = ("signals", "dataset")
_LEAF, _FAN = 2, 4  # files of the smallest part; parts of one size that are put together
_RUNS_OF_GONE = 64
_COLUMNS = "history"  # in the place of a type: the six columns of a metric


class _Entry(msgspec.Struct, array_like=True, frozen=True):
    """A file, without its path, which its other fields say."""

    kind: str
    name: str
    attempt: int
    bytes: int
    sha256: str
    tensors: list[tuple[str, str, tuple[int, ...]]]
    meta: dict[str, Scalar]

    @classmethod
    def of(cls, entry: FileEntry) -> _Entry:
        tensors = _packed(entry.tensors) or [(name, info.dtype, info.shape) for name, info in entry.tensors.items()]
        attempt = data_attempt(entry.path) or 0
        return cls(entry.kind, entry.name, attempt, entry.bytes, _short(entry.sha256), tensors, entry.meta)

    def entry(self) -> FileEntry:
        sha256 = _long(self.sha256)
        return FileEntry(
            kind=self.kind,
            name=self.name,
            path=data_path(self.kind, self.name, self.attempt, sha256),
            bytes=self.bytes,
            sha256=sha256,
            tensors=_unpacked(self.tensors),
            meta=self.meta,
        )


def _packed(tensors: Mapping[str, TensorInfo]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return each metric of a history for its six columns; nothing where these are not the columns of histories."""
    metrics = [(name, _COLUMNS, tensors[f"{name}/value"].shape) for name in metric_names(tensors)]
    # Only what reads back equal is written short.
    return metrics if _unpacked(metrics) == tensors else []


def _unpacked(packed: Sequence[tuple[str, str, tuple[int, ...]]]) -> dict[str, TensorInfo]:
    infos = {}
    for name, dtype, shape in packed:
        if dtype != _COLUMNS:
            infos[name] = TensorInfo(dtype=dtype, shape=shape)
            continue
        for field in MetricHistory._fields:
            whole = field in ("step", "sample", "epoch")
            infos[f"{name}/{field}"] = TensorInfo(dtype="I64" if whole else "F64", shape=shape)
    return infos


class _Ref(msgspec.Struct, array_like=True, frozen=True):
    """A part that the same attempt wrote: bytes of its file, and hash."""

    bytes: int
    sha256: str

    def entry(self, attempt: int) -> FileEntry:
        sha256 = _long(self.sha256)
        # The size of the JSON follows from that of the file; writing both would be a tenth of a manifest.
        size = next((n for n in range(self.bytes - 128, self.bytes) if n >= 0 and _file_bytes(n) == self.bytes), None)
        if size is None:
            raise ArchiveCorruptError(f"a part cannot have {self.bytes} bytes")
        info = TensorInfo(dtype="U8", shape=(size,))
        path = data_path(KIND, KIND, attempt, sha256)
        return FileEntry(kind=KIND, name=KIND, path=path, bytes=self.bytes, sha256=sha256, tensors={"json": info})


def _file_bytes(count: int) -> int:
    """Return the bytes of a safetensors file with one tensor ``json`` of so many bytes."""
    header = len(f'{{"json":{{"dtype":"U8","shape":[{count}],"data_offsets":[0,{count}]}}}}')
    return 8 + -(-header // 8) * 8 + count


class _Part(msgspec.Struct, frozen=True, omit_defaults=True):
    files: list[_Entry] = []
    parts: list[_Ref] = []
    head: msgspec.Raw = msgspec.Raw(b"null")


class PartedManifest(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="parted", omit_defaults=True):
    """What a generation of a run in parts says by itself; the names are those of :class:`Manifest`.

    Attributes:
        head: The part with everything that stayed the same.
        parts: Parts that list files, oldest first.
        gone: Runs of files, counted through all parts, that are not listed any more: first number and count.
        files: The other files.
    """

    MAJOR: ClassVar[int] = PARTS_FORMAT[0]

    format: tuple[int, int] = PARTS_FORMAT
    run_id: str
    generation: int
    attempt: int
    write_id: str
    committed_at: str
    progress: Progress | None = None
    cost: CostRecord | None = None
    health: str = "ok"
    head: _Ref
    parts: list[_Ref] = []
    gone: list[tuple[int, int]] = []
    files: list[_Entry] = []


_CHANGING = ("generation", "attempt", "write_id", "committed_at", "progress", "cost", "health")

Put = Callable[[str, str, Mapping[str, Tensor]], FileEntry]


def check_foreseen_files(epochs: int, ranks: int) -> None:
    """Refuse, before the first batch, signals of which the run could not list all files in the end.

    Args:
        epochs: Epochs that are kept, summed over the signals.
        ranks: Ranks, each of which writes a file for each of them.

    Raises:
        ArchiveError: There would be more than :data:`MAX_FILES`.
    """
    if epochs * ranks > MAX_FILES:
        raise ArchiveError(
            f"signals of {epochs} epochs (summed over the signals) from {ranks} ranks are {epochs * ranks} files, and "
            f"a run has at most {MAX_FILES}: keep fewer epochs (signals: {{loss: {{last_epochs: N}}}}) or fewer signals"
        )


class PartWriter:
    """Keeps the list of a run's many files in parts, so that a commit writes only what is new.

    Args:
        put: Writes a data file, given kind, name and tensors, and returns its entry.
    """

    def __init__(self, put: Put) -> None:
        self._put = put
        self.fresh: list[FileEntry] = []  # parts that no generation lists yet
        self._head: tuple[bytes, _Ref] | None = None
        self._clear()

    def _clear(self) -> None:
        self._listed: list[FileEntry] = []  # files in parts or pending, as the last commit had them
        self._numbers: list[int] = []  # which file of all parts each of them is
        self._total = 0
        self._pending: list[FileEntry] = []
        self._small: list[tuple[_Ref, list[FileEntry]]] = []
        self._levels: list[list[_Ref]] = []

    def add(self, manifest: Manifest) -> tuple[PartedManifest, list[FileEntry]]:
        """Write the parts of a manifest that are new.

        Returns:
            The manifest in parts, without its identity, and the files that the last one did not list.

        Raises:
            ArchiveError: The run has too many files, or a part could not be written.
        """
        if len(manifest.files) > MAX_FILES:
            raise ArchiveError(f"{len(manifest.files)} files are too many: a run has at most {MAX_FILES}")
        loose = [entry for entry in manifest.files if entry.kind not in STABLE and entry.kind != KIND]
        stable = [entry for entry in manifest.files if entry.kind in STABLE]
        try:
            count = len(self._listed)
            if stable[:count] != self._listed:
                count = self._drop(stable)
            new = stable[count:]
            for entry in new:
                self._append(entry)
            head = self._write_head(manifest)
        except BaseException:
            self._head = None
            self._clear()  # what was written is not known: the next commit begins from nothing
            raise
        self._listed += new
        refs = [ref for level in reversed(self._levels) for ref in level] + [ref for ref, _ in self._small]
        files = [_Entry.of(entry) for entry in (*self._pending, *loose)]
        parted = PartedManifest(
            run_id="",
            generation=0,
            attempt=0,
            write_id="",
            committed_at="",
            progress=None if manifest.progress == Progress() else manifest.progress,
            cost=None if manifest.cost == CostRecord() else manifest.cost,
            health=manifest.health,
            head=head,
            parts=refs,
            gone=self._gone(),
            files=files,
        )
        return parted, new + loose

    def _drop(self, stable: Sequence[FileEntry]) -> int:
        """Note which files are not listed any more, and return how many of the list are in parts."""
        place, listed, numbers = 0, [], []
        for entry, number in zip(self._listed, self._numbers, strict=True):
            if place < len(stable) and stable[place] == entry:
                listed.append(entry)
                numbers.append(number)
                place += 1
        self._listed, self._numbers = listed, numbers
        # Begun again where most of what the parts list is gone, or the gaps would fill the manifest.
        if 2 * len(listed) < self._total or len(self._gone()) > _RUNS_OF_GONE:
            self._clear()
            return 0
        return place

    def _gone(self) -> list[tuple[int, int]]:
        if len(self._numbers) == self._total:
            return []
        gone, last = [], -1
        for number in (*self._numbers, self._total):
            if number > last + 1:
                gone.append((last + 1, number - last - 1))
            last = number
        return gone

    def _append(self, entry: FileEntry) -> None:
        self._numbers.append(self._total)
        self._total += 1
        self._pending.append(entry)
        if len(self._pending) < _LEAF:
            return
        files, self._pending = self._pending, []
        if len(self._small) < _FAN - 1:
            self._small.append((self._write(_Part(files=list(map(_Entry.of, files)))), files))
        else:
            files = [entry for _, entries in self._small for entry in entries] + files
            self._small = []
            # Parts of one size are put together, so that a manifest refers to few however many files there are.
            self._push(0, self._write(_Part(files=list(map(_Entry.of, files)))))

    def _push(self, level: int, ref: _Ref) -> None:
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(ref)
        if len(self._levels[level]) == _FAN:
            node = self._write(_Part(parts=self._levels[level]))
            self._levels[level] = []
            self._push(level + 1, node)

    def _write_head(self, manifest: Manifest) -> _Ref:
        plain = plain_manifest(manifest)
        blank = Manifest()
        # What changes with every commit is blank here, so that the head is written once.
        changes: dict[str, Any] = {name: getattr(blank, name) for name in _CHANGING}
        data = msgspec.json.encode(msgspec.structs.replace(plain, files=[], **changes))
        if self._head is None or self._head[0] != data:
            self._head = data, self._write(_Part(head=msgspec.Raw(data)))
        return self._head[1]

    def _write(self, part: _Part) -> _Ref:
        content = torch.frombuffer(bytearray(msgspec.json.encode(part)), dtype=torch.uint8)
        entry = self._put(KIND, KIND, {"json": content})
        self.fresh.append(entry)
        return _Ref(entry.bytes, _short(entry.sha256))


def seal_in_parts(parted: PartedManifest, manifest: Manifest) -> bytes:
    """Return the sealed file of a manifest in parts, with the identity that a manifest has now.

    Raises:
        ArchiveError: It is too large.
    """
    names = ("run_id", "generation", "attempt", "write_id", "committed_at")
    identity: dict[str, Any] = {name: getattr(manifest, name) for name in names}
    return seal(msgspec.structs.replace(parted, **identity), manifest_path(manifest.run_id, manifest.generation))


def expanded_manifest(data: bytes, run_id: str, generation: int, get: Callable[[str], bytes | None]) -> bytes:
    """Return the manifest file of a generation in one piece, with its parts among its files.

    Args:
        data: The file as it is; one that is in one piece is returned as it is.
        run_id: The run.
        generation: The generation.
        get: Reads a file, given its path relative to the run; None if there is none.

    Raises:
        ArchiveCorruptError: The file or a part is damaged or missing.
        ArchiveVersionError: It was written in a newer major format.
    """
    # Whatever else it is, is found out when it is decoded.
    if b'"content":{"record":"parted"' not in data[:128]:
        return data
    where = manifest_path(run_id, generation)
    parted = unseal(data, PartedManifest, where)
    reader = _Reader(get, where, parted.attempt)
    (head,) = reader.parts([parted.head], 0)
    # The default of a head is null, which has four bytes.
    if len(head.head) < 5:
        raise ArchiveCorruptError(f"{where} refers to a part that does not say what stayed the same")
    pending = [entry.entry() for entry in parted.files if entry.kind in STABLE]
    loose = [entry.entry() for entry in parted.files if entry.kind not in STABLE]
    files = [*reader.files(parted.parts, 0), *pending]
    # From the end, so that the earlier numbers still count.
    for start, count in reversed(parted.gone):
        del files[start : start + count]
    if len(files) > MAX_FILES:
        raise ArchiveCorruptError(f"{where} lists {len(files)} files; at most {MAX_FILES} are read")
    try:
        manifest = msgspec.json.decode(head.head, type=Manifest)
    except (ValueError, RecursionError) as error:
        raise ArchiveCorruptError(f"{where}: its head is not what it should be: {error}") from error
    changes: dict[str, Any] = {name: getattr(parted, name) for name in (*_CHANGING, "run_id")}
    changes = {name: value for name, value in changes.items() if value is not None}
    # Of a newer minor version, which may list files in other ways too, a collection must not judge.
    changes["format"] = FORMAT if parted.format <= PARTS_FORMAT else (FORMAT[0], FORMAT[1] + 1)
    return expand(msgspec.structs.replace(manifest, files=[*files, *loose, *reader.read], **changes))


class _Reader:
    """Reads parts, within bounds."""

    def __init__(self, get: Callable[[str], bytes | None], where: str, attempt: int) -> None:
        self._get, self._where, self._attempt = get, where, attempt
        self._bytes = 0
        self.read: list[FileEntry] = []

    def files(self, refs: Sequence[_Ref], depth: int) -> Iterator[FileEntry]:
        for part in self.parts(refs, depth):
            yield from (entry.entry() for entry in part.files)
            yield from self.files(part.parts, depth + 1)

    def parts(self, refs: Sequence[_Ref], depth: int) -> Iterator[_Part]:
        for ref in refs:
            entry = ref.entry(self._attempt)
            self._bytes += entry.bytes
            if depth > MAX_DEPTH or self._bytes > MAX_PARTS_BYTES:
                raise ArchiveCorruptError(f"{self._where} has parts that are too large or too deep")
            data = self._get(entry.path)
            if data is None:
                raise ArchiveCorruptError(f"{self._where} refers to {entry.path}, which is missing")
            # Parts are read before the manifest exists that a check of files starts from.
            if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
                raise ArchiveCorruptError(f"{entry.path} is damaged: it is not what {self._where} says")
            content = data[len(data) - entry.tensors["json"].shape[0] :]
            check_json_bounds(content, entry.path)
            try:
                part = msgspec.json.decode(content, type=_Part)
            except (ValueError, RecursionError) as error:
                raise ArchiveCorruptError(f"{entry.path} is not what it should be: {error}") from error
            self.read.append(entry)
            yield part


def _short(sha256: str) -> str:
    return base64.b85encode(bytes.fromhex(sha256)).decode()


def _long(short: str) -> str:
    try:
        digest = base64.b85decode(short)
    except ValueError as error:
        raise ArchiveCorruptError(f"{short[:80]!r} is not a hash") from error
    if len(digest) != 32:
        raise ArchiveCorruptError(f"{short[:80]!r} is not a hash")
    return digest.hex()
