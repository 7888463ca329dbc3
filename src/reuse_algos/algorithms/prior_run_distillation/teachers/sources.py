"""Where the teachers' logits come from: models that run again (live), or archived signals (cached)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from composer import State, Time
from torch import nn

from reuse_algos.algorithms.prior_run_distillation.teachers.source_choice import signal_name
from reuse_algos.archive import PriorRun, Signal
from reuse_algos.data.sampler import Examples
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import SignalNotFoundError
from reuse_algos.priors.lookup import ArchivedRows, fits_device
from reuse_algos.priors.model import ModelFactory, archived_model, ask
from reuse_algos.priors.views import too_old
from reuse_algos.training.batch_guard import BatchGuard
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.flops import forward_flops
from reuse_algos.training.interplay import example_weights
from reuse_algos.training.outputs import logits_of
from reuse_algos.training.parameters.tokens import refuse_other_tokens
from reuse_algos.training.ranks import sum_over_ranks
from reuse_algos.training.tasks.eval_outputs import refuse_other_answers
from reuse_algos.training.tasks.task import Task

# Archived rows from which a teacher's scale is taken; its relative error is then about 1/30.
_SAMPLED = 1024


class Targets(NamedTuple):
    """Logits of the chosen teachers for one microbatch.

    Attributes:
        logits: One tensor ``[B, C, ...]`` for each chosen teacher.
        seen_B: Bool ``[B]``: rows that have a target from all of them; None: all rows.
    """

    logits: list[torch.Tensor]
    seen_B: torch.Tensor | None


class Teachers(Protocol):
    """A set of teachers.

    Attributes:
        names: Of each teacher.
        flops_per_example: Of the forward pass of each that has given targets: 0 where it makes none, None where it
            cannot be counted.
        in_layout: Whether the logits of each lie in the layout of the task already (classes in dimension 1).
    """

    names: list[str]
    flops_per_example: list[int | None]
    in_layout: list[bool]

    def targets(self, state: State, batch: Any, examples: Examples | None, chosen: Sequence[int]) -> Targets:
        """Return the logits of the teachers with these numbers for a microbatch, or for its examples."""
        ...


class LiveTeachers:
    """Archived models in evaluation mode, run without gradient on the batch that the student sees.

    Their batch-norm statistics do not move, and they are not in the student's checkpoints.

    Args:
        runs: Prior runs.
        weights: Names of archived weights; each (run, name) pair is one teacher.
        factory: A module or a function that makes one; None: the model that the run's record describes, or else a
            copy of ``student`` where the parameters have the same names and shapes.
        student: An untouched copy of the student's model, or None.
        state: The trainer's state, for device and memory format.
        keys: Where inputs (for teachers that are plain modules) and logits lie.

    Raises:
        ModelError, PriorRunMismatchError: No module can be made for a run, or its weights do not fit.
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
        self.names = _names(runs, weights)
        self.flops_per_example: list[int | None] = [None] * len(self.names)
        self.in_layout = [False] * len(self.names)
        self._counted: set[int] = set()
        self._guards = [BatchGuard(f"teacher {name}") for name in self.names]
        self._keys = keys
        # In a plain list of a plain object: a sub-module of the student would be in its state dict, its optimizer and
        # its DDP buckets.
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
        for index in chosen:
            given = (self._modules[index], batch, state, self._keys)
            logits.append(logits_of(ask(*given, self._guards[index]), self._keys.output))
            # Once for each teacher: a count takes one more forward pass.
            if index not in self._counted:
                self._counted.add(index)
                again = functools.partial(ask, *given)
                self.flops_per_example[index] = forward_flops(again, state, f"teacher {self.names[index]}")
        return Targets(logits, None)

    def check(self, state: State, batch: Any, task: Task) -> list[torch.Tensor]:
        """Refuse teachers that say something else in evaluation than their loss was computed from (first AFTER_LOSS).

        Args:
            state: The trainer's.
            batch: The first microbatch, as it was before the student saw it.
            task: What is learned.

        Returns:
            The logits of all teachers for it.

        Raises:
            ModelError: A teacher gives probabilities, or numbers in other units, in evaluation mode.
        """
        logits = self.targets(state, batch, None, range(len(self.names))).logits

        for index, said in enumerate(logits):
            module = self._modules[index]
            once_more = functools.partial(answers, module, batch, state, self._keys)
            refuse_other_answers(module, task, said, once_more, f"teacher {self.names[index]}")
        return logits


