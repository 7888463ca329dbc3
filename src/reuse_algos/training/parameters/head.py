"""The head of a classifier: its last layer, and what that is given in a pass of the model.

Legend: B rows, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from reuse_algos.errors import ModelError
from reuse_algos.training.outputs import has_compiled_parts, plain_name


def find_head(model: nn.Module, num_classes: int) -> list[str]:
    """Return the names of the parameters of the classifier's last layer.

    The head is the last ``nn.Linear`` or convolution of 1 x 1, in the order of ``named_modules()``, with one output for
    each class.

    Args:
        model: The user's model, without wrappers.
        num_classes: K.

    Returns:
        Names such as ``["module.fc.weight", "module.fc.bias"]``; empty where no layer has K outputs.
    """
    found = ""
    for name, module in model.named_modules():
        outputs = None
        if isinstance(module, nn.Linear):
            outputs = module.out_features
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and set(module.kernel_size) == {1}:
            # Heads of segmentation and of some image models are convolutions of one pixel.
            outputs = module.out_channels
        if outputs == num_classes:
            found = name
    if not found:
        return []
    module = model.get_submodule(found)
    return [plain_name(f"{found}.{name}") for name, _ in module.named_parameters(recurse=False)]


class PassOfHead(NamedTuple):
    """What went in and out of the head, and of modules around it, in one pass of a model.

    Attributes:
        features: What the head was given, ``[B, D]`` for a linear layer.
        logits: What it returned.
        outputs: What the model returned.
        around: By name, for each module that was watched the arguments and the result of its only call; those that
            were not called once with positional arguments are missing.
    """

    features: Tensor
    logits: Tensor
    outputs: Any
    around: dict[str, tuple[tuple[Any, ...], Any]]


def head_module(model: nn.Module, names: Collection[str]) -> tuple[str, nn.Module]:
    """Return the one layer that the parameters of a head belong to, and its name.

    Args:
        model: The user's model, without wrappers.
        names: Of the head's parameters, such as ``["module.fc.weight", "module.fc.bias"]``.

    Raises:
        ModelError: They belong to several layers, or to none, or layers are compiled one by one.
    """
    if has_compiled_parts(model):
        raise ModelError(
            f"a part of {type(model).__name__} is compiled by itself, and its forward pass cannot be entered halfway. "
            "Compile the whole model by the Trainer (compile_config)."
        )
    owners = sorted({name.rpartition(".")[0] for name in names})
    if len(owners) != 1 or not owners[0]:
        raise ModelError(
            f"the head must be one layer with parameters of its own, and its parameters belong to {owners}. Name one "
            "layer: head: {name: reset, pattern: 'fc.*'}."
        )
    return owners[0], model.get_submodule(owners[0])


def pass_of_head(head: nn.Module, call: Callable[[], Any], around: Mapping[str, nn.Module] | None = None) -> PassOfHead:
    """Run a model and look at what its head is given.

    Args:
        head: Its last layer.
        call: Runs the model.
        around: Further modules to watch, by name.

    Raises:
        ModelError: The head was not called exactly once, with one tensor.
    """
    seen: dict[str, list[tuple[tuple[Any, ...], Mapping[str, Any], Any]]] = {}

    def watch(name: str) -> Callable[..., None]:
        def keep(layer: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Any) -> None:
            seen.setdefault(name, []).append((arguments, keywords, output))

        return keep

    watched = {"": head, **(around or {})}
    handles = [module.register_forward_hook(watch(name), with_kwargs=True) for name, module in watched.items()]
    try:
        outputs = call()
    finally:
        for handle in handles:
            handle.remove()
    # Of a layer that is called several times it is not known which call counts.
    calls = {name: found[0] for name, found in seen.items() if len(found) == 1 and not found[0][1]}
    arguments, _, logits = calls.pop("", ((), {}, None))
    if len(arguments) != 1 or not isinstance(arguments[0], Tensor):
        raise ModelError(
            f"the head ({type(head).__name__}) is called {len(seen.get('', []))} times in a forward pass, and its "
            "features are known where it is called once with one tensor."
        )
    return PassOfHead(arguments[0], logits, outputs, {name: (call[0], call[2]) for name, call in calls.items()})
