"""FLOPs of forward passes, and of training steps in terms of them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from composer import State
from composer.algorithms import SAM, ProgressiveResizing, SelectiveBackprop, SeqLengthWarmup
from composer.core import get_precision_context
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reuse_algos.data.trainer import rows_of
from reuse_algos.errors import ArchiveWarning
from reuse_algos.training.interplay import BatchEffects

# Algorithms of Composer's with which a step is not three passes of whole examples.
_OTHER_WORK = (SAM, SelectiveBackprop, ProgressiveResizing, SeqLengthWarmup)

PASSES_PER_STEP = 3
"""What an example costs in training, in forward passes: its own, and a backward pass that costs about two."""


@contextlib.contextmanager
def counted_flops(device_type: str) -> Iterator[FlopCounterMode]:
    """Count the FLOPs of what runs in a ``with`` block, without gradients; a multiply-add counts as two.

    Args:
        device_type: Where it runs, such as ``cpu``.
    """
    # The counter knows fast kernels of attention on GPUs and none on CPUs, whose work would be missing. Nowhere does it
    # know the one that torch's own Transformer layers take in evaluation mode.
    kernel = sdpa_kernel(SDPBackend.MATH) if device_type == "cpu" else contextlib.nullcontext()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), kernel, FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def forward_flops(forward: Callable[[], Any], state: State, what: str) -> int | None:
    """Return the FLOPs of a forward pass of one example, by torch's counter; a multiply-add counts as two.

    Args:
        forward: Runs the model on ``state.batch`` once more. Here it has no gradient and the trainer's precision; that
            no statistics and no generator move is the caller's care.
        state: While a batch is there.
        what: Whose FLOPs they are, for the warning.

    Returns:
        None, with an :class:`~reuse_algos.errors.ArchiveWarning`, where the model cannot be run like that.
    """
    # Models of users fail in any way when they are run once more, and a count is not worth a training.
    try:
        precision = get_precision_context(state.precision, state.precision_config)
        with counted_flops(state.device.name) as counter, precision:
            forward()
        return round(counter.get_total_flops() / rows_of(state.batch, state))
    except Exception as error:
        warnings.warn(f"FLOPs of {what} are not recorded: {error!r}", ArchiveWarning, stacklevel=2)
        return None


def training_flops(flops_per_example: int | None, state: State) -> float | None:
    """Return the FLOPs of training so far, over all ranks, as :class:`~reuse_algos.archive.CostRecord` has them.

    Returns:
        None where they are not known: those of the forward pass are not, those that an algorithm adds are not, or one
        of Composer's (SAM, SelectiveBackprop, ProgressiveResizing, SeqLengthWarmup) changes what a step is.
    """
    # Unknown is better than wrong: a wrong number would decide a comparison.
    if flops_per_example is None or any(isinstance(one, _OTHER_WORK) for one in state.algorithms):
        return None
    total = float(PASSES_PER_STEP * flops_per_example * int(state.timestamp.sample))
    for algorithm in state.algorithms:
        extra = algorithm.extra_flops(flops_per_example) if isinstance(algorithm, BatchEffects) else 0.0
        if extra is None:
            return None
        total += extra
    return total
