"""The forward pass of a microbatch with replayed rows.

The trainer calls its model once, with the whole microbatch. Hooks on that one call put the replayed rows in and sort
the outputs out again. Other algorithms see the batch and outputs with as many rows as the loader gave.

Legend: B rows of a microbatch, R of them replayed, K = B - R.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from composer.utils.batch_helpers import batch_get
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from reuse_algos.algorithms.adversarial_replay.replay.rows import (
    ADVICE,
    add_to_first,
    join_rows,
    nothing_of,
    tensors_of,
)
from reuse_algos.data.nested import take_rows, with_item
from reuse_algos.errors import ModelError
from reuse_algos.training.parameters.batch_norm import BranchSwitch


@dataclass
class Replay:
    """The replayed rows of one microbatch.

    Attributes:
        rows_R: int64 on the CPU: which rows.
        num_rows: B.
        batch: Their part of the batch, perturbed.
        seed: Of what the model draws in their forward pass, such as dropout masks.
        outputs: What the model says of them, once the forward pass is over.
        main_idle: Whether no row went through the main branch of the batch norms.
        begun: Whether that pass has begun.
    """

    rows_R: Tensor
    num_rows: int
    batch: Any
    seed: int
    outputs: Any = None
    main_idle: bool = False
    begun: bool = False

    @property
    def kept_K(self) -> Tensor:
        """Return the other rows: int64 on the CPU."""
        kept_B = torch.ones(self.num_rows, dtype=torch.bool)
        kept_B[self.rows_R] = False
        return kept_B.nonzero().flatten()


class ReplayedForward:
    """Changes the next call of the trainer's model.

    With split batch norm the replayed rows have a pass of their own, through the auxiliary branches. A clean row's
    outputs, the main statistics and the random numbers that the model draws are then what they are without replay.
    Without, all rows are one batch, as in ordinary adversarial training.

    Args:
        mode: ``append``: replayed rows come on top; ``replace``: in place of their clean ones.
        split: Whether they have a pass of their own.
        input_key: Where the inputs lie in a batch.
        switch: Of the split batch norms.
    """

    def __init__(self, mode: str, split: bool, input_key: Any, switch: BranchSwitch) -> None:
        self.mode, self.split, self.input_key = mode, split, input_key
        self.switch = switch
        self._handles: list[RemovableHandle] = []

    def arm(self, model: nn.Module, batch: Any, replay: Replay) -> None:
        """Prepare the next call of the trainer's model.

        That call fills ``replay.outputs``; with ``replace`` it returns them in their places.
        """
        self.disarm()
        given = self._given(batch, replay)

        def before(module: nn.Module, arguments: Any) -> Any:
            if replay.begun or arguments[0] is not batch:
                # Not the trainer's call: that one was interrupted, or its batch has been exchanged.
                self.disarm()
                return None
            replay.begun = True
            self.switch.auxiliary = replay.main_idle
            rows = replay.kept_K if self.mode == "replace" and self.split and not replay.main_idle else None
            self.switch.too_few = None if rows is None else _too_few(len(rows), replay.num_rows, "stay clean")
            return (given,)

        def after(module: nn.Module, arguments: Any, outputs: Any) -> Any:
            self.disarm()
            return self._sorted_out(module, replay, outputs)

        self._handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
        apart = self.split and not replay.main_idle
        if apart and isinstance(model, DistributedDataParallel) and model.find_unused_parameters:
            self._handles.append(model.module.register_forward_hook(_with_all_parameters))

    def disarm(self) -> None:
        """Undo :meth:`arm`, also after a forward pass that failed."""
        self.settle()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def settle(self) -> None:
        """Return to the main branch, after the loss has gone backward."""
        self.switch.auxiliary = False
        self.switch.too_few = None

    def _given(self, batch: Any, replay: Replay) -> Any:
        """Return what the trainer's call gets."""
        if self.mode == "append":
            if self.split:
                return batch
            counts = replay.num_rows, len(replay.rows_R)
            return join_rows(batch, replay.batch, counts, None, strict=False)
        kept_K = replay.kept_K
        if self.split and len(kept_K):
            return take_rows(batch, kept_K, replay.num_rows)
        replay.main_idle = self.split
        return self._in_place(batch, replay)

    def _in_place(self, batch: Any, replay: Replay) -> Any:
        """Return the batch with the replayed rows in their places."""
        # A clone: the trainer computes the loss of its own batch afterwards.
        inputs = _item(batch, self.input_key).clone()
        inputs[replay.rows_R.to(inputs.device)] = _item(replay.batch, self.input_key)
        return with_item(batch, self.input_key, inputs)

    def _sorted_out(self, model: nn.Module, replay: Replay, outputs: Any) -> Any:
        """Return what the trainer gets back."""
        B, R = replay.num_rows, len(replay.rows_R)
        if self.mode == "append":
            if self.split:
                self._tell_apart(outputs, False)
                replay.outputs = self._apart(model, replay)
                return outputs
            replay.outputs = _part(outputs, B, B + R, B + R)
            return _part(outputs, 0, B, B + R)
        kept_K = replay.kept_K
        if self.split:
            self._tell_apart(outputs, replay.main_idle)
        if not self.split or not len(kept_K):
            replay.outputs = take_rows(outputs, replay.rows_R, B)
            return outputs
        replay.outputs = self._apart(model, replay)
        order_B = torch.empty(B, dtype=torch.int64)
        order_B[kept_K] = torch.arange(B - R)
        order_B[replay.rows_R] = torch.arange(B - R, B)
        return join_rows(outputs, replay.outputs, (B - R, R), order_B, strict=True)

    def _apart(self, model: nn.Module, replay: Replay) -> Any:
        """Return the outputs of a pass of the replayed rows by themselves."""
        # Not through DDP's wrapper, which expects one forward pass before each backward pass. This runs in a hook of
        # the trainer's call, so its precision context holds here, too.
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        message = _too_few(len(replay.rows_R), replay.num_rows, "are replayed")
        self.switch.auxiliary, self.switch.too_few = True, message
        try:
            with _seeded_apart(_item(replay.batch, self.input_key).device, replay.seed):
                outputs = inner(replay.batch)
        except ValueError as error:
            # torch has no error class of its own for batch norm on a single row.
            if "more than 1 value per channel" not in str(error):
                raise
            raise ModelError(message) from error
        finally:
            self.settle()
        self._tell_apart(outputs, True)
        return outputs

    def _tell_apart(self, outputs: Any, auxiliary: bool) -> None:
        """Let layers that are called again in the backward pass of these outputs take the branch that they had."""

        # Activation checkpointing calls layers again while the loss goes backward. Autograd takes nodes in the reverse
        # order of their making, so the later pass (of the replayed rows) is gone through first and whole.
        def enter(gradient: Tensor) -> None:
            self.switch.auxiliary = auxiliary

        for tensor in tensors_of(outputs):
            if tensor.requires_grad:
                tensor.register_hook(enter)


