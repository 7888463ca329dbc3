"""Removing runs: nothing else is touched, no reader sees an older generation, and what was begun can be completed."""

from __future__ import annotations

import json
import threading
import time
import warnings
from pathlib import Path

import pytest

from reuse_algos.archive import RunArchive, RunWriter
from reuse_algos.archive.format.generations import read_latest
from reuse_algos.archive.upkeep.leases import Marker, read_markers
from reuse_algos.archive.upkeep.removal import remove_run
from reuse_algos.errors import ArchiveConflictError, ArchiveCorruptError, RunNotFoundError

from .conftest import MakeRun, files_below, manifest_of, put_files
from .dict_store import DictStore

DAY = 86400.0


def write_generations(store: DictStore, run_id: str, count: int = 3, *, finish: bool = True) -> RunWriter:
    writer = RunWriter(store, "a" * 32, run_id, 1, run_name=run_id, generation=0)
    for epoch in range(count):
        writer.commit(manifest_of(put_files(writer, epoch=epoch), seed=epoch))
    if finish:
        writer.finish()
    return writer


def test_a_run_goes_with_all_that_is_its_own(archive: RunArchive, make_run: MakeRun) -> None:
    keep, gone = make_run(), make_run()
    (archive.root / "runs" / gone / "data" / "weights" / ".tmp-0123456789abcdef").write_bytes(b"half")
    before = files_below(archive.root)
    report = archive.remove_run(gone)
    assert (report.run_id, report.files) == (gone, 7)
    assert report.bytes > 0
    assert set(files_below(archive.root)) == {path for path in before if gone not in path}
    assert not (archive.root / "runs" / gone).exists()
    assert archive.run_ids() == [keep]
    assert archive.verify().ok
    with pytest.raises(RunNotFoundError, match=gone):
        archive.remove_run(gone)


@pytest.mark.parametrize("name", ["nope", "..", "a/b", "", "../runs"])
def test_what_is_no_run_is_not_removed(archive: RunArchive, make_run: MakeRun, name: str) -> None:
    make_run()
    before = files_below(archive.root)
    with pytest.raises(RunNotFoundError, match="nothing of a run"):
        archive.remove_run(name)
    assert files_below(archive.root) == before


def test_a_run_that_may_be_written_is_refused_unless_forced(archive: RunArchive) -> None:
    writer = archive.start_run("busy")
    files = put_files(writer)
    writer.commit(manifest_of(files))
    before = files_below(archive.root)
    with pytest.raises(ArchiveConflictError, match="may still be written.*0 minutes old"):
        archive.remove_run(writer.run_id)
    assert files_below(archive.root) == before
    archive.remove_run(writer.run_id, force=True)
    with pytest.raises(ArchiveConflictError, match="was removed"):
        writer.commit(manifest_of([]))
    with pytest.raises(ArchiveConflictError, match="was removed"):
        writer.commit(manifest_of(put_files(writer)))
    assert archive.run_ids() == []


def test_a_run_that_died_long_ago_can_be_removed() -> None:
    store = DictStore()
    writer = write_generations(store, "died", finish=False)
    writer._lease.renew()
    store.age(2 * DAY)
    remove_run(store, "died")
    assert store.objects == {}


def test_a_finished_run_that_somebody_adds_to_is_refused() -> None:
    """A harvest, for example."""
    store = DictStore()
    write_generations(store, "r")
    RunWriter(store, "a" * 32, "r", 2)._lease.renew()
    with pytest.raises(ArchiveConflictError, match="leases/2-"):
        remove_run(store, "r")


def test_a_writer_that_wakes_up_between_the_look_and_the_marker_is_noticed() -> None:
    store = DictStore()
    writer = write_generations(store, "r", finish=False)
    store.age(2 * DAY)
    before = dict(store.objects)

    def wake_up(request: str) -> None:
        if request.startswith("put runs/r/gc/"):
            store.before = lambda request: None
            writer._lease.renew()

    store.before = wake_up
    with pytest.raises(ArchiveConflictError, match="may still be written"):
        remove_run(store, "r")
    assert before.items() <= store.objects.items()
    assert not [path for path in store.objects if "/gc/" in path]


