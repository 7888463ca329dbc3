"""The Composer callback that archives a run while it trains."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from composer import Callback, Event, State
from composer.callbacks import CheckpointSaver
from composer.loggers import Logger
from composer.utils import dist

from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.archive import FileEntry, Manifest, ModelRecord, RunArchive, header_parts
from reuse_algos.callbacks.console import archived_line, say, stopped_line
from reuse_algos.callbacks.continuing import goes_on
from reuse_algos.callbacks.manifest_of import RunFacts, manifest_of
from reuse_algos.callbacks.metric_log import MetricLog
from reuse_algos.callbacks.monitor import BestSoFar, Monitor
from reuse_algos.callbacks.provenance import model_flops, model_record
from reuse_algos.callbacks.readings import readings_of
from reuse_algos.callbacks.robust_evaluation import robust_metrics
from reuse_algos.callbacks.run_record import RunRecord
from reuse_algos.callbacks.signal_capture import parse_signals
from reuse_algos.callbacks.signal_watch import SignalWatch
from reuse_algos.callbacks.spool import Spool
from reuse_algos.callbacks.state_facts import (
    dataset_record,
    evaluated_weights,
    examples_of,
    info_of,
    scalar,
)
from reuse_algos.callbacks.tracker_facts import log_cost, log_identity, log_train_seconds
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import ArchiveConflictError, ExampleIdError
from reuse_algos.sections import fit_section
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.outputs import plain_state_dict
from reuse_algos.training.ranks import on_every_rank, on_rank_zero
from reuse_algos.training.recorded_task import record_of
from reuse_algos.training.task import TaskSettings

__all__ = ["RunRecorder"]

_EVERY = re.compile(r"([1-9]\d*)ep")


class RunRecorder(Callback):
    """Archive this run: metrics, weights, per-example signals, recipe, provenance and cost.

    The record is committed when Composer collects the state of a checkpoint, in ``state_dict``, and when training
    ends. Checkpoint and record then agree, so that a resumed run goes on bit-equal. Composer has no event for this:
    only its CheckpointSaver knows whether a checkpoint is due, and ``Trainer.save_checkpoint`` runs no event at all.

    Signals are taken from the forward pass that happens anyway, kept on the training device and written when an epoch
    ends. They are measured as the task defines it (:class:`~reuse_algos.callbacks.measures.Measures`). A run that was
    interrupted stays marked as unfinished. The run's loggers (W&B and others) are told run id, archive and prior runs,
    ``time/train_seconds`` at every step as an x axis, and at the end ``reuse/cost/...``
    (:mod:`reuse_algos.callbacks.tracker_facts`).

    Args:
        archive: A :class:`~reuse_algos.archive.RunArchive` or a path. An archive is made where there is none.
        run_name: Name of the run. Default: the Trainer's.
        tags: Labels to select and group runs by, such as ``{"study": "lr", "method": "baseline"}``. Default: none.
        recipe: The settings that made this run, as JSON-able data. Default: none.
        weights: Which weights to keep: ``init`` (at the start), ``last`` (at the end), ``best`` (by ``monitor``),
            ``5ep`` (every fifth epoch). Default: ``last``.
        signals: Which signals to keep, for example ``{"logits": {"last_epochs": 32, "top_k": 16}, "loss": {}}``, see
            :class:`~reuse_algos.callbacks.signal_capture.CaptureSettings`. Default: none.
        monitor: The metric that orders runs and decides ``best``: a name such as ``MulticlassAccuracy``, or a
            :class:`~reuse_algos.callbacks.monitor.Monitor`. Default: the first evaluation metric whose name holds
            ``Accuracy``, else the first one.
        keys: Where targets, logits and ids lie, see :class:`~reuse_algos.training.batch_keys.BatchKeys`. Default:
            targets at position 1 of the batch, ids by the batch sampler.
        task: What kind of problem is trained, see :class:`~reuse_algos.training.task.TaskSettings`. Default: found in
            the first batch, and held against the model's loss.
        dataset: What the train data are. Default: what the loader's dataset says.
        spool: A folder on a disk that all ranks share. The run is recorded there first, and each commit is passed on to
            the archive. Where that fails, training goes on, and ``reuse-algos copy`` passes on the rest later. Default:
            None, which writes to the archive at once, and an error of the archive stops training.

    Raises:
        ValueError: A setting is wrong.
        ExampleIdError: At the start, where signals cannot be attributed to examples.
        TaskError: Before the first step, where a signal is not defined for the task or its task cannot be found.
        DataError: Before the first step, where rows of the batch are not the examples of the dataset.
        ArchiveError: The archive cannot be written; on every rank, and nothing half-written is ever visible.
    """

    def __init__(
        self,
        archive: RunArchive | str | os.PathLike[str],
        *,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        recipe: Mapping[str, Any] | None = None,
        weights: str | Sequence[str] = ("last",),
        signals: Mapping[str, Mapping[str, Any] | None] | None = None,
        monitor: str | Monitor | None = None,
        keys: BatchKeys | None = None,
        task: TaskSettings | None = None,
        dataset: DatasetInfo | None = None,
        spool: str | os.PathLike[str] | None = None,
    ) -> None:
        self.spool = None if spool is None else Spool(archive, spool)
        if self.spool is not None:
            self.archive = self.spool.archive
        else:
            self.archive = archive if isinstance(archive, RunArchive) else RunArchive(archive, create=True)
        self.run_name = run_name
        self.tags = {str(key): str(value) for key, value in (tags or {}).items()}
        self.recipe = None if recipe is None else dict(recipe)
        self.weights = [weights] if isinstance(weights, str) else list(weights)
        for name in self.weights:
            if name not in ("init", "last", "best") and not _EVERY.fullmatch(name):
                raise ValueError(
                    f"RunRecorder weights: {name!r} is not 'init', 'last', 'best' or every n epochs such as '5ep'"
                )
        self.signals = parse_signals(signals)
        monitor = {"metric": monitor} if isinstance(monitor, str) else monitor or {}
        monitor = fit_section(Monitor, monitor, "RunRecorder monitor")
        self.keys = fit_section(BatchKeys, keys or {}, "RunRecorder keys")
        self.task = fit_section(TaskSettings, task or {}, "RunRecorder task")
        self.dataset = dataset
        self._monitor = monitor
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Forget what belongs to the run of one Trainer."""
        self.watch = SignalWatch(self.signals, self.task, self.keys)
        self.overhead_seconds = 0.0
        self._resume: dict[str, Any] | None = None
        self._record: RunRecord | None = None
        self._info: DatasetInfo | None = None
        self._log = MetricLog()
        self._best = BestSoFar(self._monitor, keep_weights="best" in self.weights)
        self._state: State | None = None
        self._model: ModelRecord | None = None
        self._ended = False
        self._standalone = False
        self._eval_began = 0.0

    @property
    def run_id(self) -> str | None:
        """Id of the run in the archive, once training has started."""
        return None if self._record is None else self._record.run_id

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the example ids, do the event's work, and time it: Composer's entry point."""
        began = time.perf_counter()
        self.watch.handle(event, state)
        super().run_event(event, state, logger)
        self.overhead_seconds += time.perf_counter() - began

    # Start and resume -----------------------------------------------------------------------------------------------

    def init(self, state: State, logger: Logger) -> None:
        """Start a record of its own for each Trainer that this recorder is given to."""
        del state, logger
        self._start_afresh()

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open a new run, or go on with the one of the checkpoint.

        Raises:
            ArchiveError: The model has tensors that an archive cannot hold.
        """
        if self._state not in (None, state):
            self._start_afresh()
        header_parts(plain_state_dict(state.model))  # fails here rather than behind the last batch
        self._state, self._ended = state, False
        earlier, self._info = self._info, info_of(state, self.dataset)
        if self._record is not None:
            # A second Trainer.fit goes on with the same run, which has one record of its data.
            if (earlier and earlier.fingerprint) != (self._info and self._info.fingerprint):
                raise ExampleIdError(
                    f"run {self.run_id} was started on other training data. Give the second fit a Trainer and a "
                    "RunRecorder of its own."
                )
            self.watch.start(state, self._info)
            return
        self.watch.start(state, self._info)
        if self.spool is not None:
            self.spool.begin()
        if not self._go_on(state):
            self._record = record = RunRecord.start(self.archive, self._name(state))
            if "init" in self.weights:  # behind the algorithms, which may have loaded a prior run's weights
                on_rank_zero(lambda: record.put_weights("init", evaluated_weights(state)))
        log_identity(self, state, logger)

    def after_load(self, state: State, logger: Logger) -> None:
        """Complete a record whose process died after its last checkpoint: Composer will not train it any further."""
        del logger
        done = state.max_duration is not None and state.timestamp >= state.max_duration
        if done and self._record is None and self._go_on(state):
            self._state, self._ended, self._info = state, True, info_of(state, self.dataset)
            self._finish(state)

    def _go_on(self, state: State) -> bool:
        """Take up the run of the checkpoint, if there is one and it is this one."""
        resume = self._resume
        if resume is None or not goes_on(resume, self._name(state), self.archive, self.spool):
            return False
        self._record = RunRecord.resume(self.archive, resume["run_id"], int(resume["generation"]))
        on_every_rank(lambda: self._take_back(resume))
        return True

    def _take_back(self, resume: Mapping[str, Any]) -> None:
        """Restore what the run had when the checkpoint was made. What came after it is dropped."""
        assert self._record is not None
        manifest = self._record.manifest
        assert manifest is not None
        run = self.archive.open_run(manifest.run_id, manifest.generation)
        self._model = manifest.model
        self._log = MetricLog.of_run(run)
        self._log.load_state_dict(resume["log"])
        self.overhead_seconds += float(resume["overhead_seconds"])
        self._best.value = float(resume["best_value"])
        self.watch.take_back(run, self._record, self._record.own_signals(), resume["partial"])

    # While training -------------------------------------------------------------------------------------------------

    def before_forward(self, state: State, logger: Logger) -> None:
        """Count FLOPs, once in a run."""
        del logger
        if self._model is None:
            flops = model_flops(state) if dist.get_global_rank() == 0 else None
            self._model = model_record(state.model, flops)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Add the batch to the epoch's means."""
        log_train_seconds(state, logger)
        values = dict(state.total_loss_dict) if state.total_loss_dict else {}
        for name, metric in (state.train_metrics or {}).items():
            if (value := scalar(metric)) is not None:
                values[f"metrics/train/{name}"] = value
        for algorithm in state.algorithms:
            if isinstance(algorithm, ReusingAlgorithm):
                values.update(algorithm.latest_metrics)
        self._log.accumulate(values)
        for name, value in readings_of(state).items():
            self._log.add(name, value, state)
        if self._record is not None:
            self._record.show_life()

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Write the epoch's signals and means, and the weights of every n-th epoch."""
        del logger
        record, epoch = self._record, int(state.timestamp.epoch)
        assert record is not None
        self._log.end_epoch(state)
        self.watch.end_epoch(record, epoch - 1)
        matches = [_EVERY.fullmatch(name) for name in self.weights]
        if any(every and epoch % int(every[1]) == 0 for every in matches):
            on_rank_zero(lambda: record.put_weights(f"ep{epoch:04d}", evaluated_weights(state)))

    # Evaluation -----------------------------------------------------------------------------------------------------

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        """Leave out what follows: ``Trainer.eval`` outside training is not part of the run."""
        del state, logger
        self._standalone = True

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        """Go back to recording."""
        del state, logger
        self._standalone = False

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Start the clock of evaluation."""
        del state, logger
        self._eval_began = time.perf_counter()

    def eval_end(self, state: State, logger: Logger) -> None:
        """Keep the metrics of this evaluator, and the weights where they are the best so far."""
        label = state.dataloader_label
        if self._standalone or self._record is None or label not in state.eval_metrics:
            return
        log_train_seconds(state, logger)
        for name, metric in state.eval_metrics[label].items():
            if (value := scalar(metric)) is not None:
                self._log.add(f"metrics/{label}/{name}", value, state)
        for name, value in robust_metrics(state).items():
            self._log.add(name, value, state)
        self._best.update(self._log, label, state)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Stop the clock. An evaluation after the last batch belongs to the record, too."""
        del logger
        if self._standalone or self._record is None:
            return
        self._log.eval_seconds += time.perf_counter() - self._eval_began
        self._best.check(state, self._log)
        if self._ended:
            self._commit(state)

    # Commit ---------------------------------------------------------------------------------------------------------

    def fit_end(self, state: State, logger: Logger) -> None:
        """Write the last weights, commit, and mark the run as ended by itself."""
        self._log.end_epoch(state)
        self._ended = True
        log_cost(self._finish(state), logger)

    def close(self, state: State, logger: Logger) -> None:
        """Commit a run that was interrupted as unfinished, with what it has, and say how to go on.

        Other ranks may be gone, so rank 0 waits for none: the rows of the running epoch are its own.
        """
        del logger
        record = self._record
        if record is None or self._ended or state is not self._state or int(state.timestamp.batch) == 0:
            return
        if dist.get_global_rank() == 0:
            with contextlib.suppress(ArchiveConflictError):  # another attempt has taken the run over
                self._commit(state, last="last" in self.weights, push=False, alone=True)
                self._say_how_to_go_on(state)

    def _finish(self, state: State) -> Manifest:
        assert self._record is not None
        self._commit(state, last="last" in self.weights, push=False)
        self._record.finish()
        if self.spool is not None:
            self.spool.push(self._record.run_id, last=True)
        manifest = self._record.manifest
        assert manifest is not None
        if dist.get_global_rank() == 0:
            say(archived_line(self._record.run_id, self.archive.location, manifest))
        return manifest

    def _say_how_to_go_on(self, state: State) -> None:
        assert self._record is not None
        assert self._record.manifest is not None
        saving = any(isinstance(one, CheckpointSaver) for one in state.callbacks)
        say(stopped_line(self._record.run_id, self.archive.location, self._record.manifest, checkpoints=saving))

    def state_dict(self) -> dict[str, Any]:
        """Commit, so that checkpoint and record agree, and return what the checkpoint must know of the record.

        Every rank takes part, as in the saving of the checkpoint itself.
        """
        if self._record is None or self._state is None:
            return self._resume or {}
        began = time.perf_counter()
        self._commit(self._state)
        self.overhead_seconds += time.perf_counter() - began
        assert self._record.manifest is not None
        return {
            "run_id": self._record.run_id,
            "run_name": self._name(self._state),
            "generation": self._record.manifest.generation,
            "log": self._log.state_dict(),
            "best_value": self._best.value,
            "overhead_seconds": self.overhead_seconds,
            "partial": [] if self.watch.capture is None else self.watch.capture.slots,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember which run and generation the checkpoint belongs to."""
        self._resume = state or None

    def _commit(self, state: State, *, last: bool = False, push: bool = True, alone: bool = False) -> None:
        """Commit on all ranks together (or ``alone``); everything that can fail on one of them is inside."""
        record, info = self._record, self._info
        assert record is not None

        def write_rest() -> None:
            record.put_signals(self.watch.capture)
            if dist.get_global_rank() == 0:
                if record.manifest is None and info is not None:
                    record.put("dataset", "examples", examples_of(info))
                if last:
                    record.put_weights("last", evaluated_weights(state))
                if self._best.weights is not None:
                    record.put_weights("best", self._best.weights)
                    self._best.weights = None
                if self._log.names:
                    record.put("metrics", "history", self._log.tensors())

        def describe(files: list[FileEntry]) -> Manifest:
            return manifest_of(self._facts(state), state, record.manifest, files)

        record.commit(describe, write_rest, alone=alone)
        if self.spool is not None and push:
            self.spool.push(record.run_id, last=self._ended)

    def _name(self, state: State) -> str:
        return self.run_name or state.run_name

    def _facts(self, state: State) -> RunFacts:
        return RunFacts(
            run_name=self._name(state),
            tags=self.tags,
            recipe=self.recipe,
            dataset=None if self._info is None else dataset_record(self._info, state),
            task=None if self.watch.reader.task is None else record_of(self.watch.reader.task),
            model=self._model,
            log=self._log,
            monitor=self._best.name(self._log),
            monitor_mode=self._best.mode(self._log),
            overhead_seconds=self.overhead_seconds,
        )
