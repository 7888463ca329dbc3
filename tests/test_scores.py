"""The scores against outside oracles: autograd, numpy, scipy, and histories worked by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor, nn

from forked_python import python
from reuse_algos.errors import ModelError
from reuse_algos.priors.scores import formulas

NAN = math.nan


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(40) % 5


def same(found: Tensor, expected: object, tolerance: float = 1e-6) -> None:
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), np.asarray(expected), rtol=0, atol=tolerance)


# One presentation -----------------------------------------------------------------------------------------------------


def test_scores_of_logits_are_their_formulas(logits: Tensor, labels: Tensor) -> None:
    z, y = logits.numpy(), labels.numpy()
    p = scipy.special.softmax(z, axis=1)
    rows = np.arange(len(y))
    same(formulas.cross_entropy(logits, labels), -np.log(p[rows, y]))
    same(formulas.true_probability(logits, labels), p[rows, y])
    same(formulas.el2n(logits, labels), np.linalg.norm(p - np.eye(5)[y], axis=1))
    same(formulas.entropy(logits), scipy.stats.entropy(p, axis=1))
    others = np.where(np.eye(5)[y] == 1, -np.inf, p).max(1)
    same(formulas.margin(logits, labels), others - p[rows, y])
    others = np.where(np.eye(5)[y] == 1, -np.inf, z).max(1)
    same(formulas.logit_margin(logits, labels), z[rows, y] - others)


def test_bounds_and_half_precision() -> None:
    sure = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float16)
    labels = torch.zeros(3, dtype=torch.int64)
    same(formulas.el2n(sure, labels), [0.0, math.sqrt(2), math.sqrt(4 / 9 + 2 / 9)])
    same(formulas.margin(sure, labels), [-1.0, 1.0, 0.0])
    same(formulas.entropy(sure), [0.0, 0.0, math.log(3)])
    same(formulas.cross_entropy(sure, labels), [0.0, 200.0, math.log(3)])


@pytest.mark.parametrize(
    "score", [formulas.cross_entropy, formulas.true_probability, formulas.el2n, formulas.margin, formulas.logit_margin]
)
def test_unknown_rows_and_labels_are_nan(score: object, logits: Tensor, labels: Tensor) -> None:
    logits[3] = NAN
    labels[[5, 6]] = torch.tensor([-100, 5])
    found = score(logits, labels)  # type: ignore[operator]
    assert found.isnan().nonzero().flatten().tolist() == [3, 5, 6]
    assert formulas.entropy(logits).isnan().nonzero().flatten().tolist() == [3]


# Histories ------------------------------------------------------------------------------------------------------------


def test_loss_is_the_last_one_known() -> None:
    history = torch.tensor([[3.0, 4.0, NAN, NAN], [1.0, 2.0, 5.0, NAN], [0.5, NAN, NAN, NAN]])
    same(formulas.loss(history), [0.5, 2.0, 5.0, NAN])
    same(formulas.loss_mean(history), [1.5, 3.0, 5.0, NAN])


def test_forgetting_by_hand() -> None:
    histories = {
        "1 1 1 1 1": 0,  # learned, never forgotten
        "0 0 1 1 1": 0,
        "1 0 1 0 1": 2,
        "0 1 0 0 0": 1,
        "0 0 0 0 0": 5,  # never learned: the number of presentations
        "1 0 0 1 0": 2,
        "1 - 0 1 -": 1,  # not presented in epoch 1: consecutive presentations are 0 and 2
        "1 - 1 - 0": 1,
        "- 0 - 0 -": 2,  # never learned in two presentations
        "- - - - -": NAN,
        "- - 1 - -": 0,
    }
    rows = [[NAN if one == "-" else float(one) for one in history.split()] for history in histories]
    same(formulas.forgetting(torch.tensor(rows).T), list(histories.values()))
    same(formulas.forgetting(torch.tensor([[True, False], [False, False]])), [1, 2])


def test_variance_and_threshold_by_hand() -> None:
    # 0.2, 0.4, 0.9: mean 0.5, squared deviations 0.09 + 0.01 + 0.16 = 0.26, unbiased variance 0.13.
    history = torch.tensor([[0.2, 0.7, NAN, 0.3, NAN], [0.4, 0.7, 0.1, NAN, NAN], [0.9, 0.7, 0.3, NAN, NAN]]).double()
    # 0.1, 0.3: mean 0.2, unbiased variance 0.02, n - 1 = 1.
    expected = [math.sqrt(0.13 + 0.13**2 / 2), 0.0, math.sqrt(0.02 + 0.02**2), NAN, NAN]
    same(formulas.variance(history), expected)
    same(formulas.threshold(history), [0.25, 0.7 * 0.3, 0.2 * 0.8, 0.3 * 0.7, NAN])


def test_variance_is_numpys() -> None:
    p = np.random.default_rng(0).random((7, 20))
    var = p.var(axis=0, ddof=1)
    same(formulas.variance(torch.from_numpy(p)), np.sqrt(var + var**2 / 6))
    mean = p.mean(0)
    same(formulas.threshold(torch.from_numpy(p)), mean * (1 - mean))


# Ensembles ------------------------------------------------------------------------------------------------------------


def test_ensembles_are_their_formulas() -> None:
    p = scipy.special.softmax(np.random.default_rng(1).normal(size=(5, 30, 4)) * 2, axis=2)
    votes = p.argmax(2)
    agreeing = scipy.stats.mode(votes, axis=0).count
    same(formulas.variation_ratio(torch.from_numpy(p)), 1 - agreeing / 5)
    expected = scipy.stats.entropy(p.mean(0), axis=1) - scipy.stats.entropy(p, axis=2).mean(0)
    same(formulas.mutual_information(torch.from_numpy(p)), expected)


def test_members_that_do_not_know_an_example_are_left_out() -> None:
    p = scipy.special.softmax(np.random.default_rng(2).normal(size=(4, 3, 4)), axis=2)
    known = torch.from_numpy(p.copy())
    known[0, 0] = NAN  # three of four members know example 0, one knows example 1, none example 2
    known[:3, 1] = NAN
    known[:, 2] = NAN
    three = torch.from_numpy(p[1:, :1])
    for score in (formulas.variation_ratio, formulas.mutual_information):
        found = score(known)
        same(found[:1], score(three).numpy())
        assert found.isnan().tolist() == [False, True, True]


def test_members_that_agree_have_no_information() -> None:
    p = torch.softmax(torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(3)), 2).expand(4, 6, 3)
    same(formulas.mutual_information(p), np.zeros(6))
    assert bool((formulas.mutual_information(p) >= 0).all())
    same(formulas.variation_ratio(p), np.zeros(6))


# Gradients ------------------------------------------------------------------------------------------------------------


class TinyCNN(nn.Module):
    """A convolution, batch norm with moved statistics, dropout, an in-place ReLU, and a linear layer."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 3, bias=bias)

    def features(self, x: Tensor) -> Tensor:
        return self.drop(self.relu(self.norm(self.conv(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def tiny(bias: bool = True) -> TinyCNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        module = TinyCNN(bias=bias).double()
        for _ in range(3):
            module(torch.randn(8, 2, 5, 5, dtype=torch.float64) * 2 + 1)
    return module.eval()


def gradient_loop(module: nn.Module, x: Tensor, y: Tensor, parameters: list[nn.Parameter]) -> Iterator[float]:
    """One backward pass for each example."""
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1])
        gradients = torch.autograd.grad(loss, parameters)
        yield math.sqrt(sum(float((g**2).sum()) for g in gradients))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(7, 2, 5, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_grand_is_the_loop_of_autograd(images: Tensor, chunk: int) -> None:
    module, y = tiny(), torch.arange(7) % 3
    expected = list(gradient_loop(module, images, y, list(module.parameters())))
    num_bytes = sum(p.nbytes for p in module.parameters())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    generator = torch.get_rng_state()
    for frozen in (False, True):
        module.requires_grad_(not frozen)
        same(formulas.grand(module, images, y, memory_bytes=chunk * num_bytes), expected, 1e-10)
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_grand_keeps_to_its_bound(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    module, sizes = tiny(), []
    vmap = torch.func.vmap

    def counting(function: object) -> object:
        mapped = vmap(function)  # type: ignore[arg-type]
        return lambda inputs, labels: (sizes.append(len(labels)), mapped(inputs, labels))[1]

    monkeypatch.setattr(torch.func, "vmap", counting)
    num_bytes = sum(p.nbytes for p in module.parameters())
    formulas.grand(module, images, torch.zeros(7, dtype=torch.int64), memory_bytes=3 * num_bytes + 1)
    formulas.grand(module, images, torch.zeros(7, dtype=torch.int64), memory_bytes=1)
    assert sizes == [3, 3, 1, *[1] * 7]


def test_grand_of_nested_inputs_and_unknown_labels(images: Tensor) -> None:
    module, y = tiny(), torch.tensor([0, -100, 2, 1, 0, 1, -1])

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, batch: dict[str, list[Tensor]]) -> dict[str, Tensor]:
            return {"logits": self.module(batch["x"][0] + batch["x"][1])}

    batch = {"x": [images * 0.25, images * 0.75]}
    found = formulas.grand(Nested(), batch, y, read=lambda outputs: outputs["logits"])
    assert found.isnan().tolist() == [False, True, False, False, False, False, True]
    known = (y >= 0).nonzero().flatten()
    expected = list(gradient_loop(module, images[known], y[known], list(module.parameters())))
    same(found[known], expected, 1e-10)


def test_grand_of_a_label_that_is_no_class(images: Tensor) -> None:
    module, y = tiny(), torch.tensor([0, 3, 2, 1, 99, 1, -1])
    found = formulas.grand(module, images, y)
    assert found.isnan().tolist() == [False, True, False, False, True, False, True]
    known = (~found.isnan()).nonzero().flatten()
    same(found[known], list(gradient_loop(module, images[known], y[known], list(module.parameters()))), 1e-10)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read as Linux tells it")
def test_grand_holds_little_beyond_the_gradients() -> None:
    """Peak of the process beyond what it had, in a process of its own, at a bound of 100 MB for 12 examples."""
    code = """
import torch
from reuse_algos.priors.scores import formulas
torch.set_num_threads(1)
module = torch.nn.Sequential(torch.nn.Linear(1500, 1400), torch.nn.Linear(1400, 4))
x, y = torch.randn(12, 1500), torch.zeros(12, dtype=torch.int64)
formulas.grand(module, x[:1], y[:1])
peak = lambda: 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
bound, before = 12 * sum(p.nbytes for p in module.parameters()), peak()
formulas.grand(module, x, y, memory_bytes=bound)
print((peak() - before) / bound)
"""
    done = python("-c", code, check=True)
    assert 0.5 < float(done.stdout) < 1.5


def test_grand_needs_a_classifier(images: Tensor) -> None:
    with pytest.raises(ModelError, match=r"logits \[B, C\]; these have 4 dimensions"):
        formulas.grand(nn.Conv2d(2, 3, 1).double(), images, torch.zeros(7, dtype=torch.int64))


@pytest.mark.parametrize("bias", [True, False])
def test_the_closed_form_is_the_gradient_of_the_last_layer(images: Tensor, bias: bool) -> None:
    module, y = tiny(bias), torch.arange(7) % 3
    expected = list(gradient_loop(module, images, y, list(module.fc.parameters())))
    with torch.no_grad():
        found = formulas.grand_last_layer(module(images), y, module.features(images), bias=bias)
    same(found, expected, 1e-10)


# Over runs ------------------------------------------------------------------------------------------------------------


def test_average_ranks_are_scipys() -> None:
    values = torch.tensor([0.3, -1.0, 0.3, NAN, 7.0, 0.3, -1.0, math.inf])
    known = ~values.isnan()
    expected = np.full(8, NAN)
    expected[known.numpy()] = (scipy.stats.rankdata(values[known].numpy()) - 1) / (int(known.sum()) - 1)
    same(formulas.average_ranks(values), expected)
    same(formulas.average_ranks(torch.tensor([NAN, 2.0])), [NAN, 0.5])
    same(formulas.average_ranks(torch.tensor([NAN, NAN])), [NAN, NAN])
    same(formulas.average_ranks(torch.tensor([])), [])


def test_mean_known() -> None:
    same(formulas.mean_known(torch.tensor([[1.0, NAN, NAN], [3.0, 4.0, NAN]])), [2.0, 4.0, NAN])
