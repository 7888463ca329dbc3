"""The instruments' numbers against closed forms, dense computations, published values and Cockpit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any

import pytest
import torch
from composer.models import ComposerClassifier
from torch import Tensor, nn
from torch.func import debug_unwrap, functional_call, hessian
from torch.profiler import ProfilerActivity, profile

from reuse_algos.errors import DataError, ModelError
from reuse_algos.models import build_model
from reuse_algos.training.instruments import economy, laziness
from reuse_algos.training.instruments.curvature import Curvature, information_criterion, largest_eigenvalue, trace
from reuse_algos.training.instruments.diagnosis import diagnose
from reuse_algos.training.instruments.examples import (
    ExampleLosses,
    flat,
    like_flat,
    trained_parameters,
    undisturbed,
)
from reuse_algos.training.instruments.moments import GradientMoments, gradient_moments, slopes_along
from reuse_algos.training.instruments.reading import SETS, Step, read_step
from reuse_algos.training.instruments.single.batches import first_examples
from reuse_algos.training.instruments.single.blocks import Dense, Gradients, UsedRows
from toy import DictModel, blobs, mlp

MEMORY = 1 << 28


def digits_batch() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    return torch.tensor(pixels[:64] / 16, dtype=torch.float32), torch.tensor(labels[:64])


def digits_model() -> ComposerClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return ComposerClassifier(net, num_classes=10)


def moments_of(rows_ND: Tensor, losses_N: Tensor | None = None, chunk: int = 100) -> GradientMoments:
    losses_N = torch.ones(len(rows_ND)) if losses_N is None else losses_N

    def chunks() -> Iterator[Gradients]:
        for losses_b, rows_bD in zip(losses_N.split(chunk), rows_ND.split(chunk), strict=True):
            yield Gradients(losses_b, rows_bD.shape[1], [Dense(0, rows_bD)])

    return gradient_moments(chunks)


def rows_of(examples: ExampleLosses) -> Tensor:
    return torch.cat([one.matrix() for one in examples.chunks(examples.parameters)])


# Published numbers: digits[:64] / 16, Linear 64-32-10 with ReLU, seed 0 ---------------------------------------------


@pytest.mark.parametrize("memory", [MEMORY, 120_000], ids=["one chunk", "chunks of six"])
def test_economy_on_digits(memory: int) -> None:
    model, batch = digits_model(), digits_batch()
    with undisturbed(model):
        examples = ExampleLosses(model, batch, memory)
        assert examples.chunk == (64 if memory == MEMORY else 6)
        before = examples.parameters
        found = gradient_moments(lambda: examples.chunks(before))
        step_D = -0.1 * found.mean_D
        length = float(step_D.norm())
        ends = [
            gradient_moments(lambda at=at: examples.chunks(at), [step_D / length])
            for at in (before, like_flat(flat(before) + step_D.float(), before))
        ]
    tests = economy.gradient_tests(found)
    assert tests["norm_test"] == pytest.approx(0.886280, abs=1e-6)
    assert tests["inner_product_test"] == pytest.approx(0.091948, abs=1e-6)
    assert tests["orthogonality_test"] == pytest.approx(0.881497, abs=1e-6)
    assert economy.early_stopping(found) == pytest.approx(-0.807546, abs=1e-5)
    assert economy.signal_to_noise(found) == pytest.approx(0.028656, abs=1e-6)
    assert economy.cabs_batch_size(found, 0.1) == pytest.approx(0.188096, abs=1e-6)
    (start, end) = [(one.losses_N, one.along_NP[:, 0]) for one in ends]
    assert economy.alpha(length, start, end) == pytest.approx(-0.961178, abs=1e-5)
    assert information_criterion(found, 4.43467) == pytest.approx(1.002279, abs=1e-5)


def test_curvature_on_digits() -> None:
    model, batch = digits_model(), digits_batch()
    settings = Curvature(probes=64, iterations=300, tolerance=1e-8)
    with undisturbed(model):
        examples = ExampleLosses(model, batch, MEMORY)
        product = examples.hessian_product(examples.parameters)
        eigenvalue = largest_eigenvalue(product, 2410, settings, "cpu")
        total = trace(product, 2410, settings, "cpu")
        exact = sum(float(product(row_D)[index]) for index, row_D in enumerate(torch.eye(2410)))
    assert exact == pytest.approx(4.43467, abs=1e-4)
    assert eigenvalue.value == pytest.approx(0.69169, abs=1e-5)
    assert eigenvalue.error < 1e-3
    assert abs(total.value - exact) < 3 * total.error
    assert total.error < 1


# Gradients of single examples ---------------------------------------------------------------------------------------


class Branching(ComposerClassifier):
    """Its forward pass branches on the data."""

    calls = 0

    def forward(self, batch: Any) -> Tensor:
        self.calls += 1
        outputs = super().forward(batch)
        return outputs if bool(batch[0].sum() > 0) else 2 * outputs


class Counting(ComposerClassifier):
    """Its forward pass takes a number out of a tensor, which cannot be vectorised."""

    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch) * (1 + int(batch[1][0].item() > 1))


class TwoParts(ComposerClassifier):
    """Its loss is a tuple."""

    def loss(self, outputs: Any, batch: Any, *args: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().loss(outputs, batch), outputs.square().mean()  # type: ignore[return-value]


def plain_gradients(model: Any, batch: Any, count: int) -> Tensor:
    """Autograd, one example after the other, in evaluation mode."""
    model.eval()
    rows = []
    for index in range(count):
        if isinstance(batch, dict):
            one: Any = {name: value[index : index + 1] for name, value in batch.items()}
        else:
            one = tuple(value[index : index + 1] for value in batch)
        loss = model.loss(model(one), one)
        loss = loss["total"] if isinstance(loss, dict) else sum(loss) if isinstance(loss, tuple) else loss
        rows.append(flat(dict(enumerate(torch.autograd.grad(loss, list(model.parameters()))))))  # type: ignore[arg-type]
    model.train()
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["plain", "dictionary", "branching", "counting", "tuple"])
@pytest.mark.parametrize("memory", [MEMORY, 1], ids=["at once", "one by one"])
def test_gradients_are_those_of_autograd(kind: str, memory: int) -> None:
    classes = {
        "plain": ComposerClassifier,
        "dictionary": DictModel,
        "branching": Branching,
        "counting": Counting,
        "tuple": TwoParts,
    }
    net = mlp().module
    model = classes[kind](net, num_classes=4)
    x, y = blobs(12).tensors
    batch: Any = {"x": x, "y": y} if kind == "dictionary" else (x, y)
    expected = plain_gradients(model, batch, 12)
    with undisturbed(model):
        examples = ExampleLosses(model, first_examples(batch, 12), memory)
        rows_ND = rows_of(examples)
    assert examples.chunk == (12 if memory == MEMORY else 1)
    torch.testing.assert_close(rows_ND, expected, rtol=1e-5, atol=1e-7)


def test_examples_that_branch_differently_go_through_in_groups() -> None:
    model = Branching(mlp().module, num_classes=4)
    x, y = blobs(12).tensors
    assert 0 < int((x.sum(1) > 0).sum()) < 12
    with undisturbed(model):
        examples = ExampleLosses(model, (x, y), MEMORY)
        assert examples.chunk == 12  # looks for tables with a pass of its own
        model.calls = 0
        rows_of(examples)
        # All of them until they differ, then the two groups.
        assert model.calls == 3
        examples.slopes(examples.parameters, torch.ones(len(flat(examples.parameters))))
        assert model.calls == 6


def test_no_more_examples_go_through_together_than_a_microbatch_has() -> None:
    sizes: list[int] = []

    class Watching(ComposerClassifier):
        def forward(self, batch: Any) -> Tensor:
            wrapped = torch._C._functorch.is_functorch_wrapped_tensor(batch[0])
            with torch._C._DisableFuncTorch():
                sizes.append(len(debug_unwrap(batch[0])) if wrapped else 0)
            return super().forward(batch)

    model = Watching(mlp().module, num_classes=4)
    batch = blobs(12).tensors
    with undisturbed(model):
        whole, parts = ExampleLosses(model, batch, MEMORY), ExampleLosses(model, batch, MEMORY, together=5)
        assert parts.chunk == 12  # gradients that are held
        expected, at = rows_of(whole), parts.parameters
        sizes.clear()
        found = rows_of(parts)
        parts.slopes(at, torch.ones(len(flat(at))))
    assert sorted(sizes) == [2, 2, 5, 5, 5, 5]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


class NoForwardMode(torch.autograd.Function):
    """Squares, with a backward pass only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return 2 * ctx.saved_tensors[0] * grad


