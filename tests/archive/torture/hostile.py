"""Hostile files: headers, manifests and paths made to do harm, and how to put them into an archive."""

from __future__ import annotations

import hashlib

import msgspec

from reuse_algos.archive import FileEntry, Manifest, RunArchive, TensorInfo
from reuse_algos.archive.format.names import data_path

from ..small_runs import manifest_of, rewrite


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

BAD_IDS = ["..", ".", "", "/", "../archive", "/etc", "a/../b", "a\0b", "ｒun", "x" * 5000]  # noqa: RUF001
