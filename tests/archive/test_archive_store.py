"""One suite that every store must pass. The raw access that bypasses the store under test is a fixture beside it."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from composer.utils import S3ObjectStore

from reuse_algos.archive import LocalStore, Store, open_store
from reuse_algos.composer_store import ComposerStore
from reuse_algos.errors import ArchiveConflictError, ArchiveCorruptError, ArchiveError, ArchivePermissionError

from .moto_server import MotoServer

SHA_OF_NOTHING = hashlib.sha256(b"").hexdigest()
LARGE = 17 << 20  # more than goes up in one request


class Raw(Protocol):
    """What is really in a store."""

    def read(self, path: str) -> bytes: ...

    def names(self) -> list[str]: ...


class RawDirectory:
    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())


class RawBucket:
    def __init__(self, server: MotoServer, bucket: str, prefix: str) -> None:
        self.client, self.bucket, self.prefix = server.client, bucket, prefix

    def read(self, path: str) -> bytes:
        return self.client.get_object(Bucket=self.bucket, Key=self.prefix + path)["Body"].read()

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        names = [item["Key"].removeprefix(self.prefix) for item in found]
        return sorted(name for name in names if not name.startswith("index/"))


def open_any(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, Raw]:
    if kind == "local":
        return LocalStore(tmp_path / "store"), RawDirectory(tmp_path / "store")
    server: MotoServer = request.getfixturevalue("gcs" if kind == "gs" else "s3") or request.getfixturevalue(
        "moto_server"
    )
    bucket = server.new_bucket()
    raw = RawBucket(server, bucket, "some/prefix/")
    if kind == "composer":
        objects = S3ObjectStore(bucket, endpoint_url=server.url)
        return ComposerStore(objects, "some/prefix", location=f"s3://{bucket}/some/prefix"), raw
    return open_store(f"{kind}://{bucket}/some/prefix/", create=True, read_only=False), raw


@pytest.fixture(params=["local", "s3", "gs", "composer"])
def store_and_raw(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Raw]]:
    with warnings.catch_warnings():
        if request.param == "composer":
            warnings.filterwarnings("ignore", message=".*one writer per run only")
        yield open_any(request.param, request, tmp_path)


def test_what_is_put_is_there(store_and_raw: tuple[Store, Raw]) -> None:
    store, raw = store_and_raw
    store.put_if_absent("a/b/c.bin", [b"one", memoryview(b"two"), b""])
    assert raw.names() == ["a/b/c.bin"]
    assert raw.read("a/b/c.bin") == b"onetwo"
    assert store.get("a/b/c.bin", 6) == b"onetwo"
    assert store.size("a/b/c.bin") == 6
    with store.open("a/b/c.bin", 6, hashlib.sha256(b"onetwo").hexdigest()) as file:
        assert file.read() == b"onetwo"
    assert b"".join(store.stream("a/b/c.bin")) == b"onetwo"


def test_nothing_and_much_can_be_put(store_and_raw: tuple[Store, Raw]) -> None:
    store, raw = store_and_raw
    store.put_if_absent("empty", [])
    store.put_if_absent("large", [bytes(range(256)) * 4096] * 9)
    assert (raw.read("empty"), store.get("empty", 0), store.size("empty")) == (b"", b"", 0)
    assert raw.read("large") == bytes(range(256)) * 4096 * 9


def test_more_than_goes_up_in_one_request(store_and_raw: tuple[Store, Raw]) -> None:
    store, raw = store_and_raw
    data = bytes(range(256)) * (LARGE // 256) + b"end"
    store.put_if_absent("p/large", (memoryview(data)[begin : begin + (5 << 20)] for begin in range(0, LARGE, 5 << 20)))
    assert store.size("p/large") == len(data)
    assert hashlib.sha256(raw.read("p/large")).digest() == hashlib.sha256(data).digest()
    with store.open("p/large", len(data), hashlib.sha256(data).hexdigest()) as file:
        assert file.read() == data
    for again in ([data], iter([data])):
        with pytest.raises(ArchiveConflictError, match="another writer was first"):
            store.put_if_absent("p/large", again)
    assert raw.names() == ["p/large"]


def test_what_is_there_is_never_replaced(store_and_raw: tuple[Store, Raw]) -> None:
    store, raw = store_and_raw
    store.put_if_absent("a", [b"first"])
    for content in (b"second", b"first", b""):
        with pytest.raises(ArchiveConflictError, match="another writer was first"):
            store.put_if_absent("a", [content])
    assert (raw.names(), raw.read("a")) == (["a"], b"first")


def test_what_is_not_there(store_and_raw: tuple[Store, Raw]) -> None:
    store, _ = store_and_raw
    assert store.get("x", 9) is None
    assert store.get("x/y/z", 9) is None
    assert store.size("x/y") is None
    assert store.list("x") == []
    with pytest.raises(ArchiveCorruptError, match="x/y is missing"):
        store.open("x/y", 0, SHA_OF_NOTHING)
    with pytest.raises(ArchiveCorruptError, match="x/y is missing"):
        list(store.stream("x/y"))
    store.delete("x/y")


def test_listing_is_one_level_and_sorted(store_and_raw: tuple[Store, Raw]) -> None:
    store, _ = store_and_raw
    for path in ("p/b", "p/a", "p/c/d", "q"):
        store.put_if_absent(path, [b""])
    assert store.list("p") == ["a", "b", "c"]


def test_a_walk_finds_every_object_with_its_size_and_time(store_and_raw: tuple[Store, Raw]) -> None:
    store, _ = store_and_raw
    assert list(store.walk("p")) == []
    began = time.time()
    for path in ("p/b", "p/a/x/y", "p/c/d", "q/a"):
        store.put_if_absent(path, [path.encode()])
    found = sorted(store.walk("p"))
    assert [(item.path, item.size) for item in found] == [("p/a/x/y", 7), ("p/b", 3), ("p/c/d", 5)]
    assert all(began - 2 <= item.modified <= time.time() + 2 for item in found)
    assert [item.path for item in store.walk("p/a")] == ["p/a/x/y"]


def test_what_is_deleted_is_gone_and_can_be_put_again(store_and_raw: tuple[Store, Raw]) -> None:
    store, raw = store_and_raw
    if isinstance(store, ComposerStore):
        store.put_if_absent("a", [b"1"])
        with pytest.raises(ArchiveError, match="cannot delete .*: Composer's object stores have no way to"):
            store.delete("a")
        assert raw.names() == ["a"]
        return
    store.put_if_absent("p/a/x", [b"1"])
    store.put_if_absent("p/b", [b"2"])
    store.delete("p/a/x")
    assert (raw.names(), store.get("p/a/x", 9), store.list("p")) == (["p/b"], None, ["b"])
    store.put_if_absent("p/a/x", [b"3"])
    assert raw.read("p/a/x") == b"3"


def test_more_than_the_bound_is_refused(store_and_raw: tuple[Store, Raw]) -> None:
    store, _ = store_and_raw
    store.put_if_absent("a", [b"12345"])
    assert store.get("a", 5) == b"12345"
    with pytest.raises(ArchiveCorruptError, match="at most 4"):
        store.get("a", 4)


UNSAFE = ["", "/", "/a", "a/", "a//b", "..", "a/../b", ".", "./a", ".hidden", "a\\b", "a\0", "a\n", "é", "a" * 129]


def test_unsafe_names_are_refused_by_every_method(store_and_raw: tuple[Store, Raw]) -> None:
    store, raw = store_and_raw
    uses = (
        lambda path: store.get(path, 1),
        lambda path: store.open(path, 0, SHA_OF_NOTHING),
        lambda path: list(store.stream(path)),
        lambda path: list(store.walk(path)),
        lambda path: store.delete(path),
        lambda path: store.size(path),
        lambda path: store.list(path),
        lambda path: store.put_if_absent(path, [b""]),
    )
    for path in UNSAFE:
        for use in uses:
            with pytest.raises(ArchiveCorruptError, match="cannot be the path"):
                use(path)
    assert raw.names() == []


@pytest.mark.parametrize("size", [4, LARGE])
def test_a_failing_source_leaves_nothing(store_and_raw: tuple[Store, Raw], size: int) -> None:
    store, raw = store_and_raw

    def chunks():
        yield bytes(size)
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        store.put_if_absent("a", chunks())
    assert raw.names() == []
    store.put_if_absent("a", [b"whole"])
    assert raw.read("a") == b"whole"


@pytest.mark.parametrize("kind", ["local", "s3", "gs", "composer"])
def test_a_read_only_store_refuses_to_write(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store, raw = open_any(kind, request, tmp_path)
    store.read_only = True  # type: ignore[attr-defined]  # every kind has it
    with pytest.raises(ArchivePermissionError, match="opened read-only"):
        store.put_if_absent("a", [b""])
    with pytest.raises(ArchivePermissionError, match="opened read-only"):
        store.delete("a")
    assert raw.names() == []


def test_a_read_only_directory(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with pytest.raises(ArchivePermissionError, match="opened read-only"):
        LocalStore(tmp_path / "store", read_only=True).put_if_absent("a", [b""])


def test_archived_files_are_not_writable(tmp_path: Path) -> None:
    LocalStore(tmp_path).put_if_absent("a", [b"x"])
    assert (tmp_path / "a").stat().st_mode & 0o222 == 0


def test_a_store_that_is_gone_is_not_an_empty_one(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    (tmp_path / "store").rmdir()
    for use in (
        lambda: store.get("a", 1),
        lambda: store.list("a"),
        lambda: store.size("a"),
        lambda: store.open("a", 0, SHA_OF_NOTHING),
    ):
        with pytest.raises(ArchiveError, match="is gone"):
            use()


def test_a_file_where_a_directory_should_be_is_damage(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_if_absent("a", [b"x"])
    for use in (lambda: store.get("a/b", 1), lambda: store.list("a"), lambda: store.put_if_absent("a/b", [b""])):
        with pytest.raises(ArchiveCorruptError, match="only directories and regular files"):
            use()


def test_another_process_makes_the_root_between_two_looks(tmp_path, monkeypatch):
    root, look = tmp_path / "archive", Path.is_dir

    def is_dir(self):
        if self == root and not root.exists():
            root.mkdir()
            return False
        return look(self)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    assert LocalStore(root).location == str(root)
