"""Batched augmentation of uint8 images, with the random numbers drawn by hash.

The functions are pure and work on CPU and GPU alike; there are no loops over examples.

Legend: B examples, H height, W width, C channels, K random numbers per example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_algos.data.hashing import uniform_ints, view_hash
from reuse_algos.errors import DataError, nearest

AUGMENT_KINDS = ("none", "crop", "crop_flip", "crop_flip_cutout")

# Salt of each random number of view_hash; changing one changes every view.
_TOP, _LEFT, _FLIP, _CUTOUT_ROW, _CUTOUT_COLUMN = range(5)


def crop_flip(images_BHWC: Tensor, top_B: Tensor, left_B: Tensor, flip_B: Tensor, padding: int) -> Tensor:
    """Pad with zeros (black), cut a window of the old size from each image, and mirror some left to right.

    He et al., "Deep residual learning for image recognition", section 4.2, https://arxiv.org/abs/1512.03385.

    Args:
        images_BHWC: Any dtype.
        top_B: int64 from 0 to ``2 * padding``: first row of each window in the padded image.
        left_B: int64 from 0 to ``2 * padding``: first column of each window.
        flip_B: bool: mirror the window.
        padding: Pixels added on each side, 0 or more.

    Returns:
        A new tensor of the shape and dtype of ``images_BHWC``, contiguous.
    """
    B, H, W, C = images_BHWC.shape
    if not B:
        return images_BHWC.clone()
    padded = F.pad(images_BHWC, (0, 0, padding, padding, padding, padding)).contiguous()
    padded_H, padded_W = H + 2 * padding, W + 2 * padding
    # A row of a window is one run of W * C values in memory. `runs` shows every such run (they overlap), so that all
    # windows are cut by a single index_select, which copies whole runs: 60 times faster than indexing by pixel on CPU.
    runs = padded.as_strided((B * padded_H * padded_W - W + 1, W * C), (C, 1))
    row_BH = torch.arange(H, device=images_BHWC.device) + top_B[:, None]
    example_B1 = torch.arange(B, device=images_BHWC.device)[:, None]
    start_BH = (example_B1 * padded_H + row_BH) * padded_W + left_B[:, None]
    windows_BHWC = runs.index_select(0, start_BH.flatten()).view(B, H, W, C)
    return torch.where(flip_B[:, None, None, None], windows_BHWC.flip(2), windows_BHWC)


def cutout(images_BCHW: Tensor, row_B: Tensor, column_B: Tensor, length: int) -> Tensor:
    """Set a square to 0 in each image; squares reach over the edge and are clipped there.

    DeVries & Taylor, "Improved regularization of convolutional neural networks with cutout",
    https://arxiv.org/abs/1708.04552. On normalised images 0 is the mean colour, as in the paper.

    Args:
        images_BCHW: Any dtype.
        row_B: int64: row of the centre of each square.
        column_B: int64: column of the centre.
        length: Side of the square, even, in pixels; it spans ``length // 2`` before the centre to as many behind.

    Returns:
        A new tensor like ``images_BCHW``.
    """
    H, W = images_BCHW.shape[-2:]
    half = length // 2
    row_BH = torch.arange(H, device=images_BCHW.device) - row_B[:, None]
    column_BW = torch.arange(W, device=images_BCHW.device) - column_B[:, None]
    in_row_BH, in_column_BW = (row_BH >= -half) & (row_BH < half), (column_BW >= -half) & (column_BW < half)
    square_B1HW = (in_row_BH[:, :, None] & in_column_BW[:, None, :])[:, None]
    return images_BCHW.clone().masked_fill_(square_B1HW, 0)  # unlike masked_fill, clone keeps the memory format


@dataclass(frozen=True)
class Augmentation:
    """One kind of augmentation and its measures.

    Attributes:
        kind: ``"none"``, ``"crop"`` (for images that mean something else mirrored, such as digits), ``"crop_flip"`` or
            ``"crop_flip_cutout"``.
        padding: Pixels of black around an image before the crop, from 0.
        length: Side of the cut-out square in pixels, even.

    Raises:
        DataError: If ``kind`` is not known or a measure is out of range.
    """

    kind: str = "none"
    padding: int = 4
    length: int = 8

    def __post_init__(self) -> None:
        if self.kind not in AUGMENT_KINDS:
            raise DataError(f"Unknown augmentation {self.kind!r}.{nearest(str(self.kind), AUGMENT_KINDS)}")
        if self.padding < 0:
            raise DataError(f"The padding of a crop must be 0 or more, not {self.padding}.")
        if self.length < 2 or self.length % 2:
            raise DataError(f"The side of a cutout must be an even number of pixels from 2, not {self.length}.")

    @property
    def description(self) -> str:
        """Stable description, for :attr:`ViewPolicy.transform <reuse_algos.data.views.ViewPolicy.transform>`."""
        if self.kind == "none":
            return "none"
        if self.kind in ("crop", "crop_flip"):
            return f"{self.kind}(padding={self.padding})"
        return f"crop_flip_cutout(padding={self.padding},length={self.length})"

    def draw(self, seed: int, keys_B: Tensor, views_B: Tensor, height: int, width: int) -> Tensor:
        """Return random numbers of these views, each uniform and independent of the others.

        Args:
            seed: View seed.
            keys_B: int64.
            views_B: int64, from 0.
            height: H of the images.
            width: W of the images.

        Returns:
            int64 ``[K, B]``: top, left (0 to ``2 * padding``), flip (0 or 1) and, for a cutout, row and column of its
            centre. K is 0, 2, 3 or 5.
        """
        offsets = 2 * self.padding + 1
        ranges = {_TOP: offsets, _LEFT: offsets, _FLIP: 2, _CUTOUT_ROW: height, _CUTOUT_COLUMN: width}
        count = {"none": 0, "crop": 2, "crop_flip": 3, "crop_flip_cutout": 5}[self.kind]
        if not count:
            return torch.empty((0, len(keys_B)), dtype=torch.int64, device=keys_B.device)
        return torch.stack(
            [uniform_ints(view_hash(seed, keys_B, views_B, salt), ranges[salt]) for salt in range(count)]
        )

    def apply(self, images_BHWC: Tensor, draws_KB: Tensor, normalisation: Normalisation) -> Tensor:
        """Crop, mirror, normalise and cut out, as far as the kind says.

        Args:
            images_BHWC: uint8.
            draws_KB: What :meth:`draw` gave, on the device of the images.
            normalisation: What turns the bytes into floats.

        Returns:
            float32 ``[B, C, H, W]``.
        """
        if self.kind == "none":
            return normalisation(images_BHWC)
        top_B, left_B = draws_KB[_TOP], draws_KB[_LEFT]
        flip_B = torch.zeros_like(top_B, dtype=torch.bool) if self.kind == "crop" else draws_KB[_FLIP] > 0
        images_BHWC = crop_flip(images_BHWC, top_B, left_B, flip_B, self.padding)
        # Before the cutout, whose 0 is then the mean colour.
        images_BCHW = normalisation(images_BHWC)
        if self.kind == "crop_flip_cutout":
            images_BCHW = cutout(images_BCHW, draws_KB[_CUTOUT_ROW], draws_KB[_CUTOUT_COLUMN], self.length)
        return images_BCHW


class Normalisation:
    """Turns bytes into floats of about mean 0 and deviation 1: ``(x / 255 - mean) / std`` per channel.

    Args:
        mean: One number per channel, on the scale 0 to 1.
        std: One number above 0 per channel, on the same scale.
        device: Where the images are.
        memory_format: ``torch.contiguous_format`` or ``torch.channels_last`` of the result.

    Raises:
        DataError: If mean and std differ in length or a std is not above 0.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise DataError(f"mean {list(mean)} and std {list(std)}: one of each per channel, and every std above 0.")
        # One multiplication and one addition per pixel. They stay two steps: fused, a GPU would round differently.
        scale = [1 / (255 * s) for s in std]
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self._scale_C11 = torch.tensor(scale, dtype=torch.float32, device=device)[:, None, None]
        self._shift_C11 = torch.tensor(shift, dtype=torch.float32, device=device)[:, None, None]
        self._memory_format = memory_format

    def __call__(self, images_BHWC: Tensor) -> Tensor:
        """Return float32 ``[B, C, H, W]`` of uint8 ``[B, H, W, C]``."""
        floats_BCHW = images_BHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=self._memory_format)
        return floats_BCHW.mul_(self._scale_C11).add_(self._shift_C11)
