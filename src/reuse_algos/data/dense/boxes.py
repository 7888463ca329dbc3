"""Pictures with boxes as a map-style dataset in memory.

Shapes: N examples, C channels, H height, W width, M boxes of an example.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from reuse_algos.data.dense.config import SceneConfig
from reuse_algos.data.dense.scenes import SCENE_CLASSES, compose_scenes
from reuse_algos.data.examples.content import rows_content
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import DataError

# Fixed: the fingerprints of archived runs hold them.
_MEAN, _STD = 0.25, 0.25


class BoxDataset(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Pictures ``[C, H, W]`` float32, and mappings with ``boxes`` float32 ``[M, 4]`` and ``labels`` int64 ``[M]``.

    A picture without boxes is an example like any other: it has ``boxes`` of shape ``[0, 4]``.

    Args:
        images: uint8 ``[N, H, W]``.
        boxes: For each picture ``[M, 4]`` (x1, y1, x2, y2).
        labels: For each picture int64 ``[M]``, from 1 on; 0 is the background.
        info: Identity of the examples.
        view_seed: Seed that the one view is known by. Default: 0.

    Attributes:
        view_policy: One view.

    Raises:
        DataError: A box has no area or lies outside its picture, or the numbers do not fit.
    """

    def __init__(
        self, images: Tensor, boxes: list[Tensor], labels: list[Tensor], info: DatasetInfo, view_seed: int = 0
    ) -> None:
        if not len(images) == len(boxes) == len(labels) == info.num_examples:
            raise DataError(f"{len(images)} pictures, {len(boxes)} lists of boxes and {info.num_examples} keys.")
        height, width = images.shape[1:]
        limit = torch.tensor([width, height, width, height])
        for row, (found, classes) in enumerate(zip(boxes, labels, strict=True)):
            bad = (found[:, 2:] <= found[:, :2]).any() or (found < 0).any() or (found > limit).any()
            if len(found) != len(classes) or bool(bad):
                raise DataError(
                    f"dataset {info.name!r}: the boxes {found.tolist()} of example {row} with labels "
                    f"{classes.tolist()} must be (x1, y1, x2, y2), x1 < x2 and y1 < y2, inside of {width} x {height}."
                )
        self._images, self._boxes, self._labels = images, boxes, labels
        self.info = info
        self.view_policy = ViewPolicy(view_seed, 1, "none")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a picture."""
        return 1, self._images.shape[1], self._images.shape[2]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> tuple[Tensor, dict[str, Tensor]]:
        position = int(index[0]) if isinstance(index, tuple) else int(index)
        image = (self._images[position].float() / 255 - _MEAN) / _STD
        return image[None], {"boxes": self._boxes[position], "labels": self._labels[position]}

    @staticmethod
    def collate_fn(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Return a batch: a list of pictures and a list of mappings, as detectors take them."""
        images, targets = zip(*samples, strict=True)
        return list(images), list(targets)

    @staticmethod
    def count_rows(batch: Any) -> int:
        """Return the number of pictures in a batch."""
        return len(batch[0])


def careless_boxes(
    boxes: list[Tensor], labels: list[Tensor], size: int, *, drop: float, jitter: float, seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return boxes as a careless annotator draws them.

    Args:
        boxes: For each picture ``[M, 4]``.
        labels: For each picture int64 ``[M]``.
        size: Side of the pictures.
        drop: Chance of each box to be left out.
        jitter: Deviation of each side, in parts of the box's size.
        seed: Of what is drawn.
    """
    # Scenes are drawn from the streams 0 and 1 of the same seed.
    rng = np.random.default_rng([seed % 2**63, 2])
    left, kept = [], []
    for found, classes in zip(boxes, labels, strict=True):
        keep = torch.from_numpy(rng.random(len(found)) >= drop)
        extent = (found[:, 2:] - found[:, :2]).repeat(1, 2)
        moved = found + extent * torch.from_numpy(rng.standard_normal((len(found), 4)) * jitter).float()
        low = moved[:, :2].clamp(0, size - 1)
        # At least a pixel wide and high: detectors refuse boxes without area.
        high = moved[:, 2:].clamp(max=size).maximum(low + 1)
        left.append(torch.cat([low, high], 1)[keep])
        kept.append(classes[keep])
    return left, kept


def load_boxes(name: str, scenes: SceneConfig | None, view_seed: int = 0) -> tuple[BoxDataset, BoxDataset]:
    """Return the datasets for training and evaluation; only the training boxes are careless.

    Args:
        name: ``digit_boxes``: handwritten digits composed on a canvas.
        scenes: How many, how large and how careless. Default: the defaults.
        view_seed: Seed that the one view is known by. Default: 0.
    """
    wanted = scenes or SceneConfig()
    parts = []
    for held_out, count in ((False, wanted.train), (True, wanted.eval)):
        made = compose_scenes(count, size=wanted.size, most=wanted.most, seed=wanted.seed, held_out=held_out)
        boxes, labels, classes = made.boxes, made.labels, SCENE_CLASSES
        if wanted.one_class:
            labels, classes = [one.clamp_max(1) for one in labels], ("background", "digit")
        if not held_out and (wanted.drop or wanted.jitter):
            boxes, labels = careless_boxes(
                boxes, labels, wanted.size, drop=wanted.drop, jitter=wanted.jitter, seed=wanted.seed
            )
        # Keys of evaluation begin at 2^40: the two parts have none in common, however many scenes are asked for.
        keys = torch.arange(count) + (held_out << 40)
        content = rows_content(made.images, f"mean {_MEAN} std {_STD}")
        info = DatasetInfo(name, keys, None, classes, "id", content)
        parts.append(BoxDataset(made.images, boxes, labels, info, view_seed))
    return parts[0], parts[1]
