"""Archives made to do harm: only ArchiveError comes out, quickly, and nothing outside the archive is touched."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import torch

from reuse_algos.archive import FileEntry, Manifest, RunArchive, TensorInfo
from reuse_algos.archive.manifest import data_path
from reuse_algos.errors import ArchiveCorruptError, ArchiveError, ArchiveWarning, RunNotFoundError

from .conftest import MakeRun, files_below, manifest_of, rewrite, use_everything


@contextmanager
def within(seconds: float, mebibytes: float) -> Iterator[None]:
    tracemalloc.start()
    began = time.perf_counter()
    try:
        yield
        assert time.perf_counter() - began < seconds
        assert tracemalloc.get_traced_memory()[1] < mebibytes * 2**20
    finally:
        tracemalloc.stop()


def plant(archive: RunArchive, data: bytes, tensors: dict[str, TensorInfo]) -> str:
    """Commit a run whose weights file has this content, with the right size and sha256."""
    writer = archive.start_run("planted")
    sha256 = hashlib.sha256(data).hexdigest()
    path = data_path("weights", "last", 1, sha256)
    target = archive.root / "runs" / writer.run_id / path
    target.parent.mkdir(parents=True)
    target.write_bytes(data)
    entry = FileEntry(kind="weights", name="last", path=path, bytes=len(data), sha256=sha256, tensors=tensors)
    writer.commit(manifest_of([entry]))
    return writer.run_id


def header(content: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file whose data would be aligned if the header were sound."""
    content += b" " * (-len(content) % 8)
    return (len(content) if length is None else length).to_bytes(8, "little") + content + data


def slot(dtype: str, shape: list[int], begin: int, end: int) -> bytes:
    return msgspec.json.encode({"w": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}})


F32_4 = {"w": TensorInfo(dtype="F32", shape=(4,))}
EIGHT_MIB = 8 << 20

