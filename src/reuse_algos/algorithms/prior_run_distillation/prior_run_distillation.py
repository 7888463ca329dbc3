"""The Composer algorithm: earlier runs teach this one."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any

from composer import Event, State
from composer.loggers import Logger
from torch import nn

from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.algorithms.prior_run_distillation.lessons import Lessons
from reuse_algos.algorithms.prior_run_distillation.loss.channel_wise import ChannelWise
from reuse_algos.algorithms.prior_run_distillation.loss.layout import Microbatch
from reuse_algos.algorithms.prior_run_distillation.loss.section import KL, MSE
from reuse_algos.algorithms.prior_run_distillation.settings import (
    Auto,
    Cached,
    Live,
    Mean,
    Mixup,
    Sample,
    TeachingWindow,
)
from reuse_algos.algorithms.prior_run_distillation.teachers.source_choice import signal_name
from reuse_algos.algorithms.prior_run_distillation.teachers.sources import Teachers
from reuse_algos.algorithms.prior_run_distillation.watch import Channels, HarmWatch, Look, TeacherGoal
from reuse_algos.archive import PriorUse, RunArchive
from reuse_algos.data.example_ids import VIEW_EVENTS, ExampleIds, follow_views, keep_views
from reuse_algos.data.info import DatasetInfo, try_info
from reuse_algos.errors import ExampleIdError, HarmWarning
from reuse_algos.presets import preset
from reuse_algos.priors.choosing import RunSelection
from reuse_algos.priors.model import untouched_copy
from reuse_algos.sections import fit_section
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.first_batch.task_reader import TaskReader
from reuse_algos.training.loss import add_to_loss

log = logging.getLogger(__name__)

_METRICS = "reuse/distillation/"


class PriorRunDistillation(ReusingAlgorithm):
    r"""Distil earlier runs into the one that trains now (arXiv 2303.06480; Hinton et al. 2015, arXiv 1503.02531).

    The training loss becomes :math:`b L + w D`, with :math:`L` the model's own loss after every other algorithm
    rewrote it, :math:`D` the distillation term, and :math:`w` = ``loss.weight``. Where another algorithm weighs
    examples (``HistoryCurriculum``), :math:`D` is weighed in the same way. The task is found in the first batch:
    ``kl`` compares softmax distributions of multiclass, token and dense tasks over their counted targets, and the
    yes-or-no answers of binary and multilabel tasks; regression needs ``mse``, on outputs. Sections are given as a
    dataclass of this package, a mapping, or the bare name.

    Args:
        archive: A :class:`~reuse_algos.archive.RunArchive` or its path.
        runs: A run id or unique run name, a list of those, or a query such as
            ``{"tags": {"method": "baseline"}, "order": "best", "limit": 5}``.
        source: :class:`Live` runs the archived models on every batch; :class:`Cached` looks archived logits up by
            example and view; :class:`Auto` takes cached logits where they are exactly true for what this run sees, else
            live teachers. Default: ``auto``.
        combine: :class:`Mean` of the teachers, :class:`Mixup` or :class:`Sample`. KL combines softened distributions,
            MSE logits. Default: ``mean``.
        loss: :class:`KL`, :class:`MSE` or (of maps) :class:`ChannelWise`, with weight and temperature. Default: that of
            the preset ``same_data``, MSE in units of the teachers' deviation with weight 1.
        when: :class:`TeachingWindow`, the batches in which the term is on. Default: the preset's, the first half.
        keys: :class:`~reuse_algos.training.batch_keys.BatchKeys`: where inputs (for teachers that are plain modules),
            targets, logits and ids lie, and the task where it is not to be found. Default: pairs of inputs and targets.
        mismatch: ``refuse`` prior runs on other data, classes or views; ``allow`` uses examples that match by key
            (others go without the term), the classes of the same name (the term is over these), and cached logits of
            unknown views. Default: ``refuse``.
        dataset: What the train data are. Default: read off the loader's dataset.
        seed: Seed of ``mixup`` and ``sample``. Default: 0.

    Raises:
        ValueError: A setting is out of its range, or a scheduler brings the weight or the temperature out of it.
        RunNotFoundError, SignalNotFoundError, PriorRunMismatchError: At the start of training.
        TaskError: In the first batch: the term is not defined for the task, or none is found.

    Logs ``reuse/distillation/loss`` (D), ``/agreement`` (share of rows, or of their counted positions or labels, with
    the teachers' answer), ``/coverage``, ``/teacher_seconds``, ``/active``, ``/weight``, ``/temperature``, the watch.

    Example:
        .. code-block:: python

            Trainer(..., algorithms=[PriorRunDistillation("./archive", "resnet56-1", loss={"name": "kl"})])
    """

    place = 2  # the last: the term must see the rows that are replayed and the weights that the loss has

    def __init__(
        self,
        archive: RunArchive | str | os.PathLike[str],
        runs: RunSelection,
        *,
        source: Auto | Live | Cached | str | Mapping[str, Any] = "auto",
        combine: Mean | Mixup | Sample | str | Mapping[str, Any] = "mean",
        loss: KL | MSE | ChannelWise | str | Mapping[str, Any] | None = None,
        when: TeachingWindow | Mapping[str, Any] | None = None,
        keys: BatchKeys | Mapping[str, Any] | None = None,
        mismatch: str = "refuse",
        dataset: DatasetInfo | None = None,
        seed: int = 0,
    ) -> None:
        self.keys: BatchKeys = fit_section(BatchKeys, keys or {}, "keys")
        super().__init__(archive, runs, seed=seed, mismatch=mismatch, id_key=self.keys.ids)
        self.ids.view_key = self.keys.views
        self.source: Auto | Live | Cached = fit_section(Auto | Live | Cached, source, "source")
        # What is not said is as in the preset that was shown to help.
        usual = preset("same_data")["prior_run_distillation"]
        self.loss: KL | MSE = fit_section(KL | MSE | ChannelWise, usual["loss"] if loss is None else loss, "loss")
        self.when: TeachingWindow = fit_section(TeachingWindow, usual["when"] if when is None else when, "when")
        self.lessons = Lessons(
            self.loss, fit_section(Mean | Mixup | Sample, combine, "combine"), self.source, self.keys, mismatch, seed
        )
        self.task_reader = TaskReader(self.keys)
        self.dataset = dataset
        self.passed_teacher = False
        self.harm: str | None = None
        self.watch, self._channels = HarmWatch(self.when.stop_when_harmful), Channels()
        self.student: nn.Module | None = None
        self._looks = False
        self._no_ids: str | None = None
        self._goal: TeacherGoal | None = None

    @property
    def teachers(self) -> Teachers | None:
        """The teachers, once training has started."""
        return self.lessons.teachers

    def match(self, event: Event, state: State) -> bool:
        """Answer only: the id events always, the loss while the term is on."""
        if self.stands_aside(event):
            return False
        if event == Event.BEFORE_BACKWARD:
            return self.is_active(state)
        if event == Event.AFTER_LOSS:
            return self.task_reader.is_looking
        if event == Event.EVAL_END:
            return bool(self.when.stop_when_better) and not self.passed_teacher and bool(self.prior_runs)
        return event in (Event.INIT, Event.BEFORE_LOAD, Event.BATCH_END, Event.FIT_END, *ExampleIds.EVENTS)

    def is_active(self, state: State) -> bool:
        """Return whether the term is on for the current batch, with a weight other than 0."""
        stopped = self.passed_teacher or self.harm is not None
        return not stopped and self.lessons.strength.weight != 0 and self.when.is_on(state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the event."""
        if event == Event.INIT:
            self.take_place(state)
        elif event == Event.BEFORE_LOAD:
            # Before checkpoint, DDP and torch.compile touch the model: the only moment when a plain copy can be had.
            if getattr(self.source, "model", None) is None:
                self.student = untouched_copy(state.model)
        elif event == Event.AFTER_LOSS:
            if self.task_reader.handle(event, state):
                self.lessons.check_first(state, self._microbatch(state))
        elif event == Event.BEFORE_BACKWARD:
            if (term := self.lessons.term(state, self._microbatch(state))) is not None:
                added, base = self.lessons.strength.weight * term, self.lessons.base_weight
                state.loss = add_to_loss(state.loss, added, scale=base, part="distillation", shown=term)
        elif event == Event.EVAL_END:
            self._compare_with_teacher(state)
        elif event == Event.FIT_END:
            self.warn_if_idle(logger, f"no row was taught between start={self.when.start} and stop={self.when.stop}")
        elif event == Event.BATCH_END:
            # Not at AFTER_TRAIN_BATCH, which is inside the optimizer's closure: a GPU would have to wait for it.
            metrics = self.lessons.end_batch()
            if self._looks:
                metrics |= self._look(state)
            self.batches_applied += int(metrics.get("coverage", 0) > 0)
            self.log_metrics({_METRICS + name: value for name, value in metrics.items()}, logger)
        else:
            self._follow_batch(event, state)

    def start_afresh(self) -> None:
        """Forget what another Trainer did with this algorithm (INIT)."""
        super().start_afresh()
        self.passed_teacher, self.harm = False, None
        self.watch.forget()
        self.lessons.forget()
        self.task_reader.start_afresh()

    def _follow_batch(self, event: Event, state: State) -> None:
        self.task_reader.handle(event, state)
        if event == Event.FIT_START:
            self._find_examples(state)
            self.begin(state)
        # Live teachers look at the batch itself and need no ids, so they work on any loader.
        elif self.lessons.cached is not None:
            self.ids.handle(event, state)
        elif event in VIEW_EVENTS:
            follow_views(event, state)
        if event == Event.BEFORE_TRAIN_BATCH:
            self.lessons.strength = self.loss.at(state)
            if on := self.is_active(state):
                self._check(lambda: self.loss.check(self.lessons.strength))
            # Decided for the whole batch, so that its microbatches, and a retry of them, are measured alike.
            self._looks = on and self.watch.is_due(state)
            if self._looks and self.task_reader.task is not None:
                self._channels.begin(state.model, self.task_reader.task.num_classes)
            examples = self.ids.batch if on and self.lessons.cached is not None else None
            self.lessons.begin_batch(state, examples, self._looks)

    def _microbatch(self, state: State) -> Microbatch:
        reader, examples = self.task_reader, None if self.lessons.cached is None else self.ids.microbatch
        return Microbatch(reader.batch, examples, reader.known, reader.rows(state.outputs))

    def _look(self, state: State) -> dict[str, float]:
        """Look at a batch that has just ended, and switch the term off where it does harm."""
        totals, dead = self.lessons.totals, self._channels.end()
        if totals is None:
            return {}
        shares = (totals.right / totals.judged, totals.taught / totals.judged) if totals.judged else (None, None)
        look = Look(totals.cosine, *shares, dead, totals.own_per_row)
        self.harm = self.watch.judge(look)
        if self.harm is not None:
            warnings.warn(
                f"PriorRunDistillation: the term is switched off after batch {int(state.timestamp.batch)}, since it "
                f"does harm: {self.harm}. when: {{stop_when_harmful: false}} leaves it on.",
                HarmWarning,
                stacklevel=2,
            )
        return {name: value for name, value in look._asdict().items() if value is not None}

    def _find_examples(self, state: State) -> None:
        """Follow example ids where cached logits may be used; live teachers work on any loader."""
        self._no_ids = None
        if self.source.name == "live":
            keep_views(state)
            return
        try:
            self.ids.handle(Event.FIT_START, state)
        except ExampleIdError as error:
            if self.source.name == "cached":
                raise
            self._no_ids = str(error)
            keep_views(state)

    def start(self, state: State) -> None:
        """Match the prior runs with the current one and load the teachers."""
        self._check(lambda: self.loss.check_ahead(state, self.when))
        if metric := self.when.stop_when_better:
            self._goal = TeacherGoal.of(self.prior_runs, None if metric is True else metric)
        # With it, keys that come with the batch become positions.
        info = self.ids.info = self.dataset or try_info(getattr(state.dataloader, "dataset", None))
        self.lessons.load(state, self.prior_runs, info, self.ids.view_policy, self._no_ids, self.student)
        # A copy of the whole model, which nothing needs any more.
        self.student = None

    @staticmethod
    def _check(check: Any) -> None:
        """Name the algorithm and the section in what a check of the running settings raises."""
        try:
            check()
        except ValueError as error:
            raise ValueError(f"PriorRunDistillation: loss: {error}") from error

    def _compare_with_teacher(self, state: State) -> None:
        assert self._goal is not None
        if (value := self._goal.passed_with(state)) is not None:
            self.passed_teacher = True
            log.info("the student passed its teachers (%.4f, %s): distillation is off", value, self._goal)

    def extra_flops(self, flops_per_example: int) -> float | None:
        """Return the FLOPs of live teachers' forward passes."""
        return self.lessons.costs.flops

    def why(self) -> str | None:
        """Return where the teachers' logits come from and why, and what the first batch showed of them."""
        choice, harm = self.lessons.choice, self.harm
        parts = (choice and ", ".join(choice), self.lessons.report, harm and f"switched off: {harm}")
        return "; ".join(part for part in parts if part) or None

    def prior_uses(self) -> list[PriorUse]:
        """Return what was used of each prior run, with the share of its harvest that the looked-up views are."""
        cached, names = self.lessons.cached is not None, self.source.weight_names
        signals = [signal_name(name) for name in names] if cached else []
        return self.lessons.costs.uses(self.prior_runs, names, signals)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to go on as if it had never stopped."""
        ours = {"passed_teacher": self.passed_teacher, "harm": self.harm, "watch": self.watch.state_dict()}
        return {**super().state_dict(), **self.lessons.state_dict(), **ours}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.passed_teacher, self.harm = bool(state["passed_teacher"]), state["harm"]
        self.watch.load_state_dict(state["watch"])
        self.lessons.load_state_dict(state)
