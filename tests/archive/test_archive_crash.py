"""Failures and crashes at every operation on the disk: no acknowledged commit is lost, no half-run can be read."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reuse_algos.archive import RunArchive
from reuse_algos.errors import ArchiveError, ArchivePermissionError

from .conftest import MakeRun, manifest_of, put_files, rewrite
from .torture import disk_errors, kills, power_loss, survival
from .torture.outcome import Tally
from .traced_os import TracedOS, fail_at


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TracedOS]:
    def install(before: Callable[[int, str], None] = lambda index, kind: None) -> TracedOS:
        traced = TracedOS(before)
        monkeypatch.setattr("reuse_algos.archive.stores.local.os", traced)
        return traced

    return install


def test_sigkill_of_a_process(tmp_path: Path) -> None:
    outcome = kills.case(tmp_path, count=13)  # about every 17th operation
    assert (outcome.tries, outcome.ok) == (13, True), outcome


def test_stopping_by_an_exception(tmp_path: Path) -> None:
    outcome = kills.stops(tmp_path, count=45)
    assert (outcome.tries, outcome.ok) == (45, True), outcome


def test_simulated_power_loss(tmp_path: Path) -> None:
    outcome = power_loss.case(tmp_path, count=50)
    assert (outcome.tries, outcome.ok) == (50, True), outcome


@pytest.mark.parametrize("forgotten", ["files", "directories"])
def test_the_simulation_notices_a_missing_sync(tmp_path: Path, forgotten: power_loss.Forgotten) -> None:
    """A control: had the store forgotten one of its kinds of syncs, commits that were acknowledged would get lost."""
    outcome = power_loss.case(tmp_path, count=10, forgotten=forgotten)
    assert outcome.lost + outcome.torn > 0
    assert int(outcome.notes["broken states"]) > 5


def test_the_survivors_are_looked_at(tmp_path: Path) -> None:
    """A control: what is gone, half there or of another generation is counted."""
    commits: list[survival.Commit] = []
    survival.write_run(tmp_path, lambda *commit: commits.append(commit))
    (run,) = (tmp_path / "runs").iterdir()
    damages = [
        lambda: (run / "final.json").unlink(),
        lambda: (run / "manifests/g000003.json").unlink(),
        lambda: rewrite(next((run / "data/weights").iterdir()), lambda data: data[:-1]),
        lambda: shutil.rmtree(run),
    ]
    for damage in damages:
        damage()
        tally = Tally()
        survival.check_survivors(tmp_path, commits, tally, "damaged")
        assert tally.lost + tally.torn > 0


@pytest.mark.parametrize("number", disk_errors.ERRORS)
def test_errors_at_calls(tmp_path: Path, number: int) -> None:
    """An error is an ArchiveError, old runs stay readable, and the same writer succeeds when it tries again."""
    outcome = disk_errors.case(tmp_path, count=20, numbers=[number])
    assert (outcome.tries, outcome.ok) == (60, True), outcome


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