BAD_HEADERS: dict[str, tuple[bytes, dict[str, TensorInfo]]] = {
    "empty file": (b"", {}),
    "seven bytes": (b"\0" * 7, {}),
    "no header": (header(b""), {}),
    "longer than the file": (header(b"{}", length=100), {}),
    "length 2^63": (header(b"{}", length=2**63), {}),
    "over 1 MiB": (header(b"{}" + b" " * (1 << 20)), {}),
    "not JSON": (header(b"\x80\x04K\x01."), {}),
    "not UTF-8": (header(b'{"\xff":1}'), {}),
    "a list": (header(b"[]"), {}),
    "deep": (header(b'{"w":' + b"[" * 500_000 + b"]" * 500_000 + b"}"), {}),
    "unclosed": (header(b'{"w":' + b'{"a":' * 100_000), {}),
    "metadata": (header(b'{"__metadata__":{"a":"b"}}'), {}),
    "unknown type": (header(slot("F4", [4], 0, 2), bytes(2)), {"w": TensorInfo(dtype="F4", shape=(4,))}),
    "undeclared tensor": (header(slot("F32", [4], 0, 16), bytes(16)), {}),
    "missing tensor": (header(b"{}"), F32_4),
    "other type": (header(slot("I32", [4], 0, 16), bytes(16)), F32_4),
    "other shape": (header(slot("F32", [2, 2], 0, 16), bytes(16)), F32_4),
    "gap at the start": (header(slot("F32", [4], 4, 20), bytes(20)), F32_4),
    "past the end": (header(slot("F32", [4], 0, 16), bytes(12)), F32_4),
    "bytes left over": (header(slot("F32", [4], 0, 16), bytes(20)), F32_4),
    "too few bytes for the shape": (header(slot("F32", [4], 0, 12), bytes(12)), F32_4),
    "backwards": (header(slot("F32", [4], 16, 0), bytes(16)), F32_4),
    "negative": (header(slot("F32", [-4], 0, 16), bytes(16)), F32_4),
    "unaligned": ((57).to_bytes(8, "little") + slot("F32", [4], 0, 16).ljust(57) + bytes(16), F32_4),
    "shape 2^62": (header(slot("F32", [2**62], 0, 2**64 - 1)), {"w": TensorInfo(dtype="F32", shape=(2**62,))}),
    "shape 0 times 2^62": (
        header(slot("F32", [0, 2**62, 2**62], 0, 0)),
        {"w": TensorInfo(dtype="F32", shape=(0, 2**62, 2**62))},
    ),
    "40 dimensions": (header(slot("F32", [1] * 40, 0, 4), bytes(4)), {"w": TensorInfo(dtype="F32", shape=(1,) * 40)}),
    "overlap": (
        header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        {"a": TensorInfo(dtype="F32", shape=(1,)), "b": TensorInfo(dtype="F32", shape=(1,))},
    ),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_tensor_files_are_refused(archive: RunArchive, case: str) -> None:
    data, tensors = BAD_HEADERS[case]
    run_id = plant(archive, data, tensors)
    with within(1.0, 50), pytest.raises(ArchiveCorruptError, match=run_id):
        archive.run(run_id).weights()
    assert len(archive.verify(run_id).problems) == 1


def test_a_huge_header_is_refused_unread(archive: RunArchive) -> None:
    run_id = plant(archive, header(b"", length=95 << 20) + bytes(95 << 20), {})
    with within(0.1, 5), pytest.raises(ArchiveCorruptError, match="header has 99614720 bytes"):
        archive.run(run_id).weights()


def sealed(content: bytes) -> bytes:
    return b'{"sha256":"' + hashlib.sha256(content).hexdigest().encode() + b'","content":' + content + b"}\n"


BOMBS = {
    "deep list": b'{"recipe":' + b"[" * EIGHT_MIB,
    "deep object": b'{"recipe":' + b'{"a":' * (EIGHT_MIB // 5),
    "deep and closed": b'{"recipe":{"a":' + b"[" * 100 + b"]" * 100 + b"}}",
    "deep in an unknown field": b'{"later":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "brackets after escaped quotes": b'{"a":"\\"\\\\","recipe":' + b"[" * 5000,
    "a million items": b'{"tags":{' + b",".join(b'"%d":""' % number for number in range(10**6)) + b"}}",
    "numbers only": b'{"later":[' + b"0," * (EIGHT_MIB // 2) + b"0]}",
    "too large": b'{"run_name":"' + b"a" * (17 << 20) + b'"}',
    "huge integer": b'{"generation":' + b"9" * 100_000 + b"}",
    "huge exponent": b'{"generation":1e999999999}',
    "lone surrogate": b'{"run_name":"\\ud800"}',
    "not UTF-8": b'{"run_name":"\xff\xfe"}',
    "a list": b"[]",
    "null": b"null",
    "nothing": b"",
    "NaN": b'{"cost":{"train_seconds":NaN}}',
    "pickle": b"\x80\x04K\x01.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_json_bombs_are_refused(archive: RunArchive, make_run: MakeRun, bomb: str) -> None:
    run_id = make_run()
    path = archive.root / f"runs/{run_id}/manifests/g000001.json"
    rewrite(path, lambda _: sealed(BOMBS[bomb]))
    with within(1.0, 80), pytest.raises(ArchiveCorruptError, match=r"g000001\.json"):
        archive.run(run_id)


def test_deep_json_is_refused_under_any_recursion_limit(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    path = archive.root / f"runs/{run_id}/manifests/g000001.json"
    rewrite(path, lambda _: sealed(BOMBS["deep list"]))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**9)
    try:
        with pytest.raises(ArchiveCorruptError, match="nested over 64"):
            archive.run(run_id)
    finally:
        sys.setrecursionlimit(limit)


HASH = "0123456789abcdef"
BAD_PATHS = [
    f"/data/weights/last-1-{HASH}.safetensors",
    f"data/weights/../weights/last-1-{HASH}.safetensors",
    f"../../../data/weights/last-1-{HASH}.safetensors",
    f"data/weights/last-1-{HASH}.safetensors/",
    f"data/weights//last-1-{HASH}.safetensors",
    f"./data/weights/last-1-{HASH}.safetensors",
    f"data\\weights\\last-1-{HASH}.safetensors",
    f"C:\\data\\weights\\last-1-{HASH}.safetensors",
    f"data/weights/last-1-{HASH}.safetensors\0.json",
    f"data/weights/last-1-{HASH}.safetensors\n",
    f" data/weights/last-1-{HASH}.safetensors",
    f"data/weights/last-1-{HASH}.safetensors ",
    f"data/weights/last-01-{HASH}.safetensors",
    f"data/weights/last-0-{HASH}.safetensors",
    f"data/weights/last--1-{HASH}.safetensors",
    f"data/weights/last-١-{HASH}.safetensors",  # noqa: RUF001
    f"data/weights/last-1-{HASH.upper()}.safetensors",
    "data/weights/last-1-fedcba9876543210.safetensors",
    f"data/weights/best-1-{HASH}.safetensors",
    f"data/weights/lаst-1-{HASH}.safetensors",  # noqa: RUF001
    f"data/weıghts/last-1-{HASH}.safetensors",  # noqa: RUF001
    f"data/signals/last-1-{HASH}.safetensors",
    f"data/weights/last-1-{HASH}.pkl",
    f"data/weights/last-1-{HASH}.safetensors.pkl",
    f"data/weights/last-1-{HASH}",
    f"DATA/weights/last-1-{HASH}.safetensors",
    f"data/weights/last-1-{HASH}.SAFETENSORS",
    f"data／weights／last-1-{HASH}.safetensors",  # noqa: RUF001
    f"data/weights/last-1-{HASH[:8]}.safetensors",
    f"file:///data/weights/last-1-{HASH}.safetensors",
    f"~/data/weights/last-1-{HASH}.safetensors",
    f"$HOME/data/weights/last-1-{HASH}.safetensors",
    f"%2e%2e/data/weights/last-1-{HASH}.safetensors",
    "manifests/g000001.json",
    "../../archive.json",
    "/etc/passwd",
    "/dev/zero",
    "..",
    ".",
    "",
    "\0",
    "a" * 100_000,
]


def change_entry(archive: RunArchive, original: Manifest, **fields: object) -> None:
    """Make the only manifest of a run name something else as its weights file."""
    manifest = msgspec.to_builtins(original)
    entry = next(entry for entry in manifest["files"] if entry["kind"] == "weights")
    entry.update({"sha256": HASH * 4, "path": f"data/weights/last-1-{HASH}.safetensors", **fields})
    content = msgspec.json.encode(manifest)
    rewrite(archive.root / f"runs/{original.run_id}/manifests/g000001.json", lambda _: sealed(content))


def test_paths_outside_the_layout_are_refused(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    manifest = archive.run(run_id).manifest
    for path in BAD_PATHS:
        change_entry(archive, manifest, path=path)
        with pytest.raises(ArchiveCorruptError, match=r"outside the layout"):
            archive.run(run_id)


BAD_FIELDS = [
    {"name": ".."},
    {"name": "a/b"},
    {"name": "l\0"},
    {"kind": "../x"},
    {"kind": ""},
    {"sha256": "x"},
    {"bytes": -1},
    {"bytes": 2**70},
    {"tensors": {"w": {"dtype": "F32", "shape": [-1]}}},
    {"tensors": None},
    {"meta": {"deep": {}}},
]


def test_entries_that_cannot_be_are_refused(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    manifest = archive.run(run_id).manifest
    for fields in BAD_FIELDS:
        change_entry(archive, manifest, **fields)
        with pytest.raises(ArchiveCorruptError, match=run_id):
            archive.run(run_id).weights()


def test_ids_that_cannot_be_are_not_found(archive: RunArchive, make_run: MakeRun) -> None:
    make_run()
    for run_id in ["..", ".", "", "/", "../archive", "/etc", "a/../b", "a\0b", "ｒun", "x" * 5000]:  # noqa: RUF001
        for use in (archive.run, archive.resume_run, archive.verify, lambda run_id: archive.join_run(run_id, 1)):
            with pytest.raises(RunNotFoundError):
                use(run_id)


PARTS = ["", "/data", "/data/weights", "/manifests", "/manifests/g000001.json", "/final.json"]


@pytest.mark.parametrize("part", [*PARTS, "weights file"])
def test_symbolic_links_are_not_followed(archive: RunArchive, make_run: MakeRun, tmp_path: Path, part: str) -> None:
    run_id, good = make_run(), make_run()
    run = archive.root / "runs" / run_id
    target = next((run / "data/weights").iterdir()) if part == "weights file" else Path(f"{run}{part}")
    outside = tmp_path / "outside"
    shutil.move(target, outside)
    target.symlink_to(outside)
    before = {path: path.read_bytes() for path in files_below(tmp_path / "outside").values()}
    with pytest.raises(ArchiveCorruptError, match=r"links|not a regular file"):
        archive.run(run_id).weights()
    assert not archive.verify(run_id).ok
    with suppress(ArchiveError):
        archive.join_run(run_id, 1).put("weights", "new", {"w": torch.zeros(1)})
    with pytest.raises(ArchiveError):
        archive.resume_run(run_id)[0].commit(archive.run(run_id).manifest)
    assert archive.run(good).weights()
    assert {path: path.read_bytes() for path in files_below(tmp_path / "outside").values()} == before


def test_a_linked_directory_of_runs_is_refused(archive: RunArchive, make_run: MakeRun, tmp_path: Path) -> None:
    make_run()
    shutil.move(archive.root / "runs", tmp_path / "outside")
    (archive.root / "runs").symlink_to(tmp_path / "outside")
    with pytest.raises(ArchiveCorruptError, match="links"):
        archive.runs()
    assert not archive.verify().ok


def test_the_root_may_be_a_link(archive: RunArchive, make_run: MakeRun, tmp_path: Path) -> None:
    run_id = make_run()
    (tmp_path / "link").symlink_to(archive.root)
    assert RunArchive(tmp_path / "link").run(run_id).weights()


@pytest.mark.parametrize("replacement", ["fifo", "directory", "device link"])
def test_only_regular_files_are_read(archive: RunArchive, make_run: MakeRun, replacement: str) -> None:
    run_id = make_run()
    for name, path in files_below(archive.root / "runs" / run_id).items():
        original = path.read_bytes()
        path.unlink()
        if replacement == "fifo":
            os.mkfifo(path)
        elif replacement == "directory":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        with within(1.0, 50), pytest.raises(ArchiveCorruptError, match=name):
            use_everything(archive, run_id)
        assert len(archive.verify().problems) == 1
        path.rmdir() if replacement == "directory" else path.unlink()
        path.write_bytes(original)


def test_hard_links_out_of_the_archive_are_never_written_through(archive: RunArchive, tmp_path: Path) -> None:
    writer = archive.start_run("linked")
    entry = writer.put("weights", "last", {"w": torch.ones(4)})
    target = archive.root / "runs" / writer.run_id / entry.path
    target.unlink()
    (tmp_path / "precious").write_bytes(b"precious")
    os.link(tmp_path / "precious", target)
    with pytest.raises(ArchiveCorruptError):
        writer.put("weights", "last", {"w": torch.ones(4)})
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_odd_things_beside_the_runs_are_left_alone(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    (archive.root / "runs" / ".DS_Store").write_bytes(b"x")
    (archive.root / "runs" / "héllo").mkdir()
    (archive.root / "runs" / "empty").mkdir()
    (archive.root / "runs" / run_id / "manifests" / ".tmp-0123").write_bytes(b"torn")
    (archive.root / "runs" / run_id / "manifests" / "g0000002.json").write_bytes(b"not ours")
    assert [run.id for run in archive.runs()] == [run_id]
    assert archive.verify().ok
    (archive.root / "runs" / "a-file").write_bytes(b"x")
    with pytest.warns(ArchiveWarning, match="a-file"):
        assert [run.id for run in archive.runs()] == [run_id]


def test_fuzzed_manifests_and_headers_raise_only_archive_errors(archive: RunArchive, make_run: MakeRun) -> None:
    draw = random.Random(1)
    run_id = make_run()
    manifest = archive.root / f"runs/{run_id}/manifests/g000001.json"
    content = manifest.read_bytes()[len(b'{"sha256":"","content":') + 64 : -2]
    refused = 0
    for _ in range(400):
        mutated = mutate(content, draw)
        rewrite(manifest, lambda _, mutated=mutated: sealed(mutated))
        refused += raises_archive_error(archive, run_id)
    rewrite(manifest, lambda _: sealed(content))
    (weights,) = (archive.root / f"runs/{run_id}/data/weights").iterdir()
    data = weights.read_bytes()
    for _ in range(100):
        mutated = mutate(data, draw)
        planted = plant(archive, mutated, {"layer.weight": TensorInfo(dtype="F32", shape=(3, 4))})
        refused += raises_archive_error(archive, planted)
        shutil.rmtree(archive.root / "runs" / planted)
    assert refused > 250


def mutate(data: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        at = draw.randrange(len(damaged))
        kind = draw.randrange(4)
        if kind == 0:
            damaged[at] = draw.randrange(256)
        elif kind == 1:
            damaged[at:at] = draw.choice(
                (b"[" * 70, b"{", b'"', b"null", b"-1", b"9" * 30, b"\\u0000", b"1e999", b"\xff")
            )
        elif kind == 2:
            del damaged[at : at + draw.randrange(1, 20)]
        else:
            damaged[at : at + 8] = draw.randbytes(8)
        damaged = damaged or bytearray(b"{")
    return bytes(damaged)


def raises_archive_error(archive: RunArchive, run_id: str) -> bool:
    began = time.perf_counter()
    try:
        archive.run(run_id).weights()
        return False
    except (ArchiveError, RunNotFoundError, LookupError):
        return True
    finally:
        assert time.perf_counter() - began < 1


_watched: list[str] | None = None


def _audit(event: str, _: object) -> None:
    if _watched is not None and event.startswith(("pickle.", "exec", "compile", "subprocess.", "os.system", "ctypes.")):
        _watched.append(event)


def test_reading_runs_no_code(archive: RunArchive, make_run: MakeRun) -> None:
    """Neither good nor hostile archives get anything unpickled, compiled, executed or started."""
    global _watched
    good = make_run()
    archive.run(good).weights()  # whatever is imported on first use is imported now
    bad = [plant(archive, data, tensors) for data, tensors in BAD_HEADERS.values()]
    sys.addaudithook(_audit)
    _watched = []
    try:
        for run_id in bad:
            raises_archive_error(archive, run_id)
        archive.run(good).signal("logits").gather(torch.arange(3), torch.zeros(3, dtype=torch.int64))
        assert not archive.verify().ok
        assert _watched == []
    finally:
        _watched = None
