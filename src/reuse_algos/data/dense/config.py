"""The ``scenes:`` section of a recipe's data."""

from __future__ import annotations

from dataclasses import dataclass

DENSE_NAMES = ("digit_scenes", "mni152", "dense_npz")
"""Datasets with a class for each pixel, by name."""

DETECTION_NAMES = ("digit_boxes",)
"""Datasets with boxes, by name."""


@dataclass(frozen=True)
class SceneConfig:
    """Scenes that are composed of real handwritten digits.

    Attributes:
        train: Number of scenes for training, at least 1. Default: 600.
        eval: Number of scenes for evaluation, of other digits, at least 1. Default: 200.
        size: Height and width in pixels, at least 16. Default: 32.
        most: Most digits in a scene, at least 1; each scene has 1 to so many. Default: 3.
        seed: Seed of the places, sizes and noise. Default: 0.
        drop: Of ``digit_boxes``: share of the training boxes that is left out, as a careless annotator does, at least 0
            and below 1. Default: 0.
        jitter: Of ``digit_boxes``: deviation of each side of a training box, in parts of its size, at least 0. Default:
            0.
        one_class: Of ``digit_boxes``: every digit has the same class, so that digits are found and not told apart. To
            tell them apart takes a small detector many more steps. Default: False.

    Raises:
        ValueError: A number is out of its range.
    """

    train: int = 600
    eval: int = 200
    size: int = 32
    most: int = 3
    seed: int = 0
    drop: float = 0.0
    jitter: float = 0.0
    one_class: bool = False

    def __post_init__(self) -> None:
        for key, least in (("train", 1), ("eval", 1), ("size", 16), ("most", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key} must be at least {least}, got {getattr(self, key)}")
        if not 0 <= self.drop < 1 or self.jitter < 0:
            raise ValueError(
                f"drop must be at least 0 and below 1, and jitter at least 0, got {self.drop} and {self.jitter}"
            )
