"""Attacks against closed forms, and that they never leave the ball or the range of pixels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reuse_algos.data import DataConfig, load_datasets
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.errors import DataError, ModelError
from reuse_algos.training.attacks import Attack, ascend, perturb, pixel_room, random_targets

SPACE = PixelSpace((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
EVERY = [
    Attack("fgsm", 0.05),
    Attack("fgsm", 0.5, norm="l2"),
    Attack("fgsm", 0.05, targeted="random"),
    Attack("pgd", 0.05),
    Attack("pgd", 0.05, random_start=False),
    Attack("pgd", 0.5, norm="l2", steps=3),
    Attack("pgd", 0.5, norm="l2", targeted="random", seed=4),
]


def images(count: int = 6, *, seed: int = 0, side: int = 4, inner: bool = False) -> tuple[Tensor, Tensor]:
    """Inputs of SPACE, and labels of 5 classes; ``inner``: no pixel near black or white."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 3, side, side, generator=generator)
    return to_inputs(0.3 + 0.4 * pixels if inner else pixels), torch.arange(count) % 5


def to_inputs(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(column).view(-1, 1, 1) for column in (SPACE.mean, SPACE.std))
    return (pixels - mean) / std


def linear(seed: int = 0, side: int = 4) -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 5))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def gradient(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """Of the cross entropy of a linear model with respect to the pixels, by hand: W^T (softmax - onehot) / std."""
    weight = model[1].weight.detach().double()  # type: ignore[union-attr]
    error = torch.softmax(model(x).detach().double(), 1) - F.one_hot(y, 5)
    std = torch.tensor(SPACE.std).double().view(3, 1, 1)
    return (error @ weight).view(x.shape) / std


def norms(delta: Tensor) -> Tensor:
    return delta.double().flatten(1).norm(dim=1)


def test_fgsm_on_a_linear_model_is_the_closed_form() -> None:
    model, (x, y) = linear(), images(inner=True)
    delta = perturb(model, x, y, Attack("fgsm", 0.05), SPACE)
    torch.testing.assert_close(delta.double(), 0.05 * gradient(model, x, y).sign(), rtol=0, atol=1e-7)
    g = gradient(model, x, y)
    delta = perturb(model, x, y, Attack("fgsm", 0.25, norm="l2"), SPACE)
    expected = 0.25 * g / norms(g).view(-1, 1, 1, 1)
    torch.testing.assert_close(delta.double(), expected, rtol=1e-5, atol=1e-7)
    keys, views = torch.arange(6) * 3, torch.full((6,), 2)
    targets = random_targets(9, y, 5, keys, views)
    delta = perturb(model, x, y, Attack("fgsm", 0.05, targeted="random", seed=9), SPACE, keys_B=keys, views_B=views)
    torch.testing.assert_close(delta.double(), -0.05 * gradient(model, x, targets).sign(), rtol=0, atol=1e-7)


def test_fgsm_at_the_edge_of_the_range_is_clipped() -> None:
    model, (x, y) = linear(), images()
    low, high = pixel_room(x, SPACE)
    delta = perturb(model, x, y, Attack("fgsm", 0.2), SPACE)
    expected = (0.2 * gradient(model, x, y).sign()).float().clamp(low, high)
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-7)
    assert not torch.equal(delta.abs(), torch.full_like(delta, 0.2)), "some pixels are near an edge"


def test_pgd_of_one_binary_pixel_is_the_closed_form() -> None:
    """Two classes, logits (0, w p): every step goes up the slope until the ball ends."""
    space = PixelSpace((0.0,), (1.0,))
    model: Callable[[Tensor], Tensor] = lambda x: torch.cat([0 * x[:, :, 0, 0], 3 * x[:, :, 0, 0]], 1)  # noqa: E731
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    for steps, expected in ((1, 0.03), (2, 0.06), (3, 0.09), (4, 0.1)):
        attack = Attack("pgd", 0.1, steps=steps, step_size=0.03, random_start=False)
        assert perturb(model, x, y, attack, space).item() == pytest.approx(expected, abs=1e-7)
        assert perturb(model, x, torch.tensor([1]), attack, space).item() == pytest.approx(-expected, abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    method=st.sampled_from(["fgsm", "pgd"]),
    targeted=st.sampled_from(["none", "random"]),
    epsilon=st.floats(1e-3, 1.0),
    steps=st.integers(1, 6),
    step=st.floats(1e-4, 3.0),
    seed=st.integers(0, 2**31),
    extremes=st.booleans(),
)
def test_never_leaves_the_ball_or_the_range(
    norm: Any, method: Any, targeted: Any, epsilon: float, steps: int, step: float, seed: int, extremes: bool
) -> None:
    attack = Attack(method, epsilon, steps, step if method == "pgd" else None, norm, targeted, seed=seed)
    x, y = images(5, seed=seed)
    if extremes:
        x = to_inputs(SPACE.to_pixels(x).round())
    delta = perturb(linear(seed), x, y, attack, SPACE, keys_B=torch.arange(5))
    size = delta.abs().flatten(1).amax(1).double() if norm == "linf" else norms(delta)
    assert float(size.max()) <= epsilon * (1 + 1e-5)
    pixels = SPACE.to_pixels(x) + delta
    assert float(pixels.min()) >= -1e-6
    assert float(pixels.max()) <= 1 + 1e-6
    low, high = SPACE.bounds(x)
    moved = SPACE.add(x, delta)
    assert bool((moved >= low).all())
    assert bool((moved <= high).all())
    torch.testing.assert_close(SPACE.to_pixels(moved), pixels, rtol=0, atol=1e-6)


