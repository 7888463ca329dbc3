"""A small convolutional network for the embedded handwritten digits: over 97 % in a few seconds on a CPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Three 3 x 3 convolutions with batch norm, max pooling after the second, global average pooling, a linear layer.

    Args:
        num_classes: K.
        in_channels: C.
        width: Channels of the first convolution; the others have 2 and 4 times as many.
    """

    def __init__(self, num_classes: int, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of float ``[B, C, H, W]``, H and W at least 2."""
        x_BCHW = F.relu(self.bn1(self.conv1(images_BCHW)))
        x_BCHW = F.max_pool2d(F.relu(self.bn2(self.conv2(x_BCHW))), 2)
        x_BCHW = F.relu(self.bn3(self.conv3(x_BCHW)))
        return self.fc(x_BCHW.mean((2, 3)))