class BackwardOnly(ComposerClassifier):
    """It has no forward mode."""

    def forward(self, batch: Any) -> Tensor:
        return NoForwardMode.apply(super().forward(batch))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", [ComposerClassifier, Branching, Counting, BackwardOnly])
@pytest.mark.parametrize("memory", [MEMORY, 20_000], ids=["at once", "in chunks"])
def test_slopes_are_those_of_the_gradients(kind: Any, memory: int) -> None:
    model, batch = kind(mlp().module, num_classes=4), blobs(12).tensors
    with undisturbed(model):
        examples = ExampleLosses(model, batch, memory)
        at = examples.parameters
        direction_D = torch.randn(len(flat(at)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        losses_N, slopes_N = examples.slopes(at, direction_D)
        expected = slopes_along(lambda: examples.chunks(at), direction_D)
    assert losses_N.dtype == slopes_N.dtype == torch.float64
    torch.testing.assert_close(losses_N, expected[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(slopes_N, expected[1], rtol=1e-4, atol=1e-5)


class Words(ComposerClassifier):
    """Looks words up, and may use their table elsewhere as well.

    Args:
        elsewhere: ``nowhere``, ``head``, or ``unseen`` by torch's own functions.
        options: Of the table.
    """

    def __init__(self, elsewhere: str, **options: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.ModuleDict({"table": nn.Embedding(40, 3, **options), "head": nn.Linear(3, 4)})
        super().__init__(net, num_classes=4)
        self.elsewhere = elsewhere

    def forward(self, batch: Any) -> Tensor:
        table: Any = self.module["table"]
        words = table(batch[0]) + table(batch[0].flip(1)).square()
        found = self.module["head"](words.sum(1))
        if self.elsewhere == "head":
            return found + (words.sum(1) @ table.weight.T)[:, :4]
        return found + NoForwardMode.apply(table.weight).sum() if self.elsewhere == "unseen" else found


@pytest.mark.parametrize(
    ("elsewhere", "options", "few"),
    [
        ("nowhere", {}, True),
        ("nowhere", {"padding_idx": 7}, True),
        ("nowhere", {"scale_grad_by_freq": True}, False),
        ("head", {}, False),
        ("unseen", {}, False),
    ],
)
def test_a_table_is_held_by_the_rows_that_are_used(elsewhere: str, options: dict[str, Any], few: bool) -> None:
    """Words come twice in an example, two lookups share the table, and one word is padding."""
    model = Words(elsewhere, **options)
    words = torch.randint(5, 12, (6, 5), generator=torch.Generator().manual_seed(1))
    batch = words, torch.tensor([0, 1, 2, 3, 0, 1])
    expected_ND = plain_gradients(model, batch, 6)
    with undisturbed(model):
        examples = ExampleLosses(model, batch, 6 * 2 * 4 * 60)
        (chunk, *more) = examples.chunks(examples.parameters)
        found = gradient_moments(lambda: examples.chunks(examples.parameters))
    assert any(isinstance(block, UsedRows) for block in chunk.blocks) == few
    # 2 x 5 looked up vectors of 3 and a head of 16, instead of a table of 120 and the head.
    assert examples.chunk == (6 if few else 2)
    assert len(more) == (0 if few else 2)
    rows_ND = torch.cat([one.matrix() for one in (chunk, *more)])
    torch.testing.assert_close(rows_ND, expected_ND, rtol=1e-5, atol=1e-6)
    dense = moments_of(rows_ND, found.losses_N)
    for name in ("mean_D", "second_D", "squared_norms_N", "inner_N", "shares"):
        torch.testing.assert_close(getattr(found, name), getattr(dense, name), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["tiny_fcos", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_gradients_of_detectors_are_those_of_autograd(name: str) -> None:
    """In training mode, where they give losses, but with norms as in evaluation and the same draws for all passes."""
    channels = 1 if name == "tiny_fcos" else 3
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = build_model(name, num_classes=4, image_shape=(channels, 64, 64))
    images = [torch.randn(channels, 64, 64, generator=generator) for _ in range(3)]
    boxes = [torch.tensor([[4.0, 4, 30, 30], [20, 10, 50, 60]])[:count] for count in (2, 1, 0)]
    targets = [{"boxes": some, "labels": torch.ones(len(some), dtype=torch.int64)} for some in boxes]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    expected = []
    for index in range(2):
        with undisturbed(model, training=True):
            torch.manual_seed(0)
            losses = model.module(images[index : index + 1], targets[index : index + 1])
            expected.append(flat(dict(enumerate(torch.autograd.grad(sum(losses.values()), list(model.parameters()))))))  # type: ignore[arg-type]
    batch = first_examples((images, targets), 2)
    with undisturbed(model, training=True):
        examples = ExampleLosses(model, batch, MEMORY)
        rows_ND = rows_of(examples)
    torch.testing.assert_close(rows_ND, torch.stack(expected), rtol=1e-4, atol=1e-6)
    at = examples.parameters
    step = Step(model, batch, at, {key: value - 1e-3 for key, value in at.items()}, at, 0.1, 2)
    if name == "tiny_fcos":
        found = read_step(step, ["economy", "curvature", "stopping"], Curvature(probes=2, iterations=2), MEMORY)
        assert all(math.isfinite(found[name]) for name in ("alpha", "norm_test", "trace", "early_stopping"))
    else:
        with pytest.raises(ModelError, match="Leave 'curvature' out of sets"):
            read_step(step, ["curvature"], Curvature(probes=2, iterations=2), MEMORY)
    with pytest.raises(ModelError, match="the batches of a detector. Leave 'laziness' out"):
        read_step(step, ["laziness"], Curvature(), MEMORY)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())


def of_a_task(task: str) -> tuple[Any, Any]:
    """A model of another task than classes for images, and a batch of four examples."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if task == "masks":
            model = build_model({"name": "tiny_unet", "width": 4}, num_classes=3, image_shape=(1, 16, 16))
            masks = torch.randint(0, 3, (4, 16, 16), generator=generator)
            return model, (torch.randn(4, 1, 16, 16, generator=generator), masks.masked_fill(masks == 2, 255))
        if task == "several labels":
            loss = nn.BCEWithLogitsLoss()
            model = ComposerClassifier(nn.Linear(6, 3), num_classes=3, loss_fn=lambda z, y: loss(z, y.float()))
            return model, (torch.randn(4, 6, generator=generator), torch.randint(0, 2, (4, 3), generator=generator))
        pytest.importorskip("transformers")
        inputs = {"vocabulary": 20, "max_tokens": 6}
        model = build_model({"name": task, "width": 8, "depth": 1}, num_classes=3, inputs=inputs)
    ids = torch.randint(4, 20, (4, 6), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 4:] = mask[2, 3:] = 0
    labels = ids.masked_fill(mask == 0, -100) if task == "tiny_gpt" else torch.tensor([0, 1, 2, 0])
    return model, {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("task", ["masks", "several labels", "tiny_bert", "tiny_gpt"])
def test_gradients_of_other_tasks_are_those_of_autograd(task: str) -> None:
    model, batch = of_a_task(task)
    with undisturbed(model):
        examples = ExampleLosses(model, batch, MEMORY)
        rows = rows_of(examples)
    torch.testing.assert_close(rows, plain_gradients(model, batch, 4), rtol=1e-4, atol=1e-6)
    at = {name: value.detach().clone() for name, value in model.named_parameters()}
    after = {name: value - 0.01 for name, value in at.items()}
    settings = Curvature(probes=2, iterations=2)
    found = read_step(Step(model, batch, at, after, at, 0.1, 4), ["economy", "curvature", "stopping"], settings, MEMORY)
    assert all(math.isfinite(found[name]) for name in ("alpha", "norm_test", "trace", "early_stopping"))


def test_frozen_parameters_are_left_out() -> None:
    model = mlp()
    model.module[0].requires_grad_(False)
    with undisturbed(model):
        examples = ExampleLosses(model, first_examples(blobs(8).tensors, 8), MEMORY)
        rows = rows_of(examples)
    assert "module.0.weight" not in examples.parameters
    assert rows.shape == (8, sum(p.numel() for p in model.parameters() if p.requires_grad))
    model.requires_grad_(False)
    with pytest.raises(ModelError, match="frozen"):
        ExampleLosses(model, blobs(8).tensors, MEMORY)


def test_half_precision_weights_are_read_in_float32() -> None:
    model = mlp().bfloat16()
    x, y = blobs(8).tensors
    with undisturbed(model):
        half = ExampleLosses(model, (x.bfloat16(), y), MEMORY)
        rows = rows_of(half)
    full = mlp()
    full.load_state_dict({name: value.to(full.state_dict()[name]) for name, value in model.state_dict().items()})
    expected = plain_gradients(full, (x.bfloat16().float(), y), 8)
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-7)


def test_autocast_is_off_while_reading() -> None:
    model, batch = mlp(), blobs(8).tensors
    with torch.autocast("cpu", torch.bfloat16), undisturbed(model):
        examples = ExampleLosses(model, batch, MEMORY)
        rows = rows_of(examples)
    torch.testing.assert_close(rows, plain_gradients(model, batch, 8), rtol=1e-5, atol=1e-7)


def test_a_model_with_an_autocast_of_its_own_is_read_in_float32() -> None:
    """``model.autocast`` is entered inside the forward pass; all readings are those of the same weights without it."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 1, 8, 8, generator=generator), torch.randint(0, 10, (6,), generator=generator)
    found, trained = {}, {}
    for autocast in (None, "bfloat16"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            settings = {"name": "digits_cnn", "width": 4, "autocast": autocast}
            model = build_model(settings, num_classes=10, image_shape=(1, 8, 8))
        at = trained_parameters(model)
        step = Step(model, (x, y), at, {key: value - 1e-3 for key, value in at.items()}, at, 0.1, 6, y)
        found[autocast] = read_step(step, SETS, Curvature(probes=2, iterations=2), MEMORY)
        trained[autocast] = float(model.eval().loss(model((x, y)), (x, y)))
    assert found["bfloat16"] == found[None]
    assert trained["bfloat16"] != trained[None], "the model itself still has its autocast"


def test_batches_without_rows_are_refused() -> None:
    with pytest.raises(DataError, match="tensors of 3, 4 rows"):
        first_examples((torch.zeros(3), torch.zeros(4)), 2)
    with pytest.raises(DataError, match="no tensors"):
        first_examples({"text": ["a", "b"]}, 2)
    boxes = [{"boxes": torch.zeros(3, 4), "labels": torch.zeros(3)} for _ in range(2)]
    with pytest.raises(DataError, match="the lists of the batch have 2, 3 entries"):
        first_examples(([torch.zeros(3, 8, 8)] * 3, boxes), 2)


def test_the_model_is_left_as_it_is() -> None:
    model = mlp()
    model.module[1].eval()  # a layer that the user froze by hand
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    x, y = blobs(16).tensors
    after = {name: value - 0.01 for name, value in parameters.items()}
    step = Step(model, (x, y), parameters, after, parameters, 0.1, 16, y)
    found = read_step(step, SETS, Curvature(), MEMORY)
    assert found["kernel_distance"] == pytest.approx(0, abs=1e-6)
    assert found["accuracy"] == found["linearised_accuracy"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert [one.training for one in model.module] == [True, False, True, True]


# Closed forms -------------------------------------------------------------------------------------------------------


def test_parts_of_the_norm_test_add_up() -> None:
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        rows_ND = torch.randn(2 + seed % 9, 1 + seed % 7, generator=generator) * 10.0 ** (seed % 5 - 2) + seed % 3
        tests = economy.gradient_tests(moments_of(rows_ND, chunk=1 + seed % 4))
        whole = tests["norm_test"] ** 2
        parts = tests["inner_product_test"] ** 2 + tests["orthogonality_test"] ** 2
        assert abs(whole - parts) <= 1e-12 * max(whole, 1)


def test_moments_and_tests_of_three_gradients() -> None:
    moments = moments_of(torch.tensor([[1.0, 0.0], [3.0, 2.0], [2.0, -2.0]]), torch.tensor([1.0, 2.0, 3.0]), chunk=2)
    assert moments.mean_D.tolist() == [2, 0]
    assert moments.squared_norms_N.tolist() == [1, 13, 8]
    assert moments.inner_N.tolist() == [2, 6, 4]
    # (22 - 3 * 4) / 2 / 3 / 4 and its part along (2, 0): variance 1 of the first coordinate.
    tests = economy.gradient_tests(moments)
    assert tests["norm_test"] == pytest.approx(math.sqrt(10 / 24))
    assert tests["inner_product_test"] == pytest.approx(math.sqrt(1 / 12))
    assert economy.noise_scale(moments) == pytest.approx(5 / (4 - 5 / 3))
    assert economy.cabs_batch_size(moments, 0.3) == pytest.approx(0.3 * (10 / 3) / 2)
    assert economy.early_stopping(moments) == pytest.approx(1 - 3 * (4 / 1.00001 + 0) / 2)


def test_histogram_counts_every_element() -> None:
    shares = moments_of(torch.tensor([[0.0, 5e-9, 2e-8, 0.5], [3.0, -1.0, -2e-4, math.nan]]), chunk=1).shares * 8
    assert shares.tolist() == [2, 1, 0, 0, 0, 1, 0, 0, 1, 3]


def test_single_and_zero_gradients_have_no_noise() -> None:
    one = moments_of(torch.ones(1, 3))
    assert math.isnan(economy.gradient_tests(one)["norm_test"])
    assert math.isnan(economy.noise_scale(one))
    assert math.isnan(economy.early_stopping(one))
    cancelling = moments_of(torch.tensor([[1.0], [-1.0]]))
    assert math.isnan(economy.gradient_tests(cancelling)["norm_test"])
    assert economy.noise_scale(cancelling) == math.inf


@pytest.mark.parametrize(("end", "expected"), [(0.5, -0.75), (2.0, 0.0), (3.0, 0.5), (4.0, 1.0), (6.0, 2.0)])
def test_alpha_on_a_parabola(end: float, expected: float) -> None:
    """f(s) = (s - 2) ** 2 + noise that is the same at both ends: minimum at 2, as high as the start at 4."""
    noise = torch.tensor([-0.1, 0.0, 0.1], dtype=torch.float64)
    start = ((0 - 2.0) ** 2 + noise, 2 * (0 - 2.0) + noise)
    stop = ((end - 2.0) ** 2 + noise, 2 * (end - 2.0) + noise)
    assert economy.alpha(end, start, stop) == pytest.approx(expected, abs=1e-9)


def test_alpha_where_there_is_no_valley() -> None:
    noise = torch.tensor([-0.1, 0.0, 0.1])
    assert economy.alpha(1.0, (noise, -1 + noise), (-2 + noise, -3 + noise)) == -1
    assert math.isnan(economy.alpha(0.0, (noise, noise), (noise, noise)))
    assert math.isnan(economy.alpha(1.0, (noise, noise), (noise * math.inf, noise)))


def test_curvature_equals_the_dense_hessian() -> None:
    model = mlp(hidden=3)
    x, y = blobs(16).tensors
    with undisturbed(model):
        examples = ExampleLosses(model, (x, y), MEMORY)
        at = examples.parameters
        buffers = dict(model.named_buffers())

        def loss(vector_D: Tensor) -> Tensor:
            outputs = functional_call(model, {**buffers, **like_flat(vector_D, at)}, ((x, y),))
            return nn.functional.cross_entropy(outputs, y)

        dense_DD = hessian(loss)(flat(at))
        product = examples.hessian_product(at)
        torch.testing.assert_close(product(torch.ones(len(dense_DD))), dense_DD.sum(1), rtol=1e-4, atol=1e-6)
        settings = Curvature(probes=200, iterations=500, tolerance=1e-9, seed=3)
        eigenvalues = torch.linalg.eigvalsh(dense_DD.double())
        largest = eigenvalues[eigenvalues.abs().argmax()]
        estimate = largest_eigenvalue(product, len(dense_DD), settings, "cpu")
        assert estimate.value == pytest.approx(float(largest), rel=1e-3)
        total = trace(product, len(dense_DD), settings, "cpu")
    assert abs(total.value - float(dense_DD.trace())) < 3 * total.error
    assert trace(product, len(dense_DD), settings, "cpu") == total, "the probes are seeded"
    with pytest.raises(ValueError, match="probes from 2"):
        Curvature(probes=1)


def test_information_criterion_needs_a_positive_trace() -> None:
    moments = moments_of(torch.tensor([[3.0], [4.0]]))
    assert information_criterion(moments, 5.0) == 2.5
    assert math.isnan(information_criterion(moments, -1.0))


# Laziness -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [MEMORY, 40_000], ids=["whole", "in blocks"])
def test_tangent_kernel_equals_the_dense_one(memory: int) -> None:
    model = mlp()
    x, y = blobs(16).tensors
    with undisturbed(model):
        examples = ExampleLosses(model, (x, y), MEMORY)
        at = examples.parameters
        kernel = laziness.tangent_kernel(
            lambda values, names, rows: examples.jacobian(lambda outputs: outputs, values, names, rows), at, 16, memory
        )
        outputs = model((x, y)).flatten()
        names = list(model.parameters())
        rows = [
            flat(dict(enumerate(torch.autograd.grad(one, names, retain_graph=True))))  # type: ignore[arg-type]
            for one in outputs
        ]
    jacobian = torch.stack(rows)
    torch.testing.assert_close(kernel, jacobian @ jacobian.T, rtol=1e-4, atol=1e-5)
    assert laziness.kernel_distance(kernel, 3 * kernel) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ModelError, match="takes 0 MiB, more than the bound"):
        laziness.tangent_kernel(lambda values, names, rows: torch.zeros(1, 4, 1), at, 16, 1000)


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes that were allocated at once inside a call, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    memory = sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]")
    return max(accumulate(size for _, size in memory))


def test_gradients_and_jacobians_stay_within_the_bound_on_memory() -> None:
    """Gradients are far larger than activations here: one row is 17,668 numbers, an example's activations 324."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 4))
        batch = torch.randn(16, 64), torch.randint(4, (16,))
    model = ComposerClassifier(net, num_classes=4)
    whole = 2 * 16 * 4 * 17_668  # two copies of all gradients
    flat_D = flat(trained_parameters(model)).double()
    with undisturbed(model):
        for share, chunk in ((0.25, 4), (0.5, 8), (1.0, 16)):
            bound = int(share * whole)
            examples = ExampleLosses(model, batch, bound)
            assert examples.chunk == chunk
            rows = partial(examples.chunks, examples.parameters)
            assert peak_bytes(partial(slopes_along, rows, flat_D)) < bound + 0.1 * whole
            # Sums, their squares, a row in float64 and what becomes of them.
            vectors = 7 * 8 * 17_668
            assert peak_bytes(partial(gradient_moments, rows, whole=chunk == 16)) < bound + vectors
        at = examples.parameters

        def jacobian(values: Any, names: list[str], rows: slice) -> Tensor:
            return examples.jacobian(lambda outputs: outputs, values, names, rows)

        whole = 2 * 16 * 4 * 4 * 17_668
        for share in (0.1, 0.3, 1.0):
            bound = int(share * whole)
            peak = peak_bytes(partial(laziness.tangent_kernel, jacobian, at, 16, bound))
            assert peak < bound + 0.05 * whole, share


def test_a_linear_model_is_lazy_and_a_distance_is_relative() -> None:
    net = nn.Linear(6, 4)
    model = ComposerClassifier(net, num_classes=4)
    x, y = blobs(16).tensors
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    now = {name: value + torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) for name, value in
           start.items()}  # fmt: skip
    found = read_step(Step(model, (x, y), now, now, start, 0.1, 16, y), ["laziness"], Curvature(), MEMORY)
    assert found["kernel_distance"] == pytest.approx(0, abs=1e-12)
    assert found["accuracy"] == found["linearised_accuracy"]
    expected = float((flat(now) - flat(start)).norm() / flat(start).norm())
    assert found["relative_distance"] == pytest.approx(expected, rel=1e-6)


def test_laziness_needs_classes() -> None:
    model = mlp()
    x, y = blobs(16).tensors
    at = {name: value.detach().clone() for name, value in model.named_parameters()}
    with pytest.raises(ModelError, match=r"seen were logits \(16, 4\) and no targets"):
        read_step(Step(model, (x, y), at, at, at, 0.1, 16), ["laziness"], Curvature(), MEMORY)


def test_wide_or_scaled_networks_are_lazier() -> None:
    """The order that Chizat et al. 2019 describe: a large output scale leaves the kernel where it is."""
    pixels, labels = digits_batch()

    def reading(width: int, scale: float) -> dict[str, float]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        start = {"module." + name: value.detach().clone() for name, value in net.named_parameters()}

        class Scaled(ComposerClassifier):
            def forward(self, batch: Any) -> Tensor:
                return scale * super().forward(batch)

        model = Scaled(net, num_classes=10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2 / scale**2)
        for _ in range(150):
            optimizer.zero_grad()
            model.loss(model((pixels, labels)), (pixels, labels)).backward()
            optimizer.step()
        now = {name: value.detach().clone() for name, value in model.named_parameters()}
        step = Step(model, (pixels, labels), now, now, start, 0.1, 64, labels)
        return read_step(step, ["laziness"], Curvature(), MEMORY)

    with torch.random.fork_rng(devices=[]):
        narrow, wide, scaled = reading(32, 1.0), reading(512, 1.0), reading(32, 100.0)
    assert scaled["kernel_distance"] < wide["kernel_distance"] < narrow["kernel_distance"]
    assert scaled["accuracy"] - scaled["linearised_accuracy"] < 0.05
    assert narrow["linearised_accuracy"] < wide["linearised_accuracy"]
    assert scaled["relative_distance"] < wide["relative_distance"] < narrow["relative_distance"]


# Diagnosis ----------------------------------------------------------------------------------------------------------


def series(**values: list[float]) -> dict[str, list[tuple[int, float]]]:
    return {name: [(10 * index, value) for index, value in enumerate(column)] for name, column in values.items()}


@pytest.mark.parametrize(
    ("readings", "expected", "evidence"),
    [
        (series(alpha=[-0.99] * 7 + [-3.0]), "rate_too_small",
         "The median distance of alpha from -1 of 8 readings is 0.01; 7 of them are at most 0.02."),
        (series(alpha=[0.7, 0.9, math.nan, 0.8, 1.0, 0.6]), "rate_too_large",
         "The median alpha of 5 readings is 0.8; 5 of them are at least 0.5."),
        (series(gradient_norm=[1.0, math.inf]), "diverged", "The gradient norm is not a finite number at step 10."),
        (series(noise_scale=[math.inf, 900.0, 800.0, 700.0, 800.0], batch_size=[32.0] * 5, norm_test=[0.9] * 5),
         "batch_too_small",
         "The median noise scale of 5 readings is 800 examples; 5 of them are 10 times the batch or more; the median "
         "norm test is 0.9."),
        (series(noise_scale=[math.inf] * 5, batch_size=[32.0] * 5), "batch_too_small",
         "The median noise scale of 5 readings is infinite; 5 of them are 10 times the batch or more."),
        (series(early_stopping=[-1.0, 0.2, -0.3, 0.1, 0.2, 0.4]), "stopped_too_late",
         "The early-stopping criterion is above 0 in all 3 readings from step 30 on (0.1 there, 0.4 at step 50)."),
        (series(kernel_distance=[0.0, 0.003], accuracy=[0.1, 0.946], linearised_accuracy=[0.1, 0.94],
                initial_accuracy=[0.1, 0.1]),
         "as_good_as_linear",
         "At step 10 the kernel distance is 0.003, and the linearised network has an accuracy of 94.0% where the "
         "network itself has 94.6% (initially 10.0%)."),
    ],
)  # fmt: skip
def test_each_finding_has_its_evidence(readings: Any, expected: str, evidence: str) -> None:
    (found,) = diagnose(readings)
    assert (found.name, found.evidence) == (expected, evidence)
    assert found.words.endswith(".")


def test_nothing_is_said_of_healthy_or_short_runs() -> None:
    healthy = series(
        alpha=[-0.5, 0.1, -0.2, 0.3, 0.0], noise_scale=[50.0] * 5, batch_size=[32.0] * 5, gradient_norm=[1.0] * 5,
        early_stopping=[-1.0] * 5, kernel_distance=[0.3], accuracy=[0.9], linearised_accuracy=[0.3],
    )  # fmt: skip
    assert diagnose(healthy) == []
    assert diagnose(series(alpha=[-1.0] * 4, noise_scale=[math.inf] * 4, batch_size=[8.0])) == []
    assert diagnose(series(alpha=[-2.7, -0.6, -1.6, -3.4, -0.7])) == [], "momentum carries some steps uphill"
    untrained = series(kernel_distance=[0.002], accuracy=[0.1], linearised_accuracy=[0.1], initial_accuracy=[0.08])
    assert diagnose(untrained) == [], "what has not learned is near its linearisation in any case"
    assert diagnose({}) == []
    # Readings of the first and last steps of a short run, whose gradient is small beside its noise.
    noisy = series(noise_scale=[math.inf, 551.2, 21.4, 4.9, 225.0], batch_size=[20.0] * 5, alpha=[-1.0] * 4 + [-0.5])
    assert diagnose(noisy) == [], "4 of 5 readings are beyond a bound by chance in 19 of 100 runs"
    assert diagnose(series(early_stopping=[-1.0] * 9 + [1.0])) == [], "a run that stopped in time"


# An outside oracle, where it is installed ---------------------------------------------------------------------------
# pip install --no-deps cockpit-for-pytorch==1.0.2 backpack-for-pytorch einops unfoldNd json_tricks seaborn


def test_alpha_and_norm_test_equal_those_of_cockpit() -> None:
    alpha_module = pytest.importorskip("cockpit.quantities.alpha", exc_type=ImportError)
    norm_module = pytest.importorskip("cockpit.quantities.norm_test", exc_type=ImportError)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        length = float(torch.rand(1, generator=generator)) + 0.01
        columns = [torch.randn(16, generator=generator, dtype=torch.float64) + shift for shift in (2, 1, -1, 1)]
        f_0, f_t, slope_0, slope_t = columns
        means, variances = [float(c.mean()) for c in columns], [float(c.var()) for c in columns]
        theirs = alpha_module._fit_quadratic(length, means[:2], means[2:], variances[:2], variances[2:])
        assert economy.fit_parabola(length, means[:2], means[2:], variances) == pytest.approx(tuple(theirs), rel=1e-6)
        expected = alpha_module._get_alpha(theirs, length)
        assert economy.alpha(length, (f_0, slope_0), (f_t, slope_t)) == pytest.approx(expected, rel=1e-6)
        rows_ND = torch.randn(16, 5, generator=generator) + 1
        moments = moments_of(rows_ND)
        quantity = norm_module.NormTest(track_schedule=lambda step: True)
        # BackPACK's gradients carry the 1/N of the mean loss.
        variance = quantity._compute_variance_l1(16, moments.squared_norms_N / 256, moments.mean_D @ moments.mean_D)
        expected = quantity._compute_theta_max(16, variance, moments.mean_D @ moments.mean_D)
        assert economy.gradient_tests(moments)["norm_test"] == pytest.approx(float(expected), rel=1e-6)


def test_readings_of_a_step_equal_those_of_cockpit() -> None:
    """Cockpit as a whole, through BackPACK, on digits: what it reads at one step is what is read here."""
    backpack = pytest.importorskip("backpack")
    cockpit = pytest.importorskip("cockpit", exc_type=ImportError)
    model, (pixels, labels) = digits_model(), digits_batch()
    settings = Curvature(probes=8, iterations=500, tolerance=1e-9)
    at = {name: value.detach().clone() for name, value in model.named_parameters()}
    step = Step(model, (pixels, labels), at, {k: v - 0.1 for k, v in at.items()}, at, 0.1, 64)
    found = read_step(step, ["economy", "curvature", "stopping"], settings, MEMORY)

    names = {
        "norm_test": "NormTest", "inner_product_test": "InnerTest", "orthogonality_test": "OrthoTest",
        "early_stopping": "EarlyStopping", "cabs_batch_size": "CABS", "signal_to_noise": "MeanGSNR", "loss": "Loss",
        "gradient_norm": "GradNorm", "trace": "HessTrace", "largest_eigenvalue": "HessMaxEV",
    }  # fmt: skip
    options = {"HessTrace": {"curvature": "diag_h"}, "HessMaxEV": {"use_power": False}}
    quantities = {
        name: getattr(cockpit.quantities, theirs)(track_schedule=lambda step: True, **options.get(theirs, {}))
        for name, theirs in names.items()
    }
    network, mean = backpack.extend(model.module), backpack.extend(nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    board = cockpit.Cockpit(network.parameters(), quantities=list(quantities.values()))
    outputs = network(pixels)
    loss, losses = mean(outputs, labels), nn.functional.cross_entropy(outputs, labels, reduction="none")
    info = {"batch_size": 64, "individual_losses": losses, "loss": loss, "optimizer": optimizer}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of create_graph
        with board(0, info=info):
            loss.backward(create_graph=board.create_graph(0))
    theirs = {name: one.output[0] for name, one in quantities.items()}
    theirs["gradient_norm"] = math.hypot(*theirs["gradient_norm"])  # Cockpit has one for each parameter
    total = sum(theirs.pop("trace"))
    assert {name: found[name] for name in theirs} == pytest.approx(theirs, rel=2e-4)
    assert abs(found["trace"] - total) < 3 * found["trace_error"]
