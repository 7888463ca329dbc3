"""The Composer algorithm: earlier runs teach this one."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from composer import Event, State, Time, TimeUnit
from composer.loggers import Logger
from composer.optim import ComposerScheduler
from composer.utils import dist
from torch import nn

from reuse_algos.algorithms.base import ReusingAlgorithm, Stopwatch
from reuse_algos.algorithms.prior_run_distillation.goal import TeacherGoal
from reuse_algos.algorithms.prior_run_distillation.known_classes import KnownClasses, find_known_classes
from reuse_algos.algorithms.prior_run_distillation.losses import (
    combination_weights,
    combined_loss,
    kl_term,
    mix_logits,
    mix_probabilities,
    mse_term,
)
from reuse_algos.algorithms.prior_run_distillation.teachers import (
    CachedTeachers,
    LiveTeachers,
    Teachers,
    missing_from_cache,
    no_images,
    refuse_top_k,
    signal_name,
)
from reuse_algos.archive import PriorUse, RunArchive
from reuse_algos.data.example_ids import ExampleIds, keep_views
from reuse_algos.data.info import DatasetInfo, try_info
from reuse_algos.data.sampler import Examples
from reuse_algos.errors import ExampleIdError, PriorRunMismatchError
from reuse_algos.priors.choosing import RunSelection, match_examples
from reuse_algos.priors.model import ModelFactory
from reuse_algos.training.batch_norm import restore_batch_norm
from reuse_algos.training.interplay import (
    changes_inputs,
    example_weights,
    hides_inputs,
    mixes_examples,
    replayed_outputs,
)
from reuse_algos.training.outputs import device_of, logits_of, unwrap_model
from reuse_algos.training.window import ahead, is_on, scheduled

__all__ = ["PriorRunDistillation"]

log = logging.getLogger(__name__)


class PriorRunDistillation(ReusingAlgorithm):
    r"""Distil earlier runs into the one that trains now (arXiv 2303.06480; Hinton et al. 2015, arXiv 1503.02531).

    The training loss becomes :math:`b L + w D`, with :math:`L` the model's own loss after every other algorithm
    rewrote it, :math:`D` the distillation term, :math:`w` = ``weight`` and :math:`b` = ``base_loss_weight``. Where
    another algorithm weighs examples (``HistoryCurriculum``), :math:`D` is weighed in the same way.

    Args:
        archive: a :class:`~reuse_algos.archive.RunArchive` or its path.
        runs: a run id or unique run name, a list of those, or a query such as
            ``{"tags": {"method": "baseline"}, "order": "best", "limit": 5}``.
        source: ``live`` runs the archived models on every batch; ``cached`` looks archived logits up by example and
            view; ``auto`` takes cached logits where they are exactly true for what this run sees, else live teachers.
        weights: which archived weights of each run teach: ``last``, ``best``, ``100ep`` ...; each (run, weights) pair
            is one teacher.
        combine: ``mean`` of the teachers; ``mixup``, a random convex combination redrawn for each batch; ``sample``,
            ``sample_size`` of the teachers for each batch. KL combines softened distributions, MSE logits.
        loss: ``kl`` (temperature squared times KL) or ``mse`` (of logits).
        temperature: T > 0 of ``kl``.
        weight: w >= 0; at most 1 where ``base_loss_weight`` is left out with ``kl``.
        weight_scheduler: multiplies w at every batch, as Composer's schedulers multiply the learning rate:
            ``LinearScheduler(t_max="0.5dur")`` fades it out over the first half. Where it is 0 the term is off, as
            before ``start`` and from ``stop`` on. Default: w is constant.
        temperature_scheduler: multiplies T in the same way; it must stay above 0.
        base_loss_weight: b >= 0. Default: ``1 - weight`` for ``kl`` (Hinton's convex combination), 1 for ``mse``
            (cross entropy plus MSE, as in arXiv 2303.06480).
        dirichlet_alpha: concentration > 0 of ``mixup``; 1 is uniform over all combinations.
        sample_size: number of teachers that ``sample`` takes for each batch.
        start: Composer time from which the term is on, such as ``"5ep"`` or ``"0.1dur"``.
        stop: Composer time from which it is off again.
        every_n_batches: the term is on at every n-th batch only, and off (the model's own loss alone) at the others.
        stop_when_better: switch off for good once the monitored metric passes the best teacher's.
        monitor: the metric for that. Default: the one that the prior run monitored.
        mismatch: ``refuse`` prior runs on other data, classes or views; ``allow`` uses examples that match by key
            (others go without the term), the classes of the same name (the term is over these), and cached logits of
            unknown views.
        teacher_model: the teachers' architecture, a module or a function that makes one. Default: rebuilt from the
            run's record, or a copy of the student.
        input_key: where the inputs lie in a batch, for teachers that are plain modules.
        output_key: where the logits lie in the model's outputs. Default: the tensor, or what is called ``logits``.
        id_key: where the example ids lie in a batch, for iterable datasets.
        dataset: what the train data are, where that cannot be read off the loader's dataset.
        seed: seed of ``mixup`` and ``sample``.

    Raises:
        ValueError: an argument is out of its range, or a scheduler brings the weight or the temperature out of it.
        RunNotFoundError, SignalNotFoundError, PriorRunMismatchError: at the start of training.

    Logs ``reuse/distillation/loss`` (D), ``/agreement`` (share of rows whose largest logit is the teachers'),
    ``/coverage`` (share of rows with a target), ``/teacher_seconds`` (since the start), ``/active`` (0 or 1), and
    ``/weight`` (w) or ``/temperature`` (T) where a scheduler changes it.

    Example:
        .. code-block:: python

            Trainer(..., algorithms=[PriorRunDistillation("./archive", runs="resnet56-1", temperature=4, weight=0.9)])
    """

    place = 2

    def __init__(
        self,
        archive: RunArchive | str | os.PathLike[str],
        runs: RunSelection,
        *,
        source: str = "auto",
        weights: str | Sequence[str] = "last",
        combine: str = "mean",
        loss: str = "kl",
        temperature: float = 4.0,
        weight: float = 0.9,
        weight_scheduler: ComposerScheduler | None = None,
        temperature_scheduler: ComposerScheduler | None = None,
        base_loss_weight: float | None = None,
        dirichlet_alpha: float = 1.0,
        sample_size: int = 1,
        start: str | int | Time = "0ba",
        stop: str | int | Time = "1dur",
        every_n_batches: int = 1,
        stop_when_better: bool = False,
        monitor: str | None = None,
        mismatch: str = "refuse",
        teacher_model: ModelFactory | None = None,
        input_key: str | int = 0,
        output_key: str | int | None = None,
        id_key: str | int | None = None,
        dataset: DatasetInfo | None = None,
        seed: int = 0,
    ) -> None:
        _one_of("source", source, ("auto", "live", "cached"))
        _one_of("combine", combine, ("mean", "mixup", "sample"))
        _one_of("loss", loss, ("kl", "mse"))
        _in_range("base_loss_weight", base_loss_weight, base_loss_weight is None or base_loss_weight >= 0, "at least 0")
        _in_range("dirichlet_alpha", dirichlet_alpha, dirichlet_alpha > 0, "above 0")
        _in_range("sample_size", sample_size, sample_size >= 1, "at least 1")
        _in_range("every_n_batches", every_n_batches, every_n_batches >= 1, "at least 1")
        super().__init__(archive, runs, seed=seed, mismatch=mismatch, id_key=id_key)
        self.source, self.combine, self.loss = source, combine, loss
        self.weights = [weights] if isinstance(weights, str) else list(weights)
        self.base_loss_weight = base_loss_weight
        self.weight = self._weight_now = self._checked_weight(weight)
        self.temperature = self._temperature_now = self._checked_temperature(temperature)
        self.weight_scheduler, self.temperature_scheduler = weight_scheduler, temperature_scheduler
        self.dirichlet_alpha, self.sample_size = dirichlet_alpha, sample_size
        self.start_at = Time.from_input(start, TimeUnit.EPOCH)
        self.stop_at = Time.from_input(stop, TimeUnit.EPOCH)
        self.every_n_batches = every_n_batches
        self.stop_when_better, self.monitor = stop_when_better, monitor
        self.teacher_model = teacher_model
        self.input_key, self.output_key = input_key, output_key
        self.dataset = dataset
        self.passed_teacher = False
        self.teachers: Teachers | None = None
        self._student: nn.Module | None = None
        self._stopwatch = Stopwatch()
        self._earlier_teacher_seconds = 0.0
        self._earlier_slots: set[int] = set()
        self._teacher_flops: float | None = 0.0
        self._no_ids: str | None = None
        self._combination = np.ones(0)
        self._sums: list[torch.Tensor] = []
        self._share = 1.0
        self._info: DatasetInfo | None = None
        self._classes = KnownClasses()
        self._goal: TeacherGoal | None = None

    # What the engine asks -------------------------------------------------------------------------------------------

    def match(self, event: Event, state: State) -> bool:
        """Answer only: the id events always, the loss while the term is on."""
        if event == Event.BEFORE_BACKWARD:
            return self.is_active(state)
        if event == Event.EVAL_END:
            return self.stop_when_better and not self.passed_teacher and bool(self.prior_runs)
        return event in (Event.INIT, Event.BEFORE_LOAD, Event.BATCH_END, Event.FIT_END, *ExampleIds.EVENTS)

    def is_active(self, state: State) -> bool:
        """Whether the term is on for the current batch, with a weight other than 0."""
        on = not self.passed_teacher and self._weight_now != 0
        return on and is_on(state, self.start_at, self.stop_at, self.every_n_batches)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the event."""
        if event == Event.INIT:
            self.take_place(state)
        elif event == Event.BEFORE_LOAD:
            # Before checkpoint, DDP and torch.compile touch the model: the only moment when a plain copy can be had.
            if self.source != "cached" and self.teacher_model is None:
                self._student = copy.deepcopy(state.model)
                restore_batch_norm(self._student)
        elif event == Event.BEFORE_BACKWARD:
            self._add_term(state)
        elif event == Event.EVAL_END:
            self._compare_with_teacher(state)
        elif event == Event.FIT_END:
            self.warn_if_idle(logger, f"it was never on between start={self.start_at} and stop={self.stop_at}")
        else:
            self._follow_batch(event, state, logger)

    def start_afresh(self) -> None:
        """INIT: forget what another Trainer did with this algorithm."""
        super().start_afresh()
        self.passed_teacher, self.teachers = False, None
        self._stopwatch, self._earlier_teacher_seconds = Stopwatch(), 0.0
        self._earlier_slots, self._teacher_flops = set(), 0.0

    def _follow_batch(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.FIT_START:
            self._find_examples(state)
            self.begin(state)
        elif isinstance(self.teachers, CachedTeachers):
            self.ids.handle(event, state)
        if event == Event.BEFORE_TRAIN_BATCH:
            self._weight_now = scheduled(self.weight, self.weight_scheduler, state)
            self._temperature_now = scheduled(self.temperature, self.temperature_scheduler, state)
            if self.is_active(state):
                self._checked_weight(self._weight_now)
                self._checked_temperature(self._temperature_now)
            # The draw is a function of the batch's number: the same on every rank, for every microbatch and retry.
            rng = np.random.default_rng([self.seed % 2**63, int(state.timestamp.batch)])
            self._combination = combination_weights(
                self.combine,
                len(self.teachers.names) if self.teachers else 1,
                rng,
                dirichlet_alpha=self.dirichlet_alpha,
                sample_size=self.sample_size,
            )
            self._sums = []
            self._share = self._share_with_target(state)
        elif event == Event.BATCH_END:
            # Not at AFTER_TRAIN_BATCH, which is inside the optimizer's closure: a GPU would have to wait for it.
            self._log_batch(logger)
            self._sums = []

    def _find_examples(self, state: State) -> None:
        """Follow example ids where cached logits may be used; live teachers work on any loader."""
        self._no_ids = None
        if self.source == "live":
            keep_views(state)
            return
        try:
            self.ids.handle(Event.FIT_START, state)
        except ExampleIdError as error:
            if self.source == "cached":
                raise
            self._no_ids = str(error)
            keep_views(state)

    # Start ----------------------------------------------------------------------------------------------------------

    def start(self, state: State) -> None:
        """Match the prior runs with the current one and load the teachers."""
        for value in ahead(self.weight_scheduler, state, self.start_at, self.stop_at):
            self._checked_weight(self.weight * value)
        for value in ahead(self.temperature_scheduler, state, self.start_at, self.stop_at):
            self._checked_temperature(self.temperature * value)
        if isinstance(self.teachers, CachedTeachers):
            self._earlier_slots |= self.teachers.slots_used
        if self.stop_when_better:
            self._goal = TeacherGoal.of(self.prior_runs, self.monitor)
        source = self._choose_source(state)
        info = self.dataset
        if info is None:
            info = try_info(getattr(state.dataloader, "dataset", None))
        self._info = info
        num_classes = getattr(unwrap_model(state.model), "num_classes", None) or (info and info.num_classes)
        self._classes = find_known_classes(self.prior_runs, num_classes, info, self.mismatch)
        if info is None and source == "cached":
            raise ExampleIdError(
                "the train examples cannot be told apart; say what they are: dataset=DatasetInfo(...)."
            )
        rows = [] if info is None else [match_examples(run, info, self.mismatch) for run in self.prior_runs]
        if source == "cached":
            if self.loss == "mse":
                refuse_top_k(self.prior_runs, self.weights)
            self.teachers = CachedTeachers(
                self.prior_runs, self.weights, rows, self.ids.view_policy, device_of(state.model)
            )
            self.teachers.slots_used |= self._earlier_slots
        elif not isinstance(self.teachers, LiveTeachers):  # those of an earlier fit go on
            self.teachers = LiveTeachers(
                self.prior_runs,
                self.weights,
                self.teacher_model,
                self._student,
                state,
                input_key=self.input_key,
                output_key=self.output_key,
            )
        self._student = None
        log.info("distilling from %s (%s)", ", ".join(self.teachers.names), source)

    def _choose_source(self, state: State) -> str:
        hiding = hides_inputs(state)
        if self.source == "live":
            if hiding:
                raise PriorRunMismatchError(no_images(hiding[0], "source: live was asked for"))
            return "live"
        changers = mixes_examples(state) + changes_inputs(state)
        whole = self.source == "auto"
        reasons = [missing_from_cache(run, self.weights, self.ids.view_policy, whole) for run in self.prior_runs]
        reason = self._no_ids or next((r for r in reasons if r), None)
        if changers:
            reason = (
                f"{changers[0]} changes the inputs, so logits that were cached without it are not true for what the "
                "student sees. Use source: live, whose teachers see the same changed inputs"
            )
        if self.source == "auto":
            if reason and hiding:
                raise PriorRunMismatchError(no_images(hiding[0], reason))
            if reason:
                log.info("live teachers: %s", reason)
            return "live" if reason else "cached"
        if reason and (mixes_examples(state) or self.mismatch != "allow"):
            raise PriorRunMismatchError(reason)
        return self.source

    # Each microbatch ------------------------------------------------------------------------------------------------

    def _add_term(self, state: State) -> None:
        assert self.teachers is not None
        student_BC = self._classes.of_student(logits_of(state.outputs, self.output_key))
        chosen = [int(i) for i in np.flatnonzero(self._combination)]
        with self._stopwatch.running():
            examples = self._positions(self.ids.microbatch) if isinstance(self.teachers, CachedTeachers) else None
            logits, seen_B = self.teachers.targets(state, examples, chosen)
        known, each = self._classes, len(self.weights)
        logits = [known.of_teacher(i // each, teacher_BC) for i, teacher_BC in zip(chosen, logits, strict=True)]
        shares = [float(self._combination[i]) for i in chosen]
        weights_B = example_weights(state)
        for index, teacher_BC in zip(chosen, logits, strict=True):
            if teacher_BC.shape != student_BC.shape:
                raise PriorRunMismatchError(
                    f"teacher {self.teachers.names[index]} gives logits of shape {tuple(teacher_BC.shape)}, the "
                    f"student of shape {tuple(student_BC.shape)} (dimension 1 is the classes). They must be alike."
                )
        if self.loss == "kl":
            target_BC = mix_probabilities(logits, shares, self._temperature_now)
        else:
            target_BC = mix_logits(logits, shares)
        term = self._term(student_BC, target_BC, seen_B, weights_B)
        if (replayed := replayed_outputs(state)) is not None:
            term = replayed.clean_share * term
            if len(rows_R := replayed.rows_R):
                # What the teachers say of the clean view is the target of a replayed row, too.
                seen_R = None if seen_B is None else seen_B[rows_R]
                weights_R = None if weights_B is None else weights_B[rows_R.cpu()]
                theirs_RC = known.of_student(logits_of(replayed.outputs, self.output_key))
                term = term + replayed.share * self._term(theirs_RC, target_BC[rows_R], seen_R, weights_R)
        state.loss = combined_loss(state.loss, term, base_weight=self._base_weight(), weight=self._weight_now)
        with torch.no_grad():
            agree = (student_BC.argmax(1) == target_BC.argmax(1)).float().reshape(len(student_BC), -1).mean(1)
            seen = torch.ones_like(agree) if seen_B is None else seen_B.float()
            rows = torch.full_like(term, len(seen))
            self._sums.append(torch.stack([term.detach() * rows, (agree * seen).sum(), seen.sum(), rows]))

    def _term(
        self,
        student_BC: torch.Tensor,
        target_BC: torch.Tensor,
        seen_B: torch.Tensor | None,
        weights_B: torch.Tensor | None,
    ) -> torch.Tensor:
        """D, from what :func:`mix_probabilities` (kl) or :func:`mix_logits` (mse) made of the teachers."""
        if self.loss == "kl":
            return kl_term(student_BC, target_BC, self._temperature_now, seen_B, weights_B)
        return mse_term(student_BC, target_BC, seen_B, weights_B)

    def _positions(self, examples: Examples) -> Examples:
        """Rows of the current data; ids that came with the batch are its keys."""
        if self.ids.id_key is None:
            return examples
        assert self._info is not None
        return examples._replace(positions=self._info.positions_of(examples.positions))

    def _share_with_target(self, state: State) -> float:
        """Share of the whole batch, over all microbatches and ranks, that has a target, by the rows' weights."""
        if not isinstance(self.teachers, CachedTeachers) or self.teachers.complete or not self.is_active(state):
            return 1.0
        chosen = [int(i) for i in np.flatnonzero(self._combination)]
        examples = self._positions(self.ids.batch)
        seen_B = self.teachers.targets(state, examples, chosen).seen_B
        assert seen_B is not None
        weights_B = example_weights(state, examples.positions)
        rows_B = torch.ones(seen_B.shape, device=seen_B.device) if weights_B is None else weights_B.to(seen_B.device)
        counts = torch.stack([rows_B[seen_B].sum(), rows_B.sum()]).float()
        if dist.get_world_size() > 1:
            dist.all_reduce(counts)
        seen, rows = counts.tolist()
        return seen / rows if rows else 1.0

    def _base_weight(self) -> float:
        """The weight b of the current batch."""
        if self.base_loss_weight is not None:
            return self.base_loss_weight
        # Rows without a target keep their own loss whole: the convex combination holds on average over the batch.
        return 1.0 if self.loss == "mse" else 1.0 - self._weight_now * self._share

    def _checked_weight(self, weight: float) -> float:
        convex = self.base_loss_weight is None and self.loss == "kl"
        good = 0 <= weight <= (1.0 if convex else float("inf"))
        return _in_range("weight", float(weight), good, "in [0, 1]" if convex else "at least 0")

    def _checked_temperature(self, temperature: float) -> float:
        return _in_range("temperature", float(temperature), temperature > 0, "above 0")

    def _log_batch(self, logger: Logger) -> None:
        metrics: dict[str, float] = {"reuse/distillation/active": float(bool(self._sums))}
        if self._sums:
            sums = torch.stack(self._sums).sum(0)
            if dist.get_world_size() > 1:
                dist.all_reduce(sums)
            term, agree, seen, rows = sums.tolist()
            self._add_flops(rows)
            self.batches_applied += int(seen > 0)
            metrics["reuse/distillation/loss"] = term / rows
            metrics["reuse/distillation/agreement"] = agree / max(seen, 1.0)
            metrics["reuse/distillation/coverage"] = seen / rows
            metrics["reuse/distillation/teacher_seconds"] = self.teacher_seconds()
        if self.weight_scheduler is not None:
            metrics["reuse/distillation/weight"] = self._weight_now
        if self.temperature_scheduler is not None:
            metrics["reuse/distillation/temperature"] = self._temperature_now
        self.log_metrics(metrics, logger)

    def _add_flops(self, rows: float) -> None:
        """Count the passes of the teachers that this batch has asked, of all ranks."""
        assert self.teachers is not None
        for i in np.flatnonzero(self._combination):
            each = self.teachers.flops_per_example[i]
            if each is None or self._teacher_flops is None:
                self._teacher_flops = None
            else:
                self._teacher_flops += each * rows

    def extra_flops(self, flops_per_example: int) -> float | None:
        """Forward passes of live teachers."""
        del flops_per_example
        return self._teacher_flops

    def teacher_seconds(self) -> float:
        """Seconds spent on getting targets, over all attempts of this run."""
        return self._earlier_teacher_seconds + self._stopwatch.read()

    # Stop early, state, record --------------------------------------------------------------------------------------

    def _compare_with_teacher(self, state: State) -> None:
        assert self._goal is not None
        if (value := self._goal.passed_with(state)) is not None:
            self.passed_teacher = True
            log.info("the student passed its teachers (%.4f, %s): distillation is off", value, self._goal)

    def prior_uses(self) -> list[PriorUse]:
        """What was used of each prior run, with the share of its harvest that the looked-up views are."""
        cached = self.teachers if isinstance(self.teachers, CachedTeachers) else None
        uses = []
        for run in self.prior_runs:
            seconds = 0.0
            if cached is not None:
                for name in self.weights:
                    for harvest in run.manifest.harvests:
                        if harvest.signal == signal_name(name) and harvest.views:
                            share = len(cached.slots_used & set(harvest.views)) / len(harvest.views)
                            seconds += share * harvest.seconds
            uses.append(
                PriorUse(
                    run_id=run.id,
                    algorithm="prior_run_distillation",
                    weights=[] if cached is not None else list(self.weights),
                    signals=[signal_name(name) for name in self.weights] if cached is not None else [],
                    harvest_seconds=seconds,
                )
            )
        return uses

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if it had never stopped."""
        state = super().state_dict()
        slots = self.teachers.slots_used if isinstance(self.teachers, CachedTeachers) else self._earlier_slots
        state.update(
            passed_teacher=self.passed_teacher,
            teacher_seconds=self.teacher_seconds(),
            teacher_flops=self._teacher_flops,
            slots_used=sorted(slots),
        )
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        super().load_state_dict(state)
        self.passed_teacher = bool(state["passed_teacher"])
        self._earlier_teacher_seconds = float(state["teacher_seconds"])
        self._teacher_flops = state.get("teacher_flops")  # None after a checkpoint that does not say
        self._earlier_slots = {int(slot) for slot in state["slots_used"]}


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"PriorRunDistillation: {name} must be one of {', '.join(allowed)}, got {value!r}")


def _in_range(name: str, value: Any, good: bool, wanted: str) -> Any:
    if not good:
        raise ValueError(f"PriorRunDistillation: {name} must be {wanted}, got {value}")
    return value
