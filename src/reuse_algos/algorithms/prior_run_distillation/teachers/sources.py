"""Where the teachers' logits come from: models that run again (live), or archived signals (cached)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from composer import State, Time
from composer.core import get_precision_context
from composer.models import ComposerModel
from composer.utils import dist
from composer.utils.batch_helpers import batch_get
from torch import nn

from reuse_algos.algorithms.prior_run_distillation.teachers.source_choice import signal_name
from reuse_algos.archive import PriorRun, ResidentSignal, Signal
from reuse_algos.data.sampler import Examples
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import SignalNotFoundError
from reuse_algos.priors.model import ModelFactory, archived_model
from reuse_algos.priors.views import too_old
from reuse_algos.training.batch_guard import BatchGuard
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.flops import forward_flops
from reuse_algos.training.interplay import example_weights
from reuse_algos.training.outputs import logits_of
from reuse_algos.training.parameters.tokens import refuse_other_tokens

# Archived rows from which a teacher's scale is taken; its relative error is then about 1/30.
_SAMPLED = 1024

# Cached logits up to this size are kept on the training device; larger ones are read from the memory map.
_RESIDENT_BYTES = 2 << 30


class Targets(NamedTuple):
    """Logits of the chosen teachers for one microbatch.

    Attributes:
        logits: one tensor ``[B, C, ...]`` for each chosen teacher.
        seen_B: bool ``[B]``: rows that have a target from all of them; None: all rows.
    """

    logits: list[torch.Tensor]
    seen_B: torch.Tensor | None


class Teachers(Protocol):
    """A set of teachers.

    Attributes:
        names: of each teacher.
        flops_per_example: of the forward pass of each that has given targets: 0 where it makes none, None where it
            cannot be counted.
        in_layout: whether the logits of each lie in the layout of the task already (classes in dimension 1).
    """

    names: list[str]
    flops_per_example: list[int | None]
    in_layout: list[bool]

    def targets(self, state: State, batch: Any, examples: Examples | None, chosen: Sequence[int]) -> Targets:
        """Return the logits of the teachers with these numbers for a microbatch, or for its examples."""
        ...


class LiveTeachers:
    """Archived models in evaluation mode, run without gradient on the batch that the student sees.

    They are plain attributes of a plain object: never sub-modules of the student, so never in its state dict, its
    optimizer or its DDP buckets. Their batch-norm statistics do not move.

    Args:
        runs: prior runs.
        weights: names of archived weights; each (run, name) pair is one teacher.
        factory: a module or a function that makes one; None: the model that the run's record describes, or else a
            copy of ``student`` where the parameters have the same names and shapes.
        student: an untouched copy of the student's model, or None.
        state: the trainer's state, for device and memory format.
        keys: Where inputs (for teachers that are plain modules) and logits lie.

    Raises:
        ModelError, PriorRunMismatchError: no module can be made for a run, or its weights do not fit.
    """

    def __init__(
        self,
        runs: Sequence[PriorRun],
        weights: Sequence[str],
        factory: ModelFactory | None,
        student: nn.Module | None,
        state: State,
        keys: BatchKeys,
    ) -> None:
        self.names = [f"{run.id}/{name}" for run in runs for name in weights]
        self.flops_per_example: list[int | None] = [None] * len(self.names)
        self.in_layout = [False] * len(self.names)
        self._counted: set[int] = set()
        self._guards = [BatchGuard(f"teacher {name}") for name in self.names]
        self._input_key, self._output_key = keys.input, keys.output
        self._modules: list[nn.Module] = []
        channels_last = any(
            p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
            for p in state.model.parameters()
        )
        for run in runs:
            for name in weights:
                module = state.device.module_to_device(archived_model(run, name, factory=factory, like=student))
                refuse_other_tokens(module, state.model, f"{run.id}/{name}")
                if channels_last:
                    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                self._modules.append(module)

    def targets(self, state: State, batch: Any, examples: Examples | None, chosen: Sequence[int]) -> Targets:
        """Run the chosen teachers on a microbatch as it was before the student saw it, in the student's precision."""
        logits = []
        with torch.no_grad(), get_precision_context(state.precision, state.precision_config):
            for index in chosen:
                module = self._modules[index]
                logits.append(logits_of(module(self._inputs_of(index, batch)), self._output_key))
                self._guards[index].look()
                if index not in self._counted:
                    self._counted.add(index)
                    again = functools.partial(module, self._inputs_of(index, batch))
                    self.flops_per_example[index] = forward_flops(again, state, f"teacher {self.names[index]}")
        return Targets(logits, None)

    def _inputs_of(self, index: int, batch: Any) -> Any:
        """What a teacher is given: a copy of its own, since it may be a model that takes things out of its batch."""
        given = self._guards[index].copy(batch)
        return given if isinstance(self._modules[index], ComposerModel) else batch_get(given, self._input_key)