@cache
def trained_on_digits() -> tuple[nn.Module, Tensor, Tensor, PixelSpace]:
    """A small network that fits 400 digits."""
    data = load_datasets(DataConfig(name="digits", train_examples=400)).train
    x, y = data.__getitems__(list(range(400)))  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(15):
            for part in torch.randperm(400).split(40):
                optimizer.zero_grad()
                F.cross_entropy(model(x[part]), y[part]).backward()
                optimizer.step()
    return model.eval(), x, y, data.pixel_space  # type: ignore[attr-defined]


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.6)])
def test_pgd_is_stronger_than_fgsm_and_both_than_nothing(norm: Any, epsilon: float) -> None:
    model, x, y, space = trained_on_digits()
    assert float((model(x).argmax(1) == y).float().mean()) > 0.97
    losses = [float(F.cross_entropy(model(x), y))]
    for attack in (Attack("fgsm", epsilon, norm=norm), Attack("pgd", epsilon, norm=norm, steps=10)):
        delta = perturb(model, x, y, attack, space, keys_B=torch.arange(len(x)))
        losses.append(float(F.cross_entropy(model(space.add(x, delta)), y)))
    assert losses[0] < losses[1] <= losses[2]
    assert losses[1] > 2 * losses[0]


def test_random_targets_are_reached_more_often_than_by_chance() -> None:
    model, x, y, space = trained_on_digits()
    keys, views = torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64)
    targets = random_targets(0, y, 10, keys, views)
    clean = float((model(x).argmax(1) == targets).float().mean())
    delta = perturb(model, x, y, Attack("pgd", 0.15, targeted="random"), space, keys_B=keys)
    assert clean < 0.02
    assert float((model(space.add(x, delta)).argmax(1) == targets).float().mean()) > 0.3


def test_random_targets_are_uniform_over_the_other_classes() -> None:
    labels = torch.arange(9000) % 3
    targets = random_targets(1, labels, 4, torch.arange(9000), torch.zeros(9000, dtype=torch.int64))
    table = torch.zeros(3, 4).index_put_((labels, targets), torch.ones(9000), accumulate=True)
    assert table.diagonal().sum() == 0
    assert (table + 1000 * torch.eye(3, 4) - 1000).abs().max() < 5 * math.sqrt(1000)


