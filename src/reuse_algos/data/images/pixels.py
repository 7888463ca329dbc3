"""Between what a model is given and pixels: values from 0 to 1, normalised per channel.

Bounds and sizes of perturbations mean something in pixels only: normalisations differ between
datasets and channels.

Legend: B examples, C channels, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from reuse_algos.errors import DataError


@dataclass(frozen=True)
class PixelSpace:
    """How pixels p in [0, 1] become inputs: ``x = (p - mean) / std``, per channel.

    All methods keep the memory format and the device of what they are given, and its dtype.

    Attributes:
        mean: Mean per channel, on the scale 0 to 1.
        std: Deviation per channel above 0, on the same scale.

    Raises:
        DataError: If mean and std differ in length, are empty or not finite, or a std is not above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        # Lists, as they come from recipes, would make a frozen object that has no hash.
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if not self.mean or len(self.mean) != len(self.std) or not finite or not all(value > 0 for value in self.std):
            raise DataError(
                f"pixel mean {list(self.mean)} and std {list(self.std)}: one finite number of each per channel, and "
                "every std above 0."
            )

    def to_pixels(self, inputs_BCHW: Tensor) -> Tensor:
        """Return inputs as pixels: ``x * std + mean``."""
        mean_C11, std_C11 = self._columns(inputs_BCHW)
        return inputs_BCHW * std_C11 + mean_C11

    def delta_to_inputs(self, delta_BCHW: Tensor) -> Tensor:
        """Return a difference of pixels as a difference of inputs: ``delta / std``."""
        return delta_BCHW / self._columns(delta_BCHW)[1]

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs of black and of white, ``[C, 1, 1]`` each, with dtype and device of ``like``.

        Raises:
            DataError: ``like`` has another number of channels.
        """
        self._check(like)
        low = tuple(-m / s for m, s in zip(self.mean, self.std, strict=True))
        high = tuple((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        return _column(low, like.device, like.dtype), _column(high, like.device, like.dtype)

    def add(self, inputs_BCHW: Tensor, delta_BCHW: Tensor) -> Tensor:
        """Return inputs whose pixels differ by ``delta`` (floating point, in pixel units), clipped to valid pixels.

        Returns:
            ``clip(x + delta / std)`` in the dtype of the inputs; computed in float32 at least.
        """
        dtype = torch.promote_types(inputs_BCHW.dtype, torch.float32)
        moved_BCHW = inputs_BCHW.to(dtype) + self.delta_to_inputs(delta_BCHW.to(dtype))
        return moved_BCHW.clamp_(*self.bounds(moved_BCHW)).to(inputs_BCHW.dtype)

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        self._check(like)
        return _column(self.mean, like.device, like.dtype), _column(self.std, like.device, like.dtype)

    def _check(self, like: Tensor) -> None:
        if like.ndim < 3 or like.shape[-3] != len(self.mean) or not like.is_floating_point():
            raise DataError(
                f"the pixel space has {len(self.mean)} channels (mean {list(self.mean)}), but these images are "
                f"{like.dtype} of shape {tuple(like.shape)}, not floats [B, {len(self.mean)}, H, W]."
            )


def pixel_space_of(dataset: Dataset[Any] | None) -> PixelSpace | None:
    """Return the pixel space of a dataset's images: its ``pixel_space``, that of the base of a ``Subset``, or None.

    ``DeviceImages``, ``WorkerImages`` and everything that :func:`~reuse_algos.data.datasets.load_datasets` makes have
    one.
    """
    while isinstance(dataset, Subset) and not hasattr(dataset, "pixel_space"):
        dataset = dataset.dataset
    space = getattr(dataset, "pixel_space", None)
    return space if isinstance(space, PixelSpace) else None


@lru_cache(maxsize=256)
def _column(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return values as [C, 1, 1]. Kept, since every use would wait for the copy to a GPU."""
    with torch.inference_mode(False):  # a tensor made in inference mode could never take part in a gradient
        return torch.tensor(values, dtype=torch.float64).to(device, dtype).view(-1, 1, 1)
