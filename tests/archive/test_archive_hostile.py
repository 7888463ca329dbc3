"""Archives made to do harm: only ArchiveError comes out, in little memory, and nothing outside of them is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import torch

from reuse_algos.archive import LocalStore, RunArchive
from reuse_algos.errors import ArchiveCorruptError, ArchiveError, ArchiveWarning, RunNotFoundError

from .conftest import MakeRun, files_below, rewrite, use_everything
from .torture import fuzzing, hostile_archives, path_attacks
from .torture.hostile import (
    BAD_FIELDS,
    BAD_HEADERS,
    BAD_IDS,
    BAD_PATHS,
    BOMBS,
    change_entry,
    header,
    plant,
    sealed,
)
from .torture.hostile_reader import WATCHED


@contextmanager
def within(mebibytes: float) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_tensor_files_are_refused(archive: RunArchive, case: str) -> None:
    data, tensors = BAD_HEADERS[case]
    run_id = plant(archive, data, tensors)
    with within(50), pytest.raises(ArchiveCorruptError, match=run_id):
        archive.run(run_id).weights()
    assert len(archive.verify(run_id).problems) == 1


def test_a_huge_header_is_refused_unread(archive: RunArchive) -> None:
    run_id = plant(archive, header(b"", length=95 << 20) + bytes(95 << 20), {})
    with within(5), pytest.raises(ArchiveCorruptError, match="header has 99614720 bytes"):
        archive.run(run_id).weights()


@pytest.mark.parametrize("bomb", BOMBS)
def test_json_bombs_are_refused(archive: RunArchive, make_run: MakeRun, bomb: str) -> None:
    run_id = make_run()
    path = archive.root / f"runs/{run_id}/manifests/g000001.json"
    rewrite(path, lambda _: sealed(BOMBS[bomb]))
    with within(80), pytest.raises(ArchiveCorruptError, match=r"g000001\.json"):
        archive.run(run_id)


def test_deep_json_is_refused_under_any_recursion_limit(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    path = archive.root / f"runs/{run_id}/manifests/g000001.json"
    rewrite(path, lambda _: sealed(BOMBS["deep list"]))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**9)
    try:
        with pytest.raises(ArchiveCorruptError, match="nested over 64"):
            archive.run(run_id)
    finally:
        sys.setrecursionlimit(limit)


def test_paths_outside_the_layout_are_refused(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    manifest = archive.run(run_id).manifest
    for path in BAD_PATHS:
        change_entry(archive, manifest, path=path)
        with pytest.raises(ArchiveCorruptError, match=r"outside the layout"):
            archive.run(run_id)


def test_entries_that_cannot_be_are_refused(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    manifest = archive.run(run_id).manifest
    for fields in BAD_FIELDS:
        change_entry(archive, manifest, **fields)
        with pytest.raises(ArchiveCorruptError, match=run_id):
            archive.run(run_id).weights()


def test_ids_that_cannot_be_are_not_found(archive: RunArchive, make_run: MakeRun) -> None:
    make_run()
    for run_id in BAD_IDS:
        for use in (archive.run, archive.resume_run, archive.verify, lambda run_id: archive.join_run(run_id, 1)):
            with pytest.raises(RunNotFoundError):
                use(run_id)


PARTS = ["", "/data", "/data/weights", "/manifests", "/manifests/g000001.json", "/final.json"]


@pytest.mark.parametrize("part", [*PARTS, "weights file"])
def test_symbolic_links_are_not_followed(archive: RunArchive, make_run: MakeRun, tmp_path: Path, part: str) -> None:
    run_id, good = make_run(), make_run()
    run = archive.root / "runs" / run_id
    target = next((run / "data/weights").iterdir()) if part == "weights file" else Path(f"{run}{part}")
    outside = tmp_path / "outside"
    shutil.move(target, outside)
    target.symlink_to(outside)
    before = {path: path.read_bytes() for path in files_below(tmp_path / "outside").values()}
    with pytest.raises(ArchiveCorruptError, match=r"links|not a regular file"):
        archive.run(run_id).weights()
    assert not archive.verify(run_id).ok
    with suppress(ArchiveError):
        archive.join_run(run_id, 1).put("weights", "new", {"w": torch.zeros(1)})
    with pytest.raises(ArchiveError):
        archive.resume_run(run_id)[0].commit(archive.run(run_id).manifest)
    assert archive.run(good).weights()
    assert {path: path.read_bytes() for path in files_below(tmp_path / "outside").values()} == before


def test_a_linked_directory_of_runs_is_refused(archive: RunArchive, make_run: MakeRun, tmp_path: Path) -> None:
    make_run()
    shutil.move(archive.root / "runs", tmp_path / "outside")
    (archive.root / "runs").symlink_to(tmp_path / "outside")
    with pytest.raises(ArchiveCorruptError, match="links"):
        archive.runs()
    assert not archive.verify().ok


def test_the_root_may_be_a_link(archive: RunArchive, make_run: MakeRun, tmp_path: Path) -> None:
    run_id = make_run()
    (tmp_path / "link").symlink_to(archive.root)
    assert RunArchive(tmp_path / "link").run(run_id).weights()


@pytest.mark.parametrize("replacement", ["fifo", "directory", "device link"])
def test_only_regular_files_are_read(archive: RunArchive, make_run: MakeRun, replacement: str) -> None:
    run_id = make_run()
    for name, path in files_below(archive.root / "runs" / run_id).items():
        original = path.read_bytes()
        path.unlink()
        if replacement == "fifo":
            os.mkfifo(path)
        elif replacement == "directory":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        with within(50), pytest.raises(ArchiveCorruptError, match=name):
            use_everything(archive, run_id)
        assert len(archive.verify().problems) == 1
        path.rmdir() if replacement == "directory" else path.unlink()
        path.write_bytes(original)


def test_hard_links_out_of_the_archive_are_never_written_through(archive: RunArchive, tmp_path: Path) -> None:
    writer = archive.start_run("linked")
    entry = writer.put("weights", "last", {"w": torch.ones(4)})
    target = archive.root / "runs" / writer.run_id / entry.path
    target.unlink()
    (tmp_path / "precious").write_bytes(b"precious")
    os.link(tmp_path / "precious", target)
    with pytest.raises(ArchiveCorruptError):
        writer.put("weights", "last", {"w": torch.ones(4)})
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_odd_things_beside_the_runs_are_left_alone(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    (archive.root / "runs" / ".DS_Store").write_bytes(b"x")
    (archive.root / "runs" / "héllo").mkdir()
    (archive.root / "runs" / "empty").mkdir()
    (archive.root / "runs" / run_id / "manifests" / ".tmp-0123").write_bytes(b"torn")
    (archive.root / "runs" / run_id / "manifests" / "g0000002.json").write_bytes(b"not ours")
    assert [run.id for run in archive.runs()] == [run_id]
    assert archive.verify().ok
    (archive.root / "runs" / "a-file").write_bytes(b"x")
    with pytest.warns(ArchiveWarning, match="a-file"):
        assert [run.id for run in archive.runs()] == [run_id]


CLAIMS: dict[str, Callable[[dict], object]] = {
    "2^62 examples": lambda manifest: manifest["dataset"].update(num_examples=2**62),
    "2^70 examples": lambda manifest: manifest["dataset"].update(num_examples=2**70),
    "2^40 examples without keys": lambda manifest: (
        manifest["dataset"].update(num_examples=2**40),
        manifest.update(files=[entry for entry in manifest["files"] if entry["kind"] != "dataset"]),
    ),
    "slot 2^70": lambda manifest: manifest["files"][-1]["meta"].update(slot=2**70),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_without_data_take_no_memory(archive: RunArchive, make_run: MakeRun, claim: str) -> None:
    """What is only said in a manifest, and not backed by bytes of a file, must not decide how much is allocated."""
    run_id = make_run()
    manifest = msgspec.to_builtins(archive.run(run_id).manifest)
    CLAIMS[claim](manifest)
    path = archive.root / f"runs/{run_id}/manifests/g000001.json"
    rewrite(path, lambda _: sealed(msgspec.json.encode(manifest)))
    with within(5), pytest.raises(ArchiveCorruptError, match=run_id):
        archive.run(run_id).signal("logits").seen(0)


def test_sparse_rows_of_too_many_classes_are_refused(archive: RunArchive) -> None:
    rows = {"ids": torch.arange(2), "values": torch.zeros(2, 1), "rest": torch.zeros(2)}
    rows["indices"] = torch.zeros(2, 1, dtype=torch.int32)
    meta = {"slot": 0, "encoding": "top_k", "num_classes": 2**40}
    with pytest.raises(ArchiveError, match="number of classes is 1099511627776, not from 1 to"):
        archive.start_run("sparse").put("signals", "logits", rows, meta)


def test_fuzzed_manifests_raise_only_archive_errors(tmp_path: Path) -> None:
    outcome = fuzzing.manifests(tmp_path, count=400, seed=1)
    assert (outcome.tries, outcome.ok) == (400, True), outcome
    assert int(outcome.notes["refused"]) > 200
    assert int(outcome.notes["read"]) > 10, "some changes do no harm"


def test_fuzzed_headers_raise_only_archive_errors(tmp_path: Path) -> None:
    outcome = fuzzing.headers(tmp_path, count=200, seed=1)
    assert (outcome.tries, outcome.ok) == (200, True), outcome
    assert int(outcome.notes["refused"]) > 100


def test_reading_runs_no_code(tmp_path: Path) -> None:
    """Hostile archives get nothing unpickled, imported, compiled, executed, connected or started."""
    outcome = hostile_archives.code(tmp_path)
    assert (outcome.tries > 100, outcome.ok) == (True, True), outcome


def test_the_audit_notices_code(tmp_path: Path) -> None:
    """A control: what the audit looks for is seen when it happens."""
    done = subprocess.run(
        [sys.executable, "-c", "import pickle, sys\nsys.addaudithook(lambda event, _: print(event))\nexec('1')"],
        capture_output=True,
        text=True,
    )
    assert {"compile", "exec"} <= set(done.stdout.split())
    assert {"compile", "exec", "import", "pickle.", "socket.", "subprocess.", "os.system"} <= set(WATCHED)


def test_large_promises_are_refused_in_little_memory(tmp_path: Path) -> None:
    """How quickly is measured by benchmarks/archive_torture.py, on a machine that does nothing else."""
    outcome = hostile_archives.cost(tmp_path, count=16, most_seconds=float("inf"))
    assert (outcome.tries, outcome.ok) == (16, True), outcome


def test_path_attacks_touch_nothing_outside(tmp_path: Path) -> None:
    outcome = path_attacks.case(tmp_path, count=61)  # every second one
    assert (outcome.tries, outcome.ok) == (61, True), outcome


def test_the_watch_notices_what_is_opened_outside(tmp_path: Path) -> None:
    """A control: the store or anybody else opening a file outside is seen."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    archive = RunArchive(tmp_path / "archive", create=True)
    with path_attacks.watching(archive.root) as opened:
        archive.run_ids()
        assert opened == []
        LocalStore(tmp_path / "outside").get("secret", 10)
        assert opened
        opened.clear()
        (tmp_path / "outside" / "secret").read_bytes()
        assert opened == [str(tmp_path / "outside" / "secret")]
