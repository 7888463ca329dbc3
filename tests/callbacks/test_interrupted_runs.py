"""Interrupted, resumed and continued runs: the record is that of the run that never stopped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback, State
from torch.utils.data import DataLoader

from reuse_algos.algorithms import PriorRunDistillation
from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.callbacks.recorder import run_keeper, run_recorder
from reuse_algos.callbacks.recorder.run_keeper import RunKeeper
from reuse_algos.errors import ArchiveError, ExampleIdError
from reuse_algos.harvest import harvest
from toy import Interrupts, blobs, checkpointed, epoch_loader, mlp, record_run, trainer, viewed

ALL = {"logits": {}, "loss": {}, "correct": {}}


def _with_everything(archive: Path, checkpoints: Path, prior: Path, crash: int | None, every: int) -> PriorRun:
    recorder = RunRecorder(archive, signals=ALL, weights=("last", "best", "1ep"), tags={"method": "distilled"})
    algorithm = PriorRunDistillation(
        prior, {"order": "first"}, source="cached", combine="mixup", loss={"name": "mse", "weight": 0.5}, when={}
    )
    one = trainer(
        epoch_loader(viewed()),
        mlp(5),
        algorithms=[algorithm],
        callbacks=[recorder, *([Interrupts(crash)] if crash else [])],
        eval_dataloader=DataLoader(blobs(32, seed=9), batch_size=32),
        **checkpointed(checkpoints, save_interval=f"{every}ba", max_duration="4ep"),
    )
    if crash:
        with pytest.raises(KeyboardInterrupt):
            one.fit()
    else:
        one.fit()
    assert recorder.run_id is not None
    return RunArchive(archive).run(recorder.run_id)


# Both are Composer's, on resuming behind the last batch of an epoch.
@pytest.mark.filterwarnings("ignore:No batches were trained", "ignore:The ``compute`` method of metric")
@pytest.mark.parametrize(
    ("every", "crash"), [(2, 3), (2, 7), (3, 10), (4, 9)], ids=["epoch 0", "epoch 1", "epoch 2", "end of epoch 1"]
)
def test_resumed_run_is_bit_equal(tmp_path: Path, every: int, crash: int) -> None:
    prior = tmp_path / "prior"
    for seed in (1, 2):
        harvest(prior, record_run(prior, seed=seed), dataset=viewed(), model=mlp, progress=False)
    straight = _with_everything(tmp_path / "straight", tmp_path / "checkpoints-straight", prior, None, every)
    broken = _with_everything(tmp_path / "broken", tmp_path / "checkpoints", prior, crash, every)
    assert not broken.finished
    assert RunArchive(tmp_path / "broken").runs() == []
    record_run(prior, seed=3)  # what is archived in the meantime changes nothing
    resumed = _with_everything(tmp_path / "broken", tmp_path / "checkpoints", prior, None, every)
    assert resumed.id == broken.id
    assert resumed.finished
    assert resumed.manifest.attempt == 2
    _assert_same(straight, resumed)
    assert RunArchive(tmp_path / "broken").verify().ok


def _assert_same(one: PriorRun, other: PriorRun) -> None:
    """Weights, signals and metrics of two runs are bit-equal (times are not)."""
    assert one.weight_names == other.weight_names
    for name in one.weight_names:
        for key, value in one.weights(name).items():
            assert torch.equal(value, other.weights(name)[key]), (name, key)
    assert one.signal_names == other.signal_names
    for name in one.signal_names:
        assert one.signal(name).slots == other.signal(name).slots
        for slot in one.signal(name).slots:
            for mine, theirs in zip(one.signal(name).dense(slot), other.signal(name).dense(slot), strict=True):
                assert torch.equal(mine, theirs), (name, slot)
    timed = "reuse/distillation/teacher_seconds"
    assert one.metric_names == other.metric_names
    for name in one.metric_names:
        for column in ("step", "sample", "epoch") if name == timed else ("step", "sample", "epoch", "value"):
            mine, theirs = (getattr(run.metric(name), column) for run in (one, other))
            assert np.array_equal(mine, theirs), (name, column)


def test_a_zombie_attempt_stops(tmp_path: Path) -> None:
    zombie = RunRecorder(tmp_path, run_name="run")
    first = trainer(epoch_loader(viewed()), mlp(1), callbacks=[zombie], max_duration="1ep")
    first.fit()
    archive = RunArchive(tmp_path, create=True)
    writer, manifest = archive.resume_run(zombie.run_id or "")
    writer.commit(manifest)
    with pytest.raises(ArchiveError, match="another attempt took over this run"):
        zombie.state_dict()


def test_second_fit_goes_on_with_the_run(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="run", signals={"logits": {"last_epochs": 1}})
    one = trainer(epoch_loader(viewed()), mlp(1), callbacks=[recorder], max_duration="1ep")
    one.fit()
    one.fit(duration="2ep")
    (run_id,) = RunArchive(tmp_path).run_ids()
    run = RunArchive(tmp_path).run(run_id)
    assert (run.finished, run.manifest.progress.epoch) == (True, 3)
    assert run.metric("loss/train/total").epoch.tolist() == [1, 2, 3]
    assert run.signal("logits").slot_meta(0)["epoch"] == 2  # the window of the longer training
    with pytest.raises(ExampleIdError, match="other training data"):
        one.fit(train_dataloader=epoch_loader(viewed(48)), duration="1ep")


def test_starting_from_a_finished_run_leaves_it_alone(tmp_path: Path) -> None:
    def train(name: str, epochs: int, **arguments: Any) -> RunRecorder:
        recorder = RunRecorder(tmp_path / "archive")
        trainer(
            epoch_loader(viewed()),
            mlp(1),
            callbacks=[recorder],
            run_name=name,
            max_duration=f"{epochs}ep",
            save_folder=str(tmp_path / name),
            save_filename="end.pt",
            save_overwrite=True,
            **arguments,
        ).fit()
        return recorder

    first = train("first", 1)
    archive = RunArchive(tmp_path / "archive", create=True)
    before = archive.run("first").manifest
    second = train("second", 2, load_path=str(tmp_path / "first" / "end.pt"))
    assert second.run_id != first.run_id
    assert archive.run("first").manifest == before
    third = train("first", 2, load_path=str(tmp_path / "first" / "end.pt"))
    assert third.run_id not in (first.run_id, second.run_id)
    assert archive.run(first.run_id or "").manifest == before


def test_dying_behind_the_last_checkpoint_is_completed(tmp_path: Path) -> None:
    class Dies(Callback):
        def fit_end(self, state: State, logger: Any) -> None:
            raise KeyboardInterrupt

    def train(*callbacks: Callback) -> tuple[RunRecorder, Any]:
        recorder = RunRecorder(tmp_path / "archive", signals={"loss": {}}, weights=("last", "1ep"))
        settings = checkpointed(tmp_path / "checkpoints", save_interval="1ep", max_duration="2ep")
        return recorder, trainer(epoch_loader(viewed()), mlp(1), callbacks=[*callbacks, recorder], **settings)

    recorder, one = train(Dies())
    with pytest.raises(KeyboardInterrupt):
        one.fit()
    archive = RunArchive(tmp_path / "archive", create=True)
    broken = archive.run(recorder.run_id or "")
    assert (broken.finished, broken.weight_names) == (False, ["ep0001", "ep0002"])
    again, _ = train()  # Composer refuses to fit a run that has reached its duration, so building must complete it
    run = archive.run(recorder.run_id or "")
    assert again.run_id == run.id
    assert (run.finished, run.weight_names) == (True, ["ep0001", "ep0002", "last"])
    assert all(torch.equal(value, run.weights("ep0002")[name]) for name, value in run.weights("last").items())
    assert run.manifest.dataset == broken.manifest.dataset


def test_a_part_of_an_epoch_does_not_replace_a_whole_one(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="run", signals={"logits": {}})
    one = trainer(epoch_loader(viewed(num_views=1)), mlp(1), callbacks=[recorder], max_duration="6ba")
    one.fit()
    signal = RunArchive(tmp_path).run("run").signal("logits")
    assert (signal.slots, int(signal.seen(0).sum())) == ([0], 64)
    newest = {
        entry.meta["epoch"] for entry in RunArchive(tmp_path).run("run").manifest.files if entry.kind == "signals"
    }
    assert newest == {0, 1}
    one.fit(duration="2ba")  # the epoch is whole now: its rows alone remain
    files = [entry for entry in RunArchive(tmp_path).run("run").manifest.files if entry.kind == "signals"]
    assert [(entry.meta["epoch"], entry.tensors["ids"].shape) for entry in files] == [(1, (64,))]


def test_commits_at_checkpoints_are_overhead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = RunRecorder(tmp_path / "archive", run_name="run")
    commit, now = RunKeeper.commit, [0.0]
    for module in (run_keeper, run_recorder):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(self: RunKeeper, state: State, **arguments: Any) -> None:
        now[0] += 1000.0
        commit(self, state, **arguments)

    monkeypatch.setattr(RunKeeper, "commit", slow)
    settings = checkpointed(tmp_path / "checkpoints", save_interval="1ep", max_duration="3ep")
    trainer(epoch_loader(viewed()), mlp(1), callbacks=[recorder], **settings).fit()
    assert recorder.overhead_seconds >= 4 * 1000.0
