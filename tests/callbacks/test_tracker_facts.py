"""What loggers get of a recorded run: who it is, what it spends, seconds as an x axis, and its cost."""

from __future__ import annotations

import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import composer.trainer.trainer as composer_trainer
import pytest
from composer import Callback, State
from composer.loggers import InMemoryLogger, Logger, LoggerDestination, WandBLogger
from torch.utils.data import DataLoader

from reuse_algos.algorithms import PriorRunDistillation
from reuse_algos.archive import CostRecord, Manifest, PriorRun, PriorUse, RunArchive
from reuse_algos.callbacks import RunRecorder, train_clock
from reuse_algos.callbacks.recorder.tracker_facts import log_cost
from reuse_algos.errors import ArchiveWarning
from toy import blobs, checkpointed, epoch_loader, mlp, record_run, trainer, viewed
from wandb_files import OfflineRun, keep_offline

ACCURACY = "metrics/eval/MulticlassAccuracy"


def _student(archive: Path, logger: LoggerDestination, **arguments: Any) -> PriorRun:
    recorder = RunRecorder(archive, run_name="student", tags={"method": "distilled"})
    one = trainer(
        epoch_loader(viewed()),
        mlp(3),
        algorithms=[
            PriorRunDistillation(archive, {"tags": {"method": "baseline"}, "order": "first"}, source="cached", when={})
        ],
        callbacks=[recorder],
        loggers=[logger],
        eval_dataloader=DataLoader(blobs(32, seed=9), batch_size=32),
        **arguments,
    )
    one.fit()
    one.close()
    assert recorder.run_id is not None
    return RunArchive(archive).run(recorder.run_id)


def test_w_and_b_gets_what_the_archive_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_offline(tmp_path, monkeypatch)
    archive = tmp_path / "archive"
    priors = sorted(record_run(archive, seed=seed) for seed in (1, 2))
    run = _student(archive, WandBLogger(project="reuse", init_kwargs={"config": {"mine": 1}}))
    seen = OfflineRun(tmp_path)

    assert seen.config["mine"] == 1
    assert seen.config["reuse"] == {
        "archive": str(archive),
        "archive_id": run.manifest.archive_id,
        "run_id": run.id,
        "tags": {"method": "distilled"},
        "algorithms": ["PriorRunDistillation"],
        "prior_runs": priors,
    }
    accuracy = run.metric(ACCURACY)
    rows = {row["_step"]: row for row in seen.history}
    for step, seconds, value in zip(accuracy.step, accuracy.train_seconds, accuracy.value, strict=True):
        assert rows[step][ACCURACY] == pytest.approx(value)
        assert rows[step]["time/train_seconds"] == pytest.approx(seconds)
    assert sorted(rows)[1:] == [row for row in sorted(rows) if "time/train_seconds" in rows[row]]
    seconds = [rows[step]["time/train_seconds"] for step in sorted(rows)[1:]]
    assert seconds == sorted(seconds)
    assert "reuse/distillation/loss" in rows[1]
    cost = run.manifest.cost
    # After the last commit, evaluation and recorder go on; what is logged is what the run's end was committed with.
    assert seen.summary["reuse/cost/train_seconds"] == pytest.approx(cost.train_seconds)
    assert seen.summary["reuse/cost/setup_seconds"] == pytest.approx(cost.setup_seconds)
    assert seen.summary["reuse/cost/harvest_seconds"] == 0.0
    assert seen.summary["reuse/cost/total_seconds"] == pytest.approx(cost.train_seconds + cost.setup_seconds)
    assert seen.summary["reuse/cost/eval_seconds"] == pytest.approx(cost.eval_seconds)
    assert seen.summary["reuse/cost/recorder_seconds"] == pytest.approx(cost.overhead_seconds)


