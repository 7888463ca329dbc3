"""What the Trainer knows and Composer's ``State`` does not, such as how the rows of a batch are counted."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from composer import State, TimeUnit, Trainer
from composer.core import DataSpec
from composer.utils import reproducibility

from reuse_algos.data.nested import fields_of
from reuse_algos.errors import ExampleIdError

_FOUND: weakref.WeakKeyDictionary[State, weakref.ref[Trainer]] = weakref.WeakKeyDictionary()


def _trainer_attributes(state: State) -> dict[str, Any]:
    """Return the attributes of the Trainer that a state belongs to, during its events; empty where none runs."""
    known = _FOUND.get(state)
    trainer = None if known is None else known()
    # Composer hands algorithms and callbacks the State, which holds neither the Trainer nor what is asked for here (the
    # DataSpec, the weighing of microbatches, the steps of schedulers), and the Engine does not either. The Trainer runs
    # every event, so it stands on the call stack of whoever handles one.
    frame = None if trainer is not None else inspect.currentframe()
    while frame is not None and trainer is None:
        one = frame.f_locals.get("self")
        trainer = one if isinstance(one, Trainer) and one.state is state else None
        frame = frame.f_back
    if trainer is None:
        return {}
    # Kept, since a look at the frames of a step would hold its tensors for longer than the step needs them.
    _FOUND[state] = weakref.ref(trainer)
    return vars(trainer)


def weighs_by_tokens(state: State) -> bool:
    """Return whether the Trainer weighs microbatches by their tokens (``accumulate_train_batch_on_tokens``).

    A term that is a mean over examples then depends on the number of microbatches, and one over targets does not.
    """
    return bool(_trainer_attributes(state).get("accumulate_train_batch_on_tokens", False))


def restore_random_numbers(state: State) -> None:
    """Restore the random numbers of a checkpoint of mid-epoch, once, where the train dataset resumes by itself.

    To be called when the first batch is there, or at the end of an epoch of which none was left.
    """
    # Composer does it while it skips the batches before the checkpoint, and a stream skips none: without this a resumed
    # run would draw its dropout again from the start.
    attributes = _trainer_attributes(state)
    if state.dataset_resumption.get("train") and attributes.get("_rng_state") is not None:
        reproducibility.load_rng_state(attributes["_rng_state"])
        attributes["_rng_state"] = None


def scheduler_steps(state: State) -> TimeUnit | None:
    """Return after what the Trainer steps its schedulers: ``BATCH`` or ``EPOCH``; None where no Trainer runs."""
    return _trainer_attributes(state).get("_scheduler_step_frequency")


def rows_of(batch: Any, state: State, expected: int | None = None) -> int:
    """Return the number of examples in a train batch, by the Trainer's own counter or else by its tensors.

    Args:
        batch: The batch, or a microbatch of it.
        state: Of the running Trainer.
        expected: How many there should be. Where the tensors show that many, the counter is not asked. Default: not
            known.

    Raises:
        ExampleIdError: Neither knows.
    """
    if expected is not None:
        with contextlib.suppress(ExampleIdError):
            if num_rows(batch) == expected:
                return expected
    spec = _trainer_attributes(state).get("_train_data_spec")
    count = spec.get_num_samples_in_batch if isinstance(spec, DataSpec) else None
    # Composer's default counter reads the tensors as num_rows does; only the user's own can know better. Batches of
    # detection are lists of images and boxes: with one channel and one box in each, their tensors show a single row.
    if count is not None and getattr(count, "__func__", None) is not DataSpec._default_get_num_samples_in_batch:
        return int(count(batch))
    return num_rows(batch)


def num_rows(batch: Any) -> int:
    """Return the number of examples in a batch: the common first dimension of its tensors and lists.

    Tensors without dimensions do not count.

    Raises:
        ExampleIdError: There is none, or the parts disagree.
    """
    sizes: set[int] = set()

    def visit(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            if part.dim():  # one without dimensions belongs to the batch as a whole
                sizes.add(part.shape[0])
        elif isinstance(part, Mapping):
            for value in part.values():
                visit(value)
        elif isinstance(part, (list, tuple)):
            if all(isinstance(value, (str, int, float, bool)) for value in part):
                sizes.add(len(part))
            else:
                for value in part:
                    visit(value)
        elif (named := fields_of(part)) is not None:
            visit(named)

    visit(batch)
    if len(sizes) != 1:
        found = f"parts of {sorted(sizes)} rows" if sizes else "no tensors"
        raise ExampleIdError(
            f"cannot tell how many examples a batch of type {type(batch).__name__} holds: it has {found}. Let every "
            "tensor of the batch have one row per example, or give the Trainer a DataSpec with "
            "get_num_samples_in_batch."
        )
    return sizes.pop()
