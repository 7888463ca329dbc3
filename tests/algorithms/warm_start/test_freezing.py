"""Freezing: what is frozen does not move, and the rest trains as a plain trainer would train it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from reuse_algos.algorithms.freezing import Freezing
from reuse_algos.errors import ModelError
from reuse_algos.recipe import build_trainer, compose_recipe
from toy import epoch_loader, mlp, trainer, viewed


def fitted(*algorithms: Freezing, **arguments: object):
    one = trainer(epoch_loader(viewed()), mlp(3), algorithms=list(algorithms), **arguments)
    one.fit()
    one.close()
    return one


def test_a_frozen_backbone_stays_as_it_was_statistics_included() -> None:
    before = mlp(3).state_dict()
    one = fitted(Freezing("backbone"), max_duration="1ep")
    after = one.state.model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"module.3.weight", "module.3.bias"}
    assert [len(group["params"]) for group in one.state.optimizers[0].param_groups] == [2]
    assert [name for name, p in one.state.model.named_parameters() if p.requires_grad] == [
        "module.3.weight",
        "module.3.bias",
    ]


def test_the_head_trains_as_on_fixed_features() -> None:
    """An oracle without Composer: the same batches through a fixed backbone, the head by plain SGD."""
    model = copy.deepcopy(mlp(3).module).eval()
    head = model[3]
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    # Views are a function of the seed, the example and the view; the order one of the sampler's seed and the epoch.
    loader = epoch_loader(viewed())
    loader.sampler.set_epoch(0)
    for x, y in loader:
        loss = nn.functional.cross_entropy(head(model[:3](x).detach()), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = fitted(Freezing("backbone"), max_duration="1ep").state.model.module
    assert torch.allclose(trained[3].weight, head.weight, atol=1e-6)
    assert torch.allclose(trained[3].bias, head.bias, atol=1e-6)


def test_wrong_options_are_listed() -> None:
    with pytest.raises(ValueError, match="nothing to do. Say what to freeze"):
        Freezing()
    with pytest.raises(ValueError, match=r"(?s)above 0 and finite, got 0.*nothing is frozen"):
        Freezing(learning_rates={"head": 0}, unfreeze_at="1ep")
    with pytest.raises(ValueError, match="above 0 and finite, got inf"):
        Freezing(learning_rates={"head": float("inf")})
    with pytest.raises(ModelError, match="'modul.0.*' matches nothing in the model"):
        fitted(Freezing("modul.0.*"))


def test_a_recipe_names_it(tmp_path: Path) -> None:
    recipe = compose_recipe(
        {
            "data": {"name": "digits", "train_examples": 40, "batch_size": 20},
            "model": {"name": "digits_cnn", "width": 4},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "max_duration": "1ep",
            "device": "cpu",
            "progress_bar": False,
            "algorithms": {"freezing": {"freeze": "backbone"}},
        }
    )
    one = build_trainer(recipe)
    assert sum(len(group["params"]) for group in one.state.optimizers[0].param_groups) == 2
    one.close()
