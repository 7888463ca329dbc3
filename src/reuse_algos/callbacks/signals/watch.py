"""The recorder's view of the forward passes: task, examples, first-batch checks and signals."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from composer import Event, State

from reuse_algos.archive import FileEntry, PriorRun
from reuse_algos.callbacks.recorder.facts.state_facts import num_epochs
from reuse_algos.callbacks.recorder.run_record import RunRecord
from reuse_algos.callbacks.signals.capture import CaptureSettings, Segment, SignalCapture, complete_slots, make_capture
from reuse_algos.callbacks.signals.measures import Measures
from reuse_algos.data.example_ids import VIEW_EVENTS, ExampleIds, follow_views
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import ArchiveWarning
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.first_batch.rows import check_rows
from reuse_algos.training.first_batch.task_reader import TaskReader
from reuse_algos.training.interplay import changes_inputs, clean_rows
from reuse_algos.training.ranks import on_every_rank

log = logging.getLogger(__name__)


class SignalWatch:
    """Finds the task, checks the first batch, and collects the signals of the forward passes of one Trainer.

    Args:
        signals: What to keep, by name; may be empty.
        keys: Where targets, logits and ids lie, and what is taken as given of the task.

    Attributes:
        capture: The rows, or None where no signals are kept or training has not started.
        report: What the first batch showed, in one line; None before it, or where no signals are kept.
    """

    def __init__(self, signals: Mapping[str, CaptureSettings], keys: BatchKeys) -> None:
        self.signals, self.keys = signals, keys
        self.ids = ExampleIds(keys.ids, keys.views)
        # Logits can be kept as they are where outputs leave no doubt; everything else is defined by the task.
        self.reader = TaskReader(keys, required=bool(signals.keys() - {"logits"}))
        self.measures = Measures(signals, self.reader)
        self.capture: SignalCapture | None = None
        self.report: str | None = None
        self._known: dict[tuple[str, int], torch.Tensor] = {}
        self._passed = False

    def start(self, state: State, info: DatasetInfo | None) -> None:
        """Make ready, or follow the new duration of a second fit (FIT_START).

        Raises:
            ExampleIdError: Signals are kept, and the examples are not known or are mixed.
        """
        if self.capture is not None:
            self.capture.num_epochs = num_epochs(state)
            return
        self.ids.info = info
        if self.signals:
            self.capture = make_capture(self.signals, state, info)

    def handle(self, event: Event, state: State) -> None:
        """Follow an event of the training loop."""
        if self.signals and event in ExampleIds.EVENTS:
            self.ids.handle(event, state)
        elif event in VIEW_EVENTS:
            follow_views(event, state)
        if event == Event.BATCH_START:
            self._passed = False
        elif event == Event.AFTER_TRAIN_BATCH:
            self._passed = True
        first = self.reader.task is None and self.reader.refusal is None
        # Once the task is known a record without signals needs nothing more of the batches.
        if event in TaskReader.EVENTS and (first or self.signals):
            self.reader.handle(event, state)
        # Before BEFORE_BACKWARD: distillation changes the loss there, and a refusal must come before any step.
        if event == Event.AFTER_LOSS and self.signals:
            if first:
                self._check(state)
            self._record(state)

    def end_epoch(self, record: RunRecord, epoch: int) -> None:
        """Write the rows of the epoch that has just ended, on every rank."""
        if (capture := self.capture) is None:
            return
        complete = complete_slots(capture, self._known)
        on_every_rank(lambda: record.put_signals(capture, complete))
        record.first_kept = capture.first_kept(epoch)
        self.measures.end_epoch()
        capture.end_epoch()

    def end(self, state: State) -> None:
        """Warn where training ended before the window of last epochs began (FIT_END)."""
        if (capture := self.capture) is None or capture.rolling or capture.num_epochs is None:
            return
        done = int(state.timestamp.epoch) + (int(state.timestamp.batch_in_epoch) > 0)
        windows = {name: kept.last_epochs for name, kept in self.signals.items() if kept.last_epochs is not None}
        if missed := [name for name, last in windows.items() if done <= capture.num_epochs - last]:
            warnings.warn(
                f"training ended in epoch {done} of {capture.num_epochs}, before the last_epochs of "
                f"{', '.join(missed)} began, so nothing of them is recorded. Leave last_epochs out where training may "
                "be stopped early.",
                ArchiveWarning,
                stacklevel=2,
            )

    def take_back(self, run: PriorRun, record: RunRecord, entries: list[FileEntry], partial: list[list[Any]]) -> None:
        """Restore the rows of the epoch in which a checkpoint was made.

        Args:
            run: The run as the checkpoint knows it.
            record: Of the run.
            entries: The signal files of this rank.
            partial: (name, slot, epoch) of what was being collected.
        """
        if "logits" in self.signals and "logits" in run.signal_names:
            logits = run.signal("logits")
            self._known = {("logits", slot): logits.seen(slot) for slot in logits.slots}
        wanted = {(str(name), int(slot), int(epoch)) for name, slot, epoch in partial}
        for entry in entries:
            slot, epoch = int(entry.meta["slot"]), int(entry.meta["epoch"])  # type: ignore[arg-type]
            if self.capture is not None and (entry.name, slot, epoch) in wanted:
                self.capture.restore(Segment(entry.name, slot, dict(entry.meta), record.read(entry)))

    def _check(self, state: State) -> None:
        """Look at the first batch on every rank, before the first step, and say what was found."""

        def look() -> str:
            assert self.capture is not None
            self.measures.check(state, self.reader.batch, self.capture.num_examples)
            clean_R = clean_rows(state)
            return check_rows(
                state, self.reader.batch, self._examples(state), clean_R, self.keys, "RunRecorder signals"
            )

        # All ranks fail together: the others would wait for one that failed alone.
        rows = on_every_rank(look)[0]
        task = self.reader.task
        words = "task not found" if task is None else f"task {task.kind} of {task.num_classes} ({task.evidence})"
        found = (words, self.measures.about_loss, self.measures.about_logits, rows)
        self.report = "RunRecorder: " + "; ".join(part for part in found if part)
        log.info(self.report)

    def _record(self, state: State) -> None:
        """Keep the rows of this microbatch."""
        epoch = int(state.timestamp.epoch)
        names = [] if self.capture is None else self.capture.wanted(epoch)
        # SAM and optimizers with a closure run a batch again, with other weights. A pass that ran out of memory is not
        # over, and is made again with smaller microbatches.
        if not names or self._passed:
            return
        assert self.capture is not None
        values = self.measures.of(names, state, self.reader.batch)
        self.capture.record(epoch, self._examples(state), values, clean_rows(state))

    def _examples(self, state: State) -> Any:
        examples = self.ids.microbatch
        if changes_inputs(state):
            return examples._replace(views=torch.full_like(examples.views, -1))
        return examples
