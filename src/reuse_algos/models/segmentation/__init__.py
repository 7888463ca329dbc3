"""Models that say a class for each pixel."""

from __future__ import annotations

from reuse_algos.models.segmentation.build import SEGMENTATION_MODELS, SegmentationModel, build_segmentation_model
from reuse_algos.models.segmentation.tiny_unet import TinyUNet

__all__ = ["SEGMENTATION_MODELS", "SegmentationModel", "TinyUNet", "build_segmentation_model"]
