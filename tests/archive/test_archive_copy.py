"""Copying runs: complete and proven, or not visible; interrupted, it goes on; and nothing there is ever replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reuse_algos.archive import LocalStore, RunArchive, copy_runs
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.upkeep.collect import collect_garbage
from reuse_algos.errors import ArchiveConflictError, ArchiveError, ArchivePermissionError, RunNotFoundError

from .conftest import MakeRun, files_below, manifest_of, put_files, rewrite, use_everything
from .dict_store import DictStore
from .traced_os import TracedOS, fail_at

DAY = 86400.0


@pytest.fixture
def target(tmp_path: Path) -> RunArchive:
    return RunArchive(tmp_path / "target", create=True)


def runs_in(archive: RunArchive) -> dict[str, bytes]:
    return {path: file.read_bytes() for path, file in files_below(archive.root).items() if path.startswith("runs/")}


def test_runs_come_over_byte_by_byte(archive: RunArchive, target: RunArchive, make_run: MakeRun) -> None:
    finished, unfinished = make_run(), make_run(finished=False)
    archive.resume_run(finished)
    put_files(archive.start_run("never committed"))
    crashed = archive.join_run(finished, 9)
    put_files(crashed, epoch=5)
    crashed._lease.renew()
    report = archive.copy_to(target)
    assert (report.runs, report.files, report.there, report.problems) == (2, 8, 0, [])
    assert report.bytes == sum(len(data) for path, data in runs_in(target).items() if "/data/" in path)
    copied = runs_in(target)
    assert copied.items() <= runs_in(archive).items()
    assert len(copied) == 8 + 3 + 1  # data, manifests, and one mark that a run ended: and nothing else
    assert target.verify().ok
    for run_id in (finished, unfinished):
        use_everything(target, run_id)
        assert target.run(run_id).manifest == archive.run(run_id).manifest
        assert target.run(run_id).finished == (run_id == finished)
    again = archive.copy_to(target)
    assert (again.runs, again.files, again.there, again.bytes) == (2, 0, 8, 0)
    assert runs_in(target) == copied


def test_only_the_runs_asked_for(archive: RunArchive, target: RunArchive, make_run: MakeRun) -> None:
    first, _ = make_run(), make_run()
    assert archive.copy_to(target, [first]).runs == 1
    assert target.run_ids() == [first]
    with pytest.raises(RunNotFoundError, match="'nope'"):
        archive.copy_to(target, ["nope"])


def test_what_is_added_later_follows(archive: RunArchive, target: RunArchive) -> None:
    """As a recorder does that passes every commit on: nothing is read twice."""
    writer = archive.start_run("toy")
    known: set[str] = set()
    files = []
    for epoch in range(4):
        files = [*files, *put_files(writer, epoch=epoch)] if epoch else put_files(writer)
        writer.commit(manifest_of(_newest(files)))
        source = Counting(archive._store)
        report = copy_runs(source, Counting(target._store), [writer.run_id], known=known)
        assert report.ok
        assert source.streamed == report.files
        assert report.there == 0
        assert target.run(writer.run_id).manifest.generation == epoch + 1
    writer.finish()
    source, there = Counting(archive._store), Counting(target._store)
    report = copy_runs(source, there, [writer.run_id], known=known)
    assert (report.files, report.there, source.streamed, there.streamed) == (0, 0, 0, 0)
    assert target.run(writer.run_id).finished
    assert target.verify().ok


def _newest(files: list[Any]) -> list[Any]:
    return list({(entry.kind, entry.name, entry.meta.get("slot")): entry for entry in files}.values())


class Counting:
    """A store that counts how often a file was read through."""

    def __init__(self, store: Store) -> None:
        self._store, self.streamed = store, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def stream(self, path: str) -> Any:
        self.streamed += 1
        return self._store.stream(path)


class StopError(BaseException):
    """A process ends here."""


def stopping(kill_at: int, error: Callable[[], BaseException]) -> Callable[[str], None]:
    requests = 0

    def before(request: str) -> None:
        nonlocal requests
        requests += 1
        if requests > kill_at:
            raise error()

    return before


@pytest.mark.parametrize("error", [StopError, lambda: ArchiveError("no network")])
def test_stopped_at_every_request_and_repeated(
    archive: RunArchive, make_run: MakeRun, error: Callable[[], BaseException]
) -> None:
    run_id = make_run()
    archive.resume_run(run_id)
    for kill_at in range(300):
        store = DictStore()
        store.before = stopping(kill_at, error)
        try:
            copy_runs(archive._store, store)
        except (StopError, ArchiveError):
            completed = False
        else:
            completed = True
        store.before = lambda request: None
        check_visible(store, run_id, 8 if completed else 0)
        if completed:
            break
        store.age(2 * DAY)  # and it is repeated days later
        assert copy_runs(archive._store, store).ok
        check_visible(store, run_id, 8)
    else:
        pytest.fail("it never came to an end")
    assert kill_at > 15


def check_visible(store: DictStore, run_id: str, at_least: int) -> None:
    """What can be seen is complete, at every moment."""
    there = {path for path in store.objects if path.startswith(f"runs/{run_id}/")}
    if any("/manifests/" in path for path in there):
        assert sum("/data/" in path for path in there) == 4
    if any(path.endswith("final.json") for path in there):
        assert sum("/manifests/" in path for path in there) == 2
    assert sum("/leases/" not in path for path in there) >= min(at_least, 7)


def test_stopped_at_every_change_of_a_disk_and_repeated(
    archive: RunArchive, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = make_run()
    source = archive._store
    for index in range(2, 400, 7):
        target = LocalStore(tmp_path / str(index))
        monkeypatch.setattr("reuse_algos.archive.stores.local.os", TracedOS(fail_at(index, StopError)))
        try:
            copy_runs(source, target)
        except StopError:
            completed = False
        else:
            completed = True
        monkeypatch.setattr("reuse_algos.archive.stores.local.os", TracedOS())
        there = RunArchive(tmp_path / str(index), create=True)
        assert there.verify().ok
        assert there.run_ids() in ([], [run_id])
        assert archive.copy_to(there).ok
        use_everything(there, run_id)
        if completed:
            return
    pytest.fail("it never came to an end")


def flip(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 4]) + data[-2:]


@pytest.mark.parametrize("kind", ["data/weights", "data/signals", "manifests"])
@pytest.mark.parametrize("harm", [flip, lambda data: data[:-1], lambda data: data + b"x"])
def test_a_damaged_run_is_reported_and_the_others_are_copied(
    archive: RunArchive, target: RunArchive, make_run: MakeRun, kind: str, harm: Callable[[bytes], bytes]
) -> None:
    runs = [make_run() for _ in range(3)]
    bad = sorted(runs)[1]
    (file,) = (archive.root / "runs" / bad / kind).iterdir()
    rewrite(file, harm)
    report = archive.copy_to(target)
    (problem,) = report.problems
    assert problem.run_id == bad
    assert file.name in problem.what
    assert str(archive.root) in problem.what or kind == "manifests"
    assert not report.ok
    assert target.run_ids() == sorted(set(runs) - {bad})
    assert target.verify().ok
    assert not (target.root / file.relative_to(archive.root)).exists()
    assert not [path for path in files_below(target.root) if "/leases/" in path]


def test_a_run_with_a_lost_generation_is_damaged(archive: RunArchive, target: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    archive.resume_run(run_id)
    (archive.root / "runs" / run_id / "manifests" / "g000001.json").unlink()
    (problem,) = archive.copy_to(target).problems
    assert "g000001.json is missing" in problem.what
    assert target.run_ids() == []


def test_another_run_of_the_same_id_is_not_replaced(archive: RunArchive, target: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run(finished=False)
    assert archive.copy_to(target).ok
    mine, _ = archive.resume_run(run_id)
    theirs, _ = target.resume_run(run_id)  # both go on: from here on they are different runs
    mine.finish()
    theirs.finish()
    before = runs_in(target)
    (problem,) = archive.copy_to(target).problems
    assert "g000002.json" in problem.what
    assert "another one in the target" in problem.what
    assert str(archive.root) in problem.what
    assert str(target.root) in problem.what
    assert runs_in(target) == before


def test_a_target_that_has_gone_on_stays_as_it_is(archive: RunArchive, target: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run(finished=False)
    assert archive.copy_to(target).ok
    target.resume_run(run_id)
    before = runs_in(target)
    archive.join_run(run_id, 1)
    report = archive.copy_to(target)
    assert (report.ok, report.runs) == (True, 1)
    assert runs_in(target) == before


def test_a_file_in_the_target_that_is_not_what_it_should_be(
    archive: RunArchive, target: RunArchive, make_run: MakeRun
) -> None:
    run_id = make_run()
    archive.copy_to(target)
    (file,) = (target.root / "runs" / run_id / "data" / "weights").iterdir()
    sound = file.read_bytes()
    rewrite(file, flip)
    (problem,) = archive.copy_to(target).problems
    assert f"{target.root}/runs/{run_id}/data/weights/{file.name} is damaged" in problem.what
    assert archive.copy_to(target, recheck=False).ok  # which looks at sizes only
    rewrite(file, lambda data: sound[:-1])
    (problem,) = archive.copy_to(target, recheck=False).problems
    assert file.name in problem.what
    (target.root / "runs" / run_id / "manifests" / "g000001.json").unlink()
    (target.root / "runs" / run_id / "final.json").unlink()
    (problem,) = archive.copy_to(target, recheck=False).problems  # of a run that is not visible there all is checked
    assert file.name in problem.what
    assert target.run_ids() == []


def test_files_collected_in_the_target_meanwhile_do_not_make_a_torn_run(archive: RunArchive, make_run: MakeRun) -> None:
    """A copy was interrupted days ago; the next one finds its files, and a collection takes them at that moment."""
    make_run()
    store = DictStore()

    def stop(request: str) -> None:
        if request.startswith("put ") and "/manifests/" in request:
            raise StopError

    store.before = stop
    with pytest.raises(StopError):
        copy_runs(archive._store, store)
    store.before = lambda request: None
    assert sum("/data/" in path for path in store.objects) == 4
    store.age(2 * DAY)

    def cut_in(request: str) -> None:
        if request.startswith("put ") and "/leases/" in request:
            store.before = lambda request: None
            assert collect_garbage(store, delete=True).collected

    store.before = cut_in
    assert copy_runs(archive._store, store).ok
    files = archive.run(archive.run_ids()[0]).manifest.files
    assert all(f"runs/{archive.run_ids()[0]}/{entry.path}" in store.objects for entry in files)


def test_a_run_that_is_removed_in_the_target_meanwhile(
    archive: RunArchive, target: RunArchive, make_run: MakeRun
) -> None:
    run_id = make_run(finished=False)
    known: set[str] = set()
    archive.copy_to(target, known=known)
    target.remove_run(run_id, force=True)
    archive.resume_run(run_id)
    assert archive.copy_to(target, known=known).ok  # all of it once more, whatever was known
    assert target.run(run_id).manifest == archive.run(run_id).manifest
    assert target.verify().ok
    use_everything(target, run_id)


@pytest.mark.parametrize("more", [False, True])
def test_a_finished_run_that_is_removed_in_the_target_comes_again(
    archive: RunArchive, target: RunArchive, make_run: MakeRun, more: bool
) -> None:
    run_id = make_run()
    known: set[str] = set()
    archive.copy_to(target, known=known)
    target.remove_run(run_id)
    if more:
        make_run()
    steps: list[tuple[int, int]] = []
    report = archive.copy_to(target, known=known, progress=lambda *step: steps.append(step))
    assert (report.ok, report.runs, report.files) == (True, 1 + more, 4 * (1 + more))
    assert steps[-1][0] == steps[-1][1]
    assert all(done <= total for done, total in steps)
    assert target.run(run_id).finished
    assert target.verify().ok


def test_a_known_file_that_is_really_gone_is_a_problem(
    archive: RunArchive, target: RunArchive, make_run: MakeRun
) -> None:
    """If it cannot be brought again either."""
    run_id = make_run(finished=False)
    known: set[str] = set()
    archive.copy_to(target, known=known)
    target.remove_run(run_id, force=True)
    entry = archive.run(run_id).manifest.files[0]
    (archive.root / "runs" / run_id / entry.path).unlink()
    (problem,) = archive.copy_to(target, known=known).problems
    assert f"{entry.path} is missing" in problem.what
    assert target.run_ids() == []


def test_passing_commits_on_asks_for_few_sizes(archive: RunArchive) -> None:
    store, known, sizes = DictStore(), set[str](), []
    store.before = lambda request: sizes.append(request) if request.startswith("size ") else None
    writer = archive.start_run("toy")
    files = put_files(writer)
    for number in range(30):
        files = [*files, writer.put("weights", f"w{number}", {"w": torch.tensor([number])})]
        writer.commit(manifest_of(files))
        assert copy_runs(archive._store, store, [writer.run_id], known=known).ok
    assert len(sizes) <= 30 * 3 + 8  # the new file before and after it is put, and the manifest before


def test_only_runs_with_tags(archive: RunArchive, target: RunArchive, make_run: MakeRun) -> None:
    wanted, other, damaged = make_run(tags={"study": "a"}), make_run(tags={"study": "b"}), make_run(tags={"study": "a"})
    rewrite(archive.root / "runs" / damaged / "manifests" / "g000001.json", lambda data: data[:-9])
    report = archive.copy_to(target, tags={"study": "a"})
    assert [problem.run_id for problem in report.problems] == [damaged]
    assert "its tags cannot be read" in report.problems[0].what
    assert (report.runs, target.run_ids(uncommitted=True)) == (1, [wanted])
    assert archive.copy_to(target, [other, wanted], tags={"study": ["b", "c"]}).ok
    assert target.run_ids() == sorted([wanted, other])


def test_two_copies_at_once(archive: RunArchive, make_run: MakeRun) -> None:
    make_run()
    for switch_at in range(1, 30):
        store = DictStore()
        requests = 0

        def cut_in(request: str, store: DictStore = store, switch_at: int = switch_at) -> None:
            nonlocal requests
            requests += 1
            if requests == switch_at:
                store.before = lambda request: None
                assert copy_runs(archive._store, store).ok

        store.before = cut_in
        assert copy_runs(archive._store, store).ok
        assert sum("/data/" in path for path in store.objects) == 4
        assert not [path for path in store.objects if "/leases/" in path]


def test_a_target_that_may_not_be_written(archive: RunArchive, target: RunArchive, make_run: MakeRun) -> None:
    make_run()
    with pytest.raises(ArchivePermissionError):
        archive.copy_to(RunArchive(target.root, read_only=True))


def test_one_unreadable_file_is_damage_but_a_lost_store_is_an_error(
    archive: RunArchive, target: RunArchive, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sorted([make_run(), make_run()])
    real = archive._store.stream

    def fail(path: str) -> Any:
        if first in path:
            raise ArchiveError(f"cannot read {path}: Input/output error")
        yield from real(path)

    monkeypatch.setattr(archive._store, "stream", fail)
    (problem,) = archive.copy_to(target).problems
    assert problem.run_id == first
    assert target.run_ids() == [second]

    def gone(path: str) -> None:
        raise ArchiveError("no network")

    monkeypatch.setattr(archive._store, "size", gone)
    with pytest.raises(ArchiveError, match="no network"):
        archive.copy_to(target)


def test_progress_counts_bytes_up_to_the_end(archive: RunArchive, target: RunArchive, make_run: MakeRun) -> None:
    make_run()
    for _ in range(2):  # copied, then checked
        seen: list[tuple[int, int]] = []
        archive.copy_to(target, progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert len({total for _, total in seen}) == 1
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1][0] == seen[-1][1] > 0


def test_a_conflict_that_appears_on_the_way(archive: RunArchive, make_run: MakeRun) -> None:
    """Somebody else puts another manifest at the last moment."""
    make_run()
    store = DictStore()

    def cut_in(request: str) -> None:
        if request.startswith("put ") and "/manifests/" in request:
            store.objects[request.removeprefix("put ")] = (b"{}", store.now())

    store.before = cut_in
    (problem,) = copy_runs(archive._store, store).problems
    assert "another one in the target" in problem.what
    assert "that cannot be read" in problem.what
    assert issubclass(ArchiveConflictError, ArchiveError)
