"""Losses and gradients of single examples, and products with the Hessian, of a model that is left as it is.

The model's forward pass is called with other parameters in place of its own (``torch.func.functional_call``), in
evaluation mode and in full precision. Its weights, its ``.grad``, its statistics and its mode stay what they were.

Legend: N examples, b examples of a chunk, D numbers in all trained parameters together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, jacrev, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from reuse_algos.errors import ModelError
from reuse_algos.training.instruments.full_precision import FullPrecision
from reuse_algos.training.instruments.moments import slopes_along
from reuse_algos.training.instruments.single.batches import ExampleBatch, at_least_float
from reuse_algos.training.instruments.single.blocks import Dense, Gradients, UsedRows
from reuse_algos.training.instruments.single.branches import at_once
from reuse_algos.training.instruments.single.lookups import Lookups, few_rows
from reuse_algos.training.loss import total_of
from reuse_algos.training.parameters.kept_state import kept_modes

log = logging.getLogger(__name__)

Parameters = dict[str, Tensor]
"""Name -> value of each trained parameter."""

# A chunk's gradients are held, and for a moment some of them a second time while they are stacked or laid out.
_COPIES = 2

_DIFFERENT_IN_TRAINING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


def flat(parameters: Mapping[str, Tensor]) -> Tensor:
    """Return all values of a mapping in one vector ``[D]``, in the order of the mapping."""
    return torch.cat([value.reshape(-1) for value in parameters.values()])


def like_flat(vector_D: Tensor, parameters: Mapping[str, Tensor]) -> Parameters:
    """Return a vector ``[D]`` cut into the names and shapes of ``parameters``."""
    parts = vector_D.split([value.numel() for value in parameters.values()])
    return {name: part.view_as(value) for (name, value), part in zip(parameters.items(), parts, strict=True)}


@contextmanager
def undisturbed(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Switch every module to evaluation for the ``with`` block, without autocast, and put modes and generators back.

    Args:
        model: The model.
        training: Leave the model in training mode but for its norms and dropout, as detectors give their losses in
            training mode only. Default: False.
    """
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    kinds = {tensor.device.type for tensor in model.parameters()} or {"cpu"}
    with (
        torch.random.fork_rng(devices=list(devices)),
        sdpa_kernel(SDPBackend.MATH),  # the only kernel of attention that can be differentiated twice
        torch.compiler.set_stance("force_eager"),  # a compiled forward pass does not run under torch.func
        torch.autocast(next(iter(kinds)), enabled=False),
        kept_modes(model),
    ):
        model.train(training)
        for module in model.modules():
            if isinstance(module, _DIFFERENT_IN_TRAINING):
                module.eval()
        yield


