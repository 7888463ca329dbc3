"""Several writers: resuming, taking over, racing, many ranks, many processes."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import pytest
import torch

from reuse_algos.archive import RunArchive
from reuse_algos.errors import ArchiveConflictError, ArchiveError, RunNotFoundError

from .conftest import MONITOR, MakeRun, files_below, manifest_of, put_files
from .torture import processes


def commit_epochs(archive: RunArchive, epochs: int) -> str:
    writer = archive.start_run("toy")
    for epoch in range(epochs):
        writer.commit(manifest_of(put_files(writer, values=[0.1] * (epoch + 1), epoch=epoch), seed=epoch))
    return writer.run_id


def test_generations_count_up_and_stay_readable(archive: RunArchive) -> None:
    run_id = commit_epochs(archive, 3)
    run = archive.run(run_id)
    assert run.manifest.generation == 3
    for generation in (1, 2, 3):
        assert len(archive.open_run(run_id, generation).metric(MONITOR).value) == generation
    with pytest.raises(ArchiveError, match=r"g000004\.json is missing"):
        archive.open_run(run_id, 4)


def test_an_archive_whose_disk_is_gone_is_not_written(archive: RunArchive, tmp_path: Path) -> None:
    """An unmounted disk leaves an empty directory in its place, where a commit would be lost."""
    writer = archive.start_run("toy")
    writer.commit(manifest_of(put_files(writer)))
    archive.root.rename(tmp_path / "unmounted")
    archive.root.mkdir()
    with pytest.raises(ArchiveError, match="holds no archive, .*is its disk mounted"):
        writer.commit(manifest_of(put_files(writer)))
    other = RunArchive(archive.root, create=True)
    with pytest.raises(ArchiveError, match=f"is the archive {other.archive_id}"):
        writer.commit(manifest_of(put_files(writer)))
    assert not list(archive.root.glob("runs/*/manifests/*"))
    assert len(RunArchive(tmp_path / "unmounted").run(writer.run_id).metric(MONITOR).value) > 0


def test_a_run_opened_by_generation_must_exist(archive: RunArchive) -> None:
    for name in ("nope", "../x"):
        with pytest.raises(RunNotFoundError, match="there is no run"):
            archive.open_run(name, 1)
        with pytest.raises(RunNotFoundError, match="there is no run"):
            archive.open_run(name)


def test_a_signal_is_opened_once(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    writer.commit(manifest_of(put_files(writer)))
    run = archive.open_run(writer.run_id)
    (name, *_) = run.signal_names
    assert run.signal(name) is run.signal(name)


def test_a_prior_run_is_a_snapshot(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    writer.commit(manifest_of(put_files(writer)))
    run = archive.run(writer.run_id)
    writer.commit(manifest_of(put_files(writer, values=[1.0] * 5)))
    writer.finish()
    assert (len(run.metric(MONITOR).value), run.finished) == (2, False)
    assert (len(archive.run(run.id).metric(MONITOR).value), archive.run(run.id).finished) == (5, True)


def test_nothing_is_visible_before_the_commit(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    put_files(writer)
    assert archive.run_ids() == []
    assert archive.runs(unfinished=True) == []
    with pytest.raises(RunNotFoundError):
        archive.run(writer.run_id)
    with pytest.raises(ArchiveError, match="committed nothing"):
        writer.finish()


def test_finishing_twice_is_harmless(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    writer.commit(manifest_of([]))
    writer.finish()
    before = {name: path.read_bytes() for name, path in files_below(archive.root).items()}
    writer.finish()
    assert {name: path.read_bytes() for name, path in files_below(archive.root).items()} == before


@pytest.mark.parametrize(("asked", "base"), [(None, 3), (3, 3), (99, 3), (2, 2), (1, 1)])
def test_resuming_starts_from_the_newest_generation_not_later(
    archive: RunArchive, asked: int | None, base: int
) -> None:
    run_id = commit_epochs(archive, 3)
    writer, manifest = archive.resume_run(run_id, asked)
    assert (writer.run_id, writer.attempt, manifest.generation, manifest.seed) == (run_id, 2, base, base - 1)
    run = archive.run(run_id)  # rows after the base are gone for readers too
    assert len(run.metric(MONITOR).value) == base
    assert (run.manifest.generation, run.manifest.attempt) == (4, 2)
    committed = writer.commit(manifest_of(put_files(writer, values=[0.9] * 7)))
    assert (committed.generation, committed.created_at) == (5, manifest.created_at)
    assert len(archive.run(run_id).metric(MONITOR).value) == 7
    assert archive.verify().ok


def test_resuming_needs_a_generation(archive: RunArchive) -> None:
    run_id = commit_epochs(archive, 1)
    with pytest.raises(RunNotFoundError, match="no generation up to 0"):
        archive.resume_run(run_id, 0)
    with pytest.raises(RunNotFoundError, match=f"Did you mean '{run_id}'"):
        archive.resume_run(run_id + "0")


def test_a_finished_run_can_be_resumed(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    writer, _ = archive.resume_run(run_id)
    writer.commit(manifest_of(put_files(writer, values=[0.5] * 9)))
    writer.finish()
    assert len(archive.run(run_id).metric(MONITOR).value) == 9
    assert archive.verify().ok


def test_a_zombie_attempt_loses(archive: RunArchive) -> None:
    zombie = archive.start_run("toy")
    zombie.commit(manifest_of(put_files(zombie), seed=1))
    heir, base = archive.resume_run(zombie.run_id)
    stale = put_files(zombie, epoch=5)
    for _ in range(2):
        with pytest.raises(ArchiveConflictError, match=r"another attempt took over this run.*attempt 2.*attempt 1"):
            zombie.commit(manifest_of(stale, seed=666))
        with pytest.raises(ArchiveConflictError, match="another attempt took over this run"):
            zombie.finish()
    heir.commit(manifest_of(base.files, seed=2))
    run = archive.run(zombie.run_id)
    assert (run.manifest.seed, run.manifest.attempt, run.finished) == (2, 2, False)


def test_each_attempt_has_its_own_number(archive: RunArchive) -> None:
    run_id = commit_epochs(archive, 1)
    assert [archive.resume_run(run_id, 1)[0].attempt for _ in range(3)] == [2, 3, 4]


def test_a_commit_that_became_visible_though_it_failed_is_gone_on_from(
    archive: RunArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory's sync fails after the link: the manifest may be there, but it was never acknowledged."""
    writer = archive.start_run("toy")
    files = put_files(writer)
    put = type(writer._store).put_if_absent

    def put_and_fail(*arguments: object) -> None:
        put(*arguments)  # type: ignore[arg-type]
        if "/manifests/" in str(arguments[1]):
            raise ArchiveError("I/O error")

    monkeypatch.setattr(type(writer._store), "put_if_absent", put_and_fail)
    with pytest.raises(ArchiveError, match="I/O error"):
        writer.commit(manifest_of(files, seed=1))
    monkeypatch.undo()
    assert writer.commit(manifest_of(files, seed=2)).generation == 2
    assert archive.run(writer.run_id).manifest.seed == 2


