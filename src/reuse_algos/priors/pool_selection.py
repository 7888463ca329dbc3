"""Which classes the images of an unlabelled pool are taken for, by the scores of a teacher.

Legend: N images, C classes, M chosen pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["select_pairs"]


def select_pairs(scores_NC: Tensor, *, per_class: int, per_image: int = 1) -> tuple[Tensor, Tensor]:
    """Return the pairs of image and class that a student is trained on.

    Each image proposes its best classes, and each class takes its best images among those that propose it (Yalniz et
    al. 2019, https://arxiv.org/abs/1905.00546, section 3). An image may serve several classes, and none. Of equal
    scores the lower class number and the earlier image come first, so that the choice does not depend on the device.

    Args:
        scores_NC: A teacher's score of each class for each image, larger is better, such as softmax probabilities.
        per_class: K, how many images each class takes at most; from 1.
        per_image: P, how many classes each image proposes; from 1 to C. Default: 1.

    Returns:
        Image numbers and class numbers, int64 ``[M]`` on the device of the scores: class after class, and within a
        class the best image first.

    Raises:
        ValueError: The scores are not a matrix of numbers, or K or P is out of its range.
    """
    if scores_NC.dim() != 2 or not scores_NC.is_floating_point():
        raise ValueError(f"scores must be a float matrix [N, C], got {scores_NC.dtype} {tuple(scores_NC.shape)}")
    if bool(scores_NC.isnan().any()):
        raise ValueError("scores hold NaN: of these images it is not known which class is best")
    classes = scores_NC.shape[1]
    if not 1 <= per_image <= classes:
        raise ValueError(f"per_image must be from 1 to the number of classes {classes}, got {per_image}")
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    proposed_NP = scores_NC.sort(dim=1, descending=True, stable=True).indices[:, :per_image]
    proposes_NC = torch.zeros_like(scores_NC, dtype=torch.bool).scatter_(1, proposed_NP, True)
    order_NC = scores_NC.sort(dim=0, descending=True, stable=True).indices
    ranked_NC = proposes_NC.gather(0, order_NC)
    # Of the images in a class's order, the first K that propose it.
    taken_NC = ranked_NC & (ranked_NC.cumsum(0) <= per_class)
    class_M, place_M = taken_NC.T.nonzero(as_tuple=True)
    return order_NC[place_M, class_M], class_M
