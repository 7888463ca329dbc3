"""Residual networks for small images.

He et al., "Deep residual learning for image recognition", section 4.2, https://arxiv.org/abs/1512.03385: a 3 x 3
convolution, three stages of n blocks with 16, 32 and 64 channels, global average pooling and a linear layer; 6 n + 2
layers. Shortcuts are of option A: where the size changes, every second pixel, and zeros for the new channels, so
shortcuts have no parameters.

Legend: B examples, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm beside an option A shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, at least as many.
        stride: 1, or 2 to halve the size.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self._stride = stride
        self._new_channels = out_channels - in_channels

    def shortcut(self, x_BCHW: Tensor) -> Tensor:
        """Return the input, brought to the shape of the output without parameters."""
        if self._stride != 1:
            x_BCHW = x_BCHW[:, :, :: self._stride, :: self._stride]
        if self._new_channels:
            x_BCHW = F.pad(x_BCHW, (0, 0, 0, 0, 0, self._new_channels))
        return x_BCHW

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return ``[B, out_channels, ceil(H / stride), ceil(W / stride)]`` of float ``[B, in_channels, H, W]``."""
        y_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = self.bn2(self.conv2(y_BCHW))
        return F.relu(y_BCHW + self.shortcut(x_BCHW))


class CifarResNet(nn.Module):
    """A residual network of ``6 * blocks_per_stage + 2`` layers.

    Convolutions start from Kaiming's normal distribution (fan out), batch norms from 1 and 0; the linear layer as torch
    does it.

    Args:
        blocks_per_stage: n; 3 for ResNet-20, 9 for ResNet-56.
        num_classes: K.
        in_channels: Channels of the images.
        width: Channels of the first stage; 16 in the paper.
    """

    def __init__(self, blocks_per_stage: int, num_classes: int, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        stages = []
        channels = width
        for stage in range(3):
            out_channels = width * 2**stage
            blocks = []
            for block in range(blocks_per_stage):
                blocks.append(BasicBlock(channels, out_channels, stride=2 if stage and not block else 1))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of float ``[B, C, H, W]`` of any size."""
        x_BCHW = F.relu(self.bn1(self.conv1(images_BCHW)))
        x_BCHW = self.layer3(self.layer2(self.layer1(x_BCHW)))
        return self.fc(x_BCHW.mean((2, 3)))
