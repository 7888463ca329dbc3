"""Extra passes of a model that leave its modes, its buffers and the generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from reuse_algos.training.outputs import device_of


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Put each module back into its own mode after the ``with`` block."""
    # Not model.train(): frozen layers stay in evaluation mode while the rest trains.
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def kept_state(model: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """Put modes, buffers and torch's generators back after the ``with`` block.

    Args:
        model: The model that runs in the block.
        device: Whose generator it may draw from, beside the CPU's. Default: the parameters' device.
    """
    device = device_of(model) if device is None else device
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with kept_modes(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for buffer, value in buffers:
                # By its data, which keeps the version number: the graph of a pass that is to go backward still may have
                # saved the buffer, and autograd would refuse a newer version.
                buffer.data.copy_(value)
