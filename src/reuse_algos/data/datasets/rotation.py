"""Data that drift: images that are turned further from period to period, and know when they are from.

Legend: N images, H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, rotate

from reuse_algos.data.hashing import view_hash

if TYPE_CHECKING:
    from reuse_algos.data.datasets.arrays import ImageArrays, Split

_SEED, _SALT_PERIOD = 0x71E, 50  # fixed: another seed would put images into other periods
_LEVELS = 255  # of uint8 images, whose last channel holds the time


@dataclass(frozen=True)
class Rotated:
    """The section ``data.rotated``: which periods are trained on.

    Each training image belongs to one period, by a hash of its key, and is turned by ``period * degrees``. The
    evaluation images are all turned as those of the period after the last that is trained on. The time is one more
    channel, whose pixels are ``period / periods`` rounded down to a whole multiple of 1/255.

    Attributes:
        period: The last period that is trained on, from 0 to ``periods - 2``.
        window: How many periods are trained on, up to ``period``. Default: None, all of them from 0 on.
        periods: How many there are, from 2 to 255. Default: 10.
        degrees: By how much images turn from one period to the next, counter-clockwise. Default: 12.
    """

    period: int
    window: int | None = None
    periods: int = 10
    degrees: float = 12.0

    def __post_init__(self) -> None:
        if not 2 <= self.periods <= _LEVELS:
            raise ValueError(f"periods must be from 2 to {_LEVELS}, got {self.periods}")
        if not 0 <= self.period <= self.periods - 2:
            raise ValueError(
                f"period must be from 0 to {self.periods - 2}, as the one after it is evaluated on, got {self.period}"
            )
        if self.window is not None and not 1 <= self.window <= self.period + 1:
            raise ValueError(f"window must be from 1 to the {self.period + 1} periods so far, got {self.window}")

    @property
    def first(self) -> int:
        """The first period that is trained on."""
        return 0 if self.window is None else self.period + 1 - self.window

    def level(self, period: int) -> int:
        """Return the grey value of a period's time channel."""
        return period * (_LEVELS // self.periods)


def period_of(keys_N: Tensor, periods: int) -> Tensor:
    """Return the period that each image belongs to, int64 ``[N]`` from 0 to ``periods - 1``."""
    hashes_N = view_hash(_SEED, keys_N, torch.zeros((), dtype=torch.int64), _SALT_PERIOD)
    return hashes_N.remainder(periods)


def rotate_arrays(arrays: ImageArrays, asked: Rotated) -> ImageArrays:
    """Return the training images of some periods, and the evaluation images as of the period after them.

    Args:
        arrays: Images that are not turned.
        asked: Which periods.
    """
    period_N = period_of(arrays.train.info.keys, asked.periods)
    kept = ((period_N >= asked.first) & (period_N <= asked.period)).nonzero().flatten()
    train = replace(arrays.train, images=arrays.train.images[kept], info=arrays.train.info.subset(kept))
    next_N = torch.full((arrays.eval.info.num_examples,), asked.period + 1)
    return replace(
        arrays,
        train=_turned(train, period_N[kept], asked),
        eval=_turned(arrays.eval, next_N, asked),
        # The time channel stays as it is: the model is given period / periods.
        mean=(*arrays.mean, 0.0),
        std=(*arrays.std, 1.0),
    )


def _turned(split: Split, period_N: Tensor, asked: Rotated) -> Split:
    images_NHWC = split.images.clone()
    for period in period_N.unique().tolist():
        rows = (period_N == period).nonzero().flatten()
        upright = split.images[rows].permute(0, 3, 1, 2)
        turned = rotate(upright, period * asked.degrees, InterpolationMode.BILINEAR)
        images_NHWC[rows] = turned.permute(0, 2, 3, 1)
    levels_N = torch.tensor([asked.level(period) for period in range(asked.periods)], dtype=torch.uint8)[period_N]
    time_NHW1 = levels_N[:, None, None, None].expand(*images_NHWC.shape[:3], 1)
    return replace(split, images=torch.cat([images_NHWC, time_NHW1], dim=3))
