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
from reuse_algos.algorithms.prior_run_distillation.settings import KL, MSE, Auto, Cached, Live, Mean, Mixup, Sample
from reuse_algos.algorithms.prior_run_distillation.teachers import (
    CachedTeachers,
    LiveTeachers,
    Teachers,
    missing_from_cache,
    no_images,
    refuse_top_k,
    signal_name,
)
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
        seen_B = self.cached.targets(state, examples, self._chosen).seen_B
        assert seen_B is not None
        weights_B = example_weights(state, examples.positions)
        rows_B = torch.ones(seen_B.shape, device=seen_B.device) if weights_B is None else weights_B.to(seen_B.device)
        counts = torch.stack([rows_B[seen_B].sum(), rows_B.sum()]).float()
        if dist.get_world_size() > 1:
            dist.all_reduce(counts)
        seen, rows = counts.tolist()
        return seen / rows if rows else 1.0

    def term(self, state: State, microbatch: Examples | None) -> Tensor:
        """Return D of a microbatch, a scalar tensor with gradient.

        Args:
            state: At BEFORE_BACKWARD.
            microbatch: Its examples, needed for cached teachers.

        Raises:
            PriorRunMismatchError: Logits of a teacher and of the student have different shapes.
        """
        assert self.teachers is not None
        student_BC = self.classes.of_student(logits_of(state.outputs, self.keys.output))
        chosen = self._chosen
        with self._stopwatch.running():
            examples = None if microbatch is None else self._positions(microbatch)
            found, seen_B = self.teachers.targets(state, examples, chosen)
        each = len(self.source.weight_names)
        logits = [self.classes.of_teacher(i // each, teacher_BC) for i, teacher_BC in zip(chosen, found, strict=True)]
        shares = [float(self.combination[i]) for i in chosen]
        weights_B = example_weights(state)
        for index, teacher_BC in zip(chosen, logits, strict=True):
            if teacher_BC.shape != student_BC.shape:
                raise PriorRunMismatchError(
                    f"teacher {self.teachers.names[index]} gives logits of shape {tuple(teacher_BC.shape)}, the "
                    f"student of shape {tuple(student_BC.shape)} (dimension 1 is the classes). They must be alike."
                )
        target_BC = self.loss.target(logits, shares, self.strength)
        term = self.loss.term(student_BC, target_BC, self.strength, seen_B, weights_B)
        if (replayed := replayed_outputs(state)) is not None:
            term = replayed.clean_share * term
            if len(rows_R := replayed.rows_R):
                # What the teachers say of the clean view is the target of a replayed row, too.
                seen_R = None if seen_B is None else seen_B[rows_R]
                weights_R = None if weights_B is None else weights_B[rows_R.cpu()]
                theirs_RC = self.classes.of_student(logits_of(replayed.outputs, self.keys.output))
                of_replayed = self.loss.term(theirs_RC, target_BC[rows_R], self.strength, seen_R, weights_R)
                term = term + replayed.share * of_replayed
        self._count(term, student_BC, target_BC, seen_B)
        return term

    @torch.no_grad()
    def _count(self, term: Tensor, student_BC: Tensor, target_BC: Tensor, seen_B: Tensor | None) -> None:
        agree = (student_BC.argmax(1) == target_BC.argmax(1)).float().reshape(len(student_BC), -1).mean(1)
        seen = torch.ones_like(agree) if seen_B is None else seen_B.float()
        rows = torch.full_like(term, len(seen))
        self._sums.append(torch.stack([term.detach() * rows, (agree * seen).sum(), seen.sum(), rows]))

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
            term, agree, seen, rows = sums.tolist()
            self._add_flops(rows)
            metrics["loss"], metrics["coverage"] = term / rows, seen / rows
            metrics["agreement"] = agree / max(seen, 1.0)
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
