"""The cache of remote files: fetched once, checked, never changed in place."""

from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from reuse_algos.archive.index.host import open_host
from reuse_algos.archive.stores import cache as file_cache
from reuse_algos.archive.stores.cache import open_cached
from reuse_algos.errors import ArchiveCorruptError, ArchiveError

DATA = bytes(range(256)) * 40
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "reuse_algos" / "files"


class Remote:
    """A remote file that counts how often it is fetched."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.fetched = 0

    def __call__(self) -> Iterable[bytes]:
        data = self.answers[min(self.fetched, len(self.answers) - 1)]
        self.fetched += 1
        return (data[begin : begin + 1000] for begin in range(0, len(data), 1000))


def read(remote: Remote) -> bytes:
    with open_cached("s3://b/x", len(DATA), SHA256, remote) as file:
        return file.read()


def test_it_is_fetched_once_and_cannot_be_written(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote(DATA)
    monkeypatch.setattr(file_cache, "hash_file", None)  # what was hashed on its way is not read again
    assert [read(remote), read(remote), remote.fetched] == [DATA, DATA, 1]
    path = files / SHA256[:2] / SHA256
    assert path.stat().st_mode & 0o777 == 0o444
    assert not list(files.rglob(".tmp-*"))


@pytest.mark.parametrize("wrong", [DATA[:-1], DATA + b"x", DATA[:-1] + b"x", b""])
def test_what_is_wrong_is_fetched_again_twice(files: Path, wrong: bytes) -> None:
    remote = Remote(wrong, wrong, DATA)
    assert (read(remote), remote.fetched) == (DATA, 3)
    (files / SHA256[:2] / SHA256).unlink()
    remote = Remote(wrong)
    with pytest.raises(ArchiveCorruptError, match="s3://b/x is damaged: .* fetched 3 times"):
        read(remote)
    assert remote.fetched == 3
    assert [path.name for path in files.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


@pytest.mark.parametrize("change", ["truncated", "extended", "flipped", "replaced by a link", "deleted"])
def test_what_was_changed_in_the_cache_is_fetched_again(files: Path, tmp_path: Path, change: str) -> None:
    remote, path = Remote(DATA), files / SHA256[:2] / SHA256
    file = open_cached("s3://b/x", len(DATA), SHA256, remote)
    path.chmod(0o644)
    if change == "truncated":
        os.truncate(path, 100)
    elif change == "extended":
        path.write_bytes(DATA + b"x")
    elif change == "flipped":
        path.write_bytes(DATA[:-1] + b"x")
    else:
        path.unlink()
        if change == "replaced by a link":
            (tmp_path / "secret").write_bytes(DATA)
            path.symlink_to(tmp_path / "secret")
    assert (read(remote), remote.fetched) == (DATA, 2)
    assert not path.is_symlink()
    file.close()


def test_what_is_mapped_stays_when_the_cache_is_emptied(files: Path) -> None:
    with open_cached("s3://b/x", len(DATA), SHA256, Remote(DATA)) as file:
        (files / SHA256[:2] / SHA256).unlink()
        assert file.read() == DATA


def _read_slowly(marks: Path) -> None:
    def fetch() -> Iterable[bytes]:
        (marks / str(os.getpid())).touch()
        for begin in range(0, len(DATA), 100):
            yield DATA[begin : begin + 100]

    with open_cached("s3://b/x", len(DATA), SHA256, fetch) as file:
        assert file.read() == DATA


def test_processes_fetch_it_once_together(files: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_read_slowly, args=(marks,)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert len(list(marks.iterdir())) == 1


def test_without_locks_it_works_all_the_same(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(*_: object, **__: object) -> None:
        raise NotImplementedError("no locks on this file system")

    monkeypatch.setattr(file_cache.filelock, "FileLock", no_lock)
    assert read(Remote(DATA)) == DATA


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "empty it, or set XDG_CACHE_HOME"), (errno.EROFS, "that can be written")]
)
def test_a_cache_that_is_full_or_read_only(files: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str):
    def sync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", sync)
        with pytest.raises(ArchiveError, match=f"cannot fetch s3://b/x into the cache {files}: .*{said}") as caught:
            read(Remote(DATA))
    assert caught.value.errno == number
    assert read(Remote(DATA)) == DATA


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ArchiveError, match="there is no home directory; set XDG_CACHE_HOME"):
        read(Remote(DATA))


def test_a_hash_that_is_none(files: Path) -> None:
    with pytest.raises(ArchiveCorruptError, match="cannot have the sha256"):
        open_cached("s3://b/x", 1, "../../etc/passwd", Remote(DATA))


def test_the_files_used_longest_ago_go_when_the_cache_is_full(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files of 10,240 bytes fit; a fourth takes the place of the one that was used longest ago."""
    monkeypatch.setenv(file_cache.CACHE_VARIABLE, str(3.5 * len(DATA) / 2**30))
    contents = []
    number = 0
    while len(contents) < 4:  # files whose names begin with 0 look whether there is room
        number += 1
        data = DATA[:-8] + number.to_bytes(8, "big")
        if hashlib.sha256(data).hexdigest().startswith("0"):
            contents.append(data)
    kept = []
    for age, data in enumerate(contents):
        sha256 = hashlib.sha256(data).hexdigest()
        with open_cached("s3://b/x", len(data), sha256, Remote(data)) as file:
            assert file.read() == data
        path = files / sha256[:2] / sha256
        os.utime(path, (1000 + age, 1000 + age))
        kept.append(path)
        if age == 2:
            os.utime(kept[0], (2000, 2000))  # it was read again
    assert [path.exists() for path in kept] == [True, False, True, True]
    remote = Remote(contents[1])
    with open_cached("s3://b/x", len(DATA), kept[1].name, remote) as file:
        assert (file.read(), remote.fetched) == (contents[1], 1)


def test_databases_of_indexes_are_pruned_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "reuse_algos" / "index"
    for age, location in enumerate("abc"):
        with open_host(location, "id"):
            pass
        (newest,) = set(folder.glob("*.sqlite")) - {
            path for path in folder.glob("*.sqlite") if path.stat().st_mtime < 9e8
        }
        os.utime(newest, (1000 + age, 1000 + age))
    size = newest.stat().st_size
    monkeypatch.setattr("reuse_algos.archive.index.host.MAX_BYTES", 2 * size)
    with open_host("d", "id"):
        pass
    assert sorted(path.stat().st_mtime < 9e8 for path in folder.glob("*.sqlite")) == [False, True, True]
    assert 1000 not in {path.stat().st_mtime for path in folder.glob("*.sqlite")}


def test_what_is_remembered_is_pruned(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_cache, "MAX_VERIFIED", 100)
    monkeypatch.setattr(file_cache, "_key", lambda file, path, sha256: sha256)
    verified = files.parent / "verified"
    target = tmp_path / "file"
    target.write_bytes(b"x")
    counts = []
    with io.FileIO(str(target)) as file:
        for number in range(150):
            # Every 50th key begins with 00 and looks whether there are too many.
            file_cache.remember_verified(file, str(target), f"{'00' if number % 50 == 49 else '11'}{number:062x}")
            counts.append(len(os.listdir(verified)))
            if number == 74:
                for path in verified.iterdir():
                    os.utime(path, (1, 1))
    assert (counts[99], counts[148], counts[149]) == (100, 149, 75)
    assert {int(path.name[2:], 16) for path in verified.iterdir()} == set(range(75, 150))  # the newest are kept
