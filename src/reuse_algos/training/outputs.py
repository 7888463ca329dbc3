"""Finding the plain module in what the trainer holds, and the logits in what a model returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from reuse_algos.errors import ModelError
from reuse_algos.training.parameters.batch_norm import without_auxiliary


def device_of(model: torch.nn.Module) -> torch.device:
    """Return where the model's parameters are; the CPU for a model without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def unwrap_model(model: torch.nn.Module) -> torch.nn.Module:
    """Return the user's model inside the wrappers of DDP and ``torch.compile``."""
    # In any order: DDP may wrap a compiled model, and torch.compile a wrapped one.
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), torch.nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def plain_name(name: str) -> str:
    """Return the name of a module or tensor as the model has it before ``torch.compile``."""
    # Parts that were compiled one by one carry the prefix inside of the model.
    return name.replace("_orig_mod.", "")


def has_compiled_parts(model: torch.nn.Module) -> bool:
    """Return whether parts of a model are compiled by themselves, so that hooks do not see their forward passes."""
    return any("_orig_mod" in name.split(".") for name, _ in model.named_modules())


def plain_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of the user's model under its own names, without prefixes and auxiliary batch norms."""
    plain = unwrap_model(model)
    state = plain.state_dict()
    names = [name for name in without_auxiliary(plain, state) if isinstance(state[name], torch.Tensor)]
    return {plain_name(name): state[name] for name in names}


def hidden_parameters(parameters: Mapping[str, torch.Tensor], kept: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the parameters that a state dict leaves out, as adapters (LoRA) do.

    Args:
        parameters: By their names in the state dict.
        kept: The state dict.
    """
    # A parameter that the state dict has under another name is not left out.
    stored = {tensor.data_ptr() for tensor in kept.values()}
    return [name for name, one in parameters.items() if name not in kept and one.data_ptr() not in stored]


def logits_of(outputs: Any, output_key: str | int | None = None) -> torch.Tensor:
    """Return the logits ``[B, C, ...]`` (``[B]`` from models with one number for each example) of a model's outputs.

    Args:
        outputs: A tensor, a mapping, a sequence, or an object with a ``logits`` attribute. A tensor is the logits
            whatever the key: models with several heads give a tuple in training and one tensor in evaluation.
        output_key: Where the logits lie in a mapping or a sequence. Default: what is called ``logits``.

    Raises:
        ModelError: There are no logits under that key.
    """
    found: Any = None
    if isinstance(outputs, torch.Tensor):
        # Models that squeeze their outputs give a bare number for a batch of one row.
        found = outputs if outputs.dim() else outputs.reshape(1)
    elif output_key is not None:
        found = _entry(outputs, output_key)
    elif isinstance(outputs, Mapping):
        found = outputs.get("logits")
    else:
        found = getattr(outputs, "logits", None)
    if not isinstance(found, torch.Tensor) or found.dim() < 1:
        raise ModelError(
            f"no logits [B, C, ...] or [B] found in outputs of type {type(outputs).__name__}{_holds(outputs)}; name "
            "their place by keys: {output: ...} (output_key where there are no keys)"
        )
    return found


def _entry(outputs: Any, key: str | int) -> Any:
    """Return what lies under a key: an entry, or an attribute of a dataclass or named tuple."""
    if isinstance(key, str) and not isinstance(outputs, Mapping) and hasattr(outputs, key):
        return getattr(outputs, key)
    try:
        return outputs[key]
    except (KeyError, IndexError, TypeError) as error:
        raise ModelError(
            f"the model's outputs, of type {type(outputs).__name__}{_holds(outputs)}, have nothing under "
            f"output_key={key!r}: {error!r}"
        ) from error


def _holds(outputs: Any) -> str:
    """Return the places that outputs have, in words."""
    if isinstance(outputs, Mapping):
        return f" with {', '.join(map(repr, outputs))}"
    if isinstance(outputs, (tuple, list)):
        return f" of {len(outputs)}"
    named = getattr(outputs, "__dict__", {})
    return f" with {', '.join(map(repr, named))}" if named and not isinstance(outputs, torch.Tensor) else ""
