"""The callback that looks inside a run while it trains."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from composer import Callback, State, Time, TimeUnit
from composer.loggers import Logger
from composer.utils import dist

from reuse_algos.errors import ModelError, TaskError, nearest
from reuse_algos.training.first_batch.task_reader import targets_of
from reuse_algos.training.instruments.curvature import Curvature
from reuse_algos.training.instruments.examples import Parameters, trained_parameters
from reuse_algos.training.instruments.reading import SETS, Step, read_step
from reuse_algos.training.instruments.single.batches import first_examples
from reuse_algos.training.interplay import hides_inputs
from reuse_algos.training.outputs import unwrap_model
from reuse_algos.training.ranks import on_rank_zero

PREFIX = "instruments/"
"""Readings are metrics of the run under ``instruments/<name>``."""


class TrainingInstruments(Callback):
    """Read gradients and curvature of some examples of the current batch, and leave the training bit for bit as it is.

    At the steps that ``every`` chooses, the first ``examples`` of rank 0's batch are looked at with the weights before
    and after the step: in full precision, in evaluation mode (running statistics of batch norm, no dropout), and
    before algorithms such as MixUp change the batch. Detectors give losses in training mode only, so they are read in
    it, with their norms and dropout as in evaluation. The readings go to the loggers as ``instruments/<name>`` and,
    through :class:`~reuse_algos.callbacks.RunRecorder`, into the archive, where ``reuse-algos show RUN --instruments``
    draws them and says what they mean. The mean gradient is the mean over examples; for tasks that average over tokens
    or pixels this is not the batch's own gradient where the examples differ in length.

    Source: Cockpit (Schneider et al. 2021, https://arxiv.org/abs/2102.06604); laziness: Chizat et al. 2019
    (https://arxiv.org/abs/1812.07956).

    Args:
        sets: Which readings. ``economy``: loss, gradient norm and sizes, size of the update, distance, alpha, norm,
            inner-product and orthogonality tests, noise scale. ``curvature``: largest eigenvalue and trace of the
            Hessian with their errors, Takeuchi's information criterion. ``laziness``: distances to the initial weights
            and of the tangent kernels, accuracy of the linearised network; for classifiers. ``stopping``:
            early-stopping criterion and CABS; for SGD. Default: ``("economy",)``.
        every: Steps to read at, as epochs (``1ep``: the first batch of each) or batches (``100ba``). Default: ``1ep``.
        examples: How many examples, from 2. Default: 64.
        memory_mib: Bound in MiB on the gradients and Jacobians that are held at once; the activations of a microbatch
            come on top, and one example's gradient is held in any case. Default: 256.
        hessian: How closely curvature is looked at, fields of
            :class:`~reuse_algos.training.instruments.curvature.Curvature`. Default: 16 probes, 50 iterations.
        target_key: Where the classes lie in a batch, for laziness. Default: 1, or what is called ``labels``, ``label``,
            ``targets``, ``target`` or ``y`` in a mapping.
        output_key: Where the logits lie in the model's outputs, for laziness. Default: the tensor, or what is called
            ``logits``.

    Raises:
        ValueError: A setting is wrong.
        TaskError: ``stopping`` is asked for with another optimizer than SGD.
        ModelError: The model cannot be read: its inputs are cached features, its weights are sharded, laziness is asked
            for and it does not classify, or curvature and it has no second derivatives.
        DataError: The batch has neither one row nor one entry of each list for each example.
    """

    def __init__(
        self,
        sets: str | Sequence[str] = ("economy",),
        *,
        every: str = "1ep",
        examples: int = 64,
        memory_mib: int = 256,
        hessian: Curvature | Mapping[str, Any] | None = None,
        target_key: str | int = 1,
        output_key: str | int | None = None,
    ) -> None:
        self.sets = (sets,) if isinstance(sets, str) else tuple(sets)
        for name in self.sets:
            if name not in SETS:
                raise ValueError(f"TrainingInstruments sets: {name!r} is not one.{nearest(str(name), SETS)}")
        if not self.sets:
            raise ValueError("TrainingInstruments sets is empty; leave the callback out, or name some of " + str(SETS))
        wrong = f"TrainingInstruments every must be epochs or batches such as 1ep or 100ba, not {every!r}"
        try:
            self.every = Time.from_input(every, TimeUnit.EPOCH)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(wrong) from error
        if self.every.unit not in (TimeUnit.EPOCH, TimeUnit.BATCH) or self.every.value < 1:
            raise ValueError(wrong)
        for name, value, least in (("examples", examples, 2), ("memory_mib", memory_mib, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"TrainingInstruments {name} must be a whole number from {least}, not {value!r}")
        self.examples, self.memory_mib = examples, memory_mib
        self.hessian = hessian if isinstance(hessian, Curvature) else Curvature(**(hessian or {}))
        self.target_key, self.output_key = target_key, output_key
        self.overhead_seconds = 0.0
        self._initial: Parameters | None = None
        self._before: tuple[Any, Parameters, float] | None = None
        self._read: tuple[int, dict[str, float]] = (-1, {})

    # Events ---------------------------------------------------------------------------------------------------------

    def init(self, state: State, logger: Logger) -> None:
        """Forget another Trainer; refuse a second callback, as checkpoints keep callbacks by class."""
        if sum(isinstance(one, TrainingInstruments) for one in state.callbacks) > 1:
            raise ValueError("a trainer takes one TrainingInstruments; name several sets")
        self._initial, self._before, self._read = None, None, (-1, {})

    def fit_start(self, state: State, logger: Logger) -> None:
        """Check that the run can be read, and keep the weights that it starts from."""
        # Gathering whole weights at every reading would cost more than the step itself.
        if state.fsdp_enabled:
            raise ModelError("TrainingInstruments reads whole weights, and FSDP shards them. Take the callback out.")
        if hiding := hides_inputs(state):
            raise ModelError(
                f"TrainingInstruments reads the model on its inputs, and with {hiding[0]} the batches hold features "
                "instead. Take the callback out, or read the features from the images (source: live)."
            )
        others = [type(one).__name__ for one in state.optimizers if "SGD" not in _class_names(one)]
        if "stopping" in self.sets and others:
            raise TaskError(
                f"TrainingInstruments: the set 'stopping' is defined for SGD only, and this run has {others[0]}. "
                "Leave it out of sets."
            )
        # On the CPU: the GPU may have no room for a second copy, and it is read rarely.
        if self._initial is None and self._needs_initial:
            model = unwrap_model(state.model)
            self._initial = {name: value.detach().float().cpu().clone() for name, value in model.named_parameters()}

    def batch_start(self, state: State, logger: Logger) -> None:
        """Keep examples and weights of a step that is to be read."""
        if not self._is_due(state):
            return
        began = time.perf_counter()
        # On every rank, so that a batch that cannot be taken apart stops all of them.
        batch = first_examples(state.batch, self.examples)
        rate = float(state.optimizers[0].param_groups[0]["lr"])
        self._before = (batch, trained_parameters(unwrap_model(state.model)), rate)
        self.overhead_seconds += time.perf_counter() - began

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log what was read at this step."""
        readings = self.readings(state)
        if readings:
            logger.log_metrics(readings)

    def readings(self, state: State) -> dict[str, float]:
        """Return the readings of the step that has just ended, under their full names; empty where it is not read.

        They are computed once in a step. Every rank must ask, and all get those of rank 0.
        """
        now = int(state.timestamp.batch)
        if self._before is not None:
            began = time.perf_counter()
            (batch, before, rate), self._before = self._before, None
            found = on_rank_zero(lambda: self._look(state, batch, before, rate))
            self._read = now, {PREFIX + name: value for name, value in found.items()}
            self.overhead_seconds += time.perf_counter() - began
        step, readings = self._read
        return readings if step == now else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the initial weights, from which a resumed run still measures its distance."""
        return {"initial": self._initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._initial = state["initial"]

    # One reading ----------------------------------------------------------------------------------------------------

    @property
    def _needs_initial(self) -> bool:
        return bool({"economy", "laziness"} & set(self.sets)) and dist.get_global_rank() == 0

    def _is_due(self, state: State) -> bool:
        now = state.timestamp
        if self.every.unit == TimeUnit.BATCH:
            return int(now.batch) % self.every.value == 0
        return int(now.batch_in_epoch) == 0 and int(now.epoch) % self.every.value == 0

    def _look(self, state: State, batch: Any, before: Parameters, rate: float) -> dict[str, float]:
        model: Any = unwrap_model(state.model)
        now = {name: value.detach() for name, value in model.named_parameters()}
        after = {name: now[name].to(value.dtype) for name, value in before.items()}
        initial = before if self._initial is None else _as(self._initial, before)
        targets = None
        if "laziness" in self.sets:
            with contextlib.suppress(TaskError):  # the reading says what is missing
                targets = targets_of(batch, self.target_key)
        samples = int(state.timestamp.sample) - int(state.previous_timestamp.sample if state.previous_timestamp else 0)
        # A microbatch is what the device has room for.
        together = state.device_train_microbatch_size
        together = together if isinstance(together, int) else None
        step = Step(model, batch, before, after, initial, rate, samples, targets, self.output_key, together)
        return read_step(step, self.sets, self.hessian, self.memory_mib << 20)


def _class_names(optimizer: torch.optim.Optimizer) -> str:
    """Return the names of the optimizer's class and its bases; Composer's decoupled SGD is an SGD by its base."""
    return " ".join(base.__name__ for base in type(optimizer).__mro__)


def _as(initial: Parameters, before: Parameters) -> Parameters:
    """Return the initial values of the trained parameters, where and of the type that they are now."""
    missing = [name for name, value in before.items() if name not in initial or initial[name].shape != value.shape]
    if missing:
        raise ModelError(
            f"the model has parameters that it did not have when training started, first {missing[0]}, so its distance "
            "from its initial weights is not defined. Read the sets 'curvature' and 'stopping' only."
        )
    return {name: initial[name].to(value) for name, value in before.items()}
