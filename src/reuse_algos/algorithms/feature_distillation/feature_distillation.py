"""The Composer algorithm: what goes on inside archived models teaches the one that trains now."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from composer import Event, State
from composer.loggers import Logger
from torch import Tensor, nn

from reuse_algos.algorithms.base import ReusingAlgorithm, refuse_another
from reuse_algos.algorithms.feature_distillation.modules import Features, feature_term, refuse_other_features
from reuse_algos.algorithms.teaching_costs import TeachingCosts
from reuse_algos.archive import PriorRun, PriorUse, RunArchive
from reuse_algos.data.example_ids import VIEW_EVENTS, follow_views
from reuse_algos.data.info import DatasetInfo, try_info
from reuse_algos.data.trainer import rows_of, weighs_by_tokens
from reuse_algos.errors import ModelError, PriorRunMismatchError
from reuse_algos.priors.choosing import RunSelection, match_examples
from reuse_algos.priors.model import ModelFactory, archived_model, ask, untouched_copy
from reuse_algos.sections import fit_section
from reuse_algos.training.batch_guard import BatchGuard
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.flops import forward_flops
from reuse_algos.training.interplay import example_weights, hides_inputs
from reuse_algos.training.loss import add_to_loss
from reuse_algos.training.outputs import device_of, unwrap_model
from reuse_algos.training.parameters.tokens import refuse_other_tokens
from reuse_algos.training.ranks import sum_over_ranks
from reuse_algos.training.window import Window

_LEAST_DEVIATION = 1e-6


class _Teacher(NamedTuple):
    """An archived model, what its modules give, and the guard of its batches."""

    run: PriorRun
    module: nn.Module
    features: Features
    guard: BatchGuard


class FeatureDistillation(ReusingAlgorithm):
    r"""Train named modules to give what those of earlier runs give (FitNets, Romero et al. 2015, arXiv 1412.6550).

    For models whose answers cannot be compared: a detector answers with a list of boxes in any number and order, but
    its backbone and head give tensors of the same shape in every run of its architecture. The loss becomes
    :math:`L + w D`; :math:`D` is the mean over teachers and tensors of :func:`feature_term`, the squared difference in
    units of the teacher's variance. Teachers are archived models in evaluation mode that see the student's own batch,
    so no example ids are needed. The first batch of training measures the variance, and goes without the term.

    Args:
        archive: A :class:`~reuse_algos.archive.RunArchive` or its path.
        runs: The teachers: a run id, a run name, a list of those, or a query.
        modules: Names of modules of the model, such as ``backbone`` and ``head``. All floating-point tensors that they
            give count, whole, padding included; each has one entry for each row in its first dimension.
        weight: w, above 0. Default: 1.0.
        weights: Name of the archived weights that teach. Default: ``last``.
        when: :class:`~reuse_algos.training.window.Window`, the batches in which the term is on. Default: the first
            half.
        model: The teachers' architecture, a module or a function that makes one. Default: from the run's record, or a
            copy of the student.
        keys: :class:`~reuse_algos.training.batch_keys.BatchKeys`, where inputs lie for teachers that are plain modules.
            Default: pairs of inputs and targets.
        mismatch: ``refuse`` prior runs on other data, or ``allow`` them. Default: ``refuse``.
        dataset: What the train data are. Default: read off the loader's dataset.

    Raises:
        ValueError: A setting is out of its range.
        ModelError: A module is missing, or the Trainer weighs microbatches by tokens (at the start); a module gives
            nothing that can be compared (first batch).
        RunNotFoundError, PriorRunMismatchError: At the start of training; also where a teacher's module gives one and
            the same number everywhere (first batch).

    Logs ``reuse/feature_distillation/loss`` (D, over all ranks), ``/active`` and ``/teacher_seconds``.

    Example:
        .. code-block:: python

            Trainer(..., algorithms=[FeatureDistillation("./archive", "detector-1", ["backbone", "head"])])
    """

    place = 2  # behind weights of examples, as PriorRunDistillation

    def __init__(
        self,
        archive: RunArchive | str | os.PathLike[str],
        runs: RunSelection,
        modules: Sequence[str],
        *,
        weight: float = 1.0,
        weights: str = "last",
        when: Window | Mapping[str, Any] | None = None,
        model: ModelFactory | None = None,
        keys: BatchKeys | Mapping[str, Any] | None = None,
        mismatch: str = "refuse",
        dataset: DatasetInfo | None = None,
    ) -> None:
        if not weight > 0:
            raise ValueError(f"FeatureDistillation: weight must be above 0, got {weight}")
        if isinstance(modules, str) or not modules:
            raise ValueError(f"FeatureDistillation: modules must be a list of names, at least one, got {modules!r}")
        super().__init__(archive, runs, mismatch=mismatch)
        self.modules, self.weight, self.weights, self.model = list(modules), weight, weights, model
        self.when: Window = fit_section(Window, {"stop": "0.5dur"} if when is None else when, "when")
        self.keys: BatchKeys = fit_section(BatchKeys, keys or {}, "keys")
        self.dataset = dataset
        self.student: nn.Module | None = None
        self._forget()

    def _forget(self) -> None:
        self.costs = TeachingCosts("feature_distillation")
        self.teachers: list[_Teacher] = []
        self.deviations: dict[str, float] = {}
        self._guard = BatchGuard("the model's forward pass")
        self._ours: Features | None = None
        self._flops: list[int | None] | None = None
        self._batch: Any = None
        self._features: dict[str, Tensor] = {}
        self._moments: dict[str, Tensor] = {}
        self._sums: list[Tensor] = []

    def start_afresh(self) -> None:
        """Forget what another Trainer did with this algorithm (INIT)."""
        super().start_afresh()
        self._forget()

    def match(self, event: Event, state: State) -> bool:
        """Answer only: the forward and backward passes, while the term is on."""
        if self.stands_aside(event):
            return False
        if event in (Event.BEFORE_FORWARD, Event.AFTER_FORWARD, Event.BEFORE_BACKWARD):
            # The first batch of all is measured and checked, whenever the term begins.
            return not self.deviations or self.when.is_on(state)
        rest = (Event.INIT, Event.BEFORE_LOAD, Event.BEFORE_TRAIN_BATCH, Event.BATCH_END, Event.FIT_END)
        return event in (*rest, *VIEW_EVENTS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the event."""
        if event == Event.INIT:
            self.take_place(state)
            refuse_another(state, FeatureDistillation, "follow the model's modules", "several modules and runs")
        elif event == Event.BEFORE_LOAD and self.model is None:
            # The only moment when a plain copy can be had, see PriorRunDistillation.
            self.student = untouched_copy(state.model)
        elif event == Event.FIT_START:
            follow_views(event, state)
            self.begin(state)
        elif event == Event.BEFORE_TRAIN_BATCH:
            self._sums, self._moments = [], {}  # of an attempt that ran out of memory
        elif event == Event.BEFORE_FORWARD:
            assert self._ours is not None
            self._batch = self._guard.copy(state.batch)
            self._ours.follow()
        elif event == Event.AFTER_FORWARD:
            assert self._ours is not None
            self._guard.look()
            # At once: other algorithms run the model again before the backward pass.
            self._features = self._ours.taken()
        elif event == Event.BEFORE_BACKWARD:
            self._teach(state)
        elif event == Event.BATCH_END:
            self._end_batch(logger)
        elif event in VIEW_EVENTS:
            follow_views(event, state)
        elif event == Event.FIT_END:
            reason = f"no batch lay between start={self.when.start} and stop={self.when.stop}"
            self.warn_if_idle(logger, f"{reason}, after the first, which is measured")

    def start(self, state: State) -> None:
        """Match the prior runs with the current one, and load the teachers."""
        if hiding := hides_inputs(state):
            raise ModelError(
                f"FeatureDistillation: {hiding[0]} takes the inputs, which teachers need, out of the batch."
            )
        if weighs_by_tokens(state):
            raise ModelError(
                "FeatureDistillation: its term is a mean over rows, and accumulate_train_batch_on_tokens weighs "
                "microbatches by their tokens, so the term would depend on the number of microbatches. Leave "
                "accumulate_train_batch_on_tokens out."
            )
        info = self.dataset or try_info(getattr(state.dataloader, "dataset", None))
        self._ours = Features(unwrap_model(state.model), self.modules, "the model")
        self.teachers = []
        for run in self.prior_runs:
            if info is not None:
                match_examples(run, info, self.mismatch)
            module = archived_model(run, self.weights, factory=self.model, like=self.student)
            refuse_other_tokens(module, state.model, run.id)
            module, whose = state.device.module_to_device(module), f"teacher {run.id}"
            self.teachers.append(_Teacher(run, module, Features(module, self.modules, whose), BatchGuard(whose)))
        self.student = None  # a copy of the whole model, which nothing needs any more

    def _teach(self, state: State) -> None:
        """Run the teachers on the microbatch, and add the term, or keep the moments of what they give (first batch)."""
        rows, ours, terms = rows_of(self._batch, state), self._features, []
        measuring, weights_B, flops = not self.deviations, example_weights(state), []
        for run, module, features, guard in self.teachers:
            given = (module, self._batch, state, self.keys)
            with self.costs.stopwatch.running(), features.of_pass() as theirs:
                ask(*given, guard)
            # At every batch: inputs of another size give other shapes, which might fit each other by accident.
            refuse_other_features(ours, theirs, rows, f"teacher {run.id}")
            if self._flops is None:
                flops.append(forward_flops(functools.partial(ask, *given), state, f"teacher {run.id}"))
            for key, teacher in theirs.items():
                name = f"{run.id} {key}"
                if measuring:
                    self._moments[name] = _moments(teacher) + self._moments.get(name, 0.0)
                elif name not in self.deviations:
                    raise ModelError(f"{name!r} was not there in the first batch, in which its deviation is measured.")
                else:
                    terms.append(feature_term(ours[key], teacher, self.deviations[name], weights_B))
        self._flops = self._flops or flops
        self._features, self._batch = {}, None
        taught, term = 0.0, torch.zeros((), device=device_of(state.model))
        if terms:
            taught, term = float(rows), torch.stack(terms).mean()
            state.loss = add_to_loss(state.loss, self.weight * term, part="feature_distillation", shown=term)
        self._sums.append(torch.stack([term.detach().double() * rows, term.new_tensor(taught), term.new_tensor(rows)]))

    def _end_batch(self, logger: Logger) -> None:
        """Settle what the first batch measured, and log; every rank comes here."""
        for name, moments in self._moments.items():
            count, total, squares = sum_over_ranks(moments).tolist()
            deviation = max(0.0, squares / count - (total / count) ** 2) ** 0.5
            if not deviation > _LEAST_DEVIATION:
                raise PriorRunMismatchError(
                    f"teacher and module {name!r} give {total / count:.4g} everywhere in the first batch, from which "
                    "nothing can be learned. Name other modules, or another run."
                )
            self.deviations[name] = deviation
        metrics = {"active": 0.0}
        if self._sums:
            total, taught, rows = sum_over_ranks(torch.stack(self._sums).sum(0)).tolist()
            self.costs.add(rows, self._flops or [])
            metrics["teacher_seconds"] = self.costs.seconds()
            if taught:
                self.batches_applied += 1
                metrics |= {"active": 1.0, "loss": total / taught}
        self._sums, self._moments = [], {}
        self.log_metrics({f"reuse/feature_distillation/{name}": value for name, value in metrics.items()}, logger)

    def extra_flops(self, flops_per_example: int) -> float | None:
        """Return the FLOPs of the teachers' forward passes."""
        return self.costs.flops

    def prior_uses(self) -> list[PriorUse]:
        """Return what was used of each prior run."""
        return self.costs.uses(self.prior_runs, [self.weights], [])

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to go on as if it had never stopped."""
        ours = {"deviations": dict(self.deviations), "modules": self.modules}
        return {**super().state_dict(), **self.costs.state_dict(), **ours}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: The checkpoint is of other modules, of which it has the deviations.
        """
        if state["modules"] != self.modules:
            raise ValueError(
                f"FeatureDistillation: modules are {self.modules}, and the checkpoint has {state['modules']}. Resume "
                "with the same ones, or begin a new run."
            )
        super().load_state_dict(state)
        self.costs.load_state_dict(state)
        self.deviations = {str(name): float(value) for name, value in state["deviations"].items()}


def _moments(features: Tensor) -> Tensor:
    """Return number, sum and sum of squares, float64 ``[3]``."""
    values = features.detach().double()
    return torch.stack([values.new_tensor(float(values.numel())), values.sum(), values.square().sum()])
