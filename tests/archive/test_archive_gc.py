"""Row 15 and the rest about collecting garbage: it takes what nobody wants, and nothing else, whatever happens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from reuse_algos.archive import RunArchive, RunWriter
from reuse_algos.archive.upkeep import leases
from reuse_algos.archive.upkeep.collect import _look, collect_garbage
from reuse_algos.archive.upkeep.leases import Marker
from reuse_algos.errors import ArchiveConflictError, ArchiveError, ArchivePermissionError

from .conftest import MakeRun, files_below, manifest_of, put_files, rewrite, use_everything
from .dict_store import Clock, DictStore, keeping_time
from .torture import gc_interleavings

HOUR, DAY = 3600.0, 86400.0


def age(root: Path, days: float = 2, under: str = "runs") -> None:
    """Let everything be older."""
    for path in (root / under).rglob("*"):
        if path.is_file():
            os.utime(path, times=(path.stat().st_mtime - days * DAY,) * 2)


def add_garbage(archive: RunArchive, run_id: str) -> set[str]:
    """What a writer leaves behind that crashed before its commit: files, half a file, and a lease."""
    before = set(files_below(archive.root))
    crashed = archive.join_run(run_id, 7)
    put_files(crashed, epoch=3)
    crashed._lease.renew()
    half = archive.root / "runs" / run_id / "data" / "weights" / ".tmp-0123456789abcdef"
    half.write_bytes(b"half")
    return set(files_below(archive.root)) - before


def everything(root: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files_below(root).items()}


def test_a_collection_against_a_writer_in_many_interleavings() -> None:
    outcome = gc_interleavings.case(count=450)
    assert outcome.ok, outcome.notes
    assert outcome.tries == 450
    assert int(outcome.notes["commits"]) > 60  # else it would show nothing
    assert int(outcome.notes["refused commits"]) > 5
    assert int(outcome.notes["objects collected"]) > 15


def collect_without_a_marker(store: DictStore) -> None:
    found = _look(store, gc_interleavings.RUN, store.now(), HOUR)
    for item in (*found.files, *found.tidy):
        store.delete(item.path)


def collect_without_looking_again(store: DictStore) -> None:
    run_id = gc_interleavings.RUN
    found = _look(store, run_id, store.now(), HOUR)
    marker = Marker(store, run_id, paths=[item.path for item in found.files])
    for item in (*found.files, *found.tidy):
        store.delete(item.path)
    marker.withdraw()


@pytest.mark.parametrize("broken", [collect_without_a_marker, collect_without_looking_again])
def test_the_interleavings_notice_a_broken_collection(broken: gc_interleavings.Collector) -> None:
    assert gc_interleavings.case(count=60, collector=broken).torn > 0


def test_each_of_two_collections_protects_its_own_deletions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quicker one ends, and a writer puts its file again; the slower one has still to delete that very file."""
    monkeypatch.setattr(leases, "WAIT_SECONDS", -1.0)
    store = DictStore()
    writer = RunWriter(store, "a" * 32, "r", 1, run_name="r", generation=0)
    put_files(writer)
    store.age(2 * DAY)
    refused: list[str] = []

    def cut_in(request: str) -> None:
        if request.startswith("delete ") and "/data/" in request:
            store.before = lambda request: None
            assert len(collect_garbage(store, delete=True).collected) == 4
            with pytest.raises(ArchiveError, match="is being deleted") as caught:
                writer.commit(manifest_of(put_files(writer)))
            refused.append(str(caught.value))

    store.before = cut_in
    collect_garbage(store, delete=True)
    assert len(refused) == 1
    writer.commit(manifest_of(put_files(writer)))
    assert sum("/data/" in path for path in store.objects) == 4


