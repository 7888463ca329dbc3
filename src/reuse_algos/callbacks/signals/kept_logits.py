"""How large recorded logits are, and maps of logits at a smaller size.

Shapes: B rows, C classes, X positions of an example (tokens, pixels; none for most tasks), H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from reuse_algos.errors import TaskError

# Of dense logits with positions, in one view of all examples: 1,000 tokens of 50,000 classes are 100 MB an example.
_MOST_BYTES = 4 << 30


def at_size(logits_BCX: torch.Tensor, size: Sequence[int] | None) -> torch.Tensor:
    """Return maps of logits at another size: the mean of the pixels in each cell.

    Args:
        logits_BCX: Float ``[B, C, H, W]``.
        size: Height and width of the result. None: as they are.
    """
    return logits_BCX if size is None else F.adaptive_avg_pool2d(logits_BCX.float(), (size[0], size[1]))


def bytes_of_row(shape_CX: Sequence[int], top_k: int | None, size: Sequence[int] | None) -> int:
    """Return how many bytes the logits of one example take in an archive, without its id.

    Args:
        shape_CX: Classes and positions, ``(C, X...)``.
        top_k: How many of the largest are kept: 2 bytes for a value, 4 for its class, and 4 for the rest. None: all, 2
            bytes each.
        size: Height and width that maps are brought to. None: as they are.
    """
    positions = math.prod(shape_CX[1:] if size is None else size)
    return positions * (2 * shape_CX[0] if top_k is None else 6 * top_k + 4)


def check_logits(shape_CX: Sequence[int], top_k: int | None, size: Sequence[int] | None, num_examples: int) -> str:
    """Say before training how much logits with positions will take, or refuse them.

    Args:
        shape_CX: Classes and positions of one example.
        top_k: As for :func:`bytes_of_row`.
        size: As for :func:`bytes_of_row`.
        num_examples: N.

    Returns:
        The size in words; an empty text for logits without positions.

    Raises:
        TaskError: ``size`` is set and the outputs are not maps, or a view would take more than 4 GiB.
    """
    if size is not None and (len(shape_CX) != 3 or any(a > b for a, b in zip(size, shape_CX[1:], strict=True))):
        raise TaskError(
            f"RunRecorder signals.logits.size: {list(size)} makes maps of pixels smaller, and the outputs of an "
            f"example have shape {tuple(shape_CX)}. Leave it out, or give at most their height and width."
        )
    if top_k is not None and top_k > shape_CX[0]:
        raise TaskError(f"RunRecorder signals.logits.top_k: {top_k} of {shape_CX[0]} classes cannot be kept.")
    if len(shape_CX) < 2:
        return ""
    total = num_examples * bytes_of_row(shape_CX, top_k, size)
    if total > _MOST_BYTES:
        raise TaskError(
            f"RunRecorder signals.logits: {num_examples} examples of shape {tuple(shape_CX)} would take "
            f"{total / 2**30:.1f} GiB for each view. Keep the largest (top_k: 16), for maps a smaller size "
            "(size: [height, width]), or record without logits and use live teachers."
        )
    return f"logits take {total / 2**20:.1f} MiB for each view"
