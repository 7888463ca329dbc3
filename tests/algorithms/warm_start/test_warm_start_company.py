"""PriorRunWarmStart and Freezing beside other things: a second Trainer, each other, frozen and tied models, views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, State
from composer.models import ComposerClassifier
from torch import nn

from reuse_algos.algorithms.freezing import Freezing
from reuse_algos.archive import RunArchive
from reuse_algos.errors import ModelError
from toy import epoch_loader, mlp, trainer, viewed
from warming import Weights, archived, fit, record, same, trainer_with, warm

HEAD = {"module.3.weight", "module.3.bias"}
FROZEN = {"module.0.weight", "module.0.bias", "module.1.weight", "module.1.bias"}


# A second Trainer ----------------------------------------------------------------------------------------------------


def test_another_trainer_chooses_its_prior_run_again(tmp_path: Path) -> None:
    mine = RunArchive(tmp_path, create=True)
    record(mine, "one")
    algorithm = warm(mine, runs={"order": "latest", "limit": 1})
    fit([algorithm], max_duration="1ba")
    later = record(mine, "two", lr=0.05)
    _, seen, _ = fit([algorithm], mlp(9), max_duration="1ba")
    assert [use.run_id for use in algorithm.prior_uses()] == [later]
    assert same(seen.first, {name: value.clone() for name, value in mine.run(later).weights("last").items()})


def test_another_trainer_of_the_same_optimizer_multiplies_its_rates_once(archive: RunArchive) -> None:
    model = mlp(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for factor in (0.5, 0.5, 0.25):
        seen, own = Weights(), Freezing(learning_rates={"head": factor})
        trainer_with(optimizer, model, [own], [seen], max_duration="1ba").fit()
        assert seen.rates == [[0.1, pytest.approx(0.1 * factor)]]


@pytest.mark.parametrize("names", [HEAD, HEAD | FROZEN - {"module.1.bias"}], ids=["head", "all but one"])
def test_what_unfreezes_must_be_in_the_optimizer(archive: RunArchive, names: set[str]) -> None:
    model = mlp(5)
    optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if name in names], lr=0.1)
    lost = ", ".join([name for name, _ in model.named_parameters() if name not in names][:3])
    with pytest.raises(ModelError, match=f"unfreeze_at: {lost} would train, and the optimizer does not have all"):
        trainer_with(optimizer, model, [warm(archive, freeze="backbone", unfreeze_at="1ep")], [])
    # Frozen for good is fine: as many do it by hand.
    trainer_with(optimizer, model, [warm(archive, freeze="backbone")], [], max_duration="1ba").fit()


# Each other ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unfreeze_at", [None, "1ep"])
@pytest.mark.parametrize("first", [0, 1])
def test_what_freezing_froze_is_neither_shrunk_nor_perturbed(
    archive: RunArchive, first: int, unfreeze_at: str | None
) -> None:
    old = archived(archive)
    both = [Freezing("backbone", unfreeze_at=unfreeze_at), warm(archive, shrink=0.5)]
    _, seen, _ = fit([both[first], both[1 - first]], max_duration="1ba")
    for name, value in old.items():
        assert torch.equal(seen.first[name], 0.5 * value if name in HEAD else value), name


def test_what_the_model_itself_does_not_train_is_loaded_as_it_was(archive: RunArchive) -> None:
    old, model = archived(archive), mlp(5)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in HEAD)
    _, seen, _ = fit([warm(archive, shrink=0.5, perturb=0.1)], model, max_duration="1ba")
    assert {name for name, value in old.items() if not torch.equal(seen.first[name], value)} == HEAD


def test_two_that_arrange_the_optimizer_are_refused(archive: RunArchive) -> None:
    both = [Freezing("backbone", unfreeze_at="1ep"), warm(archive, learning_rates={"backbone": 0.1})]
    for algorithms in (both, both[::-1]):
        with pytest.raises(ModelError, match="both have freeze or learning_rates.*Give these options to one of them"):
            fit(algorithms)


# Tied weights --------------------------------------------------------------------------------------------------------


def _tied(seed: int) -> ComposerClassifier:
    """The head's weight is that of the first layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, head = nn.Linear(6, 4, bias=False), nn.Linear(6, 4)
        head.weight = first.weight
        return ComposerClassifier(nn.Sequential(first, nn.Linear(4, 6, bias=False), head), num_classes=4)


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "reset"},
        {"head": "match"},
        {"reset": "2.weight"},
        {"reset": "0.*"},
        {"freeze": "backbone"},
        {"freeze": "head"},
        {"learning_rates": {"head": 2.0}},
    ],
    ids=str,
)
def test_a_head_that_is_tied_to_the_backbone_cannot_be_parted_from_it(tmp_path: Path, settings: Any) -> None:
    mine = RunArchive(tmp_path, create=True)
    run = record(mine, "tied", model=_tied(1))
    with pytest.raises(ModelError, match=r"module\.[02]\.weight, which is the same parameter as module\.[02]\.weight"):
        fit([warm(mine, runs=run, **settings)], _tied(7))
    # Whatever treats both alike is fine.
    _, seen, _ = fit([warm(mine, runs=run, shrink=0.5, freeze="1.*")], _tied(7), max_duration="1ba")
    for name, value in mine.run(run).weights("last").items():
        assert torch.equal(seen.first[name], value if name == "module.1.weight" else 0.5 * value), name


def test_one_layer_under_two_names_is_no_tie(tmp_path: Path) -> None:
    def twice(seed: int) -> ComposerClassifier:
        model = mlp(seed)
        model.classifier = model.module[3]
        return model

    mine = RunArchive(tmp_path, create=True)
    run = record(mine, "twice", model=twice(1))
    _, seen, _ = fit([warm(mine, runs=run, head="reset", freeze="backbone")], twice(7), max_duration="2ba")
    fresh, old = twice(7).state_dict(), mine.run(run).weights("last")
    for name in HEAD:
        assert torch.equal(seen.first[name], fresh[name])
        assert not torch.equal(seen.later[-1][name], fresh[name])
    for name in FROZEN:
        assert torch.equal(seen.later[-1][name], old[name])


# Views ---------------------------------------------------------------------------------------------------------------


class _Inputs(Callback):
    """The inputs of every batch, by epoch, in the order of their labels and values."""

    def __init__(self) -> None:
        self.epochs: list[list[torch.Tensor]] = []

    def epoch_start(self, state: State, logger: Any) -> None:
        self.epochs.append([])

    def after_dataloader(self, state: State, logger: Any) -> None:
        self.epochs[-1].append(state.batch[0])


@pytest.mark.parametrize("kind", ["warm", "freezing"])
def test_views_follow_the_epochs_where_nobody_else_tracks_them(archive: RunArchive, kind: str) -> None:
    algorithm = warm(archive) if kind == "warm" else Freezing("backbone")
    seen, data = _Inputs(), viewed(num_views=2)
    one = trainer(epoch_loader(data), mlp(5), algorithms=[algorithm], callbacks=[seen], max_duration="3ep")
    one.fit()
    for epoch, batches in enumerate(seen.epochs):
        wanted = torch.stack([data[position, epoch % 2][0] for position in range(64)])
        shown = torch.cat(batches)
        assert torch.equal(shown[shown[:, 0].argsort()], wanted[wanted[:, 0].argsort()]), f"epoch {epoch}"
