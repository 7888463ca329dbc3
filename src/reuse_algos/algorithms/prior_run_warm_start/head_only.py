"""Training the head of a classifier without the network in front of it.

Legend: B rows, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from reuse_algos.errors import ModelError
from reuse_algos.training.outputs import unwrap_model
from reuse_algos.training.parameters.head import PassOfHead, head_module, pass_of_head

_LIVE = "Use source: live, which runs the whole model at every step."


class HeadOnly:
    """Lets a model begin at its head, for the calls that are between :meth:`enter` and :meth:`leave`.

    The module of the model that leads from the inputs to the logits (``module`` of a ``ComposerClassifier``) gets for
    that time a ``forward`` of its own that is the head's. Whatever the model does around that module, such as autocast
    or a dictionary of outputs, stays, and DDP sees one call of the model.

    Args:
        model: The trainer's model.
        names: Of the head's parameters.

    Attributes:
        head: The layer.

    Raises:
        ModelError: The head is not one layer.
    """

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        self._plain = unwrap_model(model)
        self._path, self.head = head_module(self._plain, names)
        self._network: nn.Module | None = None
        self._replaced: list[tuple[nn.Module, Any]] = []

    def look(self, batch: Any, inputs: Tensor) -> PassOfHead:
        """Run the whole model on a batch as it is, compiled or not, and find the module that the head stands for.

        Raises:
            ModelError: No module of the model takes the inputs and returns what the head returns.
        """
        parts = self._path.split(".")
        above = {name: self._plain.get_submodule(name) for name in (".".join(parts[:n]) for n in range(1, len(parts)))}
        seen = pass_of_head(self.head, lambda: type(self._plain).forward(self._plain, batch), above)
        # From the outside in, by identity: what takes the inputs themselves and returns the head's own result leaves
        # nothing out when the head takes its place.
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
        """Let the model take features for inputs."""
        self.leave()
        assert self._network is not None
        # Compiled forward passes step aside: they are of the whole network.
        for module in dict.fromkeys((model, self._plain, self._network)):
            self._replaced.append((module, vars(module).pop("forward", None)))
        vars(self._network)["forward"] = self._forward

    def leave(self) -> None:
        """Let the model be whole again."""
        for module, forward in reversed(self._replaced):
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward
        self._replaced = []

    def _forward(self, features_BD: Tensor) -> Any:
        try:
            return self.head(features_BD)
        except BaseException:
            self.leave()  # an interactive session may go on with the model after an interrupt
            raise
