"""Failures and crashes at every operation on the disk: no acknowledged commit is lost, no half-run can be read."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from reuse_algos.archive import RunArchive
from reuse_algos.errors import ArchiveError, ArchivePermissionError

from .conftest import MONITOR, MakeRun, manifest_of, put_files, use_everything
from .traced_os import Operation, TracedOS, die_at, fail_at

GENERATIONS = 3


def write_run(root: Path, acknowledge: Callable[[str, int], None]) -> None:
    """Commit a run of three generations, reporting each commit once it has returned."""
    archive = RunArchive(root)
    writer = archive.start_run("toy")
    for epoch in range(GENERATIONS):
        files = put_files(writer, values=[0.1 * (epoch + 1)] * (epoch + 1), epoch=epoch)
        acknowledge(writer.run_id, writer.commit(manifest_of(files, seed=epoch)).generation)
    writer.finish()
    acknowledge(writer.run_id, GENERATIONS + 1)


def check_survivors(root: Path, acknowledged: list[tuple[str, int]]) -> None:
    """What must hold after any crash: everything acknowledged is there and sound, nothing is half there."""
    archive = RunArchive(root)
    assert archive.verify().ok
    run_ids = archive.run_ids()
    for run_id in run_ids:
        run = archive.run(run_id)
        use_everything(archive, run_id)
        generation = run.manifest.generation
        assert run.manifest.seed == generation - 1
        assert len(run.metric(MONITOR).value) == generation
    if acknowledged:
        run_id, generation = acknowledged[-1]
        assert run_id in run_ids
        assert archive.run(run_id).manifest.generation >= min(generation, GENERATIONS)
        assert archive.run(run_id).finished or generation <= GENERATIONS
    writer = archive.start_run("next")  # and the archive can be used
    writer.commit(manifest_of(put_files(writer)))
    assert writer.run_id in archive.run_ids()


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TracedOS]:
    def install(before: Callable[[int, str], None] = lambda index, kind: None) -> TracedOS:
        traced = TracedOS(before)
        monkeypatch.setattr("reuse_algos.archive.store.os", traced)
        return traced

    return install


def count_operations(trace: Callable[..., TracedOS], root: Path) -> int:
    traced = trace()
    write_run(root, lambda *_: None)
    return traced.count


class CrashError(BaseException):
    """Not an Exception, so that nothing takes it for an error to be handled."""


def test_stopping_at_every_operation(tmp_path: Path, trace: Callable[..., TracedOS]) -> None:
    for index in range(0, count_operations(trace, tmp_path / "whole"), 5):
        root, acknowledged = tmp_path / str(index), []
        trace(fail_at(index, CrashError))
        with pytest.raises(CrashError):
            write_run(root, lambda *commit, acknowledged=acknowledged: acknowledged.append(commit))
        trace()
        check_survivors(root, acknowledged)
        shutil.rmtree(root)


def test_sigkill_of_a_process_at_every_operation(tmp_path: Path, trace: Callable[..., TracedOS]) -> None:
    for index in range(1, count_operations(trace, tmp_path / "whole"), 17):
        root, log = tmp_path / str(index), tmp_path / f"{index}.log"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # forking beside torch's idle threads; the child uses none of them
            child = os.fork()
        if child == 0:
            status = 1
            try:
                trace(die_at(index))
                with log.open("w", buffering=1) as acknowledgements:
                    write_run(root, lambda run_id, g: print(run_id, g, file=acknowledgements))
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        trace()
        lines = [line.split() for line in log.read_text().splitlines()]
        check_survivors(root, [(run_id, int(generation)) for run_id, generation in lines])
        shutil.rmtree(root)


def disk_after_power_loss(operations: list[Operation], root: Path, draw: random.Random) -> dict[Path, bytes | None]:
    """A state of the disk that POSIX allows after these operations: what was not synced is kept, dropped or torn.

    Returns:
        Content of files by path; None for directories.
    """
    contents: dict[str, bytearray] = {}  # by the file's first name
    synced_bytes: dict[str, int] = {}
    entries: list[tuple[int, Operation, str]] = []  # changes of directories
    synced_at: dict[str, int] = {}  # by directory
    inode_of: dict[str, str] = {}
    for index, operation in enumerate(operations):
        kind, path, detail = operation
        if kind == "create":
            contents[path], synced_bytes[path], inode_of[path] = bytearray(), 0, path
        elif kind == "write":
            contents[inode_of[path]] += detail
        elif kind == "fsync" and path in inode_of:
            synced_bytes[inode_of[path]] = len(contents[inode_of[path]])
        elif kind == "fsync":
            synced_at[path] = index
        elif kind == "link":
            inode_of[path] = inode_of[detail]
        if kind in ("create", "link", "unlink", "mkdir"):
            entries.append((index, operation, os.path.dirname(path)))
    disk: dict[Path, bytes | None] = {root.parent: None}
    torn = {}
    for inode, content in contents.items():
        end = draw.choice((synced_bytes[inode], len(content), draw.randint(synced_bytes[inode], len(content))))
        tail = bytes(end - synced_bytes[inode]) if draw.random() < 0.3 else bytes(content[synced_bytes[inode] : end])
        torn[inode] = bytes(content[: synced_bytes[inode]]) + tail
    for index, (kind, path, _), directory in entries:
        durable = index < synced_at.get(directory, -1)
        if (durable or draw.random() < 0.5) and Path(directory) in disk:
            if kind == "unlink":
                disk.pop(Path(path), None)
            else:
                disk[Path(path)] = None if kind == "mkdir" else torn[inode_of[path]]
    return disk


def test_simulated_power_loss(tmp_path: Path, trace: Callable[..., TracedOS]) -> None:
    traced, commits = trace(), []
    root = tmp_path / "disk" / "archive"
    root.parent.mkdir()
    write_run(root, lambda run_id, generation: commits.append((len(traced.operations), run_id, generation)))
    operations = list(traced.operations)
    trace()
    draw = random.Random(3)
    for _ in range(50):
        end = draw.randrange(len(operations) + 1)
        disk = disk_after_power_loss(operations[:end], root, draw)
        shutil.rmtree(root.parent)
        for path, content in sorted(disk.items()):
            path.mkdir() if content is None else path.write_bytes(content)
        check_survivors(root, [(run_id, generation) for at, run_id, generation in commits if at <= end])


@pytest.mark.parametrize("forgotten", ["files", "directories"])
def test_the_simulation_notices_a_missing_sync(tmp_path: Path, trace: Callable[..., TracedOS], forgotten: str) -> None:
    """A control: had the store forgotten one of its kinds of syncs, commits that were acknowledged would get lost."""
    traced, commits = trace(), []
    root = tmp_path / "disk" / "archive"
    root.parent.mkdir()
    write_run(root, lambda run_id, generation: commits.append((run_id, generation)))
    operations = [
        operation
        for operation in traced.operations
        if operation.kind != "fsync" or Path(operation.path).name.startswith(".tmp-") == (forgotten == "directories")
    ]
    draw = random.Random(0)
    survived = 0
    for _ in range(10):
        disk = disk_after_power_loss(operations, root, draw)
        shutil.rmtree(root.parent)
        for path, content in sorted(disk.items()):
            path.mkdir() if content is None else path.write_bytes(content)
        with suppress(AssertionError, ArchiveError):
            check_survivors(root, commits)
            survived += 1
    assert survived < 5


def error_of(action: Callable[[], object]) -> ArchiveError | None:
    try:
        action()
    except ArchiveError as error:
        return error
    return None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_errors_at_every_operation(tmp_path: Path, trace: Callable[..., TracedOS], number: int) -> None:
    """An error is an ArchiveError, old runs stay readable, and the same writer succeeds when it tries again."""
    archive = RunArchive(tmp_path / "archive")
    old = archive.start_run("old")
    old.commit(manifest_of(put_files(old)))
    new = archive.start_run("new")
    count = trace()
    new.commit(manifest_of(put_files(new)))
    for index in range(0, count.count, 3):
        writer = archive.start_run("failing")
        trace(fail_at(index, lambda: OSError(number, os.strerror(number))))
        error = error_of(lambda writer=writer: writer.commit(manifest_of(put_files(writer))))
        if error is not None:  # removing a temporary file may fail without harm
            assert error.errno == number
            assert str(archive.root) in str(error)
            assert isinstance(error, ArchivePermissionError) == (number in (errno.EROFS, errno.EACCES))
            assert ("free some space" in str(error)) == (number in (errno.ENOSPC, errno.EDQUOT))
        trace()
        writer.commit(manifest_of(put_files(writer)))
        writer.finish()
        assert archive.run(writer.run_id).weights()
        assert archive.run(old.run_id).weights()
    assert archive.verify().ok


def test_no_temporary_file_is_left_after_an_error(archive: RunArchive, trace: Callable[..., TracedOS]) -> None:
    writer = archive.start_run("toy")
    trace(lambda index, kind: fail_at(0, lambda: OSError(errno.ENOSPC, "full"))(0 if kind == "link" else 1, kind))
    with pytest.raises(ArchiveError, match="free some space"):
        writer.put("weights", "last", {"w": torch.zeros(3)})
    assert [path for path in archive.root.rglob("*") if path.is_file()] == [archive.root / "archive.json"]


def test_a_file_system_without_hard_links_is_named(archive: RunArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.link", link)
    with pytest.raises(ArchiveError, match="cannot make the hard link"):
        archive.start_run("toy").put("weights", "last", {"w": torch.zeros(3)})


def test_a_link_whose_acknowledgement_was_lost_counts(archive: RunArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats a request whose answer was lost, and the repeated link fails although the first one worked."""
    real = os.link

    def link(*names: str, **options: object) -> None:
        real(*names, **options)  # type: ignore[arg-type]
        raise FileExistsError

    monkeypatch.setattr("os.link", link)
    writer = archive.start_run("toy")
    writer.commit(manifest_of(put_files(writer)))
    assert archive.run(writer.run_id).weights()


def test_runs_that_cannot_be_read_are_a_permission_error(
    archive: RunArchive, make_run: MakeRun, trace: Callable[..., TracedOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = make_run()
    real = os.open

    def refuse(path: object, *arguments: object, **options: object) -> int:
        if path == "g000001.json":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(ArchivePermissionError, match=run_id):
        archive.run(run_id)
