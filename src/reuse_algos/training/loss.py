"""The model's loss, which is a tensor, a tuple of tensors or a mapping: the one place that walks over it.

Shapes: B rows of a microbatch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def total_of(loss: Any) -> torch.Tensor:
    """Return the number that goes backward, as Composer adds it up: the loss, its ``total``, or the sum of its parts.

    Args:
        loss: A tensor, a tuple or list of tensors, or a mapping of tensors with or without ``total``.
    """
    if isinstance(loss, Mapping):
        return loss["total"].mean() if "total" in loss else sum(part.mean() for part in loss.values())  # type: ignore[return-value]
    if isinstance(loss, (tuple, list)):
        return sum(part.mean() for part in loss)  # type: ignore[return-value]
    return loss.mean()


def pull_of(loss: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor | None:
    """Return the gradient of a loss at the outputs, by the short way between them.

    The gradients of parameters are left alone, and the graph is kept for the backward pass of the step.

    Args:
        loss: A scalar.
        outputs: The logits or predictions that it may come from.

    Returns:
        Of the outputs' shape; None where the loss is not computed from them.
    """
    if not (loss.requires_grad and outputs.requires_grad):
        return None
    (pull,) = torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True)
    return pull


def add_to_loss(
    loss: Any,
    added: torch.Tensor,
    *,
    scale: float = 1.0,
    part: str | None = None,
    shown: torch.Tensor | None = None,
) -> Any:
    """Return ``scale * L + added`` in the structure that the model's loss L has.

    Args:
        loss: L, a scalar tensor, or a tuple, list or mapping of those. Of a mapping with ``total`` only that goes
            backward, else the sum of all parts.
        added: A scalar tensor.
        scale: At least 0. Default: 1, and L keeps its very bits.
        part: Name of a part of its own for ``added``, in mappings without ``total`` and (without the name) in tuples.
            Default: ``added`` goes into the first part.
        shown: What a mapping with ``total`` shows under the name ``part``. Default: nothing.
    """

    def scaled(value: torch.Tensor) -> torch.Tensor:
        return value if scale == 1 else scale * value

    # Composer sends "total" backward where there is one, and only shows the other parts.
    if isinstance(loss, Mapping):
        if "total" in loss:
            beside = {} if part is None or shown is None else {part: shown}
            return {**loss, "total": scaled(loss["total"]) + added.to(loss["total"].dtype), **beside}
        parts = {key: scaled(value) for key, value in loss.items()}
        if part is not None:
            return {**parts, part: added}
        first = next(iter(parts))
        return {**parts, first: parts[first] + added.to(parts[first].dtype)}
    if isinstance(loss, (tuple, list)):
        first, *others = (scaled(value) for value in loss)
        return (first, *others, added) if part is not None else (first + added.to(first.dtype), *others)
    return scaled(loss) + added


def with_weights(loss: Any, losses_B: torch.Tensor, weights_B: torch.Tensor) -> Any:
    """Return ``mean(w_i l_i)`` in place of ``mean(l_i)``, in the structure that the model's loss has.

    Args:
        loss: As for :func:`add_to_loss`.
        losses_B: The loss of each example, with gradient; their mean is the model's loss.
        weights_B: Float ``[B]``, the weight of each example.
    """
    # Written as loss + mean((w_i - 1) l_i), so that with weights of 1 the loss keeps its very bits.
    change = ((weights_B - 1).to(losses_B.dtype) * losses_B).mean()
    if isinstance(loss, torch.Tensor):
        change = change.to(loss.dtype)
    return add_to_loss(loss, change, part="example_weights")