def _too_few(rows: int, of: int, what: str) -> str:
    return (
        f"{rows} of {of} rows of a microbatch {what}, and batch norm needs more of them for its statistics. Use a "
        "larger batch, microbatch or fraction (with mode: replace, a smaller one where too few rows stay clean), "
        "drop_last: true in the DataLoader, or split_batch_norm: false."
    )


def _with_all_parameters(module: nn.Module, arguments: Any, outputs: Any) -> Any:
    """Make the outputs that DDP sees depend on every parameter, by an amount of 0."""
    # DDP with find_unused_parameters takes what the outputs do not depend on for unused, and fails when the second pass
    # gives it a gradient after all: auxiliary branches, and whatever the model leaves out at random.
    joined = add_to_first(outputs, nothing_of(p for p in module.parameters() if p.requires_grad))
    if joined is None:
        raise ModelError(
            f"another algorithm lets DDP find unused parameters, which needs a tensor among the model's outputs, and a "
            f"{type(outputs).__name__} has none. Let the model return a tensor, a mapping or a tuple of tensors, take "
            "the other algorithm (such as LayerFreezing or StochasticDepth) out, or say split_batch_norm: false."
        )
    return joined


@contextmanager
def _seeded_apart(device: torch.device, seed: int) -> Iterator[None]:
    """Let torch's generators of CPU and device start from a seed in the ``with`` block, and put them back."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _item(batch: Any, key: Any) -> Tensor:
    found: Any = batch_get(batch, key)
    return found


def _part(outputs: Any, start: int, stop: int, num_rows: int) -> Any:
    """Return rows of the outputs of a joint pass."""
    return take_rows(outputs, torch.arange(start, stop), num_rows, strict=ADVICE)
