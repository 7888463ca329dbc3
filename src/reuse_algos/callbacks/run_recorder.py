"""The Composer callback that archives a run while it trains."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from composer import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist

from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.archive import (
    CostRecord,
    FileEntry,
    Manifest,
    ModelRecord,
    Progress,
    RunArchive,
    infer_mode,
)
from reuse_algos.callbacks.metric_log import MetricLog
from reuse_algos.callbacks.provenance import environment, model_flops, model_record
from reuse_algos.callbacks.readings import readings_of
from reuse_algos.callbacks.robust_evaluation import ROBUST, robust_metrics
from reuse_algos.callbacks.run_record import RunRecord
from reuse_algos.callbacks.signal_capture import Segment, SignalCapture, parse_signals
from reuse_algos.callbacks.spool import Spool
from reuse_algos.callbacks.state_facts import dataset_record, evaluated_weights, info_of, num_epochs, scalar
from reuse_algos.callbacks.tracker_facts import log_cost, log_identity, log_train_seconds
from reuse_algos.data.example_ids import ExampleIds, keep_views
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import ExampleIdError, RunNotFoundError
from reuse_algos.training.flops import training_flops
from reuse_algos.training.interplay import changes_inputs, clean_rows, mixes_examples
from reuse_algos.training.outputs import logits_of
from reuse_algos.training.ranks import on_every_rank, on_rank_zero

__all__ = ["RunRecorder"]

_EVERY = re.compile(r"([1-9]\d*)ep")


class RunRecorder(Callback):
    """Archive this run: metrics, weights, per-example signals, recipe, provenance and cost.

    Signals are taken from the forward pass that happens anyway, kept on the training device and written when an epoch
    ends. The record is committed whenever Composer saves a checkpoint (checkpoint and record then agree, so a resumed
    run goes on bit-equal) and when training ends. A run that was interrupted stays marked as unfinished.

    The run's loggers (W&B and others) are told run id, archive and prior runs, ``time/train_seconds`` at every step as
    an x axis, and in the end ``reuse/cost/...`` (:mod:`reuse_algos.callbacks.tracker_facts`).

    Args:
        archive: a :class:`~reuse_algos.archive.RunArchive` or a path; an archive is made where there is none.
        run_name: name of the run. Default: the trainer's.
        tags: labels to select and group runs by, such as ``{"study": "lr", "method": "baseline"}``.
        recipe: the settings that made this run, as JSON-able data.
        weights: which weights to keep: ``init`` (at the start), ``last`` (at the end), ``best`` (by ``monitor``),
            ``5ep`` (every fifth epoch).
        signals: which signals to keep, for example ``{"logits": {"last_epochs": 32, "top_k": 16}, "loss": {},
            "correct": {}, "logit_margin": {}}``. Logits are kept once for each view, the others (one number for each
            example) for each epoch. ``last_epochs`` counts from the end of training (left out: every epoch); ``top_k``
            keeps the largest logits and the mass of the rest (left out: all logits, as float16). Default: none.
        monitor: the metric that orders runs and decides ``best``, such as ``metrics/eval/MulticlassAccuracy``.
            Default: the first evaluation metric whose name holds ``Accuracy``, else the first one.
        target_key: where the targets lie in a batch.
        output_key: where the logits lie in the model's outputs. Default: the tensor, or what is called ``logits``.
        id_key: where the example ids (keys of ``dataset``) lie in a batch, for iterable datasets.
        dataset: what the train data are, where that cannot be read off the loader's dataset.
        on_archive_error: ``raise``, or ``warn``: record into the folder ``spool`` first and pass each commit on to the
            archive; where that fails, training goes on, and ``reuse-algos copy`` passes the rest on later.
        spool: that folder, on a disk that all ranks share.

    Raises:
        ValueError: a setting is wrong.
        ExampleIdError: at the start, where signals cannot be attributed to examples.
        ArchiveError: the archive cannot be written; on every rank, and nothing half-written is ever visible.
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
        monitor: str | None = None,
        target_key: str | int = 1,
        output_key: str | int | None = None,
        id_key: str | int | None = None,
        dataset: DatasetInfo | None = None,
        on_archive_error: str = "raise",
        spool: str | os.PathLike[str] = "./archive-spool",
    ) -> None:
        if on_archive_error not in ("raise", "warn"):
            raise ValueError(f"RunRecorder on_archive_error must be 'raise' or 'warn', not {on_archive_error!r}")
        self.spool = Spool(archive, spool) if on_archive_error == "warn" else None
        if self.spool is not None:
            self.archive = self.spool.archive
        else:
            self.archive = archive if isinstance(archive, RunArchive) else RunArchive(archive)
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
        self.monitor = monitor
        self.target_key, self.output_key = target_key, output_key
        self.dataset = dataset
        self.ids = ExampleIds(id_key)
        self.overhead_seconds = 0.0
        self._resume: dict[str, Any] | None = None
        self._record: RunRecord | None = None
        self._info: DatasetInfo | None = None
        self._log = MetricLog()
        self._capture: SignalCapture | None = None
        self._known: dict[tuple[str, int], torch.Tensor] = {}
        self._state: State | None = None
        self._model: ModelRecord | None = None
        self._best: dict[str, torch.Tensor] | None = None
        self._best_value = math.nan
        self._ended = False
        self._standalone = False
        self._eval_began = 0.0

    @property
    def run_id(self) -> str | None:
        """Id of the run in the archive, once training has started."""
        return None if self._record is None else self._record.run_id

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Composer's entry point: follow the example ids, do the event's work, and time it."""
        began = time.perf_counter()
        if self.signals and event in ExampleIds.EVENTS:
            self.ids.handle(event, state)
        elif event == Event.FIT_START:
            keep_views(state)
        super().run_event(event, state, logger)
        self.overhead_seconds += time.perf_counter() - began

    # Start and resume -----------------------------------------------------------------------------------------------

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open a new run, or go on with the one of the checkpoint."""
        self._state, self._ended = state, False
        earlier, self._info = self._info, self.dataset or info_of(state)
        if self._record is not None:
            # A second Trainer.fit goes on with the same run, which has one record of its data.
            if (earlier and earlier.fingerprint) != (self._info and self._info.fingerprint):
                raise ExampleIdError(
                    f"run {self.run_id} was started on other training data. Give the second fit a Trainer and a "
                    "RunRecorder of its own."
                )
            if self._capture is not None:
                self._capture.num_epochs = num_epochs(state)
            return
        if self.signals:
            self._capture = self._make_capture(state, self._info)
        if self.spool is not None:
            self.spool.begin()
        resume = self._resume
        if resume is not None and self._continues(resume, state):
            self._record = RunRecord.resume(self.archive, resume["run_id"], int(resume["generation"]))
            on_every_rank(lambda: self._take_back(resume))
        else:
            self._record = record = RunRecord.start(self.archive, self.run_name or state.run_name)
            if "init" in self.weights:  # behind the algorithms, which may have loaded a prior run's weights
                on_rank_zero(lambda: record.put("weights", "init", evaluated_weights(state)))
        log_identity(self, state, logger)

    def after_load(self, state: State, logger: Logger) -> None:
        """Complete a record whose process died after its last checkpoint: Composer will not train it any further."""
        del logger
        done = state.max_duration is not None and state.timestamp >= state.max_duration
        if done and self._resume is not None and self._record is None and self._continues(self._resume, state):
            resume = self._resume
            self._state, self._ended, self._info = state, True, self.dataset or info_of(state)
            self._record = RunRecord.resume(self.archive, resume["run_id"], int(resume["generation"]))
            on_every_rank(lambda: self._take_back(resume))
            self._finish(state)

    def _continues(self, resume: Mapping[str, Any], state: State) -> bool:
        """Whether a loaded checkpoint's run is this one: it has the same name and has not ended.

        A run that another one merely starts from, and a run that has ended, stay as they are.
        """
        run_id, run_name = resume["run_id"], self.run_name or state.run_name
        if resume.get("run_name", run_name) != run_name:
            return False
        if self.spool is not None:
            self.spool.fetch(run_id)

        def find() -> tuple[bool, bool]:
            try:
                run = self.archive.run(run_id)
            except RunNotFoundError as error:
                raise RunNotFoundError(
                    f"the checkpoint goes on with run {run_id}, which is not in {self.archive.location}. Name the "
                    "archive that it was recorded in, copy it from there (`reuse-algos copy`), or give another "
                    "run_name to start a new run"
                ) from error
            return run.run_name == run_name, run.finished

        named, finished = on_rank_zero(find)
        if named and finished and self.spool is not None:
            self.spool.push(run_id, last=True)  # its process may have died before it came to that
        return named and not finished

    def _make_capture(self, state: State, info: DatasetInfo | None) -> SignalCapture:
        if info is None:
            raise ExampleIdError("signals need to know the examples; say what the data are by dataset=DatasetInfo(...)")
        if mixing := mixes_examples(state):
            raise ExampleIdError(
                f"{mixing[0]} mixes examples, so no row of the outputs belongs to one of them and signals cannot be "
                "captured. Record without signals and harvest them afterwards (`reuse-algos harvest`)."
            )
        epochs = num_epochs(state)
        if epochs is None and any(kept.last_epochs for kept in self.signals.values()):
            raise ValueError(
                f"last_epochs counts from the end, which max_duration={state.max_duration} does not tell in epochs. "
                "Give max_duration in epochs or batches, or leave last_epochs out."
            )
        return SignalCapture(self.signals, info.num_examples, epochs)

    def _take_back(self, resume: Mapping[str, Any]) -> None:
        """What the run had when the checkpoint was made; what came after it is dropped."""
        assert self._record is not None
        manifest = self._record.manifest
        assert manifest is not None
        run = self.archive.run(manifest.run_id).at_generation(manifest.generation)
        self._model = manifest.model
        self._log = MetricLog.of_run(run)
        if "logits" in self.signals and "logits" in run.signal_names:
            logits = run.signal("logits")
            self._known = {("logits", slot): logits.seen(slot) for slot in logits.slots}
        self._log.load_state_dict(resume["log"])
        self.overhead_seconds += float(resume["overhead_seconds"])
        self._best_value = float(resume["best_value"])
        partial = {(str(name), int(slot), int(epoch)) for name, slot, epoch in resume["partial"]}
        for entry in self._record.own_signals():
            slot, epoch = int(entry.meta["slot"]), int(entry.meta["epoch"])  # type: ignore[arg-type]
            if self._capture is not None and (entry.name, slot, epoch) in partial:
                self._capture.restore(Segment(entry.name, slot, dict(entry.meta), self._record.read(entry)))

    # While training -------------------------------------------------------------------------------------------------

    def before_forward(self, state: State, logger: Logger) -> None:
        """Count FLOPs, once in a run."""
        del logger
        if self._model is None:
            flops = model_flops(state) if dist.get_global_rank() == 0 else None
            self._model = model_record(state.model, flops)

    def after_forward(self, state: State, logger: Logger) -> None:
        """Keep the rows of this microbatch."""
        del logger
        epoch = int(state.timestamp.epoch)
        if self._capture is None or not self._capture.wanted(epoch):
            return
        examples = self.ids.microbatch
        if changes_inputs(state):
            examples = examples._replace(views=torch.full_like(examples.views, -1))
        if self.ids.id_key is not None:
            assert self._info is not None
            examples = examples._replace(positions=self._info.positions_of(examples.positions))
        targets = None
        if self.signals.keys() - {"logits"}:
            targets = state.batch_get_item(self.target_key)
        logits = logits_of(state.outputs, self.output_key)
        self._capture.record(epoch, examples, logits, targets, clean_rows(state))  # type: ignore[arg-type]

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
        if self._capture is not None:
            complete = _complete_slots(self._capture, self._known)
            on_every_rank(lambda: self._put_signals(complete))
            self._capture.end_epoch()
        matches = [_EVERY.fullmatch(name) for name in self.weights]
        if any(every and epoch % int(every[1]) == 0 for every in matches):
            on_rank_zero(lambda: record.put("weights", f"ep{epoch:04d}", evaluated_weights(state)))

    # Evaluation -----------------------------------------------------------------------------------------------------

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        """Trainer.eval outside training is not part of the run."""
        del state, logger
        self._standalone = True

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        """Back to training."""
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
        monitor = self._monitored()
        value = self._log.last(monitor)
        if monitor is None or value is None or not monitor.startswith(f"metrics/{label}/"):
            return
        sign = 1 if infer_mode(monitor) == "max" else -1
        if math.isfinite(value) and not sign * value <= sign * self._best_value:
            self._best_value = value
            if "best" in self.weights and dist.get_global_rank() == 0:
                self._best = evaluated_weights(state)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Stop the clock; an evaluation after the last batch belongs to the record, too."""
        del logger
        if self._standalone or self._record is None:
            return
        self._log.eval_seconds += time.perf_counter() - self._eval_began
        if self._ended:
            self._commit(state)

    def _monitored(self) -> str | None:
        names = [name for name in self._log.names if name.startswith("metrics/") and "/train/" not in name]
        if self.monitor is not None:
            return next((name for name in names if name == self.monitor or name.endswith("/" + self.monitor)), None)
        names = [name for name in names if f"/{ROBUST}/" not in name]
        return next((name for name in names if "Accuracy" in name), names[0] if names else None)

    # Commit ---------------------------------------------------------------------------------------------------------

    def fit_end(self, state: State, logger: Logger) -> None:
        """Write the last weights, commit, and mark the run as ended by itself."""
        self._log.end_epoch(state)
        self._ended = True
        self._finish(state)
        assert self._record is not None
        assert self._record.manifest is not None
        log_cost(self._record.manifest, logger)

    def _finish(self, state: State) -> None:
        assert self._record is not None
        self._commit(state, last="last" in self.weights, push=False)
        self._record.finish()
        if self.spool is not None:
            self.spool.push(self._record.run_id, last=True)

    def state_dict(self) -> dict[str, Any]:
        """Called when Composer saves a checkpoint: commit, so that checkpoint and record agree.

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
            "run_name": self.run_name or self._state.run_name,
            "generation": self._record.manifest.generation,
            "log": self._log.state_dict(),
            "best_value": self._best_value,
            "overhead_seconds": self.overhead_seconds,
            "partial": [] if self._capture is None else self._capture.slots,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember which run and generation the checkpoint belongs to."""
        self._resume = state or None

    def _put_signals(self, complete: Collection[tuple[str, int]] = ()) -> None:
        """Write this rank's rows.

        Args:
            complete: name and slot of those signals that have a row for every example, on all ranks together.
        """
        assert self._record is not None
        for segment in [] if self._capture is None else self._capture.segments():
            whole = (segment.name, segment.slot) in complete
            meta = {key: value for key, value in segment.meta.items() if key != "rank"} | {"whole_epoch": whole}
            self._record.put("signals", segment.name, segment.tensors, **meta)

    def _commit(self, state: State, *, last: bool = False, push: bool = True) -> None:
        """Commit on all ranks together; everything that can fail on one of them is inside."""
        record, info = self._record, self._info
        assert record is not None

        def write_rest() -> None:
            self._put_signals()
            if dist.get_global_rank() == 0:
                if record.manifest is None and info is not None:
                    labels = {} if info.labels is None else {"labels": info.labels}
                    record.put("dataset", "examples", {"keys": info.keys, **labels})
                if last:
                    record.put("weights", "last", evaluated_weights(state))
                if self._best is not None:
                    record.put("weights", "best", self._best)
                    self._best = None
                if self._log.names:
                    record.put("metrics", "history", self._log.tensors())

        record.commit(lambda files: self._describe(state, files), write_rest)
        if self.spool is not None and push:
            self.spool.push(record.run_id, last=self._ended)

    def _describe(self, state: State, files: list[FileEntry]) -> Manifest:
        base = None if self._record is None else self._record.manifest
        reusing = [a for a in state.algorithms if isinstance(a, ReusingAlgorithm)]
        uses = [use for a in reusing for use in a.prior_uses()]
        now, monitor = state.timestamp, self._monitored()
        finite = self._log.is_finite("loss/train/total", monitor)
        return Manifest(
            run_name=self.run_name or state.run_name,
            tags=self.tags,
            seed=state.rank_zero_seed,
            recipe=self.recipe,
            dataset=(base and base.dataset) if self._info is None else dataset_record(self._info, state),
            model=self._model or model_record(state.model, None),
            environment=environment() if base is None else base.environment,
            progress=Progress(epoch=int(now.epoch), batch=int(now.batch), sample=int(now.sample)),
            cost=CostRecord(
                train_seconds=now.total_wct.total_seconds(),
                eval_seconds=self._log.eval_seconds,
                setup_seconds=sum(a.setup_seconds for a in reusing),
                overhead_seconds=self.overhead_seconds,
                train_flops=training_flops(self._model and self._model.flops_per_example, state),
            ),
            monitor=monitor,
            monitor_mode=infer_mode(monitor or ""),
            health="empty" if int(now.batch) == 0 else "ok" if finite else "diverged",
            harvests=[] if base is None else base.harvests,
            prior_runs=uses or ([] if base is None else base.prior_runs),
            files=files,
        )


def _complete_slots(capture: SignalCapture, known: dict[tuple[str, int], torch.Tensor]) -> set[tuple[str, int]]:
    """Name and slot of the signals whose earlier rows this epoch replaces, on all ranks together.

    Those that every example has a row of now, or (logits, whose slots come again) every example that had one. An epoch
    that a curriculum or ``drop_last`` shortened does not show every example; what it did not show must stay.

    Args:
        capture: the epoch's rows.
        known: which examples have a row of logits so far, bool ``[N]`` by name and slot; this epoch's are added.
    """
    union: dict[tuple[str, int], torch.Tensor] = {}
    for seen in on_every_rank(capture.seen):
        for key, seen_N in seen.items():
            union[key] = union[key] | seen_N if key in union else seen_N
    complete = {key for key, seen_N in union.items() if bool(seen_N.all())}
    for key, seen_N in union.items():
        if key[0] == "logits":
            known[key] = seen_N | known.get(key, seen_N)
            if torch.equal(known[key], seen_N):
                complete.add(key)
    return complete