class CachedTeachers:
    """Logits that prior runs archived, looked up by example and view.

    Args:
        runs: prior runs.
        weights: names of archived weights; each (run, name) pair is one teacher.
        rows: for each run the prior position of each current example (None: the same position).
        policy: the current run's views; None or no views: slots are used in turn, epoch by epoch.
        device: where to keep logits that fit.
        oldest: How long before the end of its run a slot may have been captured; rows of older ones count as missing.
        slots_used: Those that were looked up so far; further ones are added to it.

    Raises:
        SignalNotFoundError: a run has no logits.

    Attributes:
        kept_classes: For each teacher how many of its largest logits are archived; None: all.
    """

    def __init__(
        self,
        runs: Sequence[PriorRun],
        weights: Sequence[str],
        rows: Sequence[torch.Tensor | None],
        policy: ViewPolicy | None,
        device: torch.device,
        oldest: Time,
        slots_used: set[int],
    ) -> None:
        self.names = [f"{run.id}/{name}" for run in runs for name in weights]
        self.flops_per_example: list[int | None] = [0] * len(self.names)
        # Runs of formats before 1.2 recorded no task, and their logits as the model gave them.
        self.in_layout = [run.manifest.task is not None for run in runs for _ in weights]
        self.slots_used = slots_used
        self.kept_classes: list[int | None] = []
        self.complete = True
        self._device = device
        self._exact = policy is not None and policy.num_views > 0
        self._signals: list[Signal | ResidentSignal] = []
        self._rows: list[torch.Tensor | None] = []
        self._slots: list[list[int]] = []
        self._allowed: list[torch.Tensor] = []
        signals = []
        for run, run_rows in zip(runs, rows, strict=True):
            for name in weights:
                if signal_name(name) not in run.signal_names:
                    raise SignalNotFoundError(
                        f"run {run.id} has no signal {signal_name(name)!r}, it has {run.signal_names}. Harvest it, or "
                        "use source: live."
                    )
                signal = run.signal(signal_name(name))
                wanted = list(range(policy.num_views)) if policy is not None and self._exact else signal.slots
                there = [slot for slot in wanted if slot in signal.slots]
                young = [slot for slot in there if not too_old(run, signal, slot, oldest)]
                if not young:
                    raise SignalNotFoundError(
                        f"run {run.id} has no {signal_name(name)!r} of this run's views that are at most {oldest} "
                        "older than its end. Harvest them, or set source.oldest."
                    )
                self.complete &= young == wanted
                signals.append((signal, run_rows, young))
        share = sum(signal.nbytes for signal, _, _ in signals)
        for signal, run_rows, slots in signals:
            self.kept_classes.append(signal.kept_classes)
            known = run_rows is None or bool((run_rows >= 0).all())
            self.complete &= known and all(bool(signal.seen(slot).all()) for slot in slots)
            self._allowed.append(torch.tensor(slots))
            if share <= _RESIDENT_BYTES:
                resident = signal.resident(device, slots=slots, rows=run_rows)
                self._signals.append(resident)
                self._rows.append(None)
            else:
                self._signals.append(signal)
                self._rows.append(run_rows)
            self._slots.append(slots)

    def sample(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Return some rows of each teacher, evenly over the archived examples and the same on every rank.

        Returns:
            For each teacher its logits ``[S, C, ...]`` and bool ``[S]``, which of the rows there are.
        """
        for signal, rows, slots in zip(self._signals, self._rows, self._slots, strict=True):
            count = signal.num_examples if rows is None else len(rows)
            positions_S = torch.linspace(0, count - 1, min(count, _SAMPLED)).long()
            slots_S = torch.tensor(slots)[torch.arange(len(positions_S)) % len(slots)]
            known_S = None
            if rows is not None:
                positions_S = rows.index_select(0, positions_S)
                known_S, positions_S = positions_S >= 0, positions_S.clamp_min(0)
            found, here_S = signal.gather(positions_S, slots_S)
            yield found, here_S if known_S is None else here_S & known_S.to(here_S.device)

    def share(self, state: State, examples: Examples, chosen: Sequence[int]) -> float:
        """Return the share of a batch, over all ranks, that has a target, by the weights of its rows.

        Args:
            state: At BEFORE_TRAIN_BATCH.
            examples: Of the whole batch of this rank.
            chosen: The teachers.
        """
        seen_B = self.targets(state, None, examples, chosen).seen_B
        assert seen_B is not None
        weights_B = example_weights(state, examples.positions)
        rows_B = torch.ones(seen_B.shape, device=seen_B.device) if weights_B is None else weights_B.to(seen_B.device)
        counts = torch.stack([rows_B[seen_B].sum(), rows_B.sum()]).float()
        if dist.get_world_size() > 1:
            dist.all_reduce(counts)
        seen, rows = counts.tolist()
        return seen / rows if rows else 1.0

    def slots_of(self, examples: Examples, epoch: int, teacher: int) -> torch.Tensor:
        """Slot of each row: its view, or one slot per epoch in turn where views are not known."""
        if self._exact:
            return examples.views
        slots = self._slots[teacher]
        return torch.full_like(examples.positions, slots[epoch % len(slots)])

    def targets(self, state: State, batch: Any, examples: Examples | None, chosen: Sequence[int]) -> Targets:
        """Look the rows of the microbatch up."""
        assert examples is not None
        logits, seen_B = [], None
        for index in chosen:
            signal, rows = self._signals[index], self._rows[index]
            slots_B = self.slots_of(examples, int(state.timestamp.epoch), index)
            self.slots_used.update(int(slot) for slot in torch.unique(slots_B))
            positions_B = examples.positions
            known_B = None
            if rows is not None:
                positions_B = rows.index_select(0, positions_B)
                known_B = positions_B >= 0
                positions_B = positions_B.clamp_min(0)
            found, here_B = signal.gather(positions_B, slots_B)
            here_B = here_B if known_B is None else here_B & known_B.to(here_B.device)
            if isinstance(signal, Signal) and len(self._slots[index]) < len(signal.slots):
                here_B = here_B & torch.isin(slots_B, self._allowed[index])  # a resident signal has no others
            logits.append(found.to(self._device, non_blocking=True))
            seen_B = here_B if seen_B is None else seen_B & here_B
        assert seen_B is not None
        return Targets(logits, seen_B.to(self._device, non_blocking=True))