def test_a_damaged_run_can_be_removed(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    (archive.root / "runs" / run_id / "manifests" / "g000001.json").write_bytes(b"{}")
    archive.remove_run(run_id)
    assert not (archive.root / "runs" / run_id).exists()


class StopError(BaseException):
    """A process ends here."""


def test_killed_at_every_request_and_repeated() -> None:
    """Readers see the newest generation or no run at every moment; and repeating it completes it, without force."""
    for kill_at in range(200):
        store = DictStore()
        write_generations(store, "r")
        write_generations(store, "other", 1)
        other = {path for path in store.objects if "/other/" in path}
        requests = 0

        def count(request: str, kill_at: int = kill_at) -> None:
            nonlocal requests
            requests += 1
            if requests > kill_at:
                raise StopError

        store.before = count
        try:
            remove_run(store, "r")
        except StopError:
            completed = False
        else:
            completed = True
        store.before = lambda request: None
        latest = read_latest(store, "r")
        assert latest is None or (latest[0].generation, latest[0].seed) == (3, 2)
        if completed:
            break
        if any(path.startswith("runs/r/") for path in store.objects):
            remove_run(store, "r")
        assert set(store.objects) == other
    else:
        pytest.fail("it never came to an end")


def test_an_interrupted_removal_is_a_problem_that_verify_names(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    marker = Marker(archive._store, run_id, everything=True)
    (problem,) = archive.verify().problems
    assert (problem.run_id, problem.path) == (run_id, marker.path)
    assert "remove it again" in problem.what
    (skipped,) = archive.collect_garbage(delete=True, min_age_seconds=3600).problems
    assert "remove it again" in skipped.what
    assert json.loads((archive.root / marker.path).read_bytes())["content"]["everything"] is True
    archive.remove_run(run_id)
    assert archive.verify().ok


def test_of_two_removals_at_once_both_end_well() -> None:
    for switch_at in range(40):
        store = DictStore()
        write_generations(store, "r")
        requests = 0

        def cut_in(request: str, store: DictStore = store, switch_at: int = switch_at) -> None:
            nonlocal requests
            requests += 1
            if requests == switch_at:
                store.before = lambda request: None
                remove_run(store, "r")

        store.before = cut_in
        try:
            remove_run(store, "r")
        except RunNotFoundError:
            assert switch_at == 1
        assert store.objects == {}


def test_readers_meanwhile_see_the_newest_generation_or_no_run(archive: RunArchive) -> None:
    for _ in range(6):
        writer = archive.start_run("toy")
        for epoch in range(5):
            writer.commit(manifest_of([], seed=epoch))
        writer.finish()
        ended = threading.Event()
        seen: list[object] = []

        def read(writer: RunWriter = writer, ended: threading.Event = ended, seen: list[object] = seen) -> None:
            while not ended.is_set():
                try:
                    seen.append(archive.run(writer.run_id).manifest.generation)
                except RunNotFoundError:
                    seen.append(0)
                except Exception as error:
                    seen.append(error)
                    return

        reader = threading.Thread(target=read)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.start()
            while not seen:
                time.sleep(0.001)
            archive.remove_run(writer.run_id)
            ended.set()
            reader.join()
        assert set(seen) <= {5, 0}


def test_a_commit_while_a_run_is_being_removed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reuse_algos.archive.upkeep.leases.WAIT_SECONDS", -1.0)
    store = DictStore()
    writer = write_generations(store, "r")
    Marker(store, "r", everything=True)
    with pytest.raises(ArchiveConflictError, match="is being removed"):
        writer.commit(manifest_of([]))


def test_a_marker_in_the_wrong_place_is_refused() -> None:
    store = DictStore()
    marker = Marker(store, "a", everything=True)
    store.objects[marker.path.replace("/a/", "/b/")] = store.objects[marker.path]
    with pytest.raises(ArchiveCorruptError, match="wrong place"):
        read_markers(store, "b")


def test_progress_reaches_its_end(archive: RunArchive, make_run: MakeRun) -> None:
    seen: list[tuple[int, int]] = []
    archive.remove_run(make_run(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 6) for number in range(1, 7)]


def test_a_removed_run_leaves_no_folder(archive: RunArchive, make_run: MakeRun) -> None:
    archive.remove_run(make_run())
    assert [path.name for path in Path(archive.root).iterdir()] == ["archive.json"]