@pytest.mark.parametrize("attack", EVERY, ids=Attack.describe)
def test_a_row_depends_on_its_key_and_view_and_on_no_other_row(attack: Attack) -> None:
    model, (x, y) = linear(), images()
    keys, views = torch.arange(6) * 11, torch.arange(6) % 2
    whole = perturb(model, x, y, attack, SPACE, keys_B=keys, views_B=views)
    order = torch.tensor([4, 1, 3])
    part = perturb(model, x[order], y[order], attack, SPACE, keys_B=keys[order], views_B=views[order])
    torch.testing.assert_close(part, whole[order], rtol=0, atol=1e-6)
    again = perturb(model, x, y, attack, SPACE, keys_B=keys, views_B=views)
    assert torch.equal(again, whole)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_differ_between_keys_views_and_seeds_and_fill_the_ball(norm: Any) -> None:
    """A step too short to matter shows where it began."""
    attack = Attack("pgd", 0.1, steps=1, step_size=1e-9, norm=norm)
    x, y = images(1, inner=True)
    x, y = x.expand(400, -1, -1, -1), y.expand(400)
    keys, views = torch.arange(400), torch.zeros(400, dtype=torch.int64)
    starts = perturb(linear(), x, y, attack, SPACE, keys_B=keys, views_B=views)
    others = [
        perturb(linear(), x, y, attack, SPACE, keys_B=keys, views_B=views + 1),
        perturb(linear(), x, y, Attack("pgd", 0.1, 1, 1e-9, norm, seed=1), SPACE, keys_B=keys, views_B=views),
        starts.roll(1, 0),
    ]
    assert all(float((starts - other).abs().flatten(1).amax(1).min()) > 1e-3 for other in others)
    if norm == "linf":  # uniform in [-e, e]: mean 0, deviation e / sqrt(3)
        assert abs(float(starts.mean())) < 0.002
        assert float(starts.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    else:  # the radius of a uniform point of a D-ball is e * u ** (1 / D), of mean e * D / (D + 1)
        assert float(norms(starts).mean()) == pytest.approx(0.1 * 48 / 49, rel=0.01)
        assert float(starts.flatten(1).mean(0).abs().max()) < 5 * 0.1 / math.sqrt(48 * 400)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_no_gradient_buffer_or_generator_moves(frozen: bool, mode: Any) -> None:
    model, x, y, space = trained_on_digits()
    model = copy.deepcopy(model).requires_grad_(not frozen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    with mode():
        delta = perturb(model, x[:8], y[:8], Attack("pgd", 0.1), space, keys_B=torch.arange(8))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not delta.requires_grad
    assert not delta.is_inference()


def test_memory_format_and_type() -> None:
    x, y = images()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    expected = perturb(model, x, y, Attack("fgsm", 0.05), SPACE)
    delta = perturb(model, x.contiguous(memory_format=torch.channels_last), y, Attack("fgsm", 0.05), SPACE)
    assert delta.is_contiguous(memory_format=torch.channels_last)
    assert delta.dtype == torch.float32
    assert float((delta - expected).ne(0).float().mean()) < 0.01
    half = perturb(model.bfloat16(), x.bfloat16(), y, Attack("fgsm", 0.05), SPACE)
    assert half.dtype == torch.float32
    assert float((half.sign() != expected.sign()).float().mean()) < 0.1


def test_an_example_that_the_model_is_sure_of_still_has_a_direction() -> None:
    """The loss and its gradient are exactly 0 in float32 where the margin is 200; its direction is not."""
    model, (x, y) = linear(), images(inner=True)
    sure: Callable[[Tensor], Tensor] = lambda x: 100 * model(x)  # noqa: E731
    y = model(x).argmax(1)
    leaf = x.clone().requires_grad_()
    F.cross_entropy(sure(leaf) + 100 * F.one_hot(y, 5), y, reduction="sum").backward()
    assert leaf.grad is not None
    assert bool((leaf.grad == 0).all())
    delta = perturb(lambda x: sure(x) + 100 * F.one_hot(y, 5), x, y, Attack("fgsm", 0.05), SPACE)
    assert bool((delta.abs() > 0.049).float().mean() > 0.99)


@pytest.mark.parametrize("attack", EVERY, ids=Attack.describe)
def test_an_example_without_a_direction_stays_where_it_is(attack: Attack) -> None:
    """A gradient of exactly 0, as of dead units, or one that is not finite; the other examples go their way."""
    model, (x, y) = linear(), images()
    keys = torch.arange(6)
    # With a random start, where it began: a step too short to matter shows it.
    start = Attack("pgd", attack.epsilon, 1, 1e-12, attack.norm, attack.targeted, attack.starts_randomly, attack.seed)
    began = perturb(model, x, y, start, SPACE, keys_B=keys)
    usual = perturb(model, x, y, attack, SPACE, keys_B=keys)
    for factor in (0.0, math.nan, math.inf):
        flat = torch.tensor([False, True, False, True, False, False])

        def bend(gradient_BCHW: Tensor, flat_B: Tensor = flat, factor: float = factor) -> Tensor:
            return gradient_BCHW.masked_fill(flat_B.view(-1, 1, 1, 1), factor)

        def partly(inputs_BCHW: Tensor, bend: Callable[[Tensor], Tensor] = bend) -> Tensor:
            copied_BCHW = inputs_BCHW.clone()
            copied_BCHW.register_hook(bend)
            return model(copied_BCHW)

        delta, slope = ascend(partly, x, y, attack, SPACE, keys_B=keys)
        assert bool(delta.isfinite().all())
        torch.testing.assert_close(delta[flat], began[flat], rtol=0, atol=1e-6)
        torch.testing.assert_close(delta[~flat], usual[~flat], rtol=0, atol=1e-6)
        assert bool((slope[~flat] > 0).all())
        assert bool((slope[flat] == 0).all() if factor == 0 else slope[flat].isnan().all())
    whole = ascend(lambda x: model(0 * x), x, y, attack, SPACE, keys_B=keys)
    torch.testing.assert_close(whole.delta_BCHW, began, rtol=0, atol=1e-6)
    assert bool((whole.slope_B == 0).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_step_does_not_wait_for_the_device(norm: Any) -> None:
    """No number is read from a tensor at each step, which is what has the device waited for."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    model, (x, y) = linear(), images()
    counts = []
    for steps in (1, 6):
        with Reads() as reads:
            perturb(model, x, y, Attack("pgd", 0.05, steps, norm=norm), SPACE, keys_B=torch.arange(6))
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0


def test_a_root_at_0_fools_nobody() -> None:
    """Finite logits whose gradient is not finite: an L2 attack had divided by it and made images of NaN."""
    model, (x, y) = linear(), images(inner=True)
    x[:3, 0, 0, 0] = to_inputs(torch.full((1, 3, 1, 1), 0.5))[0, 0, 0, 0]
    rooted: Callable[[Tensor], Tensor] = lambda i: model(i) + 0 * (i[:, 0, 0, :1] - x[0, 0, 0, 0]).square().sqrt()  # noqa: E731
    assert bool(rooted(x).isfinite().all())
    for attack in EVERY[:2]:
        delta, slope = ascend(rooted, x, y, attack, SPACE)
        assert bool((delta[:3] == 0).all())
        assert slope.isnan().tolist() == [True] * 3 + [False] * 3
        assert bool((delta[3:].abs() > 0).flatten(1).any(1).all())


def test_an_empty_batch() -> None:
    x, y = images(0)
    assert perturb(linear(), x, y, Attack("fgsm"), SPACE).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "fsgm"}, "attack method: unknown value 'fsgm'. Did you mean 'fgsm'"),
        ({"norm": "l1"}, "attack norm: unknown value 'l1'"),
        ({"targeted": "all"}, "attack targeted"),
        ({"epsilon": 8}, "above 0 and at most 1 for linf, not 8. It is in pixel units .* 8/255"),
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"epsilon": -1.0, "norm": "l2"}, r"at most sqrt\(C \* H \* W\) for l2"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"epsilon": math.inf, "norm": "l2"}, "epsilon"),
        ({"epsilon": "8/255"}, "epsilon"),
        ({"steps": 0}, "steps must be a whole number from 1, not 0"),
        ({"steps": 2.0}, "steps"),
        ({"step_size": 0.0}, "step_size must be above 0"),
        ({"seed": 1.5}, "seed"),
        ({"random_start": 1}, "random_start must be true or false"),
        ({"method": "fgsm", "step_size": 0.1}, "belong to pgd"),
        ({"method": "fgsm", "random_start": True}, "belong to pgd"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attack(**arguments)


def test_descriptions_tell_attacks_apart_exactly_where_they_differ() -> None:
    assert Attack().describe() == "pgd(linf, epsilon=8/255, steps=5, step_size=4/255, seed=0)"
    assert Attack("fgsm", 0.1, seed=3).describe() == "fgsm(linf, epsilon=0.1)"
    assert Attack("fgsm", 0.1, 7).describe() == Attack("fgsm", 0.1).describe()
    assert Attack(step_size=4 / 255, random_start=True) != Attack()
    assert Attack(step_size=4 / 255, random_start=True).describe() == Attack().describe()
    assert len({attack.describe() for attack in EVERY}) == len(EVERY)


@pytest.mark.parametrize(
    ("forward", "inputs", "labels", "attack", "error", "message"),
    [
        (lambda x: linear()(x).detach(), None, None, Attack("fgsm"), ModelError, "no gradient with respect to its inp"),
        (lambda x: linear()(x.round().detach()), None, None, Attack("fgsm"), ModelError, "no gradient"),
        (lambda x: linear()(x)[:, :1], None, None, Attack("fgsm"), ModelError, r"2 or more classes; .* \(6, 1\)"),
        (lambda x: linear()(x)[:3], None, None, Attack("fgsm"), ModelError, "of 6 images"),
        (None, images()[0] * 3, None, Attack("fgsm"), DataError, "the inputs are pixels from .* not from 0 to 1"),
        (None, images()[0] * math.nan, None, Attack("fgsm"), DataError, "pixels from nan"),
        (None, images()[0][:, :2], None, Attack("fgsm"), DataError, r"3 channels .* shape \(6, 2, 4, 4\)"),
        (None, images()[0][0], None, Attack("fgsm"), DataError, r"not inputs of shape \(3, 4, 4\)"),
        (None, None, None, Attack("fgsm", 7.0, norm="l2"), DataError, r"beyond the range: .* \(3, 4, 4\) .* 6.928"),
        (None, None, images()[1] + 1, Attack("fgsm"), DataError, "labels from 1 to 5 do not fit a model of 5 classes"),
        (None, None, images()[1].float(), Attack("fgsm"), DataError, "labels must be int64"),
        (None, None, None, Attack("pgd"), ValueError, "give keys_B"),
        (None, None, None, Attack("fgsm", targeted="random"), ValueError, "give keys_B"),
    ],
)
def test_bad_input(forward: Any, inputs: Any, labels: Any, attack: Attack, error: Any, message: str) -> None:
    x, y = images()
    with pytest.raises(error, match=message):
        perturb(forward or linear(), x if inputs is None else inputs, y if labels is None else labels, attack, SPACE)