def test_other_ranks_put_and_do_not_commit(archive: RunArchive) -> None:
    writer = archive.start_run("ranks")
    ranks = [writer, *(archive.join_run(writer.run_id, writer.attempt) for _ in range(2))]
    meta = {"slot": 0, "encoding": "dense"}
    entries = [
        rank.put("signals", "loss", {"ids": torch.tensor([i, i + 6]), "values": torch.full((2,), float(i))}, meta)
        for i, rank in enumerate(ranks)
    ]
    for rank in ranks[1:]:
        with pytest.raises(ArchiveError, match="the rank that started it commits"):
            rank.commit(manifest_of(entries))
        with pytest.raises(ArchiveError, match="the rank that started it commits"):
            rank.finish()
    writer.commit(manifest_of(entries))
    values, seen = archive.run(writer.run_id).signal("loss").dense(0)
    assert values.tolist() == [0, 1, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0]
    assert seen.nonzero().squeeze(1).tolist() == [0, 1, 2, 6, 7, 8]


def test_two_ranks_may_put_the_same_content(archive: RunArchive) -> None:
    writer = archive.start_run("ranks")
    empty = {"ids": torch.empty(0, dtype=torch.int64), "values": torch.empty(0)}
    entries = [
        rank.put("signals", "loss", empty, {"slot": 0, "rank": number})
        for number, rank in enumerate([writer, archive.join_run(writer.run_id, 1)])
    ]
    writer.commit(manifest_of(entries))
    assert archive.verify().ok
    assert not archive.run(writer.run_id).signal("loss").seen(0).any()


def test_threads_may_put_at_once(archive: RunArchive) -> None:
    writer = archive.start_run("threads")
    entries: list = []
    tensors = [{"w": torch.full((100,), float(number % 4))} for number in range(16)]
    threads = [threading.Thread(target=lambda t=t: entries.append(writer.put("weights", "last", t))) for t in tensors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entries) == 16
    writer.commit(manifest_of(entries))
    assert len(files_below(archive.root / "runs" / writer.run_id / "data")) == 4
    assert archive.verify().ok


def test_of_attempts_at_one_generation_exactly_one_wins(tmp_path: Path) -> None:
    outcome = processes.race(tmp_path, count=10)
    assert (outcome.tries, outcome.ok) == (10, True), outcome
    assert int(outcome.notes["different winners"]) > 1, "they do not race"


def test_writers_and_readers_at_once(tmp_path: Path) -> None:
    """Many processes write runs while others read: they see only sound runs, whose generations never go back."""
    outcome = processes.crowd(tmp_path, count=5, writers=4)
    assert (outcome.tries, outcome.ok) == (20, True), outcome
    assert int(outcome.notes["reads"]) >= 20


def make_archive(root: Path, gate: object, log: Path) -> None:
    gate.wait()  # type: ignore[attr-defined]
    with log.open("a") as ids:
        ids.write(RunArchive(root, create=True).archive_id + "\n")


def test_an_archive_made_by_several_at_once_has_one_identity(tmp_path: Path) -> None:
    gate = multiprocessing.get_context("fork").Barrier(4)
    root = tmp_path / "a" / "b" / "archive"
    makers = [processes.start_process(make_archive, root, gate, tmp_path / "log") for _ in range(4)]
    for process in makers:
        process.join()
    ids = (tmp_path / "log").read_text().split()
    assert ids == [RunArchive(root).archive_id] * 4
