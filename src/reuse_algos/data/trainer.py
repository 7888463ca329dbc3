"""What the Trainer knows and Composer's ``State`` does not tell, such as how the rows of a batch are counted."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from composer import State, Trainer
from composer.core import DataSpec

from reuse_algos.errors import ExampleIdError

_FOUND: weakref.WeakKeyDictionary[State, weakref.ref[Trainer]] = weakref.WeakKeyDictionary()


def trainer_attributes(state: State) -> Mapping[str, Any]:
    """Return the attributes of the Trainer that a state belongs to; empty where there is none.

    Composer hands algorithms and callbacks the state only. The Trainer is found among the objects that refer to it,
    which takes some tenths of a second; the answer is kept.

    Args:
        state: Of a running Trainer.
    """
    known = _FOUND.get(state)
    trainer = None if known is None else known()
    if trainer is None:
        for one in gc.get_referrers(state):
            owners = [one] if isinstance(one, Trainer) else gc.get_referrers(one) if isinstance(one, dict) else []
            # An object's attributes are referred to by its dictionary where somebody has asked for that.
            trainer = next((owner for owner in owners if isinstance(owner, Trainer) and owner.state is state), trainer)
        if trainer is None:
            return {}
        _FOUND[state] = weakref.ref(trainer)
    return vars(trainer)


def weighs_by_tokens(state: State) -> bool:
    """Return whether the Trainer weighs microbatches by their tokens (``accumulate_train_batch_on_tokens``).

    A term that is a mean over examples then depends on the number of microbatches, and one over targets does not.
    """
    return bool(trainer_attributes(state).get("accumulate_train_batch_on_tokens", False))


def rows_of(batch: Any, state: State, expected: int | None = None) -> int:
    """Return the number of examples in a train batch, by its tensors or else by the Trainer's own counter.

    Args:
        batch: The batch, or a microbatch of it.
        state: Of the running Trainer.
        expected: How many there should be. Where the tensors show another number the counter is asked, too: batches of
            detection hold lists of images and boxes. Default: not known.

    Raises:
        ExampleIdError: Nobody can tell.
    """
    error: ExampleIdError | None = None
    counted = None
    try:
        counted = num_rows(batch)
    except ExampleIdError as failure:
        error = failure
    if counted is not None and (expected is None or counted == expected):
        return counted
    spec = trainer_attributes(state).get("_train_data_spec")
    if isinstance(spec, DataSpec):
        count = spec.get_num_samples_in_batch
        if getattr(count, "__func__", None) is not DataSpec._default_get_num_samples_in_batch:  # the user's own
            return int(count(batch))
    if error is not None:
        raise error
    assert counted is not None
    return counted


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

    visit(batch)
    if len(sizes) != 1:
        found = f"parts of {sorted(sizes)} rows" if sizes else "no tensors"
        raise ExampleIdError(
            f"cannot tell how many examples a batch of type {type(batch).__name__} holds: it has {found}. Let every "
            "tensor of the batch have one row per example, or give the Trainer a DataSpec with "
            "get_num_samples_in_batch."
        )
    return sizes.pop()
