"""The teachers of one run: choosing where their logits come from, and the term that they make of a batch.

Shapes: B rows of a microbatch, R replayed rows, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from composer import State
from composer.utils import dist
from torch import Tensor, nn

from reuse_algos.algorithms.base import Stopwatch
from reuse_algos.algorithms.prior_run_distillation.known_classes import KnownClasses, find_known_classes
from reuse_algos.algorithms.prior_run_distillation.layout import (
    agreement,
    at_size,
    check_top_k,
    in_layout,
    refuse_other_task,
)
from reuse_algos.algorithms.prior_run_distillation.losses import KL, MSE, Weighing
from reuse_algos.algorithms.prior_run_distillation.settings import Auto, Cached, Live, Mean, Mixup, Sample
from reuse_algos.algorithms.prior_run_distillation.source_choice import (
    missing_from_cache,
    no_images,
    refuse_top_k,
    signal_name,
)
from reuse_algos.algorithms.prior_run_distillation.teachers import CachedTeachers, LiveTeachers, Teachers
from reuse_algos.archive import PriorRun, PriorUse
from reuse_algos.data.info import DatasetInfo, try_info
from reuse_algos.data.sampler import Examples
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import ExampleIdError, PriorRunMismatchError
from reuse_algos.priors.choosing import match_examples
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.interplay import (
    changes_inputs,
    example_weights,
    hides_inputs,
    mixes_examples,
    replayed_outputs,
)
from reuse_algos.training.outputs import device_of, logits_of, unwrap_model
from reuse_algos.training.ranks import on_every_rank
from reuse_algos.training.task import Rows, Task

__all__ = ["Lessons"]

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
        teachers: None before the start of training.
        strength: The term's settings at the running batch.
        combination: Weights of the teachers for the running batch, float64 ``[M]``.
    """

    def __init__(
        self,
        loss: KL | MSE,
        combine: Mean | Mixup | Sample,
        source: Live | Cached | Auto,
        keys: BatchKeys,
        mismatch: str,
        seed: int,
    ) -> None:
        self.loss, self.combine, self.source, self.keys = loss, combine, source, keys
        self.mismatch, self.seed = mismatch, seed
        self.teachers: Teachers | None = None
        self.strength = loss.plain
        self.combination = np.ones(0)
        self.classes = KnownClasses()
        self._runs: Sequence[PriorRun] = ()
        self._info: DatasetInfo | None = None
        self._sums: list[Tensor] = []
        self._share = 1.0
        self.forget()

    def forget(self) -> None:
        """INIT: forget what another Trainer did."""
        self.teachers = None
        self._looked_at_top_k = False
        self._stopwatch, self._earlier_seconds = Stopwatch(), 0.0
        self._earlier_slots: set[int] = set()
        self._flops: float | None = 0.0

    # Start ----------------------------------------------------------------------------------------------------------

    @property
    def cached(self) -> CachedTeachers | None:
        """The teachers, where their logits are looked up."""
        return self.teachers if isinstance(self.teachers, CachedTeachers) else None

    def load(
        self,
        state: State,
        runs: Sequence[PriorRun],
        dataset: DatasetInfo | None,
        policy: ViewPolicy | None,
        no_ids: str | None,
        student: nn.Module | None,
    ) -> None:
        """FIT_START: match the prior runs with the current one and load the teachers.

        Args:
            state: The trainer's.
            runs: The prior runs, at least one.
            dataset: What the train data are. None: read off the loader's dataset.
            policy: The views of the train data.
            no_ids: Why the train examples cannot be followed; None where they can.
            student: An untouched copy of the model, for live teachers of its architecture.

        Raises:
            SignalNotFoundError, PriorRunMismatchError, ModelError: A run does not fit.
            ExampleIdError: Cached logits are asked for, and the examples are not known.
        """
        if self.cached is not None:
            self._earlier_slots |= self.cached.slots_used
        self._runs, names = runs, self.source.weight_names
        kind = self._choose(state, policy, no_ids)
        info = self._info = dataset or try_info(getattr(state.dataloader, "dataset", None))
        num_classes = getattr(unwrap_model(state.model), "num_classes", None) or (info and info.num_classes)
        self.classes = find_known_classes(runs, num_classes, info, self.mismatch)
        if info is None and kind == "cached":
            raise ExampleIdError(
                "the train examples cannot be told apart; say what they are: dataset=DatasetInfo(...)."
            )
        # Live teachers, too, must have been trained on these data.
        rows = [] if info is None else [match_examples(run, info, self.mismatch) for run in runs]
        if kind == "cached":
            if not isinstance(self.loss, KL):
                refuse_top_k(runs, names)
            self.teachers = CachedTeachers(runs, names, rows, policy, device_of(state.model))
            self.teachers.slots_used |= self._earlier_slots
        elif not isinstance(self.teachers, LiveTeachers):  # those of an earlier fit go on
            model = self.source.model if isinstance(self.source, Live) else None
            self.teachers = LiveTeachers(
                runs, names, model, student, state, input_key=self.keys.input, output_key=self.keys.output
            )
        log.info("distilling from %s (%s)", ", ".join(self.teachers.names), kind)

    def _choose(self, state: State, policy: ViewPolicy | None, no_ids: str | None) -> str:
        """Return ``live`` or ``cached``."""
        hiding, kind = hides_inputs(state), self.source.name
        if kind == "live":
            if hiding:
                raise PriorRunMismatchError(no_images(hiding[0], "source: live was asked for"))
            return "live"
        names, whole = self.source.weight_names, kind == "auto"
        reasons = (missing_from_cache(run, names, policy, whole) for run in self._runs)
        reason = no_ids or next((found for found in reasons if found), None)
        if changers := mixes_examples(state) + changes_inputs(state):
            reason = (
                f"{changers[0]} changes the inputs, so logits that were cached without it are not true for what the "
                "student sees. Use source: live, whose teachers see the same changed inputs"
            )
        if kind == "auto":
            if reason and hiding:
                raise PriorRunMismatchError(no_images(hiding[0], reason))
            if reason:
                log.info("live teachers: %s", reason)
            return "live" if reason else "cached"
        if reason and (mixes_examples(state) or self.mismatch != "allow"):
            raise PriorRunMismatchError(reason)
        return "cached"

    # Each batch -----------------------------------------------------------------------------------------------------

    def begin_batch(self, state: State, batch: Examples | None) -> None:
        """Draw the combination of teachers, and count the rows with a target.

        Args:
            state: At BEFORE_TRAIN_BATCH.
            batch: The examples of the whole batch of this rank, where cached logits may be missing; None: not asked.
        """
        # The draw is a function of the batch's number: the same on every rank, for every microbatch and retry.
        rng = np.random.default_rng([self.seed % 2**63, int(state.timestamp.batch)])
        self.combination = self.combine.weights(len(self.teachers.names) if self.teachers else 1, rng)
        self._sums = []
        self._share = 1.0 if batch is None else self._share_with_target(state, batch)

    @property
    def _chosen(self) -> list[int]:
        return [int(i) for i in np.flatnonzero(self.combination)]

    def _share_with_target(self, state: State, batch: Examples) -> float:
        """Return the share of the batch, over all microbatches and ranks, that has a target, by the rows' weights."""
        if self.cached is None or self.cached.complete:
            return 1.0
        examples = self._positions(batch)
        seen_B = self.cached.targets(state, None, examples, self._chosen).seen_B
        assert seen_B is not None
        weights_B = example_weights(state, examples.positions)
        rows_B = torch.ones(seen_B.shape, device=seen_B.device) if weights_B is None else weights_B.to(seen_B.device)
        counts = torch.stack([rows_B[seen_B].sum(), rows_B.sum()]).float()
        if dist.get_world_size() > 1:
            dist.all_reduce(counts)
        seen, rows = counts.tolist()
        return seen / rows if rows else 1.0

    def check_task(self, task: Task) -> None:
        """Make sure, before the first step, that the term is defined for the task and the prior runs had the same.

        Raises:
            TaskError, PriorRunMismatchError: It is not, or they had not.
        """
        self.loss.check_task(task)
        refuse_other_task(task, self._runs)

    def term(self, state: State, batch: Any, microbatch: Examples | None, task: Task, rows: Rows) -> Tensor:
        """Return D of a microbatch, a scalar tensor with gradient.

        Args:
            state: At BEFORE_BACKWARD.
            batch: The microbatch as it was before the forward pass.
            microbatch: Its examples, needed for cached teachers.
            task: The task.
            rows: The student's outputs and targets.

        Raises:
            PriorRunMismatchError: Logits of a teacher and of the student have different shapes.
        """
        assert self.teachers is not None
        student_BC = self.classes.of_student(rows.logits_BCX)
        chosen = self._chosen
        with self._stopwatch.running():
            examples = None if microbatch is None else self._positions(microbatch)
            found, seen_B = self.teachers.targets(state, batch, examples, chosen)
        self._look_at_top_k(found, chosen)
        logits = self._teacher_logits(task, found, chosen, student_BC, rows)
        shares = [float(self.combination[i]) for i in chosen]
        weighing = Weighing(seen_B, example_weights(state), rows.counted_BX)
        target_BC = self.loss.target(logits, shares, self.strength, task)
        term = self.loss.term(student_BC, target_BC, self.strength, task, weighing)
        if (replayed := replayed_outputs(state)) is not None:
            term = replayed.clean_share * term
            if len(rows_R := replayed.rows_R):
                # What the teachers say of the clean view is the target of a replayed row, too.
                of_rows = (None if part is None else part[rows_R.to(part.device)] for part in weighing)
                theirs_RC = task.rows(logits_of(replayed.outputs, self.keys.output)).logits_BCX
                theirs_RC = self.classes.of_student(theirs_RC)
                of_replayed = self.loss.term(theirs_RC, target_BC[rows_R], self.strength, task, Weighing(*of_rows))
                term = term + replayed.share * of_replayed
        self._count(term, task, student_BC, target_BC, weighing)
        return term

    def _teacher_logits(
        self, task: Task, found: Sequence[Tensor], chosen: Sequence[int], student_BC: Tensor, rows: Rows
    ) -> list[Tensor]:
        """Return what the chosen teachers say, ``[B, C, X]`` each, of the classes that all know."""
        assert self.teachers is not None
        each, logits = len(self.source.weight_names), []
        for index, theirs in zip(chosen, found, strict=True):
            if not self.teachers.in_layout[index]:
                theirs = in_layout(task, theirs, rows.logits_BCX)
            teacher_BC = self.classes.of_teacher(index // each, at_size(theirs, rows.logits_BCX))
            if teacher_BC.shape != student_BC.shape:
                raise PriorRunMismatchError(
                    f"teacher {self.teachers.names[index]} gives logits of shape {tuple(teacher_BC.shape)}, the "
                    f"student of shape {tuple(student_BC.shape)} (dimension 1 is the classes). They must be alike."
                )
            logits.append(teacher_BC)
        return logits

    def _look_at_top_k(self, found: Sequence[Tensor], chosen: Sequence[int]) -> None:
        """Look at the first targets once: where they keep the largest logits only, these must be enough."""
        if self._looked_at_top_k or self.cached is None or not isinstance(self.loss, KL):
            return
        self._looked_at_top_k = True
        cached, temperature = self.cached, self.strength.temperature

        def look() -> None:
            for index, logits_BC in zip(chosen, found, strict=True):
                if kept := cached.kept_classes[index]:
                    check_top_k(cached.names[index], logits_BC, kept, temperature)

        if any(cached.kept_classes):
            on_every_rank(look)

    @torch.no_grad()
    def _count(self, term: Tensor, task: Task, student_BC: Tensor, target_BC: Tensor, weighing: Weighing) -> None:
        seen = torch.ones(len(student_BC), device=term.device) if weighing.seen_B is None else weighing.seen_B.float()
        yes_BC = self.loss.answers(target_BC)
        agree = agreement(task, student_BC, target_BC, yes_BC, weighing.counted_BX)
        compared = torch.zeros_like(seen) if agree is None else seen * ~agree.isnan()
        agree = compared if agree is None else agree.nan_to_num(0.0)
        rows = torch.full_like(term, len(seen))
        parts = [term.detach() * rows, (agree * seen).sum(), compared.sum(), seen.sum(), rows]
        self._sums.append(torch.stack(parts))

    @property
    def base_weight(self) -> float:
        """The weight b of the model's own loss in the running batch."""
        return self.loss.base(self.strength, self._share)

    def _positions(self, examples: Examples) -> Examples:
        """Return rows of the current data; ids that came with the batch are its keys."""
        if self.keys.ids is None:
            return examples
        assert self._info is not None
        return examples._replace(positions=self._info.positions_of(examples.positions))

    def end_batch(self) -> dict[str, float]:
        """Return the metrics of the batch over all ranks; every rank must call this."""
        metrics: dict[str, float] = {"active": float(bool(self._sums))}
        if self._sums:
            sums = torch.stack(self._sums).sum(0)
            if dist.get_world_size() > 1:
                dist.all_reduce(sums)
            term, agree, compared, seen, rows = sums.tolist()
            self._add_flops(rows)
            metrics["loss"], metrics["coverage"] = term / rows, seen / rows
            if compared:  # of regression, and of rows without a counted target, no answer can be compared
                metrics["agreement"] = agree / compared
            metrics["teacher_seconds"] = self.seconds()
        self._sums = []
        return {**metrics, **self.loss.metrics(self.strength)}

    def _add_flops(self, rows: float) -> None:
        """Count the passes of the teachers that this batch has asked, of all ranks."""
        assert self.teachers is not None
        for i in self._chosen:
            each = self.teachers.flops_per_example[i]
            self._flops = None if each is None or self._flops is None else self._flops + each * rows

    # Record and state -----------------------------------------------------------------------------------------------

    @property
    def flops(self) -> float | None:
        """FLOPs of live teachers so far, over all ranks; None where they are not known."""
        return self._flops

    def seconds(self) -> float:
        """Return the seconds spent on getting targets, over all attempts of this run."""
        return self._earlier_seconds + self._stopwatch.read()

    def uses(self, runs: Sequence[PriorRun]) -> list[PriorUse]:
        """Return what was used of each prior run, with the share of its harvest that the looked-up views are."""
        names = self.source.weight_names
        signals = [] if self.cached is None else [signal_name(name) for name in names]
        used = self._slots
        return [
            PriorUse(
                run_id=run.id,
                algorithm="prior_run_distillation",
                weights=[] if signals else names,
                signals=signals,
                harvest_seconds=sum(
                    len(used & set(harvest.views)) / len(harvest.views) * harvest.seconds
                    for harvest in run.manifest.harvests
                    if harvest.signal in signals and harvest.views
                ),
            )
            for run in runs
        ]

    @property
    def _slots(self) -> set[int]:
        return self._earlier_slots if self.cached is None else self.cached.slots_used

    def state_dict(self) -> dict[str, Any]:
        """Return what was computed and used so far."""
        return {
            "teacher_seconds": self.seconds(),
            "teacher_flops": self._flops,
            "slots_used": sorted(self._slots),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from there."""
        self._earlier_seconds = float(state["teacher_seconds"])
        self._flops = state.get("teacher_flops")  # None after a checkpoint that does not say
        self._earlier_slots = {int(slot) for slot in state["slots_used"]}
