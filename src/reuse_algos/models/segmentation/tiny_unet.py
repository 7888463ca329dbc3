"""A small U-Net (Ronneberger et al. 2015, arXiv 1505.04597): two levels, under 100,000 parameters at a width of 16.

Legend: B examples, C channels, K classes, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _block(in_channels: int, *channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in channels:
        layers += [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        in_channels = width
    return nn.Sequential(*layers)


class TinyUNet(nn.Module):
    """Convolutions at three resolutions; what comes back up is joined with what was there on the way down.

    Args:
        num_classes: K.
        in_channels: C. Default: 1.
        width: Channels at full resolution; 2 and 4 times as many below. Default: 16.
    """

    def __init__(self, num_classes: int, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.down1 = _block(in_channels, width, width)
        self.down2 = _block(width, 2 * width, 2 * width)
        self.bottom = _block(2 * width, 4 * width)
        self.up2 = _block(6 * width, 2 * width)
        self.up1 = _block(3 * width, width)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits ``[B, K, H, W]`` of float ``[B, C, H, W]``, H and W at least 4."""
        one = self.down1(images_BCHW)
        two = self.down2(F.max_pool2d(one, 2))
        three = self.bottom(F.max_pool2d(two, 2))
        # To the sizes on the way down and not to twice the size: they may be odd.
        two = self.up2(torch.cat([F.interpolate(three, two.shape[2:]), two], 1))
        one = self.up1(torch.cat([F.interpolate(two, one.shape[2:]), one], 1))
        return self.head(one)
