"""Manifests of many files: what is written grows with the change, and what is read is the same."""

from __future__ import annotations

import os

import msgspec
import pytest
import torch

from reuse_algos.archive import FileEntry, RunArchive, RunWriter, check_foreseen_files
from reuse_algos.archive.format.names import manifest_path
from reuse_algos.archive.format.parts import PARTS_FROM
from reuse_algos.archive.index.shards import encode_shard
from reuse_algos.errors import ArchiveCorruptError, ArchiveError, ArchiveWarning

from .conftest import files_below, manifest_of, put_files, rewrite


def put_signal(writer: RunWriter, epoch: int) -> FileEntry:
    meta = {"slot": epoch, "epoch": epoch, "view": epoch, "source": "capture", "encoding": "dense", "num_classes": 5}
    return writer.put("signals", "loss", {"ids": torch.arange(2), "values": torch.tensor([epoch, 1.0])}, meta)


def grown(archive: RunArchive, commits: int, window: int | None = None) -> tuple[RunWriter, list[list[FileEntry]]]:
    """A run that commits one more signal each time, and the files of each of its generations."""
    writer = archive.start_run("grown")
    first, history, weights, _ = put_files(writer)
    signals, lists = [], []
    for epoch in range(commits):
        signals = [*signals, put_signal(writer, epoch)][-(window or commits) :]
        lists.append([first, history, *signals, weights])
        writer.commit(manifest_of(lists[-1], tags={"epoch": "x"}))
    return writer, lists


def as_set(files: list[FileEntry]) -> dict[str, FileEntry]:
    return {entry.path: entry for entry in files if entry.kind != "parts"}


@pytest.mark.parametrize("window", [None, 70])
def test_every_generation_is_read_as_it_was_written(archive: RunArchive, window: int | None) -> None:
    writer, lists = grown(archive, 150, window)
    for generation, files in enumerate(lists, start=1):
        run = archive.open_run(writer.run_id, generation)
        assert as_set(run.manifest.files) == as_set(files)
        ours = [entry.path for entry in run.manifest.files if entry.kind == "signals"]
        assert ours == [entry.path for entry in files if entry.kind == "signals"], "later segments hold"
        assert (run.run_name, run.tags, run.manifest.archive_id) == ("grown", {"epoch": "x"}, archive.archive_id)
    assert archive.run("grown").signal("loss").slots == list(range(150 - (window or 150), 150))
    assert [found.run_name for found in archive.summaries(unfinished=True)] == ["grown"]
    report = archive.verify()
    assert (report.ok, report.runs) == (True, 1)
    collected = archive.collect_garbage()
    assert (collected.ok, collected.collected) == (True, [])


def test_what_a_commit_writes_does_not_grow(archive: RunArchive) -> None:
    writer, _ = grown(archive, 400)
    sizes = [(archive.root / manifest_path(writer.run_id, g)).stat().st_size for g in (100, 400)]
    assert sizes[1] < 1.2 * sizes[0] < 4000
    parts = sum(path.stat().st_size for name, path in files_below(archive.root).items() if "/data/parts/" in name)
    assert parts < 400 * 1000


def test_a_small_run_is_in_one_piece(archive: RunArchive) -> None:
    writer, _ = grown(archive, PARTS_FROM - 4)
    assert b'"record":"manifest"' in (archive.root / manifest_path(writer.run_id, PARTS_FROM - 4)).read_bytes()
    assert not any("/data/parts/" in name for name in files_below(archive.root))


def test_resuming_copying_and_removing(archive: RunArchive, tmp_path: object) -> None:
    writer, lists = grown(archive, 100)
    again, base = archive.resume_run(writer.run_id, 80)
    assert as_set(base.files) == as_set(lists[79])
    files = [*as_set(base.files).values(), put_signal(again, 200)]
    again.commit(msgspec.structs.replace(base, files=files, tags={"epoch": "y"}))
    assert as_set(archive.run("grown").manifest.files) == as_set(files)
    again.finish()
    target = RunArchive(f"{tmp_path}/copy", create=True)
    report = archive.copy_to(target)
    assert (report.ok, report.runs) == (True, 1)
    assert as_set(target.run("grown").manifest.files) == as_set(files)
    assert target.verify().ok
    target.remove_run(writer.run_id)
    assert target.run_ids(uncommitted=True) == []


@pytest.mark.parametrize("change", [None, lambda data: data[:-1], lambda data: data.replace(b'"', b"'", 1)])
def test_a_damaged_part_is_noticed_and_readers_step_back(archive: RunArchive, change: object) -> None:
    writer, lists = grown(archive, 91)
    run = archive.open_run(writer.run_id)
    earlier = archive.open_run(writer.run_id, 90)
    (new, *_) = as_parts(run.manifest.files).keys() - as_parts(earlier.manifest.files).keys()
    path = archive.root / "runs" / writer.run_id / new
    if change is None:
        path.unlink()
    else:
        rewrite(path, change)  # type: ignore[arg-type]
    with pytest.raises(ArchiveCorruptError, match="data/parts/"):
        archive.open_run(writer.run_id, 91)
    with pytest.warns(ArchiveWarning, match="generation 90 is read instead"):
        assert as_set(archive.run("grown").manifest.files) == as_set(lists[89])
    assert not archive.verify().ok


