"""One suite that every store must pass. The raw access that bypasses the store under test is a fixture beside it."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from reuse_algos.archive import LocalStore, Store
from reuse_algos.errors import ArchiveConflictError, ArchiveCorruptError, ArchiveError, ArchivePermissionError

SHA_OF_NOTHING = hashlib.sha256(b"").hexdigest()


class RawDirectory:
    """What is really in a local store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())


@pytest.fixture(params=["local"])
def store_and_raw(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, RawDirectory]:
    return LocalStore(tmp_path / "store"), RawDirectory(tmp_path / "store")


def test_what_is_put_is_there(store_and_raw: tuple[Store, RawDirectory]) -> None:
    store, raw = store_and_raw
    store.put_if_absent("a/b/c.bin", [b"one", memoryview(b"two"), b""])
    assert raw.names() == ["a/b/c.bin"]
    assert raw.read("a/b/c.bin") == b"onetwo"
    assert store.get("a/b/c.bin", 6) == b"onetwo"
    assert store.size("a/b/c.bin") == 6
    with store.open("a/b/c.bin", 6, hashlib.sha256(b"onetwo").hexdigest()) as file:
        assert file.read() == b"onetwo"
    assert b"".join(store.stream("a/b/c.bin")) == b"onetwo"


def test_nothing_and_much_can_be_put(store_and_raw: tuple[Store, RawDirectory]) -> None:
    store, raw = store_and_raw
    store.put_if_absent("empty", [])
    store.put_if_absent("large", [bytes(range(256)) * 4096] * 9)
    assert (raw.read("empty"), store.get("empty", 0), store.size("empty")) == (b"", b"", 0)
    assert raw.read("large") == bytes(range(256)) * 4096 * 9


def test_what_is_there_is_never_replaced(store_and_raw: tuple[Store, RawDirectory]) -> None:
    store, raw = store_and_raw
    store.put_if_absent("a", [b"first"])
    for content in (b"second", b"first", b""):
        with pytest.raises(ArchiveConflictError, match="another writer was first"):
            store.put_if_absent("a", [content])
    assert (raw.names(), raw.read("a")) == (["a"], b"first")


def test_what_is_not_there(store_and_raw: tuple[Store, RawDirectory]) -> None:
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


def test_listing_is_one_level_and_sorted(store_and_raw: tuple[Store, RawDirectory]) -> None:
    store, _ = store_and_raw
    for path in ("p/b", "p/a", "p/c/d", "q"):
        store.put_if_absent(path, [b""])
    assert store.list("p") == ["a", "b", "c"]


def test_a_walk_finds_every_object_with_its_size_and_time(store_and_raw: tuple[Store, RawDirectory]) -> None:
    store, _ = store_and_raw
    assert list(store.walk("p")) == []
    began = time.time()
    for path in ("p/b", "p/a/x/y", "p/c/d", "q/a"):
        store.put_if_absent(path, [path.encode()])
    found = sorted(store.walk("p"))
    assert [(item.path, item.size) for item in found] == [("p/a/x/y", 7), ("p/b", 3), ("p/c/d", 5)]
    assert all(began - 2 <= item.modified <= time.time() + 2 for item in found)
    assert [item.path for item in store.walk("p/a")] == ["p/a/x/y"]


def test_what_is_deleted_is_gone_and_can_be_put_again(store_and_raw: tuple[Store, RawDirectory]) -> None:
    store, raw = store_and_raw
    store.put_if_absent("p/a/x", [b"1"])
    store.put_if_absent("p/b", [b"2"])
    store.delete("p/a/x")
    assert (raw.names(), store.get("p/a/x", 9), store.list("p")) == (["p/b"], None, ["b"])
    store.put_if_absent("p/a/x", [b"3"])
    assert raw.read("p/a/x") == b"3"


def test_more_than_the_bound_is_refused(store_and_raw: tuple[Store, RawDirectory]) -> None:
    store, _ = store_and_raw
    store.put_if_absent("a", [b"12345"])
    assert store.get("a", 5) == b"12345"
    with pytest.raises(ArchiveCorruptError, match="at most 4"):
        store.get("a", 4)


UNSAFE = ["", "/", "/a", "a/", "a//b", "..", "a/../b", ".", "./a", ".hidden", "a\\b", "a\0", "a\n", "é", "a" * 129]


@pytest.mark.parametrize("path", UNSAFE)
def test_unsafe_names_are_refused_by_every_method(store_and_raw: tuple[Store, RawDirectory], path: str) -> None:
    store, raw = store_and_raw
    uses = (
        lambda: store.get(path, 1),
        lambda: store.open(path, 0, SHA_OF_NOTHING),
        lambda: list(store.stream(path)),
        lambda: list(store.walk(path)),
        lambda: store.delete(path),
        lambda: store.size(path),
        lambda: store.list(path),
        lambda: store.put_if_absent(path, [b""]),
    )
    for use in uses:
        with pytest.raises(ArchiveCorruptError, match="cannot be the path"):
            use()
    assert raw.names() == []


def test_a_failing_source_leaves_nothing(store_and_raw: tuple[Store, RawDirectory]) -> None:
    store, raw = store_and_raw

    def chunks():
        yield b"half"
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        store.put_if_absent("a", chunks())
    assert raw.names() == []
    store.put_if_absent("a", [b"whole"])
    assert raw.read("a") == b"whole"


def test_a_read_only_store_refuses_to_write(tmp_path: Path) -> None:
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
