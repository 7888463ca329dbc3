"""What is computed and counted for a view of adversarial examples, without an archive around it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reuse_algos.archive.signals.success import success_rates
from reuse_algos.data import DataConfig, ExampleView, load_datasets
from reuse_algos.data.images.device_loader import DeviceImages
from reuse_algos.errors import ModelError
from reuse_algos.harvest.adversarial import attack_settings, attack_view
from reuse_algos.harvest.computations import ArchivedForward
from reuse_algos.training.attacks import Attack

N = 200


def images() -> DeviceImages:
    data = load_datasets(DataConfig(name="digits", train_examples=N, augment="crop", num_views=2)).train
    assert isinstance(data, DeviceImages)
    return data


def view_of(data: DeviceImages, view: int) -> tuple[Tensor, Tensor]:
    return data.__getitems__([ExampleView(i, view) for i in range(len(data))])


class Constant(nn.Module):
    """Its logits do not depend on the images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model_like()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.round().detach())


class Wrapped(nn.Module):
    """A linear model of what a function makes of the images."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change, self.inner = change, model_like()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.change(x))


def model_like() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_a_model_without_input_gradients() -> None:

    data = images()
    batches = [(view_of(data, 0), data.info.labels)]
    cases = [
        (Constant(), "no gradient with respect to its inputs"),
        (Wrapped(lambda x: x.round()), "is 0 for every example of view 0"),
        (Wrapped(lambda x: x * (x - x.detach()).abs().sqrt()), f"is not finite for {N} of the {N} examples"),
        (nn.Flatten(0), "logits"),
    ]
    for model, message in cases:
        forward = ArchivedForward(model.eval(), torch.device("cpu"), None, 0, None, 1)
        with pytest.raises(ModelError, match=message):
            attack_view(
                attack_settings(data, Attack("pgd", 0.1), None), forward, data.info.keys, 0, batches, lambda _: None
            )


def test_a_batch_without_a_gradient_among_others_is_harvested() -> None:
    """Judged is the whole view: a batch of images whose units are all dead is no broken model."""

    data = images()
    (x, y), half = view_of(data, 0), N // 2
    batches = [((x[:half], y[:half]), y[:half]), ((x[half:], y[half:]), y[half:])]
    flat = x[0].clone()
    dead = Wrapped(lambda given: given.round() if torch.equal(given[0].detach(), flat) else given)
    forward = ArchivedForward(dead.eval(), torch.device("cpu"), None, 0, None, 1)
    fgsm = attack_settings(data, Attack("fgsm", 0.1), None)
    columns, meta = attack_view(fgsm, forward, data.info.keys, 0, batches, lambda _: None)
    assert meta["num_examples"] == N
    assert not columns["scale"][:half].any()
    assert float(columns["scale"][half:].min()) > 0.09


def test_success_is_that_of_the_examples_and_not_of_the_views() -> None:
    """A view with 1 example to fool, which is fooled, and one with 99, of which none is."""

    def view(correct: int, fooled: int) -> dict[str, Any]:
        counts = {"num_examples": 100, "num_correct": correct, "num_foolable": correct, "num_fooled": fooled}
        return {**counts, "num_fooled_quantized": fooled, "success": fooled / max(correct, 1)}

    expected = {"clean_accuracy": 0.5, "success": 0.01, "success_quantized": 0.01}
    assert success_rates([view(1, 1), view(99, 0)]) == expected
    nothing = {"clean_accuracy": 0.0, "success": None, "success_quantized": None}
    assert success_rates([view(0, 0)]) == nothing
    unsaid = dict.fromkeys(expected)
    assert success_rates([view(1, 1), {"success": 1.0}]) == unsaid
    assert success_rates([]) == unsaid
