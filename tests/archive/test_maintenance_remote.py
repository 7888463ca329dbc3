"""Copying to and from an object store, and collecting and removing in it, as in a directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from reuse_algos.archive import RunArchive, Store, StoredObject, copy_runs
from reuse_algos.errors import ArchiveConflictError, ArchiveError, RunNotFoundError

from .conftest import MakeRun, files_below, manifest_of, put_files, use_everything
from .moto_server import MotoServer

DAY = 86400.0


class Aged:
    """A store in which everything that was there when it was wrapped is older than it is."""

    def __init__(self, store: Store, days: float = 2) -> None:
        self._store, self._days = store, days
        self._old = {found.path for found in store.walk("runs")}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def walk(self, prefix: str) -> Iterator[StoredObject]:
        for found in self._store.walk(prefix):
            yield found._replace(modified=found.modified - self._days * DAY) if found.path in self._old else found


@pytest.fixture
def remote(s3: MotoServer) -> RunArchive:
    return RunArchive(f"s3://{s3.new_bucket()}/some/prefix", create=True)


def test_there_and_back(archive: RunArchive, remote: RunArchive, make_run: MakeRun, tmp_path: Path) -> None:
    run_id = make_run()
    writer, base = archive.resume_run(run_id)
    large = writer.put("weights", "large", {"w": torch.arange(5 << 20)})  # 40 MiB: it goes up in parts
    writer.commit(manifest_of([*base.files, large]))
    assert archive.copy_to(remote).files == 5
    assert remote.verify().ok
    assert remote.run(run_id).manifest == archive.run(run_id).manifest
    back = RunArchive(tmp_path / "back", create=True)
    assert remote.copy_to(back).ok
    there, here = files_below(archive.root), files_below(back.root)
    assert {path for path in here if path != "archive.json"} == {path for path in there if path != "archive.json"}
    assert all(here[path].read_bytes() == there[path].read_bytes() for path in here if path != "archive.json")
    again = archive.copy_to(remote)
    assert (again.files, again.there, again.ok) == (0, 5, True)


@pytest.mark.parametrize("elements", [100, 5 << 20])
def test_a_damaged_file_never_becomes_visible(archive: RunArchive, remote: RunArchive, elements: int) -> None:
    """Not even one that goes up in parts, of which the last shows that it is another."""
    writer = archive.start_run("toy")
    entry = writer.put("weights", "last", {"w": torch.arange(elements)})
    writer.commit(manifest_of([entry]))
    file = archive.root / "runs" / writer.run_id / entry.path
    file.chmod(0o644)
    with file.open("r+b") as opened:
        opened.seek(-8, 2)
        opened.write(b"x")
    (problem,) = archive.copy_to(remote).problems
    assert f"{file} is damaged" in problem.what
    assert remote.run_ids(uncommitted=True) == []


def test_a_copy_that_was_cut_off_goes_on(
    archive: RunArchive, remote: RunArchive, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = make_run()
    real, left = remote._store.put_if_absent, [3]

    def put(path: str, chunks: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise ArchiveError("no network")
        real(path, chunks)

    monkeypatch.setattr(remote._store, "put_if_absent", put)
    with pytest.raises(ArchiveError, match="no network"):
        archive.copy_to(remote)
    assert remote.run_ids() == []
    monkeypatch.undo()
    report = archive.copy_to(remote)
    assert (report.files, report.there, report.ok) == (1, 3, True)
    use_everything(remote, run_id)


def test_garbage_in_a_bucket(remote: RunArchive) -> None:
    writer = remote.start_run("toy")
    writer.commit(manifest_of(put_files(writer)))
    writer.finish()
    garbage = {f"runs/{writer.run_id}/{entry.path}" for entry in put_files(remote.join_run(writer.run_id, 3), epoch=2)}
    assert remote.collect_garbage(delete=True).busy == [writer.run_id]
    aged = RunArchive(Aged(remote._store), create=True)
    assert {path for path, _ in aged.collect_garbage().collected} == garbage
    assert {path for path, _ in aged.collect_garbage(delete=True).collected} == garbage
    left = [found.path for found in remote._store.walk("runs")]
    assert len(left) == 6
    assert remote.verify().ok
    use_everything(remote, writer.run_id)


def test_a_run_in_a_bucket_is_removed(remote: RunArchive) -> None:
    writer = remote.start_run("toy")
    writer.commit(manifest_of(put_files(writer)))
    with pytest.raises(ArchiveConflictError, match="may still be written"):
        remote.remove_run(writer.run_id)
    writer.finish()
    assert remote.remove_run(writer.run_id).files == 6
    assert list(remote._store.walk("runs")) == []
    with pytest.raises(RunNotFoundError):
        remote.run(writer.run_id)


def test_commits_are_passed_on_one_by_one(remote: RunArchive, archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    known: set[str] = set()
    for epoch in range(3):
        writer.commit(manifest_of(put_files(writer, epoch=epoch)))
        assert copy_runs(archive._store, remote._store, [writer.run_id], known=known).ok
    assert remote.run(writer.run_id).manifest.generation == 3
    assert remote.verify().ok
