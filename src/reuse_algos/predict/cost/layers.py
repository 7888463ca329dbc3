"""FLOPs, bytes and time of a model, layer by layer, without computing anything.

Source: Qi, Sparks and Talwalkar, "PALEO: a performance model for deep neural networks", ICLR 2017, section 3,
https://openreview.net/forum?id=SyVVJ85lg.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reuse_algos.errors import ModelError, NotEnoughEvidenceError

Kind = Literal[
    "convolution", "linear", "recurrent", "embedding", "attention", "norm", "activation", "pooling", "function", "other"
]


@dataclass(frozen=True)
class Device:
    """What a device can do at most.

    Attributes:
        flops: Floating point operations per second.
        bandwidth: Bytes per second between memory and processor.
    """

    flops: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not (self.flops > 0 and self.bandwidth > 0):
            raise ValueError(f"a device has a peak and a bandwidth above 0, not {self.flops} and {self.bandwidth}")


DEVICES = {
    "k80": Device(5_600e9, 480e9),
    "k40": Device(4_290e9, 288e9),
    "titan_x": Device(6_144e9, 336.5e9),
}
"""Peaks of the three GPUs that the PALEO paper measured, in single precision."""


@dataclass(frozen=True)
class Layer:
    """One layer in the forward pass of a batch.

    Attributes:
        name: Of the module in the model. A layer that is called several times has one entry for each call.
        kind: What it computes. ``attention`` is what an attention module computes beside its own layers, and
            ``function`` what any other module of layers does.
        flops: Of the forward pass; a multiply-add counts as two. 0 for what is bound by memory.
        bytes: Read and written by the forward pass: inputs, parameters (of a table of words the rows that are looked
            up) and outputs.
        parameter_bytes: Of the parameters alone, which are also the bytes of their gradients.
        output_shape: Shape of the (first) output.
        reads_data: Whether it takes the model's own inputs, or integers alone, so that its backward pass needs no
            gradient of them.
    """

    name: str
    kind: Kind
    flops: float
    bytes: float
    parameter_bytes: float
    output_shape: tuple[int, ...]
    reads_data: bool = False


def layers_of(model: nn.Module, *inputs: Tensor) -> list[Layer]:
    """Return the layers that a forward pass goes through, in order.

    The model is copied to the meta device, in evaluation mode: nothing is computed, and no memory is taken. FLOPs are
    those of torch's counter while the layer runs: ``2 kh kw (Cin / groups) Cout Hout Wout B`` for convolutions,
    ``2 B in out`` for linear layers. What a module computes beside its own layers, such as the products of attention,
    is an entry after those of its layers.

    Args:
        model: Any module. It stays as it is.
        inputs: Arguments of its forward pass with the batch in the first dimension, on any device.

    Raises:
        ModelError: The forward pass does not run on the meta device, for example because it looks at values.
    """
    # A copy by way of the meta device: parameters of the original are never copied.
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        placed = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(placed, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else placed
    plain = copy.deepcopy(model, memo).eval()
    given = [value.detach().to("meta") for value in inputs]
    # By identity: a layer reads the data only where it is given these very tensors.
    data = {id(value) for value in given}
    found: list[Layer] = []
    # For each module that is running: FLOPs before it, and those of the modules inside it so far.
    running: list[list[float]] = []

    def begin(module: nn.Module, arguments: Any) -> None:
        running.append([counter.get_total_flops(), 0.0])

    def note(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, keywords: Any, outputs: Any) -> None:
            before, inside = running.pop()
            flops = float(counter.get_total_flops() - before)
            if running:
                running[-1][1] += flops
            if not list(module.children()):
                found.append(_layer(name, module, (arguments, keywords), outputs, flops, data))
            elif flops > inside:
                found.append(_between_layers(name, module, flops - inside))

        return hook

    modules = list(plain.named_modules())
    handles = [module.register_forward_pre_hook(begin) for _, module in modules]
    handles += [module.register_forward_hook(note(name), with_kwargs=True) for name, module in modules]
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            plain(*given)
    except Exception as error:
        raise ModelError(
            f"the layers of {type(model).__name__} cannot be counted without computing: {error}. Its forward pass must "
            "run on the meta device, with shapes that do not depend on values."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return found


def shares(layers: Iterable[Layer]) -> dict[str, float]:
    """Return the share of each kind in all FLOPs of the forward pass, the greatest first.

    Args:
        layers: Of :func:`layers_of`.

    Returns:
        From kind to a number in [0, 1]; kinds without FLOPs are left out.
    """
    flops: dict[str, float] = {}
    for layer in layers:
        flops[layer.kind] = flops.get(layer.kind, 0.0) + layer.flops
    total = sum(flops.values())
    return {kind: value / total for kind, value in sorted(flops.items(), key=lambda pair: -pair[1]) if value > 0}


def step_seconds(
    layers: Iterable[Layer], device: Device, *, percent: float = 1.0, training: bool = True
) -> tuple[float, float]:
    """Return the predicted seconds of the forward and of the backward pass (PALEO, equation 1).

    A layer takes ``flops / (peak * percent) + bytes / (bandwidth * percent)``. The backward pass takes twice that: once
    for the gradients of the inputs, once for those of the parameters. A layer that reads the data needs only the
    latter, and one without parameters only the former.

    Args:
        layers: Of :func:`layers_of`, for the batch of a step.
        device: Its peaks.
        percent: Share of the peaks that is reached in practice, in (0, 1]; PALEO measured 0.62. Default: 1.0.
        training: Whether there is a backward pass; without, the second number is 0. Default: True.

    Raises:
        ValueError: ``percent`` is out of its range.
    """
    if not 0 < percent <= 1:
        raise ValueError(f"percent of peak must be in (0, 1], not {percent}")
    forward = backward = 0.0
    for layer in layers:
        seconds = (layer.flops / device.flops + layer.bytes / device.bandwidth) / percent
        forward += seconds
        # Images and words need no gradient, and layers without parameters have none of those. A product of two
        # activations has a gradient for each.
        passes = (0 if layer.reads_data else 1) + (1 if layer.parameter_bytes or layer.kind in _PRODUCTS else 0)
        backward += seconds * passes
    return forward, backward if training else 0.0


def percent_of_peak(predicted_seconds: Sequence[float], measured_seconds: Sequence[float]) -> float:
    """Calibrate the share of the peaks that is reached, from measured steps of one worker on the same hardware.

    Args:
        predicted_seconds: Of :func:`step_seconds` at ``percent=1.0``, for each measured run; above 0.
        measured_seconds: Of a step of that run; above 0.

    Returns:
        Geometric mean of predicted over measured, in (0, 1].

    Raises:
        NotEnoughEvidenceError: There is no measured run, a time is not above 0, or steps were measured to be faster
            than the peaks allow.
    """
    if not measured_seconds or len(predicted_seconds) != len(measured_seconds):
        raise NotEnoughEvidenceError(
            f"percent of peak needs a measured step for each prediction, got {len(predicted_seconds)} predictions and "
            f"{len(measured_seconds)} measurements"
        )
    if not all(value > 0 and math.isfinite(value) for value in (*predicted_seconds, *measured_seconds)):
        raise NotEnoughEvidenceError("predicted and measured seconds must be finite and above 0")
    # By the geometric mean, twice too slow and twice too fast cancel out.
    ratios = [math.log(p / m) for p, m in zip(predicted_seconds, measured_seconds, strict=True)]
    percent = math.exp(sum(ratios) / len(ratios))
    if percent > 1:
        raise NotEnoughEvidenceError(
            f"the measured steps are {percent:.2f} times faster than the peaks of the device allow: give the peak and "
            "the bandwidth of the hardware and precision that the runs had"
        )
    return percent


_KINDS: tuple[tuple[Kind, tuple[type, ...] | str], ...] = (
    ("convolution", (nn.modules.conv._ConvNd,)),
    ("linear", (nn.Linear, nn.Bilinear)),
    ("recurrent", (nn.RNNBase, nn.RNNCellBase)),
    ("embedding", (nn.Embedding, nn.EmbeddingBag)),
    ("norm", "Norm"),
    ("pooling", "Pool"),
    ("activation", "activation"),
)

_PRODUCTS: tuple[Kind, ...] = ("attention", "function")


def _kind(module: nn.Module) -> Kind:
    for kind, what in _KINDS:
        text = f"{type(module).__module__}.{type(module).__name__}"
        if isinstance(module, what) if isinstance(what, tuple) else what in text:
            return kind
    return "other"


def _layer(name: str, module: nn.Module, arguments: Any, outputs: Any, flops: float, data: set[int]) -> Layer:
    # Composer comes with it, which takes seconds to import, and every command that compares imports this module.
    from reuse_algos.data.nested import tensors_at

    read, written = ([tensor for _, tensor in tensors_at(part)] for part in (arguments, outputs))
    parameters, kind = _parameter_bytes(module), _kind(module)
    into, out = (float(sum(value.numel() * value.element_size() for value in part)) for part in (read, written))
    weight = getattr(module, "weight", None)
    # Of a table only the rows are read that are looked up: one for each id, also where sums of rows come out.
    looked_up = read[0].numel() / len(weight) if kind == "embedding" and read and isinstance(weight, Tensor) else 1.0
    moved = into + out + min(1.0, looked_up) * parameters
    # Libraries have linear layers of their own, such as Conv1D of transformers.
    if kind == "other" and flops and isinstance(weight, Tensor) and weight.dim() == 2:
        kind = "linear"
    # A model may reshape its ids first, so that they are not the very tensors that it was given.
    given = any(id(value) in data for value in read) or not any(value.is_floating_point() for value in read)
    shape = tuple(written[0].shape) if written else ()
    return Layer(name, kind, flops, moved, parameters, shape, given)


def _between_layers(name: str, module: nn.Module, flops: float) -> Layer:
    kind: Kind = "attention" if "attention" in type(module).__name__.lower() else "function"
    parameters = _parameter_bytes(module)
    return Layer(name or "(functions)", kind, flops, parameters, parameters, ())


def _parameter_bytes(module: nn.Module) -> float:
    return float(sum(value.numel() * value.element_size() for value in module.parameters(recurse=False)))
