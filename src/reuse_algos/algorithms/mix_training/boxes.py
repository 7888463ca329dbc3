"""Boxes as pure functions: which a strong view keeps, loses and gains, and where they are in that view.

Shapes: M true boxes, P pseudo-boxes, K boxes that are left; boxes are (x1, y1, x2, y2).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

_LEAST_SIDE = 2.0  # pixels of a box that is still one


def mixed_targets(
    boxes_M4: Tensor,
    labels_M: Tensor,
    scores_M: Tensor,
    pseudo_P6: Tensor,
    *,
    threshold: float = 0.9,
    overlap: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Return the targets of a strong view (Xu et al. 2021, MixTraining).

    Pseudo-boxes with a score above the threshold are added. A true box stays only where the teacher's probability at
    it is above the threshold, and where no such pseudo-box overlaps it: that one takes its place.

    Args:
        boxes_M4: Float, true boxes.
        labels_M: int64.
        scores_M: Float, the teacher's probability of the label at each true box.
        pseudo_P6: Float, what the teacher found: box, score, label. Rows of score 0 are unused.
        threshold: From 0 to 1. Default: 0.9.
        overlap: IoU from 0 to 1 above which a pseudo-box takes a true box's place. Default: 0.5.

    Returns:
        Boxes ``[K, 4]`` and labels int64 ``[K]``: true ones first.

    >>> true, found = torch.tensor([[0.0, 0, 4, 4], [8, 8, 12, 12]]), torch.tensor([[0.0, 0, 4, 5, 0.95, 3]])
    >>> boxes, labels = mixed_targets(true, torch.tensor([3, 1]), torch.tensor([0.97, 0.2]), found)
    >>> boxes.tolist(), labels.tolist()
    ([[0.0, 0.0, 4.0, 5.0]], [3])
    """
    sure = pseudo_P6[pseudo_P6[:, 4] > threshold]
    keep_M = scores_M > threshold
    if len(sure) and len(boxes_M4):
        keep_M = keep_M & (box_iou(boxes_M4.float(), sure[:, :4].float()) <= overlap).all(1)
    boxes = torch.cat([boxes_M4[keep_M], sure[:, :4].to(boxes_M4.dtype)])
    return boxes, torch.cat([labels_M[keep_M], sure[:, 5].long()])


def strong_view(
    image_CHW: Tensor, boxes_K4: Tensor, labels_K: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a strongly changed picture, with its boxes: colour, translation, rotation, shear, 1 to 5 cut-outs.

    Args:
        image_CHW: Float.
        boxes_K4: Float.
        labels_K: int64.
        rng: Drawn from.

    Returns:
        The picture, the boxes around what they held, cut at the border, and their labels. Boxes of which less than 2
        pixels are left in height or width are gone.
    """
    _, height, width = image_CHW.shape
    contrast, brightness = rng.uniform(0.6, 1.4), rng.uniform(-0.3, 0.3)
    angle, shear = math.radians(rng.uniform(-10, 10)), math.radians(rng.uniform(-8, 8))
    shift_x, shift_y = rng.uniform(-0.2, 0.2, 2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = turn @ np.array([[1.0, math.tan(shear)], [0.0, 1.0]])
    # From places of the result to places of the picture, both from -1 to 1 as grid_sample has them.
    scale = np.diag([width / 2, height / 2])
    back = np.linalg.inv(scale) @ np.linalg.inv(forward) @ scale
    shift = np.array([2 * shift_x, 2 * shift_y])
    theta = torch.tensor(np.hstack([back, (-back @ shift)[:, None]]), dtype=image_CHW.dtype, device=image_CHW.device)
    grid = F.affine_grid(theta[None], [1, *image_CHW.shape], align_corners=False)
    changed = F.grid_sample(image_CHW[None] * contrast + brightness, grid, padding_mode="border", align_corners=False)
    view = changed[0]
    for _ in range(int(rng.integers(1, 6))):
        side_y, side_x = (max(1, int(size * rng.uniform(0.03, 0.12))) for size in (height, width))
        top, left = int(rng.integers(0, height - side_y + 1)), int(rng.integers(0, width - side_x + 1))
        view[:, top : top + side_y, left : left + side_x] = view.mean()
    corners = boxes_K4[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).double()
    # affine_grid turns about the middle of the picture, not about its corner.
    middle = torch.tensor([width / 2, height / 2], dtype=torch.float64, device=corners.device)
    moved = (corners - middle) @ torch.tensor(forward.T, device=corners.device) + middle
    moved = moved + torch.tensor([shift_x * width, shift_y * height], device=corners.device)
    low, high = moved.amin(1), moved.amax(1)
    limit = torch.tensor([width, height], dtype=torch.float64, device=corners.device)
    low, high = low.clamp_min(0).minimum(limit), high.clamp_min(0).minimum(limit)
    left_K = (high - low >= _LEAST_SIDE).all(1)
    return view, torch.cat([low, high], 1)[left_K].to(boxes_K4.dtype), labels_K[left_K]
