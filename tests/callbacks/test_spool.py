"""``spool``: training goes on without its archive, and the record reaches it later."""

from __future__ import annotations

import errno
import os
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer import Callback, State
from torch.utils.data import DataLoader

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.callbacks.recorder.spool import Spool
from reuse_algos.cli import main
from reuse_algos.errors import ArchiveConflictError, ArchiveError, ArchiveWarning, RunNotFoundError
from toy import blobs, checkpointed, epoch_loader, mlp, trainer, viewed


class At(Callback):
    """Does something at the end of an epoch."""

    def __init__(self, epoch: int, action: Any) -> None:
        self.epoch, self.action = epoch, action

    def epoch_end(self, state: State, logger: Any) -> None:
        if int(state.timestamp.epoch) == self.epoch:
            recorder = next(callback for callback in state.callbacks if isinstance(callback, RunRecorder))
            self.action(recorder)


def _train(archive: Path, folder: Path, *callbacks: Callback, epochs: int = 4, **settings: Any) -> RunRecorder:
    """A run with a checkpoint, and so a commit, at the end of each epoch."""
    settings = {"spool": folder / "spool", **settings}
    recorder = RunRecorder(archive, weights=("last", "1ep"), signals={"logits": {}, "loss": {}}, **settings)
    one = trainer(
        epoch_loader(viewed()),
        mlp(5),
        callbacks=[*callbacks, recorder],
        eval_dataloader=DataLoader(blobs(32, seed=9), batch_size=32),
        **checkpointed(folder / "checkpoints", save_interval="1ep", max_duration=f"{epochs}ep"),
    )
    if one.state.max_duration is None or one.state.timestamp < one.state.max_duration:
        one.fit()
    one.close()
    return recorder


def _moved(source: Path, target: Path) -> Any:
    """An action that moves the archive, between two pushes."""

    def move(recorder: RunRecorder) -> None:
        _idle(recorder)
        os.rename(source, target)

    return move


def _idle(recorder: RunRecorder) -> None:
    """On a slow machine, let the last commit be passed on: the next one is not begun before."""
    assert recorder.spool is not None
    assert recorder.spool.wait(30)


def _stop(recorder: RunRecorder) -> None:
    """As a preempted process does, but for what is being passed on at this moment."""
    _idle(recorder)
    raise KeyboardInterrupt


def _straight(tmp_path: Path) -> PriorRun:
    recorder = _train(tmp_path / "straight", tmp_path / "s", spool=None)
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
    run = RunArchive(tmp_path / "archive").run(recorder.run_id or "")
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
    go, back = At(1, _moved(target, aside)), At(3, _moved(aside, target))
    RunArchive(target, create=True)
    with pytest.warns(ArchiveWarning, match="is gone") as told:
        recorder = _train(target, tmp_path, go, back)
    assert len(told) == 1
    _assert_same(RunArchive(target).run(recorder.run_id or ""), _straight(tmp_path))


