"""The record that a recorder keeps for one Trainer: opened, gone on with, committed and ended."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from composer import State
from composer.callbacks import CheckpointSaver
from composer.utils import dist

from reuse_algos.algorithms.base import ReusingAlgorithm, snake_case
from reuse_algos.archive import CostRecord, FileEntry, Manifest, ModelRecord, Progress, RunArchive
from reuse_algos.archive.format.records import MAX_TEXT
from reuse_algos.callbacks.recorder.console import archived_line, say, stopped_line
from reuse_algos.callbacks.recorder.facts.provenance import environment, model_flops, model_record
from reuse_algos.callbacks.recorder.facts.state_facts import dataset_record, evaluated_weights, examples_of
from reuse_algos.callbacks.recorder.metric_log import MetricLog
from reuse_algos.callbacks.recorder.monitor import BestSoFar, Monitor
from reuse_algos.callbacks.recorder.run_record import RunRecord
from reuse_algos.callbacks.recorder.spool import Spool
from reuse_algos.callbacks.signals.watch import SignalWatch
from reuse_algos.callbacks.train_clock import TrainClock
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.sampler import views_of_loader
from reuse_algos.errors import ArchiveConflictError, ArchiveError, ArchiveWarning, RunNotFoundError
from reuse_algos.training.flops import training_flops
from reuse_algos.training.ranks import on_every_rank, on_rank_zero
from reuse_algos.training.tasks.recorded_task import record_of


@dataclass(frozen=True)
class RunLabels:
    """What a run is called.

    Attributes:
        run_name: Name of the run. Default: None, which takes the Trainer's.
        tags: Labels to select and group runs by.
        recipe: The settings that made the run, or None.
    """

    run_name: str | None
    tags: Mapping[str, str]
    recipe: Mapping[str, Any] | None


class RunKeeper:
    """Keeps the record of the run of one Trainer.

    Args:
        archive: Where the record is written.
        spool: What passes commits on to the archive proper; None where ``archive`` is the archive proper.
        labels: What the run is called.
        weights: Which weights are kept, see :class:`~reuse_algos.callbacks.RunRecorder`.
        monitor: The metric that orders runs.
        watch: The task and the signals.

    Attributes:
        info: The training data, or None where nothing is known of them.
        record: The run's record, or None before training.
        state: Composer's state of the training, or None before it.
        ended: Whether training has ended by itself.
        clock: Counts the seconds of training and of evaluation.
        log: The metrics so far.
        best: The monitored metric and its best weights.
        overhead_seconds: What recording has cost so far, in seconds.
    """

    def __init__(
        self,
        archive: RunArchive,
        spool: Spool | None,
        labels: RunLabels,
        weights: Sequence[str],
        monitor: Monitor,
        watch: SignalWatch,
    ) -> None:
        self.archive, self.spool, self.labels, self.weights, self.watch = archive, spool, labels, weights, watch
        self.best = BestSoFar(monitor, keep_weights="best" in weights)
        self.clock = TrainClock()
        self.log = MetricLog(self.clock)
        self.info: DatasetInfo | None = None
        self.record: RunRecord | None = None
        self.state: State | None = None
        self.resume: dict[str, Any] | None = None
        self.ended = False
        self.lost = False  # the folder of the spool could not be written either, and training goes on without a record
        self.told = False
        self.overhead_seconds = 0.0
        self._model: ModelRecord | None = None

    def start(self, state: State) -> None:
        """Go on with the run of the checkpoint, or open a new one, the same on every rank."""
        if self.spool is not None:
            self.spool.begin()
        # A checkpoint without its run must not start another: go_on raises then, and says where to look.
        if not self.go_on(state):
            if self.resume is not None:  # of another run: its steps count here, and so do their seconds
                self.clock.train_seconds = float(self.resume["log"]["clock"]["train_seconds"])
            self.record = record = RunRecord.start(self.archive, self._name(state))
            if "init" in self.weights:  # behind the algorithms, which may have loaded a prior run's weights
                on_rank_zero(lambda: record.put_weights("init", evaluated_weights(state)))

    def go_on(self, state: State) -> bool:
        """Go on with the run of the checkpoint, and return whether there is one and it is this one."""
        resume = self.resume
        if resume is None or not goes_on(resume, self._name(state), self.archive, self.spool):
            return False
        self.record = RunRecord.resume(self.archive, resume["run_id"], int(resume["generation"]))
        on_every_rank(lambda: self._take_back(resume))
        return True

    def _take_back(self, resume: Mapping[str, Any]) -> None:
        """Restore what the run had when the checkpoint was made. What came after it is dropped."""
        assert self.record is not None
        manifest = self.record.manifest
        assert manifest is not None
        run = self.archive.open_run(manifest.run_id, manifest.generation)
        # FLOPs were counted when the run was young; counting again would copy the model once more.
        self._model = manifest.model
        self.log = MetricLog.of_run(run, self.clock)
        self.log.load_state_dict(resume["log"])
        self.overhead_seconds += float(resume["overhead_seconds"])
        self.best.value = float(resume["best_value"])
        self.watch.take_back(run, self.record, self.record.own_signals(), resume["partial"])

    def look_at_model(self, state: State) -> None:
        """Count FLOPs and describe the model, once in a run, while a batch is there."""
        if self._model is None:
            # A sharded model computes on all ranks together only; one rank alone would wait for the others for ever.
            counts = dist.get_global_rank() == 0 and not state.fsdp_enabled
            flops = model_flops(state) if counts else None
            self._model = model_record(state.model, flops)

    def commit(self, state: State, *, last: bool = False, push: bool = True) -> None:
        """Commit on all ranks together; everything that can fail on one of them is inside.

        Args:
            state: Composer's state.
            last: Whether to write the last weights. Default: False.
            push: Whether to pass the commit on, where there is a spool. Default: True.
        """
        record, info = self.record, self.info
        assert record is not None

        def write_rest() -> None:
            record.put_signals(self.watch.capture)
            if dist.get_global_rank() == 0:
                # The examples do not change within a run, so they are written with its first commit only.
                if record.manifest is None and info is not None:
                    record.put("dataset", "examples", examples_of(info))
                if last:
                    record.put_weights("last", evaluated_weights(state))
                if self.best.weights is not None:
                    record.put_weights("best", self.best.weights)
                    # Written once: the same weights need not be written again at the next commit.
                    self.best.weights = None
                if self.log.names:
                    record.put("metrics", "history", self.log.tensors())

        def describe(files: list[FileEntry]) -> Manifest:
            return self._manifest(state, record.manifest, files)

        record.commit(describe, write_rest)
        if self.spool is not None and push:
            self.spool.push(record.run_id, last=self.ended)

    def finish(self, state: State) -> Manifest:
        """Commit, mark the run as ended by itself, and say on the console what was archived."""
        assert self.record is not None
        self.commit(state, last="last" in self.weights, push=False)
        self.record.finish()
        if self.spool is not None:
            self.spool.push(self.record.run_id, last=True)
        manifest = self.record.manifest
        assert manifest is not None
        if dist.get_global_rank() == 0:
            say(archived_line(self.record.run_id, self.archive.location, manifest))
        # Last, as those who take warnings for errors have a finished run all the same; and on every rank, as none may
        # wait for one that ends.
        self.best.warn_where_never_seen(self.log)
        return manifest

    def give_up(self, error: ArchiveError) -> bool:
        """Go on without the record after an error of the spool's folder, with a warning; return whether that may be.

        What was committed stays, as a run that has not ended. Nothing is committed behind a gap.
        """
        if self.spool is None or self.record is None or isinstance(error, ArchiveConflictError):
            return False
        self.ended = self.lost = True
        if dist.get_global_rank() == 0:
            warnings.warn(
                f"run {self.record.run_id} is not recorded any further, and training goes on: {error}. What was "
                f"recorded before is in {self.archive.location}, as a run that has not ended. Make room there, and "
                "resume from the last checkpoint before this to record the rest",
                ArchiveWarning,
                stacklevel=3,
            )
        return True

    def keep_interrupted(self, state: State) -> None:
        """Commit what there is of an interrupted run, as unfinished, where one rank has it all; say how to go on."""
        # Of several ranks some may be gone, and a record with the rows of one rank would be wrong: the last commit
        # stays.
        if dist.get_world_size() == 1:
            self.commit(state, last="last" in self.weights, push=False)
        assert self.record is not None
        if dist.get_global_rank() != 0 or self.record.manifest is None:
            return
        if self.told:  # an engine may be closed twice, by the error and by the end of the process
            return
        self.told = True
        saving = any(isinstance(one, CheckpointSaver) for one in state.callbacks)
        say(stopped_line(self.record.run_id, self.archive.location, self.record.manifest, checkpoints=saving))

    def state_dict(self) -> dict[str, Any]:
        """Commit, so that checkpoint and record agree, and return what the checkpoint must know of the record."""
        # Composer asks for a state before training, too, and what was loaded must survive until then.
        if self.record is None or self.state is None:
            return self.resume or {}
        began = time.perf_counter()
        try:
            if not self.lost:
                self.commit(self.state)
        except ArchiveError as error:
            if not self.give_up(error):
                raise
        if self.lost:  # a training that resumes from here begins a record of its own
            return {}
        self.overhead_seconds += time.perf_counter() - began
        assert self.record.manifest is not None
        return {
            "run_id": self.record.run_id,
            "run_name": self._name(self.state),
            "generation": self.record.manifest.generation,
            "log": self.log.state_dict(),
            "best_value": self.best.value,
            "overhead_seconds": self.overhead_seconds,
            "partial": [] if self.watch.capture is None else self.watch.capture.slots,
        }

    def _name(self, state: State) -> str:
        return self.labels.run_name or state.run_name

    def _manifest(self, state: State, base: Manifest | None, files: list[FileEntry]) -> Manifest:
        """Return the manifest of the run as it is now; ``base``, its newest, gives what this process did not see."""
        reusing = [one for one in state.algorithms if isinstance(one, ReusingAlgorithm)]
        uses = [use for one in reusing for use in one.prior_uses()]
        now, task, monitor = state.timestamp, self.watch.reader.task, self.best.name(self.log)
        # Where ids lie in the batch the loader is not tracked, and the watch has looked at the data.
        views = self.watch.ids.view_policy or views_of_loader(state.dataloader)
        dataset = None if self.info is None else dataset_record(self.info, views)
        # A run whose last loss is not a number cannot teach; selection leaves it out unless it is asked for.
        finite = self.log.is_finite("loss/train/total", monitor)
        return Manifest(
            run_name=self._name(state),
            tags=dict(self.labels.tags),
            seed=state.rank_zero_seed,
            recipe=None if self.labels.recipe is None else dict(self.labels.recipe),
            dataset=dataset or (base and base.dataset),
            task=record_of(task) if task is not None else (base and base.task),
            model=self._model or model_record(state.model, None),
            environment=environment() if base is None else base.environment,
            progress=Progress(epoch=int(now.epoch), batch=int(now.batch), sample=int(now.sample)),
            cost=CostRecord(
                train_seconds=self.log.clock.train_seconds,
                eval_seconds=self.log.clock.eval_seconds,
                setup_seconds=sum(one.setup_seconds for one in reusing),
                overhead_seconds=self.overhead_seconds,
                train_flops=training_flops(self._model and self._model.flops_per_example, state),
            ),
            monitor=monitor,
            monitor_mode=self.best.mode(self.log),  # type: ignore[arg-type]
            health="empty" if int(now.batch) == 0 else "ok" if finite else "diverged",
            harvests=[] if base is None else base.harvests,
            prior_runs=uses or ([] if base is None else base.prior_runs),
            decisions={
                snake_case(type(one).__name__): why[:MAX_TEXT] for one in reusing if (why := one.skipped or one.why())
            },
            files=files,
        )


def goes_on(resume: Mapping[str, Any], run_name: str, archive: RunArchive, spool: Spool | None) -> bool:
    """Return whether the run of a loaded checkpoint is the one that this Trainer trains.

    It is where it has the same name and has not ended. A run that another one starts from stays as it is, and so does
    a run that has ended.

    Args:
        resume: What the recorder's ``state_dict`` gave to the checkpoint.
        run_name: Name of the run of this Trainer.
        archive: Where the recorder writes.
        spool: The spool, where the recorder has one: it fetches the run first.

    Raises:
        RunNotFoundError: The run has the same name and is not in the archive.
    """
    run_id = resume["run_id"]
    if resume.get("run_name", run_name) != run_name:
        return False
    if spool is not None:
        spool.fetch(run_id)

    def find() -> tuple[bool, bool]:
        try:
            run = archive.run(run_id)
        except RunNotFoundError as error:
            raise RunNotFoundError(
                f"the checkpoint goes on with run {run_id}, which is not in {archive.location}. Name the "
                "archive that it was recorded in, copy it from there (`reuse-algos copy`), or give another "
                "run_name to start a new run"
            ) from error
        return run.run_name == run_name, run.finished

    named, finished = on_rank_zero(find)
    if named and finished and spool is not None:
        spool.push(run_id, last=True)  # its process may have died before it came to that
    return named and not finished
