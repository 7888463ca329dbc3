"""Online adversarial training: what it trains on, that it resumes, and that two ranks agree with one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from composer import Algorithm, Event
from composer.algorithms import MixUp
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import TensorDataset

from reuse_algos.algorithms import AdversarialTraining
from reuse_algos.algorithms.adversarial_training import adversarial_inputs
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.errors import ExampleIdError, PriorRunMismatchError, TaskError
from reuse_algos.training.attacks import Attack
from toy import loader, trainer

PLAIN = {"pixel_mean": (0.0,), "pixel_std": (1.0,)}


def images(count: int = 32) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(count, 1, 4, 4, generator=generator), torch.arange(count) % 3)


def net(norm: bool = True) -> ComposerClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.ReLU(), nn.Linear(8, 3)
        )
    return ComposerClassifier(layers, num_classes=3)


class Keep(Algorithm):
    """Keeps the inputs of each forward pass."""

    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []

    def match(self, event: Event, state: Any) -> bool:
        return event == Event.AFTER_FORWARD

    def apply(self, event: Event, state: Any, logger: Any) -> None:
        self.inputs.append(state.batch[0].detach().clone())


def fit(*algorithms: Algorithm, epochs: int = 2, norm: bool = True, **arguments: Any) -> dict[str, torch.Tensor]:
    model = net(norm)
    trainer(loader(images()), model, max_duration=f"{epochs}ep", algorithms=list(algorithms), **arguments).fit()
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_fgsm_of_a_linear_model_is_the_sign_of_its_weights() -> None:
    layer = nn.Linear(16, 2)
    inputs, labels = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])
    numbers = torch.arange(2)
    moved = adversarial_inputs(
        layer,
        lambda x: layer(x.flatten(1)),
        inputs,
        labels,
        Attack("fgsm", 0.1),
        PixelSpace((0.0,), (1.0,)),
        keys_B=numbers,
        views_B=numbers,
    )
    away = (layer.weight[1] - layer.weight[0]).sign().view(1, 4, 4)
    assert torch.allclose(moved, 0.5 + 0.1 * torch.stack([away, -away]))
    assert layer.training
    assert layer.weight.grad is None


def test_training_sees_perturbed_images_inside_the_ball() -> None:
    keep, attack = Keep(), AdversarialTraining(0.1, steps=2, **PLAIN)
    fit(attack, keep, epochs=1)
    clean = images().tensors[0]
    moved = torch.cat(keep.inputs)
    assert 0.05 < (moved - clean).abs().max() <= 0.1 + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert attack.extra_flops(10) == 2 * 2 * 10 * 32


def test_each_training_has_the_pixels_of_its_own_data() -> None:
    """Given to a second Trainer whose images are normalised otherwise, the radius is still that of pixels."""
    keep, attack = Keep(), AdversarialTraining(0.1, method="fgsm", steps=1)
    for std in (1.0, 0.5):
        data, keep.inputs = TensorDataset(images().tensors[0] / std, images().tensors[1]), []
        data.pixel_space = PixelSpace((0.0,), (std,))  # type: ignore[attr-defined]
        trainer(loader(data), net(), max_duration="1ep", algorithms=[attack, keep]).fit()
        moved = (torch.cat(keep.inputs) * std - images().tensors[0]).abs().max()
        assert float(moved) == pytest.approx(0.1, rel=1e-5)


def test_what_it_cannot_attack_is_refused() -> None:
    with pytest.raises(ExampleIdError, match="pixel_mean"):
        fit(AdversarialTraining(0.1))
    for given in ({}, PLAIN):
        with pytest.raises(TaskError, match=r"its inputs are images \[B, C, H, W\].*found nothing"):
            fit(AdversarialTraining(0.1, input_key="pixels", **given))
    with pytest.raises(PriorRunMismatchError, match="MixUp leaves no image"):
        fit(AdversarialTraining(0.1, **PLAIN), MixUp(alpha=0.2))
    with pytest.raises(ValueError, match="go together"):
        AdversarialTraining(0.1, pixel_mean=(0.0,))
    with pytest.raises(ValueError, match="epsilon"):
        AdversarialTraining(2.0)
