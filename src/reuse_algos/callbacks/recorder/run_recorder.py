"""The Composer callback that archives a run while it trains."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from composer import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks.readings import readings_of
from reuse_algos.callbacks.recorder.facts.state_facts import (
    batch_values,
    check_weights,
    evaluated_values,
    evaluated_weights,
    info_of,
)
from reuse_algos.callbacks.recorder.monitor import Monitor
from reuse_algos.callbacks.recorder.run_keeper import RunKeeper, RunLabels
from reuse_algos.callbacks.recorder.spool import Spool
from reuse_algos.callbacks.recorder.tracker_facts import log_cost, log_identity, log_train_seconds
from reuse_algos.callbacks.robust_evaluation import robust_metrics
from reuse_algos.callbacks.signals.capture import parse_signals
from reuse_algos.callbacks.signals.watch import SignalWatch
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import ArchiveConflictError, ArchiveError, ExampleIdError
from reuse_algos.sections import fit_section
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.first_batch.rows import check_labels
from reuse_algos.training.ranks import on_rank_zero

_EVERY = re.compile(r"([1-9]\d*)ep")


class RunRecorder(Callback):
    """Archive this run: metrics, weights, per-example signals, recipe, provenance and cost.

    The record is committed when Composer collects the state of a checkpoint, in ``state_dict``, and when training
    ends. Checkpoint and record then agree, so that a resumed run goes on bit-equal. Composer has no event for this:
    only its CheckpointSaver knows whether a checkpoint is due, and ``Trainer.save_checkpoint`` runs no event at all.

    Signals are taken from the forward pass that happens anyway, kept on the training device and written when an epoch
    ends. They are measured as the task defines it (:class:`~reuse_algos.callbacks.signals.measures.Measures`). A run
    that was interrupted stays marked as unfinished. The run's loggers (W&B and others) get run id, archive and
    prior runs, ``time/train_seconds`` at every step as an x axis, and at the end ``reuse/cost/...``
    (:mod:`reuse_algos.callbacks.recorder.tracker_facts`).

    Args:
        archive: A :class:`~reuse_algos.archive.RunArchive` or a path. An archive is made where there is none.
        run_name: Name of the run. Default: the Trainer's.
        tags: Labels to select and group runs by, such as ``{"study": "lr", "method": "baseline"}``. Default: none.
        weights: Which weights to keep: ``init`` (at the start), ``last`` (at the end), ``best`` (by ``monitor``),
            ``5ep`` (every fifth epoch). Default: ``last``.
        signals: Which signals to keep, for example ``{"logits": {"last_epochs": 32, "top_k": 16}, "loss": {}}``, see
            :class:`~reuse_algos.callbacks.signals.capture.CaptureSettings`. Default: none.
        monitor: The metric that orders runs and decides ``best``: a name such as ``MulticlassAccuracy``, or a
            :class:`~reuse_algos.callbacks.recorder.monitor.Monitor`. Default: the first evaluation metric whose name
            holds ``Accuracy``, else the first one.
        keys: Where targets, logits and ids lie, and the task where it is not to be found, see
            :class:`~reuse_algos.training.batch_keys.BatchKeys`. Default: targets at position 1 of the batch, ids by the
            batch sampler, the task by the first batch and the model's loss.
        dataset: What the train data are. Default: what the loader's dataset says.
        spool: A folder on a disk that all ranks share. The run is recorded there first, and each commit is passed on to
            the archive. Where that fails, training goes on, and ``reuse-algos copy`` passes on the rest later. Where
            the folder itself cannot be written any more, training goes on without a record. Default: None, which
            writes to the archive at once, and an error of the archive stops training.

    Attributes:
        recipe: The settings that made this run, as JSON-able data; set it before the Trainer is built. Recipes do so.
            None: not recorded.
        keeper: The record of the running Trainer.
        watch: The task, the checks of the first batch and the signals of the running Trainer.

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
        weights: str | Sequence[str] = ("last",),
        signals: Mapping[str, Mapping[str, Any] | None] | None = None,
        monitor: str | Monitor | None = None,
        keys: BatchKeys | None = None,
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
        self.recipe: dict[str, Any] | None = None
        self.weights = [weights] if isinstance(weights, str) else list(weights)
        for name in self.weights:
            if name not in ("init", "last", "best") and not _EVERY.fullmatch(name):
                raise ValueError(
                    f"RunRecorder weights: {name!r} is not 'init', 'last', 'best' or every n epochs such as '5ep'"
                )
        self.signals = parse_signals(signals)
        watched = {"metric": monitor} if isinstance(monitor, str) else monitor or {}
        self._monitor: Monitor = fit_section(Monitor, watched, "RunRecorder monitor")
        self.keys = fit_section(BatchKeys, keys or {}, "RunRecorder keys")
        self.dataset = dataset
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Forget what belongs to the run of one Trainer."""
        self.watch = SignalWatch(self.signals, self.keys)
        labels = RunLabels(self.run_name, self.tags, self.recipe)
        self.keeper = RunKeeper(self.archive, self.spool, labels, self.weights, self._monitor, self.watch)
        self._standalone = False

    @property
    def run_id(self) -> str | None:
        """Id of the run in the archive, once training has started."""
        return None if self.keeper.record is None else self.keeper.record.run_id

    @property
    def overhead_seconds(self) -> float:
        """What recording has cost so far, in seconds."""
        return self.keeper.overhead_seconds

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the example ids, do the event's work, and time it: Composer's entry point."""
        if self.keeper.lost and event is not Event.INIT:  # which another Trainer sends
            return
        began = time.perf_counter()
        self.keeper.clock.follow(event)
        self.watch.handle(event, state)
        try:
            super().run_event(event, state, logger)
        except ArchiveError as error:  # on every rank
            if not self.keeper.give_up(error):
                raise
        self.keeper.overhead_seconds += time.perf_counter() - began

    # Start and resume -----------------------------------------------------------------------------------------------

    def init(self, state: State, logger: Logger) -> None:
        """Start a record of its own for each Trainer that this recorder is given to."""
        self._start_afresh()

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open a new run, or go on with the one of the checkpoint.

        Raises:
            ArchiveError: The model has tensors that an archive cannot hold.
            ModelError: Its state dict leaves out parameters.
            DataError: Batches have other labels than ``dataset`` says.
        """
        # A Trainer that was built before another one trains after it: INIT came for both already.
        if self.keeper.state not in (None, state):
            self._start_afresh()
        keeper = self.keeper
        if self.weights:
            check_weights(state)  # fails here rather than behind the last batch
        keeper.state, keeper.ended = state, False
        info = info_of(state, self.dataset)
        earlier, keeper.info = keeper.info, check_labels(state, info, self.keys, given=self.dataset is not None)
        if keeper.record is not None and (earlier and earlier.fingerprint) != (keeper.info and keeper.info.fingerprint):
            # A second Trainer.fit goes on with the same run, which has one record of its data.
            raise ExampleIdError(
                f"run {self.run_id} was started on other training data. Give the second fit a Trainer and a "
                "RunRecorder of its own."
            )
        if keeper.info is not None and dist.get_global_rank() == 0:
            _ = keeper.info.fingerprint  # of the data as they are now: files may be replaced while training goes on
        self.watch.start(state, keeper.info)
        if keeper.record is None:
            keeper.start(state)
            log_identity(self, state, logger)

    def after_load(self, state: State, logger: Logger) -> None:
        """Complete a record whose process died after its last checkpoint: Composer will not train it any further."""
        # Composer skips FIT_START and FIT_END where the checkpoint stands at the end.
        done = state.max_duration is not None and state.timestamp >= state.max_duration
        if done and self.keeper.record is None and self.keeper.go_on(state):
            self.keeper.state, self.keeper.ended, self.keeper.info = state, True, info_of(state, self.dataset)
            self.keeper.finish(state)

    # While training -------------------------------------------------------------------------------------------------

    def before_forward(self, state: State, logger: Logger) -> None:
        """Count FLOPs, once in a run."""
        self.keeper.look_at_model(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Add the batch to the epoch's means."""
        log_train_seconds(self.keeper.clock.train_seconds, logger)
        self.keeper.log.accumulate(batch_values(state))
        for name, value in readings_of(state).items():
            self.keeper.log.add(name, value, state)
        if self.keeper.record is not None:
            self.keeper.record.show_life()

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Write the epoch's signals and means, and the weights of every n-th epoch."""
        record, epoch = self.keeper.record, int(state.timestamp.epoch)
        assert record is not None
        self.keeper.log.end_epoch(state)
        self.watch.end_epoch(record, epoch - 1)
        matches = [_EVERY.fullmatch(name) for name in self.weights]
        if any(every and epoch % int(every[1]) == 0 for every in matches):
            on_rank_zero(lambda: record.put_weights(f"ep{epoch:04d}", evaluated_weights(state)))

    # Evaluation -----------------------------------------------------------------------------------------------------

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        """Leave out what follows: ``Trainer.eval`` outside training is not part of the run."""
        self._standalone = True

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        """Go back to recording."""
        self._standalone = False

    def eval_end(self, state: State, logger: Logger) -> None:
        """Keep the metrics of this evaluator, and the weights where they are the best so far."""
        label = state.dataloader_label
        # An evaluation before FIT_START (eval_interval with eval_at_start) has no record yet.
        if self._standalone or self.keeper.record is None or label not in state.eval_metrics:
            return
        log_train_seconds(self.keeper.clock.train_seconds, logger)
        for name, value in evaluated_values(state).items():
            self.keeper.log.add(name, value, state)
        for name, value in robust_metrics(state).items():
            self.keeper.log.add(name, value, state)
        self.keeper.best.update(self.keeper.log, label, state)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Check the monitor, and commit: an evaluation after the last batch belongs to the record, too."""
        if self._standalone or self.keeper.record is None:
            return
        self.keeper.best.check(state, self.keeper.log)
        # Composer evaluates once more behind FIT_END where the last interval was not full.
        if self.keeper.ended:
            self.keeper.commit(state)

    # Commit ---------------------------------------------------------------------------------------------------------

    def fit_end(self, state: State, logger: Logger) -> None:
        """Write the last weights, commit, and mark the run as ended by itself."""
        self.keeper.log.end_epoch(state)
        self.watch.end(state)
        self.keeper.ended = True
        log_cost(self.keeper.finish(state), logger)

    def close(self, state: State, logger: Logger) -> None:
        """Commit a run that was interrupted as unfinished, with what it has, and say how to go on."""
        keeper = self.keeper
        if keeper.record is None or keeper.ended or state is not keeper.state or int(state.timestamp.batch) == 0:
            return
        with contextlib.suppress(ArchiveConflictError):  # another attempt has taken the run over
            keeper.keep_interrupted(state)

    def state_dict(self) -> dict[str, Any]:
        """Commit, so that checkpoint and record agree, and return what the checkpoint must know of the record.

        Every rank takes part, as in the saving of the checkpoint itself.
        """
        return self.keeper.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember which run and generation the checkpoint belongs to."""
        self.keeper.resume = state or None