class ExampleLosses:
    """The losses of the examples of one batch as a function of the trained parameters.

    Call its methods inside :func:`undisturbed`. Where the model cannot be vectorised over examples (its forward pass
    takes numbers out of tensors), the examples go through it one at a time: slower, with the same numbers.

    Args:
        model: The model; its ``forward(batch)`` and ``loss(outputs, batch)`` are used.
        batch: As :func:`~reuse_algos.training.instruments.single.batches.first_examples` returns it, on the model's
            device.
        memory_bytes: Bound on the gradients that are held at once (one example's are held in any case). The
            activations come on top.
        together: How many examples go through the model together at most, which bounds the activations. Default: as
            many as gradients are held.

    Attributes:
        num_examples: N.
        parameters: The trained parameters as they are now, copies in at least float32.
    """

    def __init__(self, model: Any, batch: Any, memory_bytes: int, together: int | None = None) -> None:
        self.model, self.batch, self.memory_bytes, self.together = model, ExampleBatch(batch), memory_bytes, together
        self.parameters = trained_parameters(model)
        if not self.parameters:
            raise ModelError("instruments need trained parameters, and every parameter of this model is frozen")
        self._device = next(iter(self.parameters.values())).device
        self._fixed = {
            name: at_least_float(value.detach().clone())
            for name, value in (*model.named_parameters(), *model.named_buffers())
            if name not in self.parameters
        }
        self.num_examples = self.batch.count
        self._vectorised = not self.batch.in_lists

    @cached_property
    def chunk(self) -> int:
        """How many examples' gradients are held at once."""
        numbers = {name: value.numel() for name, value in self.parameters.items()}
        for name, shapes in self._tables.items():
            numbers[name] = sum(shape.numel() for shape in shapes) * self.parameters[name].shape[1]
        row_bytes = sum(count * self.parameters[name].element_size() for name, count in numbers.items())
        return max(1, min(self.num_examples, self.memory_bytes // (_COPIES * row_bytes)))

    def outputs(self, parameters: Mapping[str, Tensor], batch: Any = None) -> Any:
        """Return the model's outputs for the whole batch, or for another one."""
        given = {**self._fixed, **parameters}
        if self.batch.in_lists:
            # Detectors draw the regions that they learn from. The same draws make losses comparable.
            for generator in _generators_on(self._device):
                generator.manual_seed(0)
        with FullPrecision(self._device.type):
            return functional_call(self.model, given, (self.batch.whole if batch is None else batch,))

    def mean_loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the model's own loss of the batch, a scalar."""
        return self._loss(self.batch.whole, parameters)

    def chunks(self, parameters: Mapping[str, Tensor]) -> Iterator[Gradients]:
        """Yield the losses and gradients of the examples, chunk by chunk.

        Args:
            parameters: The trained parameters at which they are taken.
        """
        for start in range(0, self.num_examples, self.chunk):
            yield self._chunk(dict(parameters), slice(start, min(start + self.chunk, self.num_examples)))

    def slopes(self, parameters: Mapping[str, Tensor], direction_D: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses ``[N]`` and their slopes along a direction ``[N]``, in float64.

        One pass in forward mode, which needs no gradients of single examples. A model that has no forward mode gives
        its gradients instead.

        Args:
            parameters: The trained parameters at which they are taken.
            direction_D: Where to.
        """
        direction = {name: part.to(parameters[name]) for name, part in like_flat(direction_D, parameters).items()}

        def slope(batch: Any) -> tuple[Tensor, Tensor]:
            return jvp(partial(self._loss, batch), (dict(parameters),), (direction,))  # type: ignore[return-value]

        spans, vectorised = range(0, self.num_examples, self.chunk), self._vectorised
        try:
            parts = [self._over_examples(slope, slice(start, start + self.chunk)) for start in spans]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._vectorised = vectorised  # forward mode is what failed
            log.info("Instruments take slopes from gradients, which is slower: %s", error)
            return slopes_along(lambda: self.chunks(parameters), direction_D)
        losses, slopes = zip(*parts, strict=True)
        return torch.cat(losses).detach().double(), torch.cat(slopes).detach().double()

    def hessian_product(self, parameters: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """Return the function ``v [D] -> H v [D]``, with H the Hessian of the mean loss at these parameters.

        Raises:
            ModelError: The model has an operation without a second derivative; the function raises it.
        """
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
            try:
                products = torch.autograd.grad(
                    [g for g, _ in used],
                    list(leaves.values()),
                    [part for _, part in used],
                    retain_graph=True,
                    materialize_grads=True,
                )
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ModelError(
                    f"curvature needs second derivatives, and the model has an operation without one: {error}. Leave "
                    "'curvature' out of sets."
                ) from error
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

        def derivatives(batch: Any) -> Parameters:
            def outputs(values: Parameters) -> Tensor:
                return network(self.outputs({**parameters, **values}, batch))[0]

            # One output at a time (chunk_size): all at once would hold the activations once for each output.
            return jacrev(outputs, chunk_size=1)(chosen)  # type: ignore[return-value]

        parts = self._over_examples(derivatives, rows)
        return torch.cat([part.flatten(2) for part in parts.values()], dim=2).detach()

    def _loss(self, batch: Any, parameters: Mapping[str, Tensor]) -> Tensor:
        with FullPrecision(self._device.type):
            return total_of(self.model.loss(self.outputs(parameters, batch), batch))

    # Chunks of gradients --------------------------------------------------------------------------------------------

    @cached_property
    def _tables(self) -> dict[str, list[torch.Size]]:
        """Name -> shapes of the lookups, of tables of which an example uses few rows and nothing else."""
        if not self._vectorised:
            return {}
        one, first = self.batch.one(0), slice(0, 1)
        found = few_rows(lambda: self._loss(one, self.parameters), self.parameters)
        if not found:
            return {}
        # Functions written in another language may use a table unseen, so the first example is done both ways.
        whole = flat(grad(partial(self._loss, one))(self.parameters))
        try:
            tapped_D = self._with_tables(self.parameters, first, found).matrix()[0]
        except RuntimeError:
            return {}
        scale = float(whole.abs().max())
        return found if torch.allclose(tapped_D, whole, rtol=1e-3, atol=1e-5 * scale, equal_nan=True) else {}

    def _chunk(self, parameters: Parameters, some: slice) -> Gradients:
        if self._vectorised and self._tables:
            try:
                return self._with_tables(parameters, some, self._tables)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._one_at_a_time(error)

        found, losses_b = self._over_examples(lambda batch: self._gradient(parameters, batch), some)
        return _laid_out(parameters, losses_b, found, {})

    def _gradient(self, parameters: Parameters, batch: Any) -> tuple[Parameters, Tensor]:
        """Return gradient and loss of one example."""
        if self._vectorised:
            return grad_and_value(partial(self._loss, batch))(parameters)
        # Plain autograd knows operations that torch.func refuses, such as those of detectors written in C++.
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        with torch.enable_grad():
            loss = self._loss(batch, leaves)
            found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, found, strict=True)), loss.detach()

    def _with_tables(self, parameters: Parameters, some: slice, tables: Mapping[str, list[torch.Size]]) -> Gradients:
        """Return gradients by all parameters but some tables, and by what is looked up in those."""
        dense = {name: value for name, value in parameters.items() if name not in tables}
        constant = {name: parameters[name] for name in tables}
        taps = {
            name: [constant[name].new_zeros(*shape, constant[name].shape[1]) for shape in shapes]
            for name, shapes in tables.items()
        }

        def gradients(*rows: Tensor) -> Any:
            def loss(values: Parameters, added: Mapping[str, list[Tensor]]) -> tuple[Tensor, Any]:
                with Lookups(constant, added) as seen:
                    return self._loss(
                        self.batch.with_rows(row[None] for row in rows), {**values, **constant}
                    ), seen.rows

            return grad_and_value(loss, argnums=(0, 1), has_aux=True)(dense, taps)

        (found, by_taps), (losses_b, rows) = at_once(gradients, self.batch.rows(some), self.together)
        used = {}
        for name in tables:
            rows_bK = torch.cat([one.flatten(1) for one in rows[name]], dim=1)
            used[name] = rows_bK, torch.cat([one.flatten(1, -2) for one in by_taps[name]], dim=1)
        return _laid_out(parameters, losses_b, found, used)

    def _over_examples(self, function: Callable[[Any], Any], some: slice) -> Any:
        """Call a function of a batch for each example alone, and stack what it returns."""
        if self._vectorised:
            try:
                return at_once(
                    lambda *rows: function(self.batch.with_rows(row[None] for row in rows)),
                    self.batch.rows(some),
                    self.together,
                )
            # Also a RuntimeError, and not one that single examples should hide: the bound on memory is too high.
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._one_at_a_time(error)
        singles = [function(self.batch.one(index)) for index in range(self.num_examples)[some]]
        return tree_map(lambda *parts: torch.stack(parts), *singles)

    def _one_at_a_time(self, reason: Exception) -> None:
        self._vectorised = False
        log.info("Instruments take the examples one at a time, which is slower: %s", reason)


def trained_parameters(model: nn.Module) -> Parameters:
    """Return copies of the parameters that require gradients, in at least float32."""
    return {
        name: at_least_float(value.detach()).clone() for name, value in model.named_parameters() if value.requires_grad
    }


def _laid_out(
    parameters: Parameters, losses_b: Tensor, dense: Parameters, used: Mapping[str, tuple[Tensor, Tensor]]
) -> Gradients:
    """Return gradients in the order of the parameters."""
    ends = list(accumulate(value.numel() for value in parameters.values()))
    blocks: list[Dense | UsedRows] = []
    for (name, value), end in zip(parameters.items(), ends, strict=True):
        start = end - value.numel()
        if name in used:
            blocks.append(UsedRows.summed(start, len(value), *(one.detach() for one in used[name])))
        else:
            # Taken out of the mapping: a copy that the layout needs must not be held beside its original.
            blocks.append(Dense(start, dense.pop(name).detach().flatten(1)))
    return Gradients(losses_b.detach(), ends[-1], blocks)


def _generators_on(device: torch.device) -> list[torch.Generator]:
    """Return the generators that a model on this device draws from."""
    own = [torch.cuda.default_generators[device.index]] if device.type == "cuda" else []
    return [torch.default_generator, *own]
