"""Models by name: classifiers of images and texts, language models, models for masks, and detectors."""

from __future__ import annotations

from reuse_algos.models.build import ModelConfig, build_model, model_names
from reuse_algos.models.cifar_resnet import CifarResNet
from reuse_algos.models.digits_cnn import DigitsCNN
from reuse_algos.models.outline import outline_model

__all__ = ["CifarResNet", "DigitsCNN", "ModelConfig", "build_model", "model_names", "outline_model"]
