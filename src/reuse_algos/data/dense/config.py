"""The ``scenes:`` section of a recipe's data."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DENSE_NAMES", "SceneConfig"]

DENSE_NAMES = ("digit_scenes", "mni152", "dense_npz")
"""Datasets with a class for each pixel, by name."""


@dataclass(frozen=True)
class SceneConfig:
    """Scenes that are composed of real handwritten digits.

    Attributes:
        train: Number of scenes for training, at least 1. Default: 600.
        eval: Number of scenes for evaluation, of other digits, at least 1. Default: 200.
        size: Height and width in pixels, at least 16. Default: 32.
        most: Most digits in a scene, at least 1; each scene has 1 to so many. Default: 3.
        seed: Seed of the places, sizes and noise. Default: 0.

    Raises:
        ValueError: A number is out of its range.
    """

    train: int = 600
    eval: int = 200
    size: int = 32
    most: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for key, least in (("train", 1), ("eval", 1), ("size", 16), ("most", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key} must be at least {least}, got {getattr(self, key)}")
