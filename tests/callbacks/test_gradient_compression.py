"""Gradients between ranks: the numbers of the papers, bytes, resumption, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from forked_python import launch
from reuse_algos.callbacks import GradientCompression
from reuse_algos.callbacks.gradient_compression import ScaleCom
from reuse_algos.callbacks.gradient_compression.exchange import count_kept
from reuse_algos.errors import NoEffectWarning, RecipeError
from toy import blobs, epoch_loader, mlp, trainer

SIZES = [6 * 16, 16, 16, 16, 16 * 4, 4]  # of mlp(): two linear layers and a batch norm
P = sum(SIZES)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three gloo ranks found."""
    here = tmp_path_factory.mktemp("three")
    script = Path(__file__).parents[1] / "ranks/compress_gradients.py"
    done = launch(3, str(script), str(here))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads((here / f"{rank}.json").read_text()) for rank in range(3)]


@pytest.mark.ranks
def test_what_is_sent_and_what_is_remembered_are_the_sum_of_all_gradients(three: list[dict[str, Any]]) -> None:
    assert max(found["feedback"] for found in three) < 1e-14
    assert max(found["formula"] for found in three) < 1e-14


@pytest.mark.ranks
def test_ratio_1_is_an_all_reduce_to_the_last_bit_in_float64(three: list[dict[str, Any]]) -> None:
    assert all(found["ratio_1_is_all_reduce"] for found in three)


@pytest.mark.ranks
def test_signs_are_voted_and_medians_taken(three: list[dict[str, Any]]) -> None:
    for found in three:
        assert found["sign"] == [0.5, -0.5, 0.5, 0.0]
        assert found["median"] == [1.0, -1.0, 5.0, 0.0]
        assert (found["sign_bytes"], found["median_bytes"]) == (4, 16)


@pytest.mark.ranks
def test_every_method_trains_all_ranks_alike_and_its_bytes_are_recorded(three: list[dict[str, Any]]) -> None:
    kept = sum(count_kept(size, 10) for size in SIZES)
    thin = (16 + 6) * 2 + sum(SIZES[1:])  # the second matrix, 4 x 16, is too small to be worth it
    # Of rank 0, which leads at batches 3 and 6; the first two are whole.
    wanted = {
        "scalecom": [8 * kept + (4 * kept if batch % 3 == 0 else 0) for batch in range(2, 8)],
        "sign": [P] * 6, "median": [8 * P] * 6, "powersgd": [8 * thin] * 6, "fp16": [2 * P] * 6,
    }  # fmt: skip
    for name, later in wanted.items():
        found = three[0]["bytes"][name]
        assert found["alike"], name
        assert found["finite"], name
        assert found["changed"], name
        assert found["recorded"] == [8 * P] * 2 + later, name


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["scalecom", "sign", "median"])
def test_a_resumed_run_is_bit_equal(three: list[dict[str, Any]], name: str) -> None:
    assert all(found[f"resumed_{name}"] for found in three)
    assert all(found["remembers"] for found in three)


@pytest.mark.ranks
def test_other_ways_of_synchronising_and_other_methods_are_refused(three: list[dict[str, Any]]) -> None:
    for found in three:
        assert "no gradient went through DDP's hook" in found["forced"]
        assert "a gradient was summed twice in batch 0" in found["multi"]
        assert "the checkpoint was made with ScaleCom(ratio=10" in found["other"]


def test_noise_closes_the_gap_between_median_and_mean() -> None:
    """The numbers of a simulation, by the expression that the callback's median computes."""
    generator = torch.Generator().manual_seed(0)
    u = torch.tensor([-1.0, 0.0, 0.0, 0.0, 6.0])
    for b, expected, tolerance in ((1, 0.10, 0.01), (3, 0.58, 0.02), (10, 0.95, 0.05)):
        noisy = u + b * torch.randn(400_000, 5, generator=generator)
        assert float(noisy.sort(1).values[:, 2].mean()) == pytest.approx(expected, abs=tolerance)
    b = 8.0
    signs = (u + b * (2 * torch.rand(400_000, 5, generator=generator) - 1)).sign().mean(0)
    assert (b * signs).tolist() == pytest.approx(u.tolist(), abs=0.06)


def test_settings_out_of_range_are_refused_and_one_rank_is_warned_of() -> None:
    for method, words in (
        ({"name": "scalecom", "ratio": 0.5}, "ratio of at least 1"),
        ({"name": "scalecom", "beta": 0.0}, "beta above 0"),
        ({"name": "sign", "noise": -1.0}, "noise of at least 0"),
        ({"name": "powersgd", "rank": 0}, "rank of at least 1"),
    ):
        with pytest.raises((RecipeError, ValueError), match=words):
            GradientCompression(method)
    with pytest.raises(ValueError, match="2 for powersgd"):
        GradientCompression("powersgd", after=1)
    assert GradientCompression().method == ScaleCom()
    assert [count_kept(size, 100) for size in (1, 100, 101, 250)] == [1, 1, 2, 3]
    one = trainer(epoch_loader(blobs()), mlp(), callbacks=[GradientCompression()], max_duration="1ba")
    with pytest.warns(NoEffectWarning, match="there is one rank"):
        one.fit()


def test_what_is_remembered_of_gradients_is_not_added_to_another_trainers() -> None:
    """What a rank has kept back belongs to the model of its own Trainer."""
    callback = GradientCompression()
    callback.load_state_dict({**callback.state_dict(), "memory": [{"module.0.weight": torch.ones(3)}], "order": ["a"]})
    trainer(epoch_loader(blobs()), mlp(), callbacks=[callback], max_duration="1ba")
    assert (callback.state_dict()["memory"], callback.state_dict()["order"]) == ([{}], [])
