"""Pictures with a class for each pixel."""

from __future__ import annotations

from reuse_algos.data.dense.config import DENSE_NAMES, SceneConfig
from reuse_algos.data.dense.dataset import IGNORED_PIXEL, DenseDataset, load_dense
from reuse_algos.data.dense.scenes import Scenes, compose_scenes

__all__ = ["DENSE_NAMES", "IGNORED_PIXEL", "DenseDataset", "SceneConfig", "Scenes", "compose_scenes", "load_dense"]
