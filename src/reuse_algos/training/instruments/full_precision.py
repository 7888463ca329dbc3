"""Models that run under an autocast of their own, read in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class FullPrecision(TorchFunctionMode):
    """Calls each function of torch without autocast, for a ``with`` block around a model's forward pass and loss.

    An autocast around the block can be switched off by another one. An autocast that the forward pass enters itself,
    as ``model.autocast`` of a recipe lets it, is on again inside, so that it must be switched off call by call.

    Args:
        device_type: Of the model's parameters, such as ``cuda``.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._device_type = device_type

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, without autocast where the model has switched it on."""
        if not torch.is_autocast_enabled(self._device_type):
            return func(*args, **(kwargs or {}))
        with torch.autocast(self._device_type, enabled=False):
            return func(*args, **(kwargs or {}))
