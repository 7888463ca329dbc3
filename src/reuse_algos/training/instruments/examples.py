"""Losses and gradients of single examples, and products with the Hessian, of a model that is left as it is.

The model's forward pass is called with other parameters in place of its own (``torch.func.functional_call``), in
evaluation mode and in full precision. Its weights, its ``.grad``, its statistics and its mode stay what they were.

Legend: N examples, b examples of a chunk, D numbers in all trained parameters together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from reuse_algos.errors import DataError, ModelError
from reuse_algos.training.loss import total_of
from reuse_algos.training.parameters.kept_state import kept_modes

log = logging.getLogger(__name__)

Parameters = dict[str, Tensor]
"""Name -> value of each trained parameter."""

# A chunk's gradients are held by parameter and, for a moment, side by side in one matrix as well.
_COPIES = 2


def flat(parameters: Mapping[str, Tensor]) -> Tensor:
    """Return all values of a mapping in one vector ``[D]``, in the order of the mapping."""
    return torch.cat([value.reshape(-1) for value in parameters.values()])


def like_flat(vector_D: Tensor, parameters: Mapping[str, Tensor]) -> Parameters:
    """Return a vector ``[D]`` cut into the names and shapes of ``parameters``."""
    parts = vector_D.split([value.numel() for value in parameters.values()])
    return {name: part.view_as(value) for (name, value), part in zip(parameters.items(), parts, strict=True)}


def first_examples(batch: Any, count: int) -> Any:
    """Return copies of the first examples of a batch.

    Args:
        batch: Tensors, or mappings, tuples and lists of them; each tensor has one row for each example.
        count: How many examples at most.

    Raises:
        DataError: The batch has no tensors, they differ in their number of rows, or it is made of lists with an entry
            for each example, as detectors have it.
    """
    batch = _plain(batch)
    # Images and boxes in lists may all be of one length by chance, which is then not the number of examples.
    if isinstance(batch, list | tuple) and any(isinstance(one, list | tuple) and _of_mappings(one) for one in batch):
        raise DataError(
            "instruments read single examples as rows of tensors, but the batch has a list of mappings, one for each "
            "example, as detectors have it. Take the callback out."
        )
    sizes = {len(leaf) for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor) and leaf.dim() > 0}
    if len(sizes) != 1:
        seen = "no tensors" if not sizes else f"tensors of {', '.join(map(str, sorted(sizes)))} rows"
        raise DataError(
            f"instruments read single examples, but the batch has {seen}. Expected is one row for each example in "
            "every tensor of the batch: take the callback out, or give such batches."
        )
    return tree_map(lambda leaf: leaf[:count].clone() if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf, batch)


def _of_mappings(part: Any) -> bool:
    return len(part) > 0 and all(isinstance(one, Mapping) for one in part)


def _plain(batch: Any) -> Any:
    """Make dictionaries of all mappings: torch takes those of other libraries for single leaves."""
    if isinstance(batch, Mapping):
        return {key: _plain(value) for key, value in batch.items()}
    return tree_map(lambda leaf: _plain(leaf) if isinstance(leaf, Mapping) else leaf, batch)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Switch every module to evaluation for the ``with`` block, without autocast, and put modes and generators back."""
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    kinds = {tensor.device.type for tensor in model.parameters()} or {"cpu"}
    with (
        torch.random.fork_rng(devices=list(devices)),
        sdpa_kernel(SDPBackend.MATH),  # the only kernel of attention that can be differentiated twice
        torch.compiler.set_stance("force_eager"),  # a compiled forward pass does not run under torch.func
        torch.autocast(next(iter(kinds)), enabled=False),
        kept_modes(model),
    ):
        model.eval()
        yield


