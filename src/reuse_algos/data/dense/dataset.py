"""Pictures with a class for each pixel as a map-style dataset in memory.

Shapes: N examples, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from reuse_algos.data.dense.config import SceneConfig
from reuse_algos.data.dense.mni import MNI_CLASSES, read_slices, split_slices
from reuse_algos.data.dense.scenes import SCENE_CLASSES, compose_scenes
from reuse_algos.data.examples.content import rows_content
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import DataError

IGNORED_PIXEL = 255
"""Value of a mask's pixel that does not count."""

# Fixed: the fingerprints of archived runs hold them.
_MEAN, _STD = 0.25, 0.25


class DensePart(NamedTuple):
    """Pictures and masks of one part of a dataset.

    Attributes:
        images: uint8 ``[N, H, W]`` or ``[N, H, W, C]``.
        masks: uint8 ``[N, H, W]``, class numbers and 255.
        keys: int64 ``[N]``.
        class_names: Name of each class.
    """

    images: Tensor
    masks: Tensor
    keys: Tensor
    class_names: tuple[str, ...]


class DenseDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pictures ``[C, H, W]`` float32 and masks ``[H, W]`` int64, without augmentation: one view.

    Args:
        part: Pictures and masks.
        name: Name of the dataset.
        view_seed: Seed that the one view is known by. Default: 0.

    Attributes:
        info: Identity of the examples.
        view_policy: One view.

    Raises:
        DataError: A mask has a value that is neither a class nor 255, or another size than its picture, or the number
            of keys is another than that of pictures.
    """

    def __init__(self, part: DensePart, name: str, view_seed: int = 0) -> None:
        images = part.images[..., None] if part.images.dim() == 3 else part.images
        if images.shape[:3] != part.masks.shape:
            raise DataError(
                f"dataset {name!r}: masks of shape {tuple(part.masks.shape)} do not fit pictures of shape "
                f"{tuple(images.shape)}."
            )
        if part.keys.shape != part.masks.shape[:1]:
            raise DataError(
                f"dataset {name!r}: keys of shape {tuple(part.keys.shape)} were given for {len(part.masks)} pictures."
            )
        unknown = (part.masks >= len(part.class_names)) & (part.masks != IGNORED_PIXEL)
        if bool(unknown.any()):
            row = int(unknown.flatten(1).any(1).nonzero()[0])
            values = sorted(set(part.masks[unknown].tolist()))
            raise DataError(
                f"dataset {name!r}: the masks have the values {values[:5]}, first in example {row}, and there are "
                f"{len(part.class_names)} classes, 0 to {len(part.class_names) - 1}. Mark pixels that do not count by "
                f"{IGNORED_PIXEL}."
            )
        self._images, self._masks = images.movedim(-1, 1).contiguous(), part.masks
        content = rows_content(images, f"mean {_MEAN} std {_STD}")
        self.info = DatasetInfo(name, part.keys, None, part.class_names, "id", content)
        self.view_policy = ViewPolicy(view_seed, 1, "none")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a picture."""
        channels, height, width = self._images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        position = int(index[0]) if isinstance(index, tuple) else int(index)
        image = (self._images[position].float() / 255 - _MEAN) / _STD
        return image, self._masks[position].long()


def load_dense(
    name: str, root: str | None, path: str | None, scenes: SceneConfig | None = None
) -> tuple[DensePart, DensePart]:
    """Return the parts for training and evaluation of a dataset with a class for each pixel.

    Args:
        name: ``digit_scenes``: handwritten digits composed on a canvas. ``mni152``: slices of a brain, with grey and
            white matter. ``dense_npz``: a file with uint8 ``x_train``, ``x_test`` (``[N, H, W]`` or ``[N, H, W, C]``),
            ``y_train``, ``y_test`` (masks ``[N, H, W]``) and ``class_names``; ``keys_train`` and ``keys_test`` (whole
            numbers ``[N]``) name the examples, which are otherwise known by their place.
        root: Folder of ``mni152``.
        path: File of ``dense_npz``.
        scenes: Of ``digit_scenes``. Default: its defaults.

    Raises:
        DataError: The data are not there or not what they should be.
    """
    if name == "digit_scenes":
        wanted = scenes or SceneConfig()
        parts = []
        for held_out, count in ((False, wanted.train), (True, wanted.eval)):
            made = compose_scenes(count, size=wanted.size, most=wanted.most, seed=wanted.seed, held_out=held_out)
            # Keys of evaluation begin at 2^40: the two parts have none in common, however many scenes are asked for.
            keys = torch.arange(count) + (held_out << 40)
            parts.append(DensePart(made.images, made.masks, keys, SCENE_CLASSES))
        return parts[0], parts[1]
    if name == "mni152":
        images, masks, numbers = read_slices(root)
        return tuple(  # type: ignore[return-value]
            DensePart(images[rows], masks[rows], numbers[rows], MNI_CLASSES) for rows in split_slices(numbers)
        )
    if path is None:
        raise DataError("data.path: dense_npz needs the path of its file.")
    return _npz(path, "train"), _npz(path, "test")


def _npz(path: str, part: str) -> DensePart:
    try:
        # numpy leaves a broken archive open that it opened itself.
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            images, masks = file[f"x_{part}"], file[f"y_{part}"]
            names = tuple(str(one) for one in file["class_names"])
            keys = file[f"keys_{part}"] if f"keys_{part}" in file else np.arange(len(images))
    except (OSError, KeyError, ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise DataError(f"data.path: {path} cannot be read as dense_npz: {error}") from error
    if not np.issubdtype(keys.dtype, np.integer) or keys.shape != images.shape[:1]:
        # A fraction would be cut off, and a picture without a key left out.
        raise DataError(
            f"data.path: keys_{part} of {path} must be {len(images)} whole numbers, one for each picture; they are "
            f"{keys.dtype} {keys.shape}."
        )
    if images.dtype != np.uint8 or masks.dtype != np.uint8 or images.ndim not in (3, 4) or masks.ndim != 3:
        raise DataError(
            f"data.path: x_{part} and y_{part} of {path} must be uint8 [N, H, W] or [N, H, W, C], and [N, H, W]; they "
            f"are {images.dtype} {images.shape} and {masks.dtype} {masks.shape}."
        )
    return DensePart(torch.from_numpy(images), torch.from_numpy(masks), torch.from_numpy(keys.astype(np.int64)), names)
