"""FLOPs of known networks, and the time of layers by hand."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reuse_algos.cli import main
from reuse_algos.errors import ModelError, NotEnoughEvidenceError
from reuse_algos.models import build_model
from reuse_algos.predict.cost.layers import DEVICES, Device, layers_of, percent_of_peak, shares, step_seconds


@pytest.mark.parametrize(
    ("name", "pixels", "gigaflops", "convolutions"),
    [
        ("vgg16", 224, 30.941, 0.9920),
        ("vgg19", 224, 39.264, 0.9937),
        ("googlenet", 224, 2.997, 0.9993),
        ("resnet50", 224, 8.178, 0.9995),
        ("inception_v3", 299, 11.426, 0.9996),
    ],
)
def test_known_networks(name: str, pixels: int, gigaflops: float, convolutions: float) -> None:
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(weights=None, **settings)
    layers = layers_of(model, torch.empty(1, 3, pixels, pixels, device="meta"))
    assert sum(layer.flops for layer in layers) / 1e9 == pytest.approx(gigaflops, abs=5e-4)
    assert shares(layers)["convolution"] == pytest.approx(convolutions, abs=5e-5)


def test_flops_and_bytes_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, groups=2, bias=False),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2),
        nn.Flatten(),
        nn.Linear(196, 5),
    )
    before = [parameter.clone() for parameter in model.parameters()]
    first, relu, transposed, _, linear = layers_of(model, torch.zeros(3, 2, 8, 8))
    assert first.flops == 2 * 3 * 3 * 1 * 6 * 6 * 6 * 3
    assert first.bytes == 4 * (3 * 2 * 64 + 54 + 3 * 6 * 36)
    assert (first.parameter_bytes, first.reads_data, relu.reads_data) == (4 * 54, True, False)
    assert transposed.flops == 2 * 6 * 4 * 2 * 2 * 36 * 3
    assert linear.flops == 2 * 3 * 196 * 5
    assert (relu.kind, relu.flops, linear.output_shape) == ("activation", 0, (3, 5))
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_attention_is_counted_though_no_layer_shows_it() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    layers = layers_of(Self(), torch.zeros(2, 5, 8))
    projections, scores = 2 * 2 * 5 * 8 * 32, 2 * 2 * (2 * 5 * 5 * 8)
    assert sum(layer.flops for layer in layers) == projections + scores


def test_layers_are_the_same_however_they_are_called() -> None:
    """A model may name the inputs of its layers: they are read all the same, and are not the data."""

    class Calls(nn.Module):
        def __init__(self, named: bool) -> None:
            super().__init__()
            self.first, self.second, self.named = nn.Linear(4, 8), nn.Linear(8, 2), named

        def forward(self, x):
            hidden = self.first(x)
            return self.second(input=hidden) if self.named else self.second(hidden)

    placed, named = (layers_of(Calls(named), torch.zeros(10, 4)) for named in (False, True))
    assert placed == named
    assert [layer.reads_data for layer in named] == [True, False]


def test_a_sum_of_rows_of_a_table_reads_each_row() -> None:
    ids = torch.zeros(4, 50, dtype=torch.int64)
    (bag,) = layers_of(nn.EmbeddingBag(1000, 16), ids)
    assert bag.bytes == 8 * 200 + 4 * 200 * 16 + 4 * 4 * 16
    (bag,) = layers_of(nn.EmbeddingBag(20, 16), ids)
    assert bag.bytes == 8 * 200 + 4 * 20 * 16 + 4 * 4 * 16


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt"])
def test_text_models_are_what_torchs_counter_counts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the counter while the same model computes, and attention and linear layers by hand."""
    pytest.importorskip("transformers")
    batch, tokens, width, words = 3, 12, 64, 50
    command = ["predict", "layers", "--model", name, "--vocabulary", str(words), "--tokens", str(tokens)]
    assert main([*command, "--classes", "5", "--batch", str(batch), "--depth", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    config = {"name": name, "num_classes": 5, "vocabulary": words, "max_tokens": tokens, "depth": 1}
    model = build_model(config).eval()
    ids = torch.ones(batch, tokens, dtype=torch.int64)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert found["total"]["gigaflops"] * 1e9 == pytest.approx(counter.get_total_flops(), rel=1e-9)
    kinds: dict[str, list[float]] = {}
    for layer in found["layers"]:
        kinds.setdefault(layer["kind"], []).append(layer["megaflops"] * 1e6)
    # Scores and their sums, of all heads together.
    assert kinds["attention"] == pytest.approx([2 * 2 * batch * tokens * tokens * width])
    assert sum(kinds["embedding"]) == sum(kinds["norm"]) == 0
    # Query, key, value, output; two layers of four times the width; and what a model's head adds.
    head = 2 * batch * (width * width + width * 5) if name == "tiny_bert" else 2 * batch * tokens * width * words
    assert sum(kinds["linear"]) == pytest.approx(2 * batch * tokens * (4 + 8) * width * width + head)
    words_read = next(layer for layer in found["layers"] if layer["kind"] == "embedding")["megabytes"] * 1e6
    assert words_read == 8 * batch * tokens + 4 * batch * tokens * width + min(words, batch * tokens) * width * 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "tiny_bert"], "tiny_bert reads texts: give --vocabulary and --tokens"),
        (["--model", "tiny_gpt", "--input", "1", "8", "8"], "--input is the shape of an image"),
        (["--model", "resnet20", "--tokens", "8"], "resnet20 reads images; give --input"),
        (["--model", "tiny_fcos", "--input", "1", "64", "64"], "a detector chooses boxes by their scores"),
    ],
)
def test_what_layers_cannot_count_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "layers", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_time_of_a_step_by_hand() -> None:
    device = Device(flops=1e6, bandwidth=1e6)
    layers = layers_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(10, 4))
    first, relu, last = ((layer.flops + layer.bytes) / 1e6 for layer in layers)
    forward, backward = step_seconds(layers, device, percent=0.5)
    assert forward == pytest.approx(2 * (first + relu + last))
    # No gradient of the data, none of a parameter in the ReLU.
    assert backward == pytest.approx(2 * (first + relu + 2 * last))
    assert step_seconds(layers, device, training=False) == (pytest.approx(forward / 2), 0.0)


def test_percent_of_peak() -> None:
    assert percent_of_peak([1.0, 4.0], [2.0, 4.0]) == pytest.approx(0.5**0.5)
    with pytest.raises(NotEnoughEvidenceError, match="faster than the peaks"):
        percent_of_peak([2.0], [1.0])
    with pytest.raises(NotEnoughEvidenceError, match="0 measurements"):
        percent_of_peak([], [])
    assert DEVICES["k80"] == Device(5.6e12, 480e9)


def test_a_model_that_looks_at_values_is_refused() -> None:
    class Looking(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="Looking cannot be counted"):
        layers_of(Looking(), torch.zeros(2))
