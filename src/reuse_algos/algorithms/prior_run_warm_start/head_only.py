"""The head of a classifier by itself: what it is given, and training it without the network in front of it.

Legend: B rows, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from reuse_algos.errors import ModelError
from reuse_algos.training.outputs import unwrap_model

__all__ = ["HeadOnly", "PassOfHead", "head_module", "pass_of_head"]

_LIVE = "Use source: live, which runs the whole model at every step."


class PassOfHead(NamedTuple):
    """What went in and out of the head, and of modules around it, in one pass of a model.

    Attributes:
        features: what the head was given, ``[B, D]`` for a linear layer.
        logits: what it returned.
        outputs: what the model returned.
        around: by name, for each module that was watched the arguments and the result of its only call; those that
            were not called once with positional arguments are missing.
    """

    features: Tensor
    logits: Tensor
    outputs: Any
    around: dict[str, tuple[tuple[Any, ...], Any]]


def head_module(model: nn.Module, names: Collection[str]) -> tuple[str, nn.Module]:
    """The one layer that the parameters of a head belong to, and its name.

    Args:
        model: the user's model, without wrappers.
        names: of the head's parameters, such as ``["module.fc.weight", "module.fc.bias"]``.

    Raises:
        ModelError: they belong to several layers, or to none, or layers are compiled one by one.
    """
    if any("_orig_mod" in name.split(".") for name, _ in model.named_modules()):
        raise ModelError(
            f"a part of {type(model).__name__} is compiled by itself, and its forward pass cannot be entered halfway. "
            "Compile the whole model by the Trainer (compile_config)."
        )
    owners = sorted({name.rpartition(".")[0] for name in names})
    if len(owners) != 1 or not owners[0]:
        raise ModelError(
            f"the head must be one layer with parameters of its own, and its parameters belong to {owners}. Name one "
            "layer: head_pattern, such as head_pattern: 'fc.*'."
        )
    return owners[0], model.get_submodule(owners[0])


def pass_of_head(head: nn.Module, call: Callable[[], Any], around: Mapping[str, nn.Module] | None = None) -> PassOfHead:
    """Run a model and look at what its head is given.

    Args:
        head: its last layer.
        call: runs the model.
        around: further modules to watch, by name.

    Raises:
        ModelError: the head was not called exactly once, with one tensor.
    """
    seen: dict[str, list[tuple[tuple[Any, ...], Mapping[str, Any], Any]]] = {}

    def watch(name: str) -> Callable[..., None]:
        def keep(layer: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Any) -> None:
            del layer
            seen.setdefault(name, []).append((arguments, keywords, output))

        return keep

    watched = {"": head, **(around or {})}
    handles = [module.register_forward_hook(watch(name), with_kwargs=True) for name, module in watched.items()]
    try:
        outputs = call()
    finally:
        for handle in handles:
            handle.remove()
    calls = {name: found[0] for name, found in seen.items() if len(found) == 1 and not found[0][1]}
    arguments, _, logits = calls.pop("", ((), {}, None))
    if len(arguments) != 1 or not isinstance(arguments[0], Tensor):
        raise ModelError(
            f"the head ({type(head).__name__}) is called {len(seen.get('', []))} times in a forward pass, and its "
            "features are known where it is called once with one tensor."
        )
    return PassOfHead(arguments[0], logits, outputs, {name: (call[0], call[2]) for name, call in calls.items()})


class HeadOnly:
    """Lets a model begin at its head, for the calls that are between :meth:`enter` and :meth:`leave`.

    The module of the model that leads from the inputs to the logits (``module`` of a ``ComposerClassifier``) gets for
    that time a ``forward`` of its own that is the head's. Whatever the model does around that module, such as autocast
    or a dictionary of outputs, stays; DDP sees the call as ever. Compiled forward passes step aside: they are of the
    whole network, and a single layer has nothing to compile.

    Args:
        model: the trainer's model.
        names: of the head's parameters.

    Attributes:
        head: the layer.

    Raises:
        ModelError: the head is not one layer.
    """

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        self._plain = unwrap_model(model)
        self._path, self.head = head_module(self._plain, names)
        self._network: nn.Module | None = None
        self._replaced: list[tuple[nn.Module, Any]] = []

    def look(self, batch: Any, inputs: Tensor) -> PassOfHead:
        """Run the whole model on a batch as it is, compiled or not, and find the module that the head stands for.

        Args:
            batch: on the model's device.
            inputs: those of the batch.

        Raises:
            ModelError: no module of the model takes the inputs and returns what the head returns.
        """
        parts = self._path.split(".")
        above = {name: self._plain.get_submodule(name) for name in (".".join(parts[:n]) for n in range(1, len(parts)))}
        seen = pass_of_head(self.head, lambda: type(self._plain).forward(self._plain, batch), above)
        for name, module in above.items():
            arguments, output = seen.around.get(name, ((), None))
            if len(arguments) == 1 and arguments[0] is inputs and output is seen.logits:
                self._network = module
                return seen
        raise ModelError(
            f"no module of {type(self._plain).__name__} leads from the inputs of a batch to what its head "
            f"{self._path} returns, so training cannot begin at the head. {_LIVE}"
        )

    def enter(self, model: nn.Module) -> None:
        """From now on the model takes features for inputs.

        Args:
            model: the trainer's, with its wrappers.
        """
        self.leave()
        assert self._network is not None
        for module in dict.fromkeys((model, self._plain, self._network)):
            self._replaced.append((module, vars(module).pop("forward", None)))
        vars(self._network)["forward"] = self._forward

    def leave(self) -> None:
        """Back to the whole model."""
        for module, forward in reversed(self._replaced):
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward
        self._replaced = []

    def _forward(self, features_BD: Tensor) -> Any:
        try:
            return self.head(features_BD)
        except BaseException:
            self.leave()  # whoever catches this finds the model as it was
            raise