def as_parts(files: list[FileEntry]) -> dict[str, FileEntry]:
    return {entry.path: entry for entry in files if entry.kind == "parts"}


def test_a_failed_commit_begins_from_nothing(archive: RunArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, lists = grown(archive, 80)
    files = [*lists[-1], put_signal(writer, 100), put_signal(writer, 101)]
    with monkeypatch.context() as patch:
        patch.setattr(type(archive._store), "put_if_absent", lambda *_: (_ for _ in ()).throw(ArchiveError("full")))
        with pytest.raises(ArchiveError, match="full"):
            writer.commit(manifest_of(files))
    writer.commit(manifest_of(files))
    assert as_set(archive.open_run(writer.run_id).manifest.files) == as_set(files)


def test_too_many_files_are_refused(archive: RunArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reuse_algos.archive.format.parts.MAX_FILES", 70)
    with pytest.raises(ArchiveError, match="71 files are too many: a run has at most 70"):
        grown(archive, 80)


def test_superseded_generations_are_thinned_when_asked(archive: RunArchive, tmp_path: object) -> None:
    writer, lists = grown(archive, 90)
    going, _ = grown(archive, 3)
    writer.finish()
    before = files_below(archive.root)
    assert archive.collect_garbage(thin=True).collected == [], "everything is young"
    for path in before.values():
        os.utime(path, (1, 1))
    planned = archive.collect_garbage(thin=True)
    assert files_below(archive.root) == before
    report = archive.collect_garbage(delete=True, thin=True)
    assert {path for path, _ in planned.collected} <= {path for path, _ in report.collected}
    assert generation_names(archive, writer) == ["g000090.json"]
    assert len(generation_names(archive, going)) == 3
    assert as_set(archive.run(writer.run_id).manifest.files) == as_set(lists[-1])
    assert archive.verify().ok
    assert archive.verify(quick=True).ok
    again = archive.collect_garbage(thin=True)
    assert (again.ok, again.collected, again.unknown) == (True, [], [])
    target = RunArchive(f"{tmp_path}/copy", create=True)
    assert archive.copy_to(target).ok
    assert target.verify().ok
    assert as_set(target.run(writer.run_id).manifest.files) == as_set(lists[-1])
    harvest, base = archive.resume_run(writer.run_id)
    harvest.commit(base)
    assert archive.verify().ok
    assert archive.copy_to(target).ok
    assert target.open_run(writer.run_id).manifest.generation == 92


def generation_names(archive: RunArchive, writer: RunWriter) -> list[str]:
    return archive._store.list(f"runs/{writer.run_id}/manifests")


def test_nothing_is_thinned_where_the_newest_generation_is_damaged(archive: RunArchive) -> None:
    writer, _ = grown(archive, 3)
    writer.finish()
    rewrite(archive.root / manifest_path(writer.run_id, 3), lambda data: data[:-3])
    for path in files_below(archive.root).values():
        os.utime(path, (1, 1))
    report = archive.collect_garbage(delete=True, thin=True)
    assert [problem.run_id for problem in report.problems] == [writer.run_id]
    assert len(generation_names(archive, writer)) == 3


def test_a_quick_check_looks_at_sizes_and_at_the_index(archive: RunArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reuse_algos.archive.index.update.ENOUGH_RUNS", 1)
    writer, _ = grown(archive, 2)
    writer.finish()
    assert archive.verify(quick=True).problems == []
    (shard,) = [item.path for item in archive._store.walk("index")]
    other, data = encode_shard(
        archive.archive_id, [msgspec.structs.replace(next(archive.summaries()), tags={"a": "b"})]
    )
    archive._store.put_if_absent(other, [data])
    rewrite(archive.root / shard, lambda data: data[:-1])
    file = next(path for name, path in files_below(archive.root).items() if "/data/signals/loss" in name)
    rewrite(file, lambda data: data[:-1])
    found = {problem.path: problem.what for problem in archive.verify(quick=True).problems}
    assert found.keys() == {shard, other, str(file.relative_to(archive.root))}
    assert "something else of run" in found[other]


def test_too_many_files_are_foreseen() -> None:
    check_foreseen_files(3 * 1000, 64)
    with pytest.raises(ArchiveError, match=r"160 ranks are 480000 files.*at most 200000.*last_epochs"):
        check_foreseen_files(3 * 1000, 160)
