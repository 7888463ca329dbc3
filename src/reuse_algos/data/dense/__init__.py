"""Pictures with a class for each pixel, or with boxes."""

from __future__ import annotations

from reuse_algos.data.dense.boxes import BoxDataset, load_boxes
from reuse_algos.data.dense.config import DENSE_NAMES, DETECTION_NAMES, SceneConfig
from reuse_algos.data.dense.dataset import IGNORED_PIXEL, DenseDataset, load_dense
from reuse_algos.data.dense.scenes import Scenes, compose_scenes

__all__ = [
    "DENSE_NAMES",
    "DETECTION_NAMES",
    "IGNORED_PIXEL",
    "BoxDataset",
    "DenseDataset",
    "SceneConfig",
    "Scenes",
    "compose_scenes",
    "load_boxes",
    "load_dense",
]
