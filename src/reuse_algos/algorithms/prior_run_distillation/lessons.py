"""The teachers of one run, and the term that they make of a batch.

Shapes: B rows of a microbatch, R replayed rows, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from composer import State
from torch import Tensor, nn

from reuse_algos.algorithms.prior_run_distillation.loss.layout import (
    Microbatch,
    at_size,
    in_layout,
    refuse_other_shape,
    refuse_other_task,
    right_answers,
)
from reuse_algos.algorithms.prior_run_distillation.loss.section import KL, MSE, Weighing
from reuse_algos.algorithms.prior_run_distillation.loss.strength import Measured, logit_moments, pulls
from reuse_algos.algorithms.prior_run_distillation.settings import Cached, Live, Mean, Mixup, Sample
from reuse_algos.algorithms.prior_run_distillation.tally import Tally, Totals
from reuse_algos.algorithms.prior_run_distillation.teachers.held_rows import CachedCheck
from reuse_algos.algorithms.prior_run_distillation.teachers.known_accuracy import teachers_to_ask, warn_of_surprises
from reuse_algos.algorithms.prior_run_distillation.teachers.known_classes import KnownClasses, find_known_classes
from reuse_algos.algorithms.prior_run_distillation.teachers.source_choice import (
    SourceChoice,
    choose_source,
    refuse_top_k,
)
from reuse_algos.algorithms.prior_run_distillation.teachers.sources import CachedTeachers, LiveTeachers, Teachers
from reuse_algos.algorithms.teaching_costs import TeachingCosts
from reuse_algos.archive import PriorRun
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.sampler import Examples
from reuse_algos.data.trainer import weighs_by_tokens
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import ExampleIdError
from reuse_algos.priors.choosing import match_examples
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.interplay import example_weights, replayed_outputs
from reuse_algos.training.loss import total_of
from reuse_algos.training.outputs import device_of, logits_of, unwrap_model
from reuse_algos.training.ranks import on_every_rank
from reuse_algos.training.tasks.task import Rows, Task

log = logging.getLogger(__name__)


class Lessons:
    """Loads the teachers, and computes the distillation term and its statistics batch by batch.

    Args:
        loss: The term.
        combine: How several teachers become one.
        source: Where their logits come from.
        keys: Where things lie in a batch.
        mismatch: ``refuse`` or ``allow`` prior runs on other data, classes or views.
        seed: Seed of the combination.

    Attributes:
        teachers, choice: Where logits come from, and why; None before the start of training.
        strength: The term's settings at the running batch.
        combination: Weights of the teachers for the running batch, float64 ``[M]``.
        measured: The teachers' scale, and what holds the term's bound.
        costs: Seconds, FLOPs and views that were used.
        totals: Of the last batch in which the term was computed.
        report: What the first batch showed of cached logits.
    """

    def __init__(
        self,
        loss: KL | MSE,
        combine: Mean | Mixup | Sample,
        source: Live | Cached,
        keys: BatchKeys,
        mismatch: str,
        seed: int,
    ) -> None:
        self.loss, self.combine, self.source, self.keys = loss, combine, source, keys
        self.mismatch, self.seed = mismatch, seed
        self.strength, self.combination, self.classes = loss.plain, np.ones(0), KnownClasses()
        self._runs: Sequence[PriorRun] = ()
        self._share, self._looking, self._bounding = 1.0, False, False
        self.forget()

    def forget(self) -> None:
        """Forget what another Trainer did (INIT)."""
        self.teachers: Teachers | None = None
        self.choice: SourceChoice | None = None
        self.totals: Totals | None = None
        self.measured = Measured(self.loss.scale == "teacher", self.loss.bound)
        self.costs, self._tally = TeachingCosts("prior_run_distillation"), Tally()
        self.report: str | None = None
        self._check: CachedCheck | None = None
        self._settled: KL | MSE | None = None

    @property
    def cached(self) -> CachedTeachers | None:
        """The teachers, where their logits are looked up."""
        return self.teachers if isinstance(self.teachers, CachedTeachers) else None

    def load(
        self,
        state: State,
        runs: Sequence[PriorRun],
        info: DatasetInfo | None,
        policy: ViewPolicy | None,
        no_ids: str | None,
        student: nn.Module | None,
    ) -> None:
        """Match the prior runs with the current one and load the teachers (FIT_START).

        Args:
            state: The trainer's.
            runs: The prior runs, at least one.
            info: The train data; None where nothing tells their examples apart.
            policy: The views of the train data.
            no_ids: Why the train examples cannot be followed; None where they can.
            student: An untouched copy of the model, for archived models of its architecture.

        Raises:
            SignalNotFoundError, PriorRunMismatchError, ModelError: A run does not fit.
            ExampleIdError: Cached logits are asked for, and the examples are not known.
        """
        self._runs, names = runs, self.source.weight_names
        self.choice = choose_source(state, runs, self.source, policy, no_ids, self.mismatch)
        cached = self.choice.kind == "cached"
        num_classes = getattr(unwrap_model(state.model), "num_classes", None) or (info and info.num_classes)
        self.classes = find_known_classes(runs, num_classes, info, self.mismatch)
        if info is None and cached:
            raise ExampleIdError("the train examples cannot be told apart: say what they are, dataset=DatasetInfo(...)")
        # Live teachers, too, must have been trained on these data.
        rows = [] if info is None else [match_examples(run, info, self.mismatch) for run in runs]
        if cached:
            if self.loss.needs_all_logits:
                refuse_top_k(runs, names)
            assert isinstance(self.source, Cached)
            # One set of slots, so that what an earlier fit or attempt has looked up stays counted.
            given = (device_of(state.model), self.source.oldest_time, self.costs.slots)
            self.teachers = CachedTeachers(runs, names, rows, policy, *given)
            self._check = CachedCheck(runs[0], names[0], student, self.keys, self.mismatch)
        elif not isinstance(self.teachers, LiveTeachers):  # those of an earlier fit go on
            factory = getattr(self.source, "model", None)
            self.teachers = LiveTeachers(runs, names, factory, student, state, self.keys)
        log.info("distilling from %s (%s: %s)", ", ".join(self.teachers.names), *self.choice)

    def check_first(self, state: State, microbatch: Microbatch) -> None:
        """Check before the first step that the term is defined and its targets are true (first AFTER_LOSS).

        Raises:
            TaskError, PriorRunMismatchError: The term is not defined for the task, or the prior runs had another.
            DataError, PriorRunMismatchError: Cached logits are of other rows, or not what their model says.
            ModelError: A live teacher says something else in evaluation than in training.
        """
        self.loss.check_task(microbatch.task)
        refuse_other_task(microbatch.task, self._runs)
        if isinstance(self.teachers, LiveTeachers):
            found = self.teachers.check(state, microbatch.batch, microbatch.task)
            asked = teachers_to_ask(self._runs, self.source.weight_names)
            if self.classes.here_M is None:
                aligned = [self._aligned(microbatch.task, i, found[i], microbatch.rows) for i in asked]
                warn_of_surprises(asked.values(), aligned, microbatch)
        check, cached, self._check = self._check, self.cached, None
        if check is None or cached is None or microbatch.examples is None:
            return
        self.report = on_every_rank(lambda: check.look(state, microbatch, cached, self.strength.temperature))[0]
        log.info("PriorRunDistillation: %s", self.report)

    def begin_batch(self, state: State, batch: Examples | None, look: bool = False) -> None:
        """Draw the combination of teachers, and count the rows with a target.

        Args:
            state: At BEFORE_TRAIN_BATCH.
            batch: The examples of the whole batch of this rank, where cached logits may be missing; None: not asked.
            look: Whether gradients are to be measured in any case. Default: False.
        """
        # The draw is a function of the batch's number: the same on every rank, for every microbatch and retry.
        rng = np.random.default_rng([self.seed % 2**63, int(state.timestamp.batch)])
        self.combination = self.combine.weights(len(self.teachers.names) if self.teachers else 1, rng)
        self.strength = self.strength._replace(weight=self.strength.weight * self.measured.factor)
        self._bounding = self.measured.wants_pulls
        self._looking = look or self._bounding
        self._tally.clear()
        self.measured.begin_batch()
        cached, self._share = self.cached, 1.0
        if batch is not None and cached is not None and not cached.complete:
            self._share = cached.share(state, batch, self._chosen)

    @property
    # A teacher of weight 0 is neither run nor looked up.
    def _chosen(self) -> list[int]:
        return [int(i) for i in np.flatnonzero(self.combination)]

    def term(self, state: State, microbatch: Microbatch) -> Tensor | None:
        """Return D of a microbatch (BEFORE_BACKWARD), a scalar with gradient; None where the batch is measured only.

        Raises:
            PriorRunMismatchError: Logits of a teacher and of the student have different shapes.
            ModelError: The term has a bound, and the model's loss is not computed from its logits.
        """
        assert self.teachers is not None
        batch, examples, task, rows = microbatch
        student_BC, chosen = self.classes.of_student(rows.logits_BCX), self._chosen
        with self.costs.stopwatch.running():
            found, seen_B = self.teachers.targets(state, batch, examples, chosen)
        logits = [self._aligned(task, index, one, rows) for index, one in zip(chosen, found, strict=True)]
        for index, one in zip(chosen, logits, strict=True):
            refuse_other_shape(self.teachers.names[index], one, student_BC)
        self._measure(task, logits, seen_B, rows)
        deviation = self.measured.deviation
        student_BC = self.loss.in_units(student_BC, deviation)
        shares = [float(self.combination[i]) for i in chosen]
        weighing = Weighing(seen_B, example_weights(state), rows.counted_BX)
        in_units = [self.loss.in_units(one, deviation) for one in logits]
        target_BC = self.loss.target(in_units, shares, self.strength, task)
        loss = self._settled = self._settled or _averaged(self.loss, task, state)
        term = loss.term(student_BC, target_BC, self.strength, task, weighing)
        if (replayed := replayed_outputs(state)) is not None:
            term = replayed.clean_share * term
            if len(rows_R := replayed.rows_R):
                # What the teachers say of the clean view is the target of a replayed row, too.
                theirs_RC = task.rows(logits_of(replayed.outputs, self.keys.output)).logits_BCX
                theirs_RC = self.loss.in_units(self.classes.of_student(theirs_RC), deviation)
                of_rows = weighing.of_rows(rows_R)
                of_replayed = loss.term(theirs_RC, target_BC[rows_R], self.strength, task, of_rows)
                term = term + replayed.share * of_replayed
        yes_BC, pulled, judged = self.loss.answers(target_BC), None, None
        if self._looking:
            outputs = logits_of(state.outputs, self.keys.output)
            pulled = pulls(total_of(state.loss), term, outputs, required=self._bounding)
            if self.classes.here_M is None:  # else labels are numbers of other classes than the targets'
                judged = right_answers(task, rows, target_BC, yes_BC, seen_B)
        self._tally.add(term, task, student_BC, target_BC, yes_BC, weighing, pulled, judged)
        return term if self.measured.is_ready else None

    def _aligned(self, task: Task, index: int, theirs: Tensor, rows: Rows) -> Tensor:
        """Return what a teacher says, ``[B, C, X]``, of the classes that all know."""
        if self.teachers is not None and not self.teachers.in_layout[index]:
            theirs = in_layout(task, theirs, rows.logits_BCX)
        return self.classes.of_teacher(index // len(self.source.weight_names), at_size(theirs, rows.logits_BCX))

    def _measure(self, task: Task, logits: Sequence[Tensor], seen_B: Tensor | None, rows: Rows) -> None:
        """Find the teachers' scale: in their archived logits, or, of live ones, in the first batch."""
        if not self.measured.needs_deviation:
            return
        if self.cached is None:
            for one in logits:
                self.measured.add(logit_moments(task, one, seen_B, rows.counted_BX))
            return
        for index, (theirs, known_S) in enumerate(self.cached.sample()):
            self.measured.add(logit_moments(task, self._aligned(task, index, theirs, rows), known_S))
        self.measured.settle(across_ranks=False)  # every rank reads the same rows

    @property
    def base_weight(self) -> float:
        """The weight b of the model's own loss in the running batch."""
        return self.loss.base(self.strength, self._share)

    def end_batch(self) -> dict[str, float]:
        """Return the metrics of the batch over all ranks; every rank must call this."""
        if not len(self._tally):
            return {"active": 0.0, **self.loss.metrics(self.strength)}
        metrics = {"active": float(self.measured.is_ready)}  # before this batch's own measurement
        self.totals = totals = self._tally.read()
        self.measured.settle()
        flops = self.teachers.flops_per_example if self.teachers else []
        self.costs.add(totals.rows, [flops[i] for i in self._chosen] if flops else [])
        metrics |= totals.metrics()
        ratio = totals.ratio(self.base_weight, self.strength.weight)
        if self._bounding:
            # The ratio was measured with the lowered weight, and the bound is on that of the recipe.
            self.measured.hold((ratio or 0.0) / self.measured.factor)
        found = {
            "pull": ratio,
            "teacher_deviation": self.measured.deviation,
            "teacher_seconds": self.costs.seconds(),
        }
        metrics |= {name: value for name, value in found.items() if value is not None}
        return {**metrics, **self.loss.metrics(self.strength)}

    def state_dict(self) -> dict[str, Any]:
        """Return what was computed, measured and used so far."""
        return {**self.costs.state_dict(), "measured": self.measured.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.costs.load_state_dict(state)
        self.measured.load_state_dict(state["measured"])


def _averaged(loss: KL | MSE, task: Task, state: State) -> KL | MSE:
    """Return the loss with the average that its Trainer asks for, where the settings leave it open."""
    if loss.average is not None or not task.has_positions:
        return loss
    # A mean over examples would depend on the number of microbatches where these are weighed by their tokens.
    return replace(loss, average="targets" if weighs_by_tokens(state) else "examples")