def test_second_fit_says_nothing_twice_and_costs_grow(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []

    class Listening(InMemoryLogger):
        def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
            told.append(hyperparameters)

    memory = Listening()
    recorder = RunRecorder(tmp_path / "archive")
    one = trainer(epoch_loader(viewed()), callbacks=[recorder], loggers=[memory], max_duration="1ep")
    one.fit()
    one.fit(duration="1ep")
    one.close()
    facts = [data["reuse"] for data in told if "reuse" in data]
    assert [data["run_id"] for data in facts] == [recorder.run_id]
    assert facts[0]["prior_runs"] == facts[0]["algorithms"] == []
    costs = [value for _, value in memory.data["reuse/cost/train_seconds"]]
    assert len(costs) == 2
    assert 0 < costs[0] < costs[1]


def test_cost_counts_what_compare_counts() -> None:
    uses = [PriorUse(run_id=name, algorithm="x", harvest_seconds=seconds) for name, seconds in (("a", 4.0), ("b", 0.5))]
    cost = CostRecord(train_seconds=10.0, eval_seconds=3.0, setup_seconds=2.0, overhead_seconds=1.0)
    seen: dict[str, float] = {}

    class Told(Logger):
        def __init__(self) -> None:
            pass

        def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
            seen.update(metrics)

    log_cost(Manifest(cost=cost, prior_runs=uses), Told())
    assert seen == {
        "reuse/cost/train_seconds": 10.0,
        "reuse/cost/setup_seconds": 2.0,
        "reuse/cost/harvest_seconds": 4.5,
        "reuse/cost/total_seconds": 16.5,
        "reuse/cost/eval_seconds": 3.0,
        "reuse/cost/recorder_seconds": 1.0,
    }
    log_cost(Manifest(cost=CostRecord(train_flops=7.0)), Told())
    assert seen["reuse/cost/train_flops"] == 7.0


def test_a_logger_that_refuses_stops_no_training(tmp_path: Path) -> None:
    class Refusing(LoggerDestination):
        def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
            if "reuse" in hyperparameters:
                raise RuntimeError("another value was logged before")

    memory, recorder = InMemoryLogger(), RunRecorder(tmp_path / "archive")
    one = trainer(epoch_loader(viewed()), callbacks=[recorder], loggers=[Refusing(), memory], max_duration="1ep")
    with pytest.warns(ArchiveWarning, match="Refusing did not take .* go on without them there: another value"):
        one.fit()
    one.close()
    assert memory.hyperparameters["reuse"]["run_id"] == recorder.run_id
    assert RunArchive(tmp_path / "archive").run(str(recorder.run_id)).finished


class Passing(Callback):
    """A second for each batch and ten for each evaluation, by a clock of its own; the time of day is set back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, crash_at: int = 0) -> None:
        self.now, self.crash_at = 0.0, crash_at
        monkeypatch.setattr(train_clock, "perf_counter", lambda: self.now)
        days = SimpleNamespace(datetime=SimpleNamespace(now=self._back), timedelta=datetime.timedelta)
        monkeypatch.setattr(composer_trainer, "datetime", days)

    def _back(self) -> datetime.datetime:
        return datetime.datetime(2030, 1, 1) - datetime.timedelta(hours=self.now)

    def before_forward(self, state: State, logger: Logger) -> None:
        if self.crash_at == int(state.timestamp.batch) + 1:
            raise RuntimeError("crash")
        self.now += 1

    def eval_start(self, state: State, logger: Logger) -> None:
        self.now += 10


@pytest.mark.parametrize("crash", [True, False])
def test_seconds_are_right_where_the_time_of_day_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: bool
) -> None:
    """Four batches an epoch and an evaluation behind each; stopped within the second epoch and gone on with.

    Where the first training crashes the second goes on with its run. Else it starts a run from its checkpoint.
    """
    saving = checkpointed(tmp_path / "checkpoints", save_interval="2ba")

    def train(clock: Passing, duration: str) -> PriorRun:
        recorder = RunRecorder(tmp_path / "archive", run_name="run")
        one = trainer(
            epoch_loader(blobs()),
            mlp(1),
            callbacks=[clock, recorder],
            eval_dataloader=DataLoader(blobs(16), batch_size=16),
            max_duration=duration,
            **saving,
        )
        try:
            one.fit()
        finally:
            assert one.state.timestamp.total_wct.total_seconds() < 0, "Composer's own, by the time of day"
            one.close()
        assert recorder.run_id is not None
        return RunArchive(tmp_path / "archive").run(recorder.run_id)

    if crash:
        with pytest.raises(RuntimeError, match="crash"):
            train(Passing(monkeypatch, 8), "3ep")
    else:
        train(Passing(monkeypatch), "6ba")
    run = train(Passing(monkeypatch), "3ep")
    history = run.metric(ACCURACY)
    assert history.step.tolist() == ([4, 8, 12] if crash else [8, 12])
    assert history.train_seconds.tolist() == [float(step) for step in history.step]
    assert run.manifest.cost.train_seconds == 12.0
    assert run.manifest.cost.eval_seconds == (30.0 if crash else 20.0)
