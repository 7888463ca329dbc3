"""The loss on mixed images that stands beside the loss on the images.

Legend: B examples of a microbatch, ... the other dimensions of an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from composer import Algorithm, Event, Logger, State
from torch import Tensor

from reuse_algos.errors import DataError


def mix_images(images_B: Tensor, order_B: Tensor, share: float) -> Tensor:
    """Return ``share`` of each image and the rest of another.

    Zhang et al., "mixup: beyond empirical risk minimization", https://arxiv.org/abs/1710.09412.

    Args:
        images_B: Floats ``[B, ...]``.
        order_B: int64 ``[B]``: the other image of each.
        share: From 0 to 1.
    """
    return share * images_B + (1 - share) * images_B[order_B]


class MixTerm(Algorithm):
    """Adds the loss of mixed images, as SemiFL does with the images that a model has labelled.

    The loss of a mixed image is that by the label of either image, in the shares of the mix.

    Args:
        alpha: Both parameters of the Beta distribution of the share, above 0. Default: 0.75.
        weight: Of this loss, at least 0. Default: 1.
        seed: Of the shares and pairs; a whole number of at least 0, or several. Default: 0.
    """

    def __init__(self, alpha: float = 0.75, weight: float = 1.0, seed: int | Sequence[int] = 0) -> None:
        if alpha <= 0 or weight < 0:
            raise ValueError(f"alpha must be above 0 and weight at least 0, got {alpha} and {weight}")
        self.alpha, self.weight = alpha, weight
        self._generator = np.random.default_rng(seed)

    def match(self, event: Event, state: State) -> bool:
        """Return true after the loss of a microbatch is computed."""
        return event == Event.AFTER_LOSS and self.weight > 0

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Add the loss of mixed images to the loss."""
        images, labels = _image_batch(state.batch)
        # From a generator of its own: the term must not change what else is drawn.
        order_B = torch.from_numpy(self._generator.permutation(len(images))).to(images.device)
        share = float(self._generator.beta(self.alpha, self.alpha))
        mixed = mix_images(images, order_B, share)
        model: Any = state.model
        outputs = model((mixed, labels))
        own, other = (model.loss(outputs, (mixed, target)) for target in (labels, labels[order_B]))
        state.loss = state.loss + self.weight * (share * own + (1 - share) * other)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator."""
        return {**super().state_dict(), "generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Take the state of the generator back."""
        # Without it a round that is gone on with would mix other pairs.
        self._generator.bit_generator.state = state["generator"]


def _image_batch(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(one, Tensor) for one in batch):
        raise DataError(f"mixing needs batches of images and class numbers, got {type(batch).__name__}")
    return batch[0], batch[1]