def test_a_writer_that_slept_before_its_commit_notices_that_its_files_are_gone() -> None:
    """Between the check of the files and the put of the manifest the process is suspended, for longer than gc waits."""
    clock = Clock()
    store = DictStore(clock=clock)
    with keeping_time(clock):
        writer = RunWriter(store, "a" * 32, "r", 1, run_name="r", generation=0)
        files = put_files(writer)

        def sleep(request: str) -> None:
            if request.startswith("put ") and "/manifests/" in request:
                store.before = lambda request: None
                clock.sleep(2 * DAY)
                assert len(collect_garbage(store, delete=True).collected) == len(files)

        store.before = sleep
        with pytest.raises(ArchiveError, match="cannot be committed: .* is not there"):
            writer.commit(manifest_of(files))


def test_what_no_manifest_lists_is_collected(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    writer, base = archive.resume_run(run_id)
    writer.commit(manifest_of([*base.files, writer.put("weights", "best", {"w": torch.ones(3)})]))
    abandoned = archive.start_run("abandoned")
    never_committed = {f"runs/{abandoned.run_id}/{entry.path}" for entry in put_files(abandoned)}
    sound = set(files_below(archive.root)) - never_committed
    garbage = add_garbage(archive, run_id) | never_committed
    age(archive.root)
    before = everything(archive.root)
    dry = archive.collect_garbage()
    assert everything(archive.root) == before
    done = archive.collect_garbage(delete=True)
    assert {path for path, _ in done.collected} == garbage
    assert sorted(dry.collected) == sorted(done.collected)
    assert dry.bytes == done.bytes == sum(len(before[path]) for path in garbage)
    assert (done.runs, done.kept, done.ok, done.busy, done.unknown) == (2, 5, True, [], [])
    assert everything(archive.root) == {path: before[path] for path in sound}
    assert not (archive.root / "runs" / abandoned.run_id).exists()
    assert archive.verify().ok
    use_everything(archive, run_id)
    assert archive.collect_garbage(delete=True).collected == []


@pytest.mark.parametrize("young", ["data", "leases", "manifests", "final.json"])
def test_a_run_with_anything_young_is_left_alone(archive: RunArchive, make_run: MakeRun, young: str) -> None:
    run_id = make_run()
    add_garbage(archive, run_id)
    age(archive.root)
    path = archive.root / "runs" / run_id / young
    fresh = path if path.is_file() else next(found for found in path.rglob("*") if found.is_file())
    os.utime(fresh)
    before = everything(archive.root)
    report = archive.collect_garbage(delete=True)
    assert (report.collected, report.busy) == ([], [run_id])
    assert everything(archive.root) == before


def test_the_age_is_what_was_asked_for(archive: RunArchive, make_run: MakeRun) -> None:
    garbage = add_garbage(archive, make_run())
    age(archive.root, days=3 / 24)
    assert archive.collect_garbage(delete=True).collected == []
    assert archive.collect_garbage(delete=True, min_age_seconds=4 * 3600).collected == []
    assert len(archive.collect_garbage(delete=True, min_age_seconds=2 * 3600).collected) == len(garbage)
    with pytest.raises(ArchiveError, match="younger than an hour"):
        archive.collect_garbage(min_age_seconds=3599)


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_only_the_clock_of_the_store_counts(skew: float) -> None:
    """Files are 90 minutes old, and only what is older than an hour goes: this machine's clock must not decide."""
    store = DictStore(skew=skew)
    for minutes, name in ((90, "old"), (30, "young")):
        store.objects[f"runs/{name}/data/weights/last-1-{'0' * 16}.safetensors"] = (b"1", store.now() - minutes * 60)
    report = collect_garbage(store, delete=True, min_age_seconds=3600)
    assert not any("/young/" in path for path, _ in report.collected)
    assert any("/young/" in path for path in store.objects)


def damage_manifest(path: Path) -> None:
    rewrite(path, lambda data: data[:-20])


def lose_manifest(path: Path) -> None:
    path.unlink()


def add_unknown_manifest(path: Path) -> None:
    path.with_name("g1000000.json").write_bytes(b"{}")


@pytest.mark.parametrize("harm", [damage_manifest, lose_manifest, add_unknown_manifest])
@pytest.mark.parametrize("generation", [1, 2])
def test_a_run_that_cannot_be_judged_is_left_alone(archive: RunArchive, make_run: MakeRun, harm, generation) -> None:
    good, run_id = make_run(), make_run()
    writer, base = archive.resume_run(run_id)
    writer.finish()
    writer.commit(base)
    garbage = add_garbage(archive, good)
    add_garbage(archive, run_id)
    harm(archive.root / "runs" / run_id / "manifests" / f"g{generation:06d}.json")
    age(archive.root)
    before = everything(archive.root)
    report = archive.collect_garbage(delete=True)
    assert [problem.run_id for problem in report.problems] == [run_id]
    assert not report.ok
    assert everything(archive.root) == {path: data for path, data in before.items() if path not in garbage}


def test_a_run_of_a_newer_minor_version_is_left_alone(archive: RunArchive, make_run: MakeRun, monkeypatch) -> None:
    """It may list files in a field that this version does not know."""
    monkeypatch.setattr("reuse_algos.archive.run_writer.FORMAT", (1, 3))
    run_id = make_run()
    add_garbage(archive, run_id)
    age(archive.root)
    (problem,) = archive.collect_garbage(delete=True).problems
    assert "format 1.3" in problem.what


def test_what_is_no_part_of_an_archive_is_left_alone_and_named(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    notes = archive.root / "runs" / run_id / "notes.txt"
    notes.write_text("mine")
    other = archive.root / "runs" / run_id / "data" / "weights" / "mine.bin"
    other.write_text("mine")
    age(archive.root)
    report = archive.collect_garbage(delete=True)
    assert (sorted(report.unknown), report.collected) == (
        [f"runs/{run_id}/data/weights/mine.bin", f"runs/{run_id}/notes.txt"],
        [],
    )
    assert notes.exists()
    assert other.exists()


def test_a_dry_run_may_be_made_of_an_archive_that_may_only_be_read(archive: RunArchive, make_run: MakeRun) -> None:
    garbage = add_garbage(archive, make_run())
    age(archive.root)
    reader = RunArchive(archive.root, read_only=True)
    assert len(reader.collect_garbage().collected) == len(garbage)
    with pytest.raises(ArchivePermissionError):
        reader.collect_garbage(delete=True)
    assert garbage <= set(files_below(archive.root))


class StopError(BaseException):
    """A process ends here."""


def test_killed_at_every_request_and_repeated() -> None:
    """A killed collection harms no run and stops no writer, and the next one completes it."""
    requests = 0
    for kill_at in range(200):
        store = DictStore()
        writer = RunWriter(store, "a" * 32, "r", 1, run_name="r", generation=0)
        files = put_files(writer)
        writer.commit(manifest_of(files))
        put_files(writer, epoch=1)
        store.age(2 * DAY)
        requests = 0

        def count(request: str, kill_at: int = kill_at) -> None:
            nonlocal requests
            requests += 1
            if requests > kill_at:
                raise StopError

        store.before = count
        try:
            collect_garbage(store, delete=True)
        except StopError:
            pass
        else:
            break
        store.before = lambda request: None
        writer.commit(manifest_of(files))
        store.age(2 * DAY)
        report = collect_garbage(store, delete=True)
        assert report.ok
        assert not report.busy
        assert {entry.path for entry in files} <= {path.removeprefix("runs/r/") for path in store.objects}
        assert not [path for path in store.objects if "/gc/" in path or "/leases/" in path]
        assert sum("/data/" in path for path in store.objects) == len(files)
    assert requests > 10


def test_a_commit_waits_until_it_is_decided_whether_its_file_is_deleted(
    archive: RunArchive, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = archive.start_run("toy")
    files = put_files(writer)
    path = f"runs/{writer.run_id}/{files[0].path}"
    markers = [Marker(archive._store, writer.run_id, paths=[path])]
    monkeypatch.setattr(leases.time, "sleep", lambda seconds: markers.pop().withdraw())
    assert writer.commit(manifest_of(files)).generation == 1
    assert markers == []
    Marker(archive._store, writer.run_id, paths=[path])
    monkeypatch.setattr(leases, "WAIT_SECONDS", 0.0)
    with pytest.raises(ArchiveError, match=f"(?s){path} was unused.*reuse-algos gc") as caught:
        writer.commit(manifest_of(files))
    assert not isinstance(caught.value, ArchiveConflictError)
    writer.commit(manifest_of(files[1:]))  # what is not condemned can be committed


def test_a_commit_notices_that_its_files_were_collected(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    files = put_files(writer)
    age(archive.root)
    assert len(archive.collect_garbage(delete=True).collected) == len(files)
    with pytest.raises(ArchiveError, match="is not there"):
        writer.commit(manifest_of(files))
    writer.commit(manifest_of(put_files(writer)))
    assert archive.verify().ok


def test_a_commit_that_took_too_long_looks_again(archive: RunArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped between looking and committing must not trust what it saw."""
    looked: list[str] = []
    real = leases.read_markers

    def look(*arguments):
        if not looked:
            clock.sleep(4000)
        looked.append("markers")
        return real(*arguments)

    with keeping_time(clock := Clock()):
        writer = archive.start_run("toy")
        files = put_files(writer)
        monkeypatch.setattr(leases, "read_markers", look)
        writer.commit(manifest_of(files))
    assert len(looked) == 2


def test_an_ordinary_commit_puts_no_lease() -> None:
    """What was put a moment ago needs none, nor does what was committed before; what is neither does."""
    clock = Clock()
    store = DictStore(clock=clock)
    with keeping_time(clock):
        writer = RunWriter(store, "a" * 32, "r", 1, run_name="r", generation=0)
        put: list[str] = []
        store.before = lambda request: put.append(request) if request.startswith("put") else None
        files = put_files(writer)
        writer.commit(manifest_of(files))
        clock.sleep(3 * DAY)
        writer.commit(manifest_of([*files, writer.put("weights", "best", {"w": torch.ones(3)})]))
        assert not [request for request in put if "/leases/" in request]
        late = writer.put("weights", "late", {"w": torch.ones(3)})
        clock.sleep(HOUR / 2)
        writer.commit(manifest_of([*files, late]))
        assert len([request for request in put if "/leases/" in request]) == 1
        rank = RunWriter(store, "a" * 32, "r", 1)
        writer.commit(manifest_of([*files, rank.put("weights", "other", {"w": torch.ones(3)})]))
        again = writer.put("weights", "other", {"w": torch.ones(3)})  # it was there: who knows since when
        writer.commit(manifest_of([*files, again]))
        assert len([request for request in put if "/leases/" in request]) == 2
        assert not [path for path in store.objects if "/leases/" in path]


def test_a_collection_that_was_stopped_on_the_way_deletes_no_more(
    archive: RunArchive, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may have taken its marker for a dead one's by now."""
    garbage = add_garbage(archive, make_run())
    age(archive.root)
    monkeypatch.setattr("reuse_algos.archive.upkeep.collect.TRUST_SECONDS", -1.0)
    assert archive.collect_garbage(delete=True).collected == []
    assert garbage <= set(files_below(archive.root))
    monkeypatch.undo()
    assert {path for path, _ in archive.collect_garbage(delete=True).collected} == garbage


def test_many_files_are_collected_in_parts(
    archive: RunArchive, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    garbage = add_garbage(archive, make_run())
    age(archive.root)
    monkeypatch.setattr("reuse_algos.archive.upkeep.collect.BATCH", 2)
    assert {path for path, _ in archive.collect_garbage(delete=True).collected} == garbage


def test_a_lease_is_put_only_when_it_is_due() -> None:
    clock = Clock()
    store = DictStore(clock=clock)

    def held() -> list[str]:
        return [path for path in store.objects if "/leases/" in path]

    with keeping_time(clock):
        writer = RunWriter(store, "a" * 32, "r", 1, run_name="r", generation=0)
        files = put_files(writer)
        clock.sleep(800)
        writer.renew_lease()
        assert not held()
        clock.sleep(200)
        writer.renew_lease()
        (first,) = held()
        clock.sleep(200)
        writer.renew_lease()
        assert held() == [first]
        clock.sleep(DAY)
        writer.renew_lease()
        (second,) = held()
        assert second != first
        writer.commit(manifest_of(files))
        assert not held()  # it has done its service


def test_a_damaged_marker_stops_commits_of_its_run(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    files = put_files(writer)
    marker = Marker(archive._store, writer.run_id)
    rewrite(archive.root / marker.path, lambda data: data.replace(b"marker", b"mxrker"))
    with pytest.raises(ArchiveError, match=marker.path):
        writer.commit(manifest_of(files))


def test_progress_counts_runs(archive: RunArchive, make_run: MakeRun) -> None:
    for _ in range(3):
        make_run()
    seen: list[tuple[int, int]] = []
    archive.collect_garbage(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_lease_that_cannot_be_put_is_not_tried_all_the_time() -> None:
    clock = Clock()
    store = DictStore(clock=clock)
    tries: list[str] = []
    is_lost_answer = False

    def fail(request: str) -> None:
        if request.startswith("put") and "/leases/" in request:
            tries.append(request)
            if is_lost_answer:
                store.objects[request[4:]] = (b"", store.now())
            raise ArchiveError("no network")

    with keeping_time(clock):
        writer = RunWriter(store, "a" * 32, "r", 1, run_name="r", generation=0)
        files = put_files(writer)
        clock.sleep(1000)
        store.before = fail
        for minute in range(60):
            if minute % 4 == 0:
                with pytest.raises(ArchiveError, match="no network"):
                    writer.renew_lease()
            else:
                writer.renew_lease()  # nothing is asked of the store
            clock.sleep(60)
        assert len(tries) == 15
        assert len(set(tries)) == 1  # always the same name: there is never more than one to be taken away
        assert len(writer._lease._held) <= 1
        is_lost_answer = True
        with pytest.raises(ArchiveError, match="no network"):
            writer.renew_lease()
        clock.sleep(600)
        store.before = lambda request: None
        writer.renew_lease()
        (path,) = [path for path in store.objects if "/leases/" in path]
        assert path not in tries[-1]  # that one is as old as the put that seemed to fail
        assert store.objects[path][1] == store.now()
        writer.commit(manifest_of(files))
        assert not [path for path in store.objects if "/leases/" in path]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_commits_ask_for_the_sizes_of_new_files_only(concurrency: int) -> None:
    store = DictStore()
    store.concurrency = concurrency  # type: ignore[attr-defined]
    sizes: list[str] = []
    store.before = lambda request: sizes.append(request) if request.startswith("size ") else None
    writer = RunWriter(store, "a" * 32, "r", 1, run_name="r", generation=0)
    rank = RunWriter(store, "a" * 32, "r", 1)
    files = put_files(writer)
    for number in range(30):
        tensors = {"w": torch.tensor([number])}
        files = [*files, writer.put("weights", f"w{number}", tensors), rank.put("weights", f"rank{number}", tensors)]
        writer.commit(manifest_of(files))
    assert len([request for request in sizes if "/data/" in request]) == 6 + 29 * 2  # all at first, then the new ones
    assert len([request for request in sizes if "/manifests/" in request]) == 29  # is the run still there?
    path = f"runs/r/{rank.put('weights', 'gone', {'w': torch.ones(1)}).path}"
    gone = rank.put("weights", "gone", {"w": torch.ones(2)})
    del store.objects[f"runs/r/{gone.path}"]
    assert path in store.objects
    with pytest.raises(ArchiveError, match=f"{gone.path} is not there"):
        writer.commit(manifest_of([*files, gone]))


@pytest.mark.parametrize("committed", [False, True])
def test_a_writer_notices_that_its_run_was_removed_meanwhile(archive: RunArchive, committed: bool) -> None:
    """Though it would not look for files that it has put itself a moment ago."""
    writer = archive.start_run("toy")
    files = put_files(writer)
    if committed:
        writer.commit(manifest_of(files))
    archive.remove_run(writer.run_id, force=True)
    late = writer.put("weights", "late", {"w": torch.ones(3)})
    with pytest.raises(ArchiveError, match="was removed|is not there"):
        writer.commit(manifest_of([*files, late]))
    assert archive.run_ids() == []