@pytest.mark.parametrize("last", [2, 4])
def test_a_folder_that_is_full_ends_the_record_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """The disk is full from the end of an epoch on: before a checkpoint, and before the last commit."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(recorder: RunRecorder) -> None:
        _idle(recorder)
        monkeypatch.setattr(
            "reuse_algos.archive.stores.local.os", SimpleNamespace(**{**vars(os), "write": full, "fsync": full})
        )

    reached: list[int] = []
    # A commit made while another is being passed on waits for the next one, so each epoch waits for the one before.
    at = [*(At(epoch, _idle) for epoch in range(1, last)), At(last, fill), At(4, lambda _: reached.append(4))]
    with pytest.warns(ArchiveWarning, match="not recorded any further, and training goes on.*No space left") as told:
        recorder = _train(tmp_path / "archive", tmp_path, *at)
    monkeypatch.undo()
    assert len(told) == 1
    assert reached == [4]
    for where in ("archive", "spool"):
        run = RunArchive(tmp_path / where).run(recorder.run_id or "")
        assert (run.finished, run.manifest.progress.epoch) == (False, last - 1)
        assert RunArchive(tmp_path / where).verify().ok
    saved = torch.load(tmp_path / "checkpoints" / "latest.pt", weights_only=False)  # this test has written it
    assert dict(saved["state"]["callbacks"])["RunRecorder"] == {}


def test_without_it_the_error_ends_the_training(tmp_path: Path) -> None:
    target = tmp_path / "archive"
    with pytest.raises(ArchiveError, match="is gone"):
        _train(target, tmp_path, At(1, lambda _: os.rename(target, tmp_path / "aside")), spool=None)


# Both are Composer's, on resuming behind the last batch of an epoch.
@pytest.mark.filterwarnings("ignore:No batches were trained", "ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("spool_lost", [False, True])
def test_a_resumed_run_goes_on_with_what_is_here_or_there(tmp_path: Path, spool_lost: bool) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "archive", tmp_path, At(2, _idle), At(3, _stop))
    if spool_lost:  # another machine goes on
        os.rename(tmp_path / "spool", tmp_path / "lost")
    recorder = _train(tmp_path / "archive", tmp_path)
    run = RunArchive(tmp_path / "archive").run(recorder.run_id or "")
    assert run.manifest.attempt == 2
    _assert_same(run, _straight(tmp_path))


@pytest.mark.filterwarnings("ignore:No batches were trained", "ignore:The ``compute`` method of metric")
def test_a_run_whose_newest_part_is_elsewhere_is_not_gone_on_with(tmp_path: Path) -> None:
    target, aside = tmp_path / "archive", tmp_path / "aside"

    with pytest.warns(ArchiveWarning, match="is gone"), pytest.raises(KeyboardInterrupt):
        _train(target, tmp_path, At(2, _moved(target, aside)), At(4, _stop), epochs=5)
    os.rename(aside, target)
    os.rename(tmp_path / "spool", tmp_path / "lost")
    with pytest.raises(ArchiveError, match=r"Copy the rest of the run from where it was recorded"):
        _train(target, tmp_path, epochs=5)


def test_another_attempt_is_no_failure_of_the_archive(tmp_path: Path) -> None:
    """Going on would train for nothing: the other attempt owns the run now."""
    target = tmp_path / "archive"

    def take_over(recorder: RunRecorder) -> None:
        assert recorder.spool is not None
        assert recorder.spool.wait(30)
        archive = RunArchive(target, create=True)
        archive.resume_run(archive.run_ids()[0])

    with pytest.raises(ArchiveConflictError):
        _train(target, tmp_path, At(2, take_over))


def test_training_does_not_wait_for_a_slow_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four commits, and a copy takes until the training is over: only the end waits for it."""
    over = threading.Event()
    began: list[int] = []
    copy = RunArchive.copy_to

    def slow(self: RunArchive, *arguments: Any, **options: Any) -> Any:
        began.append(len(began))
        assert over.wait(60)
        return copy(self, *arguments, **options)

    def end(_: RunRecorder) -> None:
        assert len(began) == 1, "training came to its last batch while the first commit was still on its way"
        over.set()

    monkeypatch.setattr(RunArchive, "copy_to", slow)
    recorder = _train(tmp_path / "archive", tmp_path, At(4, end))
    # One more has all that came in between; a third, if the second was quicker than the end of training.
    assert len(began) in (2, 3)
    _assert_same(RunArchive(tmp_path / "archive").run(recorder.run_id or ""), _straight(tmp_path))


def test_what_ended_and_was_not_passed_on_is_passed_on_by_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = Spool.push

    def die(self: Spool, run_id: str, *, last: bool = False) -> None:
        if last:
            raise KeyboardInterrupt
        push(self, run_id)

    monkeypatch.setattr(Spool, "push", die)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "archive", tmp_path)
    monkeypatch.setattr(Spool, "push", push)
    (spooled,) = RunArchive(tmp_path / "spool").runs()
    _train(tmp_path / "archive", tmp_path)
    run = RunArchive(tmp_path / "archive").run(spooled.id)
    assert run.finished
    assert run.manifest == spooled.manifest


def test_a_checkpoint_may_start_a_run_of_another_name_in_another_archive(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "archive", tmp_path, At(3, _stop), run_name="one")
    with pytest.raises(RunNotFoundError, match=r"Name the archive that it was recorded in"):
        _train(tmp_path / "other", tmp_path, run_name="one", spool=None)
    recorder = _train(tmp_path / "other", tmp_path, run_name="two", spool=None)
    assert RunArchive(tmp_path / "other").run("two").id == recorder.run_id
