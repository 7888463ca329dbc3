"""Name -> Composer model with a class for each pixel, its loss, and the mean intersection over union."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
import torchvision.models
from composer.models import ComposerModel
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassJaccardIndex

from reuse_algos.errors import ModelError
from reuse_algos.models.segmentation.tiny_unet import TinyUNet

SEGMENTATION_MODELS = ("tiny_unet", "lraspp_mobilenet_v3_large")

_IGNORED = 255  # as Pascal VOC and Cityscapes mark pixels without a class
_WIDTH = 16


class SegmentationModel(ComposerModel):
    """A network with logits ``[B, K, H, W]``, cross entropy over the pixels that count, and their mean IoU.

    Args:
        module: The network; torchvision's return a mapping with ``out``.
        num_classes: K.
        reuse_config: What :func:`~reuse_algos.models.build_model` takes to build the same architecture again.
        ignore_index: Mask value of pixels that do not count. Default: 255.
    """

    def __init__(
        self, module: nn.Module, num_classes: int, reuse_config: dict[str, Any], ignore_index: int = _IGNORED
    ) -> None:
        super().__init__()
        self.module, self.num_classes, self.reuse_config = module, num_classes, reuse_config
        self.ignore_index = ignore_index
        # One each: training and evaluation add up on their own.
        self._iou = {
            part: MulticlassJaccardIndex(num_classes, average="macro", ignore_index=ignore_index)
            for part in ("train", "eval")
        }

    def forward(self, batch: Any) -> Tensor:
        """Return logits ``[B, K, H, W]`` of the first element of a batch."""
        outputs = self.module(batch[0])
        return outputs["out"] if isinstance(outputs, dict) else outputs

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the cross entropy, a mean over the pixels that count; 0 where none does."""
        targets = batch[1]
        # Divided by hand: torch's mean over no pixel is NaN.
        total = F.cross_entropy(outputs, targets, ignore_index=self.ignore_index, reduction="sum")
        return total / (targets != self.ignore_index).sum().clamp_min(1)

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        """Return the mean intersection over union."""
        return {"MulticlassJaccardIndex": self._iou["train" if is_train else "eval"]}

    def update_metric(self, batch: Any, outputs: Any, metric: Metric) -> None:
        """Add a batch."""
        metric.update(outputs, batch[1])


def build_segmentation_model(
    name: str, num_classes: int, image_shape: tuple[int, int, int], width: int | None = None
) -> SegmentationModel:
    """Build a model with random weights, drawn from torch's global generator.

    Args:
        name: One of :data:`SEGMENTATION_MODELS`.
        num_classes: K, at least 2.
        image_shape: (C, H, W) of the pictures; ``lraspp_mobilenet_v3_large`` takes 3 channels.
        width: Of ``tiny_unet``, channels at full resolution. Default: 16.

    Raises:
        ModelError: The pictures do not suit the model.
    """
    channels, height, side = image_shape
    config: dict[str, Any] = {"name": name, "num_classes": num_classes, "image_shape": list(image_shape)}
    if name == "tiny_unet":
        config["width"] = _WIDTH if width is None else width
        if min(height, side) < 4 or config["width"] < 1:
            raise ModelError(f"Model {name!r} needs pictures of 4 x 4 or more and a width of 1 or more.")
        return SegmentationModel(TinyUNet(num_classes, channels, config["width"]), num_classes, config)
    if width is not None:
        raise ModelError(f"model.width: {name!r} of torchvision has a fixed width; take another model.")
    if channels != 3:
        raise ModelError(f"Model {name!r} takes pictures of 3 channels, not {channels}. Take model: tiny_unet.")
    # weights_backbone, too: by default torchvision fetches pretrained weights of the backbone.
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=num_classes)
    return SegmentationModel(network, num_classes, config)