class CachedTeachers:
    """Logits that prior runs archived, looked up by example and view.

    Args:
        runs: Prior runs.
        weights: Names of archived weights; each (run, name) pair is one teacher.
        rows: For each run the prior position of each current example (None: the same position).
        policy: The current run's views; None or no views: slots are used in turn, epoch by epoch.
        device: Where to keep logits that fit.
        oldest: How long before the end of its run a slot may have been captured; rows of older ones count as missing.
        slots_used: Those that were looked up so far; further ones are added to it.

    Raises:
        SignalNotFoundError: A run has no logits.

    Attributes:
        kept_classes: For each teacher how many of its largest logits are archived; None: all.
        complete: Whether every example has a target of every teacher in every view.
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
        self.names = _names(runs, weights)
        self.flops_per_example: list[int | None] = [0] * len(self.names)
        # Runs of formats before 1.2 recorded no task, and their logits as the model gave them.
        self.in_layout = [run.manifest.task is not None for run in runs for _ in weights]
        self.slots_used, self.complete, self._device = slots_used, True, device
        self._exact = policy is not None and policy.num_views > 0
        found: list[tuple[Signal, torch.Tensor | None, list[int]]] = []
        for run, rows_N in zip(runs, rows, strict=True):
            for name in map(signal_name, weights):
                if name not in run.signal_names:
                    raise SignalNotFoundError(
                        f"run {run.id} has no signal {name!r}, it has {run.signal_names}. Harvest it, or use "
                        "source: live."
                    )
                signal = run.signal(name)
                wanted = list(range(policy.num_views)) if policy is not None and self._exact else signal.slots
                young = [slot for slot in wanted if slot in signal.slots and not too_old(run, signal, slot, oldest)]
                if not young:
                    raise SignalNotFoundError(
                        f"run {run.id} has no {name!r} of this run's views that are at most {oldest} older than its "
                        "end. Harvest them, or set source.oldest."
                    )
                known = rows_N is None or bool((rows_N >= 0).all())
                self.complete &= known and young == wanted and all(bool(signal.seen(slot).all()) for slot in young)
                found.append((signal, rows_N, young))
        self.kept_classes = [signal.kept_classes for signal, _, _ in found]
        kept_on = device if fits_device(signal for signal, _, _ in found) else None
        self._archived = [ArchivedRows(*one, kept_on) for one in found]

    def sample(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield some rows of each teacher, evenly over the archived examples and the same on every rank.

        Yields:
            For each teacher its logits ``[S, C, ...]`` and bool ``[S]``, which of the rows there are.
        """
        for archived in self._archived:
            count, slots = archived.num_examples, torch.tensor(archived.slots)
            positions_S = torch.linspace(0, count - 1, min(count, _SAMPLED)).long()
            yield archived.gather(positions_S, slots[torch.arange(len(positions_S)) % len(slots)])

    def share(self, state: State, examples: Examples, chosen: Sequence[int]) -> float:
        """Return the share of a batch, over all ranks, that has a target, by the weights of its rows."""
        seen_B = self.targets(state, None, examples, chosen).seen_B
        assert seen_B is not None
        weights_B = example_weights(state, examples.positions)
        rows_B = torch.ones(seen_B.shape, device=seen_B.device) if weights_B is None else weights_B.to(seen_B.device)
        seen, rows = sum_over_ranks(torch.stack([rows_B[seen_B].sum(), rows_B.sum()]).float()).tolist()
        return seen / rows if rows else 1.0

    def targets(self, state: State, batch: Any, examples: Examples | None, chosen: Sequence[int]) -> Targets:
        """Look the rows of the microbatch up."""
        assert examples is not None
        logits, seen_B = [], None
        for index in chosen:
            archived = self._archived[index]
            slots_B = examples.views
            if not self._exact:
                # Views are not known: the slots take turns, one for each epoch.
                slots_B = torch.full_like(slots_B, archived.slots[int(state.timestamp.epoch) % len(archived.slots)])
            self.slots_used.update(slots_B.unique().tolist())
            found, here_B = archived.gather(examples.positions, slots_B)
            logits.append(found.to(self._device, non_blocking=True))
            seen_B = here_B if seen_B is None else seen_B & here_B
        assert seen_B is not None
        return Targets(logits, seen_B.to(self._device, non_blocking=True))


def answers(module: nn.Module, batch: Any, state: State, keys: BatchKeys) -> torch.Tensor:
    """Return the logits of an archived model for a microbatch, see :func:`~reuse_algos.priors.model.ask`."""
    return logits_of(ask(module, batch, state, keys), keys.output)


def _names(runs: Sequence[PriorRun], weights: Sequence[str]) -> list[str]:
    return [f"{run.id}/{name}" for run in runs for name in weights]
