"""Scenes composed of real handwritten digits, with exact boxes and masks.

Shapes: N scenes, S their side, M digits of a scene.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_algos.errors import DataError

SCENE_CLASSES = ("background", *(f"digit {digit}" for digit in range(10)))

_INK = 0.35  # of the brightest: what counts as the digit and not as its background
_NOISE = 0.12


class Scenes(NamedTuple):
    """Pictures and what is in them.

    Attributes:
        images: uint8 ``[N, S, S]``.
        masks: uint8 ``[N, S, S]``: 0 for the background, 1 + digit for the pixels of a digit.
        boxes: For each scene float32 ``[M, 4]`` (x1, y1, x2, y2): the pixels of each digit, whether or not another one
            covers some.
        labels: For each scene int64 ``[M]``, 1 + digit.
    """

    images: Tensor
    masks: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]


def compose_scenes(count: int, *, size: int, most: int, seed: int, held_out: bool) -> Scenes:
    """Compose scenes of scikit-learn's 1,797 handwritten digits. Nothing is drawn from a global generator.

    Args:
        count: N.
        size: S, at least 16.
        most: Most digits in a scene.
        seed: Of what is drawn.
        held_out: Whether to take every fifth digit, which no other scene shows, or the other four fifths.

    Raises:
        DataError: Scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("data.name: digit_scenes needs scikit-learn. Install reuse-algos[demo].") from error
    found: Any = load_digits()
    fifth = np.arange(len(found.target)) % 5 == 0
    chosen = fifth if held_out else ~fifth
    # scikit-learn's digits have grey values from 0 to 16.
    digits, targets = torch.from_numpy(found.images[chosen] / 16.0).float(), found.target[chosen]
    # numpy takes no negative seeds.
    rng = np.random.default_rng([seed % 2**63, int(held_out)])
    images = torch.zeros(count, size, size)
    masks = torch.zeros(count, size, size, dtype=torch.uint8)
    boxes: list[Tensor] = []
    labels: list[Tensor] = []
    for scene in range(count):
        found_boxes, found_labels = [], []
        for _ in range(int(rng.integers(1, most + 1))):
            which = int(rng.integers(len(targets)))
            side = int(rng.integers(size * 5 // 16, size // 2 + 1))
            top, left = (int(rng.integers(0, size - side + 1)) for _ in range(2))
            digit = F.interpolate(digits[which][None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]
            ink = digit > _INK
            places = ink.nonzero()
            window = slice(top, top + side), slice(left, left + side)
            images[scene][window] = torch.where(ink, digit, images[scene][window])
            masks[scene][window] = torch.where(ink, 1 + int(targets[which]), masks[scene][window]).to(torch.uint8)
            (y1, x1), (y2, x2) = places.amin(0).tolist(), places.amax(0).tolist()
            found_boxes.append([left + x1, top + y1, left + x2 + 1, top + y2 + 1])
            found_labels.append(1 + int(targets[which]))
        boxes.append(torch.tensor(found_boxes, dtype=torch.float32))
        labels.append(torch.tensor(found_labels, dtype=torch.int64))
    noise = torch.from_numpy(rng.standard_normal((count, size, size), dtype=np.float32)) * _NOISE
    return Scenes(((images + noise).clamp(0, 1) * 255).round().to(torch.uint8), masks, boxes, labels)
