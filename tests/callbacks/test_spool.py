"""``on_archive_error: warn``: training goes on without its archive, and the record reaches it later."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, State
from torch.utils.data import DataLoader

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.cli import main
from reuse_algos.errors import ArchiveConflictError, ArchiveError, ArchiveWarning
from toy import blobs, checkpointed, epoch_loader, mlp, trainer, viewed


class At(Callback):
    """Does something at the end of an epoch."""

    def __init__(self, epoch: int, action: Any) -> None:
        self.epoch, self.action = epoch, action

    def epoch_end(self, state: State, logger: Any) -> None:
        if int(state.timestamp.epoch) == self.epoch:
            self.action()


def _train(archive: Path, folder: Path, *callbacks: Callback, epochs: int = 4, **settings: Any) -> RunRecorder:
    """A run with a checkpoint, and so a commit, at the end of each epoch."""
    settings = {"on_archive_error": "warn", "spool": folder / "spool", **settings}
    recorder = RunRecorder(archive, weights=("last", "1ep"), signals={"logits": {}, "loss": {}}, **settings)
    one = trainer(
        epoch_loader(viewed()),
        mlp(5),
        callbacks=[*callbacks, recorder],
        eval_dataloader=DataLoader(blobs(32, seed=9), batch_size=32),
        **checkpointed(folder / "checkpoints", save_interval="1ep", max_duration=f"{epochs}ep"),
    )
    one.fit()
    one.close()
    return recorder


def _straight(tmp_path: Path) -> PriorRun:
    recorder = _train(tmp_path / "straight", tmp_path / "s", on_archive_error="raise")
    assert not (tmp_path / "s" / "spool").exists()
    return recorder.archive.run(recorder.run_id or "")


def _assert_same(one: PriorRun, other: PriorRun) -> None:
    assert one.finished
    assert other.finished
    assert one.weight_names == other.weight_names
    for name in one.weight_names:
        assert all(torch.equal(value, other.weights(name)[key]) for key, value in one.weights(name).items())
    assert one.signal_names == other.signal_names
    for name in one.signal_names:
        assert one.signal(name).slots == other.signal(name).slots
        for slot in one.signal(name).slots:
            assert torch.equal(one.signal(name).dense(slot)[0], other.signal(name).dense(slot)[0])
    assert one.metric_names == other.metric_names


def test_with_an_archive_in_reach_nothing_is_different(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ArchiveWarning)
        recorder = _train(tmp_path / "archive", tmp_path)
    run = RunArchive(tmp_path / "archive", create=False).run(recorder.run_id or "")
    _assert_same(run, _straight(tmp_path))
    assert RunArchive(tmp_path / "archive").verify().ok


def test_an_archive_out_of_reach_gets_the_record_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "archive"
    target.write_text("here was a mount point")
    with pytest.warns(ArchiveWarning) as told:
        recorder = _train(target, tmp_path)
    # Once when it was first noticed, once at the end with what to do; not at every checkpoint.
    assert len(told) == 2
    assert "training goes on" in str(told[0].message)
    assert f"reuse-algos copy {tmp_path / 'spool'} {target}" in str(told[1].message)
    target.unlink()
    assert main(["copy", str(tmp_path / "spool"), str(target), recorder.run_id or ""]) == 0
    capsys.readouterr()
    _assert_same(RunArchive(target).run(recorder.run_id or ""), _straight(tmp_path))
    assert RunArchive(target).verify().ok


def test_an_archive_that_goes_and_comes_back_has_everything_at_the_end(tmp_path: Path) -> None:
    target, aside = tmp_path / "archive", tmp_path / "aside"
    go, back = At(1, lambda: os.rename(target, aside)), At(3, lambda: os.rename(aside, target))
    RunArchive(target)
    with pytest.warns(ArchiveWarning, match="is gone") as told:
        recorder = _train(target, tmp_path, go, back)
    assert len(told) == 1
    _assert_same(RunArchive(target).run(recorder.run_id or ""), _straight(tmp_path))


def test_without_it_the_error_ends_the_training(tmp_path: Path) -> None:
    target = tmp_path / "archive"
    with pytest.raises(ArchiveError, match="is gone"):
        _train(target, tmp_path, At(1, lambda: os.rename(target, tmp_path / "aside")), on_archive_error="raise")


# Both are Composer's, on resuming behind the last batch of an epoch.
@pytest.mark.filterwarnings("ignore:No batches were trained", "ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("spool_lost", [False, True])
def test_a_resumed_run_goes_on_with_what_is_here_or_there(tmp_path: Path, spool_lost: bool) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "archive", tmp_path, At(3, stop))
    if spool_lost:  # another machine goes on
        os.rename(tmp_path / "spool", tmp_path / "lost")
    recorder = _train(tmp_path / "archive", tmp_path)
    run = RunArchive(tmp_path / "archive").run(recorder.run_id or "")
    assert run.manifest.attempt == 2
    _assert_same(run, _straight(tmp_path))


@pytest.mark.filterwarnings("ignore:No batches were trained", "ignore:The ``compute`` method of metric")
def test_a_run_whose_newest_part_is_elsewhere_is_not_gone_on_with(tmp_path: Path) -> None:
    target, aside = tmp_path / "archive", tmp_path / "aside"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.warns(ArchiveWarning), pytest.raises(KeyboardInterrupt):
        _train(target, tmp_path, At(2, lambda: os.rename(target, aside)), At(3, stop))
    os.rename(aside, target)
    os.rename(tmp_path / "spool", tmp_path / "lost")
    with pytest.raises(ArchiveError, match=r"Copy the rest of the run from where it was recorded"):
        _train(target, tmp_path)


def test_another_attempt_is_no_failure_of_the_archive(tmp_path: Path) -> None:
    """Going on would train for nothing: the other attempt owns the run now."""
    target = tmp_path / "archive"

    def take_over() -> None:
        archive = RunArchive(target)
        archive.resume_run(archive.run_ids()[0])

    with pytest.raises(ArchiveConflictError):
        _train(target, tmp_path, At(2, take_over))


def test_wrong_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be 'raise' or 'warn'"):
        RunRecorder(tmp_path / "archive", on_archive_error="ignore")
