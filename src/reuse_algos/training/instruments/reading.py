"""All readings of one training step.

Legend: N examples, C classes, P directions, D numbers in all trained parameters together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reuse_algos.errors import ModelError
from reuse_algos.training.instruments import economy, laziness
from reuse_algos.training.instruments.curvature import Curvature, information_criterion, largest_eigenvalue, trace
from reuse_algos.training.instruments.examples import ExampleLosses, Parameters, flat, undisturbed
from reuse_algos.training.instruments.moments import GradientMoments, gradient_moments
from reuse_algos.training.instruments.single.batches import in_lists
from reuse_algos.training.instruments.single.blocks import DECADES
from reuse_algos.training.outputs import logits_of

SETS = ("economy", "curvature", "laziness", "stopping")
"""Names of the groups of readings."""


@dataclass(frozen=True)
class Step:
    """A step of training, as the instruments look at it.

    Attributes:
        model: The user's model, on its device.
        batch: Examples of the step's batch, from
            :func:`~reuse_algos.training.instruments.single.batches.first_examples`.
        before: The trained parameters before the step.
        after: The same names after it.
        initial: The same names at the start of training.
        learning_rate: The rate of the step.
        batch_size: Examples of the whole step, over all ranks.
        targets_N: Class of each example, for laziness. Default: unknown.
        output_key: Where the logits lie in the model's outputs. Default: the tensor, or what is called ``logits``.
        together: How many examples go through the model together at most. Default: as the bound on memory allows.
    """

    model: nn.Module
    batch: Any
    before: Parameters
    after: Parameters
    initial: Parameters
    learning_rate: float
    batch_size: int
    targets_N: Tensor | None = None
    output_key: str | int | None = None
    together: int | None = None


def read_step(step: Step, sets: Collection[str], settings: Curvature, memory_bytes: int) -> dict[str, float]:
    """Return name -> value of the readings of some sets.

    Args:
        step: What is looked at. The model is left as it is.
        sets: Names out of :data:`SETS`.
        settings: How closely the Hessian is looked at.
        memory_bytes: Bound on the gradients and Jacobians that are held at once.

    Raises:
        ModelError: The model has no trained parameters, or laziness is asked for and its outputs are not classes.
    """
    readings: dict[str, float] = {}
    with undisturbed(step.model, training=in_lists(step.batch)):
        examples = ExampleLosses(step.model, step.batch, memory_bytes, step.together)
        # A step is small beside the weights, and float32 would lose digits of the difference.
        change_D = flat(step.after).double() - flat(step.before).double()
        length = float(change_D.norm())
        directions = [change_D / length] if length > 0 else []
        if {"economy", "curvature", "stopping"} & set(sets):
            whole = examples.chunk >= examples.num_examples
            moments = gradient_moments(lambda: examples.chunks(step.before), directions, whole=whole)
            if "economy" in sets:
                readings |= _economy(step, examples, moments, change_D)
            if "stopping" in sets:
                readings["early_stopping"] = economy.early_stopping(moments)
                readings["cabs_batch_size"] = economy.cabs_batch_size(moments, step.learning_rate)
            if "curvature" in sets:
                readings |= _curvature(step, examples, moments, settings)
        if "laziness" in sets:
            readings |= _lazy_readings(examples, step, memory_bytes)
    return readings


def _economy(step: Step, examples: ExampleLosses, moments: GradientMoments, change_D: Tensor) -> dict[str, float]:
    length, effective = float(change_D.norm()), math.nan
    if length > 0:
        # The examples and their statistics are those of the step's start, so that both ends are of one function.
        direction_D = change_D / length
        end = examples.slopes(step.after, direction_D)
        effective = economy.alpha(length, (moments.losses_N, moments.along_NP[:, 0]), end)
    edges = ["below", *(f"1e{power}" for power in DECADES)]
    return {
        "loss": float(moments.losses_N.mean()),
        "gradient_norm": math.sqrt(moments.squared_norm),
        "update_size": length,
        "distance": float((flat(step.before).double() - flat(step.initial).double()).norm()),
        "alpha": effective,
        **economy.gradient_tests(moments),
        "noise_scale": economy.noise_scale(moments),
        "signal_to_noise": economy.signal_to_noise(moments),
        "learning_rate": step.learning_rate,
        "batch_size": float(step.batch_size),
        **{f"gradient_sizes/{edge}": float(share) for edge, share in zip(edges, moments.shares, strict=True)},
    }


def _curvature(step: Step, examples: ExampleLosses, moments: GradientMoments, settings: Curvature) -> dict[str, float]:
    product, size, device = examples.hessian_product(step.before), len(moments.mean_D), moments.mean_D.device
    eigenvalue = largest_eigenvalue(product, size, settings, device)
    total = trace(product, size, settings, device)
    return {
        "largest_eigenvalue": eigenvalue.value,
        "largest_eigenvalue_error": eigenvalue.error,
        "trace": total.value,
        "trace_error": total.error,
        "information_criterion": information_criterion(moments, total.value),
    }


def _lazy_readings(examples: ExampleLosses, step: Step, memory_bytes: int) -> dict[str, float]:
    """Return how far the model before the step is from its linearisation at the initial weights."""

    def logits(outputs: Any) -> Tensor:
        return logits_of(outputs, step.output_key)

    if in_lists(step.batch):
        raise ModelError(
            "laziness is read off classifiers, and these are the batches of a detector. Leave 'laziness' out of sets."
        )
    with torch.no_grad():
        now_NC = logits(examples.outputs(step.before))
    advice = "Leave 'laziness' out of sets, or set target_key and output_key."
    targets_N = laziness.check_classes(now_NC, step.targets_N, advice)

    def kernel(parameters: Mapping[str, Tensor]) -> Tensor:
        return laziness.tangent_kernel(
            lambda values, names, rows: examples.jacobian(logits, values, names, rows),
            parameters,
            examples.num_examples,
            memory_bytes,
        )

    first_NC, straight_NC = laziness.linearised(
        lambda values: logits(examples.outputs(values)), step.initial, step.before
    )
    return {
        "relative_distance": laziness.distance(step.initial, step.before),
        "kernel_distance": laziness.kernel_distance(kernel(step.initial), kernel(step.before)),
        "initial_accuracy": _accuracy(first_NC, targets_N),
        "accuracy": _accuracy(now_NC, targets_N),
        "linearised_accuracy": _accuracy(straight_NC, targets_N),
    }


def _accuracy(logits_NC: Tensor, targets_N: Tensor) -> float:
    return float((logits_NC.argmax(1) == targets_N).double().mean())
