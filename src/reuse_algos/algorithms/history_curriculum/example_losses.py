"""One loss per example from a model that returns their mean, and the mean with weights put back into the loss.

Shapes: B rows of a microbatch.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from composer.models import ComposerClassifier
from torch import nn

from reuse_algos.errors import ModelError

__all__ = ["ExampleLosses", "check_mean", "per_example_losses", "total_of", "with_weights"]

ExampleLosses = Callable[[Any, Any], torch.Tensor]
"""(outputs, batch) -> the loss of each example, float ``[B]``, whose mean is the model's loss."""

_ADVICE = "Give per_example_loss=lambda outputs, batch: ..., which returns a tensor [B] whose mean is the model's loss"


def per_example_losses(model: nn.Module) -> ExampleLosses:
    """The loss function of a ``ComposerClassifier`` with ``reduction="none"``.

    Works for loss functions that take an argument ``reduction`` (torch's functions, Composer's ``soft_cross_entropy``)
    and for loss modules that have an attribute of that name (``nn.CrossEntropyLoss``). Dense outputs are averaged over
    their positions.

    Args:
        model: the user's model, without wrappers.

    Raises:
        ModelError: the model computes its loss in another way.
    """
    if not isinstance(model, ComposerClassifier) or type(model).loss is not ComposerClassifier.loss:
        raise ModelError(
            f"weights and updated scores need the loss of each example, but {type(model).__name__} has a loss() of its "
            f"own, which gives one number for the batch. {_ADVICE}."
        )
    unreduced = _without_reduction(model._loss_fn)

    def losses(outputs: Any, batch: Any) -> torch.Tensor:
        _, targets = batch
        values = unreduced(outputs, targets)
        return values.reshape(len(values), -1).mean(1)

    return losses


def _without_reduction(function: Any) -> Callable[..., torch.Tensor]:
    if isinstance(function, nn.Module) and hasattr(function, "reduction"):
        plain = copy.copy(function)
        plain.reduction = "none"  # type: ignore[assignment]
        return plain
    try:
        takes = "reduction" in inspect.signature(function).parameters and not isinstance(function, nn.Module)
    except (TypeError, ValueError):
        takes = False
    if takes:
        return functools.partial(function, reduction="none")
    name = getattr(function, "__name__", type(function).__name__)
    raise ModelError(
        f"weights and updated scores need the loss of each example, but the model's loss function {name} has no "
        f"'reduction'. Let it take reduction='none', or use torch.nn.functional.cross_entropy. {_ADVICE}."
    )


def total_of(loss: Any) -> torch.Tensor:
    """The number that goes backward, as Composer adds it up: the loss, its ``total``, or the sum of its parts."""
    if isinstance(loss, Mapping):
        return loss["total"].mean() if "total" in loss else sum(part.mean() for part in loss.values())  # type: ignore[return-value]
    if isinstance(loss, (tuple, list)):
        return sum(part.mean() for part in loss)  # type: ignore[return-value]
    return loss.mean()


def check_mean(loss: Any, losses_B: torch.Tensor, rows: int) -> None:
    """Make sure that the mean of the per-example losses is the loss that the model gave.

    Raises:
        ModelError: there is not one loss per row, or the loss is something else (class weights, ignored targets, a
            regularisation term).
    """
    if losses_B.shape != (rows,):
        raise ModelError(f"per_example_loss gives a tensor of shape {tuple(losses_B.shape)} for {rows} examples.")
    total, mean = float(total_of(loss).detach()), float(losses_B.detach().mean())
    if not abs(total - mean) <= 1e-3 * max(abs(total), 1e-3):
        raise ModelError(
            f"the model's loss is {total:.6g}, but the mean of its per-example losses is {mean:.6g}: class weights, "
            f"ignored targets or a further term. {_ADVICE}, or choose a strategy and mode without weights."
        )


def with_weights(loss: Any, losses_B: torch.Tensor, weights_B: torch.Tensor) -> Any:
    """``mean(w_i l_i)`` in place of ``mean(l_i)``, in the structure that the model's loss has.

    Written as ``loss + mean((w_i - 1) l_i)``, so that with weights of 1 the loss keeps its very bits.

    Args:
        loss: a tensor, a mapping (with or without ``total``) or a tuple of tensors.
        losses_B: with gradient.
        weights_B: float ``[B]``.
    """
    change = ((weights_B - 1).to(losses_B.dtype) * losses_B).mean()
    if isinstance(loss, Mapping):
        if "total" in loss:
            return {**loss, "total": loss["total"] + change.to(loss["total"].dtype)}
        return {**loss, "example_weights": change}
    if isinstance(loss, (tuple, list)):
        return (*loss, change)
    return loss + change.to(loss.dtype)
