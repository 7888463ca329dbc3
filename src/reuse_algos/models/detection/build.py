"""Name -> Composer model around one of torchvision's detectors.

A batch is a pair of lists: B images float ``[C, H, W]``, and B mappings with ``boxes`` float ``[M, 4]`` (x1, y1, x2,
y2) and ``labels`` int64 ``[M]``, M from 0.
"""

from __future__ import annotations

from typing import Any

import torchvision.models
from composer.models import ComposerModel
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from reuse_algos.errors import ModelError

DETECTION_MODELS = ("tiny_fcos", "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn")

_WIDTH, _STRIDE = 32, 4
_MOST_BOXES = 20


class DetectionModel(ComposerModel):
    """A torchvision detector: a mapping of losses while training, a list of detections otherwise.

    Args:
        module: The detector.
        num_classes: Classes, the background (0) included.
        reuse_config: What :func:`~reuse_algos.models.build_model` takes to build the same architecture again.
    """

    def __init__(self, module: nn.Module, num_classes: int, reuse_config: dict[str, Any]) -> None:
        super().__init__()
        self.module, self.num_classes, self.reuse_config = module, num_classes, reuse_config

    def forward(self, batch: Any) -> Any:
        """Return the losses of a batch, or in evaluation mode what was found in its images."""
        images, targets = batch
        # torchvision's detectors give losses in training mode only, and detections in evaluation mode only.
        return self.module(images, targets) if self.training else self.module(images)

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the detector's losses, which Composer adds up."""
        # The detector has computed them in its forward pass.
        return dict(outputs)

    def eval_forward(self, batch: Any, outputs: Any | None = None) -> list[dict[str, Tensor]]:
        """Return what is found in each image: ``boxes``, ``scores`` and ``labels``."""
        return self(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        """Return the average precision at an IoU of 0.5, of evaluation only."""
        return {} if is_train else {"AveragePrecision50": _average_precision()}

    def update_metric(self, batch: Any, outputs: Any, metric: Metric) -> None:
        """Add a batch."""
        metric.update(outputs, batch[1])


class AveragePrecision50(MeanAveragePrecision):
    """Torchmetrics' mean average precision at an IoU of 0.5, as one number.

    Args:
        **options: As for ``MeanAveragePrecision``.
    """

    higher_is_better = True

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the mean over classes, from 0 to 1; -1 where nothing can be found."""
        return super().compute()["map_50"]


def _average_precision() -> Metric:
    try:
        return AveragePrecision50(iou_thresholds=[0.5], backend="faster_coco_eval")
    except ImportError as error:
        raise ModelError(
            "the metric of detectors needs the package faster-coco-eval. Install reuse-algos[detection]."
        ) from error


class _Backbone(nn.Sequential):
    """Convolutions that quarter the size, for pictures of about 64 pixels."""

    out_channels: int

    def __init__(self, in_channels: int, width: int) -> None:
        layers: list[nn.Module] = []
        plan = ((in_channels, width, 1), (width, width, 2), (width, 2 * width, 2), (2 * width, 2 * width, 1))
        for source, channels, stride in plan:
            conv = nn.Conv2d(source, channels, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
        super().__init__(*layers)
        self.out_channels = 2 * width


def build_detection_model(
    name: str, num_classes: int, image_shape: tuple[int, int, int], width: int | None = None
) -> DetectionModel:
    """Build a detector with random weights, drawn from torch's global generator.

    Args:
        name: One of :data:`DETECTION_MODELS`. ``tiny_fcos`` (Tian et al. 2019, arXiv 1904.01355, at one resolution) is
            for pictures of about 64 pixels.
        num_classes: Classes, the background included.
        image_shape: (C, H, W) of the pictures; torchvision's own take 3 channels.
        width: Of ``tiny_fcos``, channels of the first convolution, at least 16 in steps of 16. Default: 32.

    Raises:
        ModelError: The pictures or the width do not suit the model.
    """
    channels, height, side = image_shape
    config: dict[str, Any] = {"name": name, "num_classes": num_classes, "image_shape": list(image_shape)}
    if name != "tiny_fcos":
        if width is not None or channels != 3:
            raise ModelError(f"Model {name!r} takes pictures of 3 channels, and has a fixed width.")
        # weights_backbone, too: by default torchvision fetches pretrained weights of the backbone.
        network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=num_classes)
        return DetectionModel(network, num_classes, config)
    config["width"] = _WIDTH if width is None else width
    if config["width"] < 16 or config["width"] % 16:
        raise ModelError(f"model.width: must be 16, 32, 48 ... for {name!r}, whose norms have groups of 16.")
    network = FCOS(
        _Backbone(channels, config["width"]),
        num_classes,
        min_size=min(height, side),
        max_size=max(height, side),
        image_mean=[0.0] * channels,  # the data are normalised
        image_std=[1.0] * channels,
        anchor_generator=AnchorGenerator(sizes=((2 * _STRIDE,),), aspect_ratios=((1.0,),)),
        score_thresh=0.02,
        nms_thresh=0.5,
        detections_per_img=_MOST_BOXES,
    )
    # Distances to the sides of a box go through a ReLU. From a bias of 0 they may all be 0 after some steps, for good:
    # their gradient is 0, too. In units of the anchor's side, 1 is a box of 16 pixels.
    nn.init.ones_(network.head.regression_head.bbox_reg.bias)  # type: ignore[arg-type]
    return DetectionModel(network, num_classes, config)