class ExampleLosses:
    """The losses of the examples of one batch as a function of the trained parameters.

    Call its methods inside :func:`undisturbed`. Where the model cannot be vectorised over examples (its forward pass
    branches on its data), the examples go through it one at a time: slower, with the same numbers.

    Args:
        model: The model; its ``forward(batch)`` and ``loss(outputs, batch)`` are used.
        batch: As :func:`first_examples` returns it, on the model's device.
        memory_bytes: Bound on the gradients that are held at once (one example's are held in any case). The
            activations of the chunk come on top.

    Attributes:
        num_examples: N.
        parameters: The trained parameters as they are now, copies in at least float32.
    """

    def __init__(self, model: Any, batch: Any, memory_bytes: int) -> None:
        self.model = model
        self.batch = tree_map(_at_least_float, batch)
        self.parameters = trained_parameters(model)
        if not self.parameters:
            raise ModelError("instruments need trained parameters, and every parameter of this model is frozen")
        self._fixed = {
            name: _at_least_float(value.detach().clone())
            for name, value in (*model.named_parameters(), *model.named_buffers())
            if name not in self.parameters
        }
        leaves, self._tree = tree_flatten(self.batch)
        self._rows = [isinstance(leaf, Tensor) and leaf.dim() > 0 for leaf in leaves]
        self._leaves = leaves
        self.num_examples = len(next(leaf for leaf, is_row in zip(leaves, self._rows, strict=True) if is_row))
        row_bytes = sum(value.nbytes for value in self.parameters.values())
        self.chunk = max(1, min(self.num_examples, memory_bytes // (_COPIES * row_bytes)))
        self._vectorised = True

    def outputs(self, parameters: Mapping[str, Tensor], batch: Any = None) -> Any:
        """Return the model's outputs for the whole batch, or for another one."""
        given = {**self._fixed, **parameters}
        return functional_call(self.model, given, (self.batch if batch is None else batch,))

    def mean_loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the model's own loss of the batch, a scalar."""
        return self._loss(parameters, self.batch)

    def rows(self, parameters: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, chunk by chunk, the losses ``[b]`` and the gradients ``[b, D]`` of the examples.

        Args:
            parameters: The trained parameters at which they are taken.
        """
        for start in range(0, self.num_examples, self.chunk):
            stop = min(start + self.chunk, self.num_examples)
            losses_b, gradients = self._chunk(dict(parameters), start, stop)
            matrix_bD = torch.cat([value.flatten(1) for value in gradients.values()], dim=1)
            # What this frame holds while it waits would be there beside the next chunk.
            del gradients
            yield losses_b, matrix_bD
            del losses_b, matrix_bD

    def hessian_product(self, parameters: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """Return the function ``v [D] -> H v [D]``, with H the Hessian of the mean loss at these parameters."""
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        # The graph of the gradient is built once and serves every product.
        with torch.enable_grad():
            gradient = torch.autograd.grad(
                self.mean_loss(leaves), list(leaves.values()), create_graph=True, materialize_grads=True
            )

        def product(vector_D: Tensor) -> Tensor:
            parts = list(like_flat(vector_D, leaves).values())
            # Parameters on which the gradient does not depend have a row of zeros in the Hessian.
            used = [(g, part) for g, part in zip(gradient, parts, strict=True) if g.requires_grad]
            if not used:
                return torch.zeros_like(vector_D)
            products = torch.autograd.grad(
                [g for g, _ in used],
                list(leaves.values()),
                [part for _, part in used],
                retain_graph=True,
                materialize_grads=True,
            )
            return torch.cat([value.reshape(-1) for value in products]).detach()

        return product

    def jacobian(
        self,
        network: Callable[[Any], Tensor],
        parameters: Mapping[str, Tensor],
        names: list[str],
        rows: slice,
    ) -> Tensor:
        """Return the derivatives ``[n, C, d]`` of some examples' outputs by some of the parameters.

        Args:
            network: What the model returns for a batch -> ``[b, C]``.
            parameters: Where the derivatives are taken.
            names: Of the parameters to derive by; d numbers in all.
            rows: Which examples.
        """
        chosen = {name: parameters[name] for name in names}

        def outputs(values: Parameters, *row: Tensor) -> Tensor:
            batch = self._batch_of(one[None] for one in row)
            return network(self.outputs({**parameters, **values}, batch))[0]

        # One output at a time (chunk_size): all at once would hold the activations once for each output.
        derivatives = jacrev(outputs, chunk_size=1)
        moving = [leaf[rows] for leaf, is_row in zip(self._leaves, self._rows, strict=True) if is_row]
        parts = self._over_examples(derivatives, chosen, moving)
        return torch.cat([part.flatten(2) for part in parts.values()], dim=2).detach()

    def _loss(self, parameters: Mapping[str, Tensor], batch: Any) -> Tensor:
        outputs = self.outputs(parameters, batch)
        return total_of(self.model.loss(outputs, batch))

    def _chunk(self, parameters: Parameters, start: int, stop: int) -> tuple[Tensor, Parameters]:
        moving = [leaf[start:stop] for leaf, is_row in zip(self._leaves, self._rows, strict=True) if is_row]

        def loss(values: Parameters, *row: Tensor) -> Tensor:
            return self._loss(values, self._batch_of(one[None] for one in row))

        gradients, losses_b = self._over_examples(grad_and_value(loss), parameters, moving)
        return losses_b.detach(), gradients

    def _over_examples(self, function: Callable[..., Any], parameters: Parameters, moving: list[Tensor]) -> Any:
        """Call a function of parameters and one example for each example, and stack what it returns."""
        if self._vectorised:
            try:
                return vmap(function, in_dims=(None, *[0] * len(moving)))(parameters, *moving)
            # Also a RuntimeError, and not one that single examples should hide: the bound on memory is too high.
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._vectorised = False
                log.info("Instruments take the examples one at a time, which is slower: %s", error)
        singles = [function(parameters, *row) for row in zip(*moving, strict=True)]
        return tree_map(lambda *parts: torch.stack(parts), *singles)

    def _batch_of(self, rows: Iterator[Tensor]) -> Any:
        """Put rows in the places of the batch's tensors."""
        leaves = [next(rows) if is_row else leaf for leaf, is_row in zip(self._leaves, self._rows, strict=True)]
        return tree_unflatten(leaves, self._tree)


def trained_parameters(model: nn.Module) -> Parameters:
    """Return copies of the parameters that require gradients, in at least float32."""
    return {
        name: _at_least_float(value.detach()).clone() for name, value in model.named_parameters() if value.requires_grad
    }


def _at_least_float(value: Any) -> Any:
    """Return half-precision tensors as float32 and anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value
