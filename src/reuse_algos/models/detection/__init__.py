"""Detectors of torchvision as Composer models."""

from __future__ import annotations

from reuse_algos.models.detection.build import DETECTION_MODELS, DetectionModel, build_detection_model

__all__ = ["DETECTION_MODELS", "DetectionModel", "build_detection_model"]
