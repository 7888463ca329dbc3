"""Models that have shapes and no memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from composer.models import ComposerModel
from torch.overrides import TorchFunctionMode

from reuse_algos.models.build import build_model


class _WithoutMemory(TorchFunctionMode):
    """Put what allocates on the meta device."""

    # torch.device("meta") would do, were it not for RegNets, which compute their widths with a short torch.arange and
    # read them.

    _ALLOCATES = frozenset(
        (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.empty_strided)
    )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._ALLOCATES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def outline_model(config: Mapping[str, Any]) -> ComposerModel:
    """Build a model on torch's meta device: every name and shape, and no memory. No random number is drawn.

    Args:
        config: As for :func:`~reuse_algos.models.build.build_model`, with everything that it needs.

    Raises:
        ModelError: A field or the name is unknown, or no model can have such sizes.
        RuntimeError: A tensor would have more than 2^63 bytes.
    """
    with torch.random.fork_rng(devices=[]), _WithoutMemory():
        return build_model(config)
