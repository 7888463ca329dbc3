"""Data and models with a time that several tests share."""

from __future__ import annotations

from typing import Any

import torch
from composer import Trainer
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import TensorDataset

from reuse_algos.algorithms.gradient_interpolation import GradientInterpolation
from reuse_algos.models.time_conditioned import TimeConditioned
from toy import epoch_loader, trainer


def timed_blobs(length: int = 64, seed: int = 0) -> TensorDataset:
    """Two classes whose centres turn with the time, the last of the three columns."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(length) % 2
    times = torch.arange(length).div(length, rounding_mode="floor").float() + torch.rand(length, generator=generator)
    angle = times * 1.5 + labels * torch.pi
    points = torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(length, 2, generator=generator)
    return TensorDataset(torch.cat([points, times[:, None]], 1), labels)


def timed_model(seed: int = 0, *, norm: bool = True) -> ComposerClassifier:
    """A net that is told the time, with batch norm and dropout unless they are not wanted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        extra = [nn.BatchNorm1d(8), nn.Dropout(0.2)] if norm else []
        net = nn.Sequential(nn.Linear(2 + 3, 8), *extra, nn.Tanh(), nn.Linear(8, 2))
        return ComposerClassifier(TimeConditioned(net, 3), num_classes=2)


def timed_trainer(**arguments: Any) -> tuple[Trainer, GradientInterpolation]:
    """A Trainer with gradient interpolation, without batch norm and dropout, whose sums depend on the ranks."""
    algorithm = GradientInterpolation(steps=2)
    made = trainer(
        epoch_loader(timed_blobs()), timed_model(norm=False), algorithms=[algorithm], max_duration="2ep", **arguments
    )
    return made, algorithm
