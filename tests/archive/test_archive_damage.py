"""Damage of any kind is detected, and the error names the run and the file."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from reuse_algos.archive import RunArchive, copy_runs
from reuse_algos.archive.upkeep.verify import verify_archive
from reuse_algos.errors import ArchiveCorruptError, ArchiveError, ArchiveVersionError, ArchiveWarning

from .conftest import MONITOR, MakeRun, files_below, manifest_of, put_files, rewrite
from .dict_store import DictStore
from .torture import bit_flips, changed_files


def flip(bit: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        return bytes(damaged)

    return change


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    outcome = bit_flips.small(tmp_path, count=60)
    assert (outcome.tries >= 7 * 50, outcome.ok) == (True, True), outcome


def test_flipped_bits_of_a_large_run_are_found(tmp_path: Path) -> None:
    outcome = bit_flips.large(tmp_path, count=32)
    assert (outcome.tries, outcome.ok) == (32, True), outcome


def test_truncated_extended_swapped_and_deleted_files_are_found(tmp_path: Path) -> None:
    outcome = changed_files.case(tmp_path, count=6)
    assert (outcome.tries > 300, outcome.ok) == (True, True), outcome
    assert str(outcome.notes["deletions left out"]).startswith("2: each run's final.json")


def test_an_older_manifest_in_a_newer_place_is_found(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    for epoch in range(3):
        writer.commit(manifest_of(put_files(writer, epoch=epoch)))
    manifests = archive.root / "runs" / writer.run_id / "manifests"
    rewrite(manifests / "g000003.json", lambda _: (manifests / "g000002.json").read_bytes())
    with pytest.warns(
        ArchiveWarning, match=r"generation 3 cannot .*g000003\.json is in the wrong place.*generation 2 is"
    ):
        assert archive.run(writer.run_id).manifest.generation == 2
    assert len(archive.verify().problems) == 1


def test_a_damaged_newest_generation_is_no_silent_step_back(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    for epoch in range(2):
        writer.commit(manifest_of(put_files(writer, values=[0.5] * (epoch + 1), epoch=epoch)))
    newest = archive.root / "runs" / writer.run_id / "manifests" / "g000002.json"
    rewrite(newest, lambda data: data[:-40])
    said = rf"{writer.run_id} is not as .*generation 2 cannot .*g000002\.json is damaged.*generation 1 is read instead"
    for select in (
        lambda archive: archive.run(writer.run_id),
        lambda archive: archive.run("toy"),
        lambda archive: archive.open_run(writer.run_id),
        lambda archive: archive.runs(unfinished=True)[0],
        lambda archive: archive.runs(unfinished=True, order="best")[0],
    ):
        reader = RunArchive(archive.root)
        with pytest.warns(ArchiveWarning, match=said) as warned:
            run = select(reader)
        assert (len(warned), run.manifest.generation, len(run.metric(MONITOR).value)) == (1, 1, 1)
        assert list(reader.faults) == [writer.run_id]
        assert select(reader).manifest.generation == 1  # it warns once (warnings are errors here)
    assert [problem.path[-12:] for problem in archive.verify().problems] == ["g000002.json"]
    with pytest.raises(ArchiveCorruptError):
        archive.resume_run(writer.run_id)


def test_the_deleted_last_generation_of_a_finished_run_is_found(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    for epoch in range(2):
        writer.commit(manifest_of(put_files(writer, epoch=epoch)))
    writer.finish()
    manifests = archive.root / "runs" / writer.run_id / "manifests"
    (manifests / "g000002.json").unlink()
    with pytest.warns(ArchiveWarning, match=r"g000002\.json is missing: .*instead, as a run that has not ended"):
        run = archive.run(writer.run_id)
    assert (run.manifest.generation, run.finished) == (1, False)
    assert archive.runs() == []  # half of a run must not count as a whole one
    with pytest.raises(ArchiveCorruptError, match=r"g000002\.json is missing"):
        archive.resume_run(writer.run_id)
    assert [problem.path[-12:] for problem in archive.verify().problems] == ["g000002.json"]
    shutil.rmtree(manifests)
    assert len(archive.verify().problems) == 2


def test_a_generation_whose_files_were_collected_hides_no_earlier_one(archive: RunArchive) -> None:
    """A writer that was suspended for longer than the collector waits may have committed it (and failed then)."""
    writer = archive.start_run("toy")
    for epoch in range(3):
        writer.commit(manifest_of(put_files(writer, epoch=epoch)))
    lost = {entry.path for entry in archive.run(writer.run_id).manifest.files}
    lost -= {entry.path for entry in archive.open_run(writer.run_id, 2).manifest.files}
    path = archive.root / "runs" / writer.run_id / sorted(lost)[0]
    path.unlink()
    said = rf"{writer.run_id} .*generation 3 cannot be used: .*{path.name} is missing; generation 2 is read instead"
    for select in (
        lambda archive: archive.run(writer.run_id),
        lambda archive: archive.runs(unfinished=True)[0],
    ):
        with pytest.warns(ArchiveWarning, match=said):
            run = select(RunArchive(archive.root))
        assert run.manifest.generation == 2
        assert run.weights()
        assert run.signal("logits")
    assert [problem.path for problem in archive.verify().problems] == [f"runs/{writer.run_id}/{sorted(lost)[0]}"]


def test_a_run_of_many_damaged_generations_is_refused_soon(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    writer.commit(manifest_of(put_files(writer)))
    manifests = archive.root / "runs" / writer.run_id / "manifests"
    for generation in range(2, 19):
        (manifests / f"g{generation:06d}.json").write_bytes(b"not a manifest")
    with pytest.raises(ArchiveCorruptError, match=r"g000018\.json is damaged"):  # 16 steps back, and no more
        archive.run(writer.run_id)
    (manifests / "g000018.json").unlink()
    with pytest.warns(ArchiveWarning, match=r"generation 17 cannot .*generation 1 is read"):
        assert archive.run(writer.run_id).manifest.generation == 1


def test_a_gap_in_the_generations_is_found(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    for epoch in range(3):
        writer.commit(manifest_of(put_files(writer, epoch=epoch)))
    (archive.root / "runs" / writer.run_id / "manifests" / "g000002.json").unlink()
    assert archive.run(writer.run_id)
    assert [problem.path[-12:] for problem in archive.verify().problems] == ["g000002.json"]


def test_one_damaged_run_does_not_hide_the_others(archive: RunArchive, make_run: MakeRun) -> None:
    good, bad = make_run("good"), make_run("bad")
    rewrite(archive.root / "runs" / bad / "manifests" / "g000001.json", flip(500))
    with pytest.warns(ArchiveWarning, match=bad):
        assert [run.id for run in archive.runs()] == [good]
    assert [run.id for run in archive.runs()] == [good]  # it warns once (warnings are errors here)
    assert archive.run_ids() == sorted([bad, good])
    assert archive.run(good).weights()


def test_a_run_whose_metrics_are_damaged_is_ranked_by_its_manifest(archive: RunArchive, make_run: MakeRun) -> None:
    good, bad = make_run("good"), make_run("bad", values=(0.99,))
    (path,) = (archive.root / "runs" / bad / "data" / "metrics").iterdir()
    rewrite(path, flip(-8))
    best = archive.runs(order="best")
    assert [(run.id, run.final_metric()) for run in best] == [(bad, 0.99), (good, 0.75)]
    with pytest.raises(ArchiveCorruptError, match="is damaged"):
        best[0].best_metric()


def test_a_run_is_not_ranked_whose_manifest_is_old_and_whose_metrics_are_damaged(
    archive: RunArchive, make_run: MakeRun
) -> None:
    good = make_run("good")
    writer = archive.start_run("bad")
    old = [msgspec.structs.replace(entry, meta={}) if entry.kind == "metrics" else entry for entry in put_files(writer)]
    writer.commit(manifest_of(old))
    writer.finish()
    (path,) = (archive.root / "runs" / writer.run_id / "data" / "metrics").iterdir()
    rewrite(path, flip(8 * 100))
    with pytest.warns(ArchiveWarning, match=writer.run_id):
        assert [run.id for run in archive.runs(order="best")] == [good]


def test_a_damaged_identity_is_found(archive: RunArchive, make_run: MakeRun) -> None:
    make_run()
    rewrite(archive.root / "archive.json", flip(300))
    with pytest.raises(ArchiveCorruptError, match=r"archive\.json is damaged"):
        RunArchive(archive.root, create=True)
    assert [problem.path for problem in archive.verify().problems] == ["archive.json"]


def test_verify_counts_and_reports_progress(archive: RunArchive, make_run: MakeRun) -> None:
    run_ids = [make_run(), make_run()]
    seen: list[tuple[int, int]] = []
    report = archive.verify(progress=lambda done, total: seen.append((done, total)))
    data = [path for path in files_below(archive.root).values() if path.suffix == ".safetensors"]
    assert (report.ok, report.runs, report.files) == (True, 2, len(data))
    assert report.bytes == sum(path.stat().st_size for path in data)
    assert seen[-1] == (report.bytes, report.bytes)
    assert archive.verify(run_ids[0]).files == len(data) // 2


def test_verify_ignores_what_was_verified_before(archive: RunArchive, make_run: MakeRun) -> None:
    """Damage of the medium leaves size and times as they were, so a remembered check cannot see it."""
    run_id = make_run()
    assert archive.run(run_id).weights()
    (path,) = (archive.root / "runs" / run_id / "data" / "weights").iterdir()
    before = path.stat()
    rewrite(path, flip(8 * (before.st_size - 1)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not archive.verify().ok


def test_uncommitted_files_are_no_damage(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    put_files(archive.join_run(run_id, 1), epoch=7)
    put_files(archive.start_run("never committed"))
    assert archive.verify().ok
    assert archive.run_ids() == [run_id]


def change_sealed(archive: RunArchive, run_id: str, **fields: object) -> Path:
    """Replace the manifest by a well-sealed one with other fields."""
    path = archive.root / f"runs/{run_id}/manifests/g000001.json"
    manifest = archive.run(run_id).manifest
    content = msgspec.json.encode({**msgspec.to_builtins(manifest), **fields})
    rewrite(path, lambda _: reseal(content))
    return path


def reseal(content: bytes) -> bytes:
    return b'{"sha256":"' + hashlib.sha256(content).hexdigest().encode() + b'","content":' + content + b"}\n"


def test_a_newer_minor_version_is_read(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    change_sealed(archive, run_id, format=[1, 9], colour={"new": ["field"]})
    run = archive.run(run_id)
    assert run.manifest.format == (1, 9)
    assert run.weights()
    assert archive.verify().ok


@pytest.mark.parametrize("fields", [{}, {"files": "elsewhere"}])
def test_a_newer_major_version_is_refused(archive: RunArchive, make_run: MakeRun, fields: dict[str, object]) -> None:
    run_id = make_run()
    change_sealed(archive, run_id, format=[2, 0], **fields)
    with pytest.raises(ArchiveVersionError, match=r"format 2\.0.*upgrade"):
        archive.run(run_id)


def test_an_archive_of_a_newer_major_version_is_refused(archive: RunArchive) -> None:
    rewrite(archive.root / "archive.json", lambda _: reseal(b'{"format":[2,0],"archive_uuid":1}'))
    with pytest.raises(ArchiveVersionError, match="upgrade"):
        RunArchive(archive.root, create=True)


def test_a_manifest_without_a_version_is_damaged(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    change_sealed(archive, run_id, generation="one")
    with pytest.raises(ArchiveCorruptError, match="generation"):
        archive.run(run_id)


def test_signals_need_their_data_set(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    with pytest.raises(ArchiveError, match="no record of its dataset"):
        writer.commit(manifest_of(put_files(writer), dataset=None))


def test_a_commit_of_missing_files_is_refused(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    files = put_files(writer)
    (archive.root / "runs" / writer.run_id / files[2].path).unlink()
    with pytest.raises(ArchiveError, match=r"cannot be committed.*is not there"):
        writer.commit(manifest_of(files))
    rewrite(archive.root / "runs" / writer.run_id / files[1].path, lambda data: data[:-1])
    with pytest.raises(ArchiveError, match=r"cannot be committed.* has \d+ bytes and should have"):
        writer.commit(manifest_of([files[0], files[1]]))
    assert archive.run_ids() == []


def test_putting_again_over_a_damaged_file_is_an_error(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    entry = writer.put("weights", "last", {"w": torch.ones(8)})
    rewrite(archive.root / "runs" / writer.run_id / entry.path, flip(8 * (entry.bytes - 1)))
    with pytest.raises(ArchiveCorruptError, match="is damaged"):
        writer.put("weights", "last", {"w": torch.ones(8)})


@pytest.mark.parametrize("request_", ["get", "list", "stream"])
def test_an_outage_is_not_called_damage(archive: RunArchive, make_run: MakeRun, request_: str) -> None:
    run_ids = [make_run(), make_run()]
    store = DictStore()
    copy_runs(archive._store, store)
    store.objects["archive.json"] = ((archive.root / "archive.json").read_bytes(), 0.0)
    is_down = False

    def fail(request: str) -> None:
        nonlocal is_down
        is_down = is_down or (request.startswith(request_) and "runs" in request)
        if is_down:
            raise ArchiveError("no network")

    store.before = fail
    for run_id in (None, run_ids[0]):
        is_down = False
        with pytest.raises(ArchiveError, match="no network"):
            verify_archive(store, run_id)


def test_one_file_that_cannot_be_read_is_damage(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    path = f"runs/{run_id}/{archive.run(run_id).manifest.files[0].path}"
    store = DictStore()
    copy_runs(archive._store, store)
    store.objects["archive.json"] = ((archive.root / "archive.json").read_bytes(), 0.0)

    def fail(request: str) -> None:
        if request == f"stream {path}":
            raise ArchiveError("Input/output error")

    store.before = fail
    (problem,) = verify_archive(store).problems
    assert (problem.run_id, problem.path, problem.what) == (run_id, path, "Input/output error")
