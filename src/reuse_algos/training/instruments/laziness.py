"""How far a network has left its linearisation at the initial weights.

A lazy network learns as a linear model in fixed features would: its tangent kernel hardly moves (Chizat et al. 2019,
https://arxiv.org/abs/1812.07956). Legend: N examples, C outputs of each, D numbers in all trained parameters together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import jvp

from reuse_algos.errors import ModelError

Jacobian = Callable[[Mapping[str, Tensor], list[str], slice], Tensor]
"""Parameters, names of some, a range of the examples -> derivatives ``[n, C, d]`` of the outputs by the named ones."""


def check_classes(logits_NC: Tensor, targets_N: Tensor | None, advice: str = "") -> Tensor:
    """Return the classes of the examples, where they are classified.

    Args:
        logits_NC: What the model returns.
        targets_N: What it should be, or None where that is not known.
        advice: A sentence for the error, on what to do. Default: none.

    Raises:
        ModelError: These are not logits of classes and one class for each example.
    """
    if (
        logits_NC.dim() != 2
        or targets_N is None
        or targets_N.shape != logits_NC.shape[:1]
        or targets_N.is_floating_point()
    ):
        seen = "no targets" if targets_N is None else f"{targets_N.dtype} targets {tuple(targets_N.shape)}"
        raise ModelError(
            f"laziness is read off classifiers with logits [N, C] and classes [N]; seen were logits "
            f"{tuple(logits_NC.shape)} and {seen}. {advice}".rstrip()
        )
    return targets_N


def distance(initial: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> float:
    """Return ``|now - initial| / |initial|`` over all parameters together; at least 0.

    Args:
        initial: Name -> parameter at the start.
        now: The same names and shapes later.
    """
    moved = sum(float((now[name].double() - value.double()).square().sum()) for name, value in initial.items())
    return (moved / sum(float(value.double().square().sum()) for value in initial.values())) ** 0.5


def tangent_kernel(jacobian: Jacobian, parameters: Mapping[str, Tensor], count: int, memory_bytes: int) -> Tensor:
    """Return the empirical tangent kernel ``J J^T`` of the outputs, ``[N C, N C]``.

    The Jacobian is made for some parameters and some examples at a time and never as a whole.

    Args:
        jacobian: Derivatives of the outputs; those of one example do not depend on the other examples.
        parameters: Where they are taken.
        count: N.
        memory_bytes: Bound on the Jacobians that are held at once (three of one example by one parameter are held in
            any case).

    Raises:
        ModelError: The kernel itself does not fit into the bound.
    """
    smallest = min(parameters, key=lambda name: parameters[name].numel())
    outputs = jacobian(parameters, [smallest], slice(0, 1)).shape[1]
    first = parameters[smallest]
    item = first.element_size() * outputs
    if (size := first.element_size() * (count * outputs) ** 2) > memory_bytes:
        raise ModelError(
            f"the tangent kernel of {count} examples with {outputs} outputs takes {size >> 20} MiB, more than the "
            f"bound of {memory_bytes >> 20} MiB. Read fewer examples, or raise the bound."
        )
    kernel = first.new_zeros(count, outputs, count, outputs)
    # A Jacobian is there twice for a moment: by parameter, and side by side in one matrix.
    for names in _groups(parameters, memory_bytes // (2 * item * count)):
        width = sum(parameters[name].numel() for name in names)
        fits = 2 * item * count * width <= memory_bytes
        step = count if fits else max(1, memory_bytes // (3 * item * width))
        blocks = [slice(start, min(start + step, count)) for start in range(0, count, step)]
        for place, rows in enumerate(blocks):
            left = jacobian(parameters, names, rows)
            for columns in blocks[place:]:
                right = left if columns == rows else jacobian(parameters, names, columns)
                part = torch.einsum("ncd,mkd->ncmk", left, right)
                kernel[rows, :, columns] += part
                if columns != rows:
                    kernel[columns, :, rows] += part.permute(2, 3, 0, 1)
                del right  # or it would be held while the next one is made
            del left
    return kernel.reshape(count * outputs, count * outputs)


def kernel_distance(kernel_0: Tensor, kernel_t: Tensor) -> float:
    """Return ``1 - <K0, Kt> / (|K0| |Kt|)``: 0 for equal kernels up to a factor, at most 1 for kernels.

    Args:
        kernel_0: Tangent kernel at the initial weights.
        kernel_t: Tangent kernel of the same examples later.
    """
    first, later = kernel_0.double(), kernel_t.double()
    return 1 - float((first * later).sum() / (first.norm() * later.norm()))


def linearised(
    function: Callable[[Mapping[str, Tensor]], Tensor], initial: Mapping[str, Tensor], now: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return ``f(initial)`` and ``f(initial) + J (now - initial)``, in one pass.

    Args:
        function: Parameters -> a tensor of outputs.
        initial: Where it is linearised.
        now: The same names and shapes.
    """
    change = {name: now[name] - value for name, value in initial.items()}
    outputs, tangents = jvp(function, (dict(initial),), (change,))[:2]
    return outputs, outputs + tangents


def _groups(parameters: Mapping[str, Tensor], most: int) -> list[list[str]]:
    """Split the names into runs of at most so many numbers; a larger parameter is alone."""
    groups: list[list[str]] = []
    size = 0
    for name, value in parameters.items():
        if not groups or size + value.numel() > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += value.numel()
    return groups
