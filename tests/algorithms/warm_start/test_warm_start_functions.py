"""The pure functions of PriorRunWarmStart against sums done by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, StepLR

from reuse_algos.algorithms.prior_run_warm_start import (
    average_weights,
    gaussian_noise,
    known_rows,
    match_rows,
    shrink_and_perturb,
    shuffled_noise,
)
from reuse_algos.algorithms.prior_run_warm_start.initial_weights import (
    Plan,
    differences,
    initial_values,
    misfits,
    noise_generator,
)
from reuse_algos.errors import ModelError, PriorRunMismatchError
from reuse_algos.models import build_model
from reuse_algos.priors.model import under_our_names
from reuse_algos.training.parameters.head import find_head
from reuse_algos.training.parameters.parameter_groups import add_groups, arrange_groups, check_schedulers
from reuse_algos.training.parameters.trainable import head_of, matches, pattern_faults
from toy import mlp


def test_shrink_and_perturb_is_the_equation() -> None:
    weights, noise = torch.tensor([1.0, -2.0, 4.0]), torch.tensor([10.0, 20.0, -30.0])
    assert shrink_and_perturb(weights, noise, 0.5, 0.25).tolist() == [3.0, 4.0, -5.5]
    assert shrink_and_perturb(weights, None, 0.5, 0.0).tolist() == [0.5, -1.0, 2.0]
    assert torch.equal(shrink_and_perturb(weights, None, 1.0, 0.0), weights)


def test_shuffled_noise_has_the_values_of_the_initialisation_in_another_order() -> None:
    fresh = torch.arange(60.0).reshape(3, 20)
    noise = shuffled_noise(fresh, noise_generator(1, "run", "fc.weight"))
    assert noise.shape == fresh.shape
    assert sorted(noise.flatten().tolist()) == fresh.flatten().tolist()
    assert not torch.equal(noise, fresh)
    # A seed, another source (the next run of a sequence) and another tensor each draw another order.
    for seed, source, name in ((2, "run", "fc.weight"), (1, "other", "fc.weight"), (1, "run", "fc.bias")):
        assert not torch.equal(noise, shuffled_noise(fresh, noise_generator(seed, source, name)))
    assert torch.equal(noise, shuffled_noise(fresh, noise_generator(1, "run", "fc.weight")))


def test_gaussian_noise_is_standard_normal_and_leaves_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    noise = gaussian_noise(torch.zeros(200, 500), noise_generator(0, "", ""))
    assert torch.equal(before, torch.random.get_rng_state())
    assert float(noise.mean()) == pytest.approx(0, abs=4 / 100000**0.5)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)


def test_average_in_float64_with_whole_numbers_of_the_newest() -> None:
    def checkpoint(value: float, batches: int) -> dict[str, torch.Tensor]:
        return {"w": torch.tensor([value, 1e8]), "h": torch.tensor([value]).half(), "n": torch.tensor(batches)}

    averaged = average_weights([checkpoint(1.0, 10), checkpoint(2.0, 20), checkpoint(6.0, 30)])
    assert averaged["w"].tolist() == [3.0, 1e8]
    assert (averaged["h"].dtype, averaged["h"].item()) == (torch.float16, 3.0)
    assert (averaged["n"].dtype, averaged["n"].item()) == (torch.int64, 30)


def test_match_rows_goes_by_name() -> None:
    here, there = match_rows(["cat", "dog", "owl"], ["owl", "yak", "cat"])
    assert (here.tolist(), there.tolist()) == ([0, 2], [2, 0])
    fresh, old = torch.zeros(3, 2), torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert known_rows(fresh, old, here, there).tolist() == [[3, 3], [0, 0], [1, 1]]
    assert fresh.sum() == 0, "the model's own tensor stays"


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (None, ["a"], "the prior run has none"),
        (["a"], None, "this run's train data has none"),
        (["a", "b"], ["c", "d"], "no class in common"),
        (["a", "a"], ["a", "b"], "in the prior run 1 of them stand for more than one class"),
    ],
)
def test_match_rows_refuses_what_it_would_have_to_guess(theirs, ours, message) -> None:
    with pytest.raises(PriorRunMismatchError, match=message):
        match_rows(theirs, ours)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet8", ["module.fc.weight", "module.fc.bias"]),
        ("digits_cnn", ["module.fc.weight", "module.fc.bias"]),
        ("squeezenet1_1", ["module.classifier.1.weight", "module.classifier.1.bias"]),
        ("mobilenet_v3_small", ["module.classifier.3.weight", "module.classifier.3.bias"]),
    ],
)
def test_head_of_real_models(name: str, head: list[str]) -> None:
    model = build_model(name, 7, (1, 8, 8) if name == "digits_cnn" else (3, 32, 32))
    assert find_head(model, 7) == head
    assert head_of(model, None, None) == head


def test_head_is_the_last_layer_with_so_many_outputs() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 5))
    assert find_head(net, 3) == ["1.weight", "1.bias"]
    assert find_head(net, 9) == []
    assert head_of(net, "2.*", None) == ["2.weight", "2.bias"]
    for wrong, message in (((None, None), "does not say its num_classes"), ((None, 9), "with 9 outputs")):
        with pytest.raises(ModelError, match=message):
            head_of(net, *wrong)
    with pytest.raises(ModelError, match="pattern of the head: '3.\\*' matches nothing"):
        head_of(net, "3.*", None)


def test_patterns() -> None:
    head = {"module.3.weight", "module.3.bias"}
    names = list(dict(mlp().named_parameters()))
    assert [name for name in names if matches(name, ["head"], head)] == ["module.3.weight", "module.3.bias"]
    assert [name for name in names if matches(name, ["backbone"], head)] == names[:4]
    assert [name for name in names if matches(name, ["1.*"], head)] == ["module.1.weight", "module.1.bias"]
    assert [name for name in names if matches(name, ["module.1.*", "*.3.bias"], head)] == [*names[2:4], names[5]]
    faults = pattern_faults("freeze", ["0.*", "layer1", "3.wieght"], names, head)
    assert len(faults) == 2
    assert faults[1].startswith("freeze: '3.wieght' matches nothing in the model. Did you mean '3.weight' or ")


def test_differences_lists_every_tensor() -> None:
    theirs = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1), "d": torch.zeros(5)}
    ours = {"a": torch.zeros(2), "b": torch.zeros(4), "e": torch.zeros(1), "d": torch.zeros(6)}
    assert differences(theirs, ours, exempt={"d"}) == [
        "b: (3,) there, (4,) here",
        "c: (1,) there, absent here",
        "e: absent there, (1,) here",
    ]
    wrapped = {"module." + name: value for name, value in ours.items()}
    assert under_our_names(ours, wrapped).keys() == wrapped.keys()
    assert under_our_names(wrapped, ours).keys() == ours.keys()


def test_initial_values_follow_the_plan() -> None:
    fresh = {"body": torch.ones(2), "head": torch.tensor([[5.0], [6.0], [7.0]]), "new": torch.ones(1)}
    archived = {"body": torch.tensor([4.0, 8.0]), "head": torch.tensor([[10.0], [20.0]]), "gone": torch.ones(3)}
    plan = Plan({"new", "gone"}, {"head"}, (torch.tensor([0, 2]), torch.tensor([1, 0])), {"body", "head"})
    assert misfits(archived, fresh, plan) == []
    values = initial_values(archived, fresh, plan, shrink=0.5, perturb=0.1, noise=lambda _, tensor: 10 * tensor)
    assert values.keys() == {"body", "head"}
    assert values["body"].tolist() == [3.0, 5.0]
    # Row 1 is a new class. The noise of the others is of their own rows of the initialisation.
    assert values["head"].flatten().tolist() == [10.0 + 5.0, 6.0, 5.0 + 7.0]
    assert fresh["head"].flatten().tolist() == [5.0, 6.0, 7.0]
    assert archived["body"].tolist() == [4.0, 8.0]
    assert misfits(archived, fresh, Plan(by_class={"head"})) == [
        "gone: (3,) there, absent here",
        "new: absent there, (1,) here",
    ]
    too_many = Plan({"new", "gone"}, {"head"}, (torch.tensor([3]), torch.tensor([2])))
    assert len(misfits(archived, fresh, too_many)) == 2


def _groups() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(4)]
    settings = [
        {"params": parameters[:3], "lr": 0.1, "weight_decay": 0.5},
        {"params": parameters[3:], "lr": 0.4, "weight_decay": 0.0},
    ]
    return parameters, torch.optim.SGD(settings, momentum=0.9)


def test_groups_are_split_by_rate_and_freed_of_what_is_frozen() -> None:
    (a, b, c, d), optimizer = _groups()
    held = arrange_groups(optimizer, {a: 0.5, d: 2.0}, [b])
    found = [(group["params"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [([a], 0.05, 0.5), ([c], 0.1, 0.5), ([d], 0.8, 0.0)]
    assert [(group["params"], group["lr"], group["momentum"]) for group in held] == [([b], 0.1, 0.9)]
    # Arranged once more, a parameter has the factor that is asked for now, not the product.
    arrange_groups(optimizer, {a: 1.0, c: 3.0, d: 2.0}, [])
    found = [(group["params"], group["lr"]) for group in optimizer.param_groups]
    assert found == [([a], pytest.approx(0.1)), ([c], pytest.approx(0.3)), ([d], 0.8)]
    with pytest.raises(ModelError, match="nothing to train"):
        arrange_groups(optimizer, {}, [a, c, d])


def test_groups_come_back_at_the_rate_that_they_would_have_had() -> None:
    (a, b, _, _), optimizer = _groups()
    held = arrange_groups(optimizer, {a: 0.5}, [a])
    scheduler = LambdaLR(optimizer, lambda epoch: 0.9**epoch)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    check_schedulers(optimizer, [scheduler], will_grow=True)
    add_groups(optimizer, held, [scheduler])
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(a)] == pytest.approx(0.05 * 0.9**3)
    assert rates[id(a)] / rates[id(b)] == pytest.approx(0.5)
    optimizer.step()
    scheduler.step()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(a)] == pytest.approx(0.05 * 0.9**4)


def test_schedulers_that_would_not_drive_the_groups_are_refused() -> None:
    (a, *_), optimizer = _groups()
    early = StepLR(optimizer, 1)
    arrange_groups(optimizer, {a: 0.5}, [])
    with pytest.raises(ModelError, match="StepLR was made for other parameter groups"):
        check_schedulers(optimizer, [early], will_grow=False)
    _, optimizer = _groups()
    late = StepLR(optimizer, 1)
    check_schedulers(optimizer, [late], will_grow=False)
    with pytest.raises(ModelError, match="cannot take them in"):
        check_schedulers(optimizer, [late], will_grow=True)
