"""What an archived detector says of the training images, as rows of one size.

Shapes: B images, M rows of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from reuse_algos.errors import DataError

BOX_SIGNALS = ("boxes", "gt_scores")

_ROWS = 32
_SAME_PLACE = 0.5  # IoU above which a detection is at a true box


def box_rows(signal: str, found: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return the rows of a signal of detectors, float16.

    Args:
        signal: ``boxes``: the detections of each image with the highest scores, ``[B, 32, 6]`` (x1, y1, x2, y2, score,
            label); unused rows are 0. ``gt_scores``: for each true box the highest score of a detection of its label
            that overlaps it with an IoU above 0.5, or 0: ``[B, 32]``.
        found: Of each image ``boxes``, ``scores`` and ``labels``.
        targets: Of each image the true ``boxes`` and ``labels``.

    Raises:
        DataError: An image has more than 32 true boxes.
    """
    # All images need rows of one size, so unused rows stay 0.
    rows = torch.zeros(len(found), _ROWS, 6) if signal == "boxes" else torch.zeros(len(found), _ROWS)
    for place, (one, target) in enumerate(zip(found, targets, strict=True)):
        if signal == "boxes":
            # Stable, so that equal scores give the same row every time.
            best = one["scores"].argsort(descending=True, stable=True)[:_ROWS]
            parts = (one["boxes"][best], one["scores"][best, None], one["labels"][best, None])
            rows[place, : len(best)] = torch.cat([part.float().cpu() for part in parts], 1)
            continue
        count = len(target["boxes"])
        if count > _ROWS:
            raise DataError(f"an image has {count} true boxes, and gt_scores has room for {_ROWS}.")
        if not count or not len(one["boxes"]):
            continue
        at = box_iou(target["boxes"].float(), one["boxes"].float()) > _SAME_PLACE
        at &= target["labels"][:, None] == one["labels"][None]
        rows[place, :count] = (at * one["scores"][None]).amax(1).float().cpu()
    return rows.half()
