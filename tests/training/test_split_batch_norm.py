"""The two branches of a batch norm, and the surgery."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from reuse_algos.callbacks.recorder.facts.provenance import model_record
from reuse_algos.errors import ModelError
from reuse_algos.training.outputs import plain_state_dict
from reuse_algos.training.parameters.batch_norm import (
    BranchSwitch,
    put_back,
    restart_auxiliary,
    restore_batch_norm,
    split_batch_norm,
    split_layers,
    take_out,
)

LAYERS: list[tuple[type, tuple[int, ...]]] = [
    (nn.BatchNorm1d, (6, 3)),
    (nn.BatchNorm2d, (4, 3, 5, 5)),
    (nn.BatchNorm3d, (4, 3, 2, 2, 2)),
    (nn.SyncBatchNorm, (6, 3, 4)),
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """SyncBatchNorm refuses CPUs where torch.distributed is up, which a Trainer of another test may have left."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)


def model(layer: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 1.5)
    return nn.Sequential(nn.Identity(), layer)


@pytest.mark.parametrize(("kind", "shape"), LAYERS)
@pytest.mark.parametrize("settings", SETTINGS, ids=["default", "cumulative", "no affine", "no statistics"])
def test_each_branch_is_a_plain_layer(kind: type, shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    net: Any = model(kind(3, **settings))
    main, auxiliary = copy.deepcopy(net), copy.deepcopy(net)
    switch = BranchSwitch()
    layer: Any = split_batch_norm(net, [], switch)[0]
    assert isinstance(layer, kind)
    generator = torch.Generator().manual_seed(0)
    for use_auxiliary in (False, True, True, False, False):
        batch = torch.randn(shape, generator=generator) * (1 + 2 * use_auxiliary)
        switch.auxiliary = use_auxiliary
        assert torch.equal(net(batch), (auxiliary if use_auxiliary else main)(batch))
    switch.auxiliary = True  # evaluation does not care
    for one in (net, main):
        one.eval()
    batch = torch.randn(shape, generator=generator)
    assert torch.equal(net(batch), main(batch))
    for ours, plain in ((layer, main[1]), (layer.auxiliary, auxiliary[1])):
        for name, value in plain.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name


def test_surgery_keeps_what_was_there_and_can_be_undone() -> None:
    shared = nn.BatchNorm1d(3)
    net: Any = nn.Sequential(nn.Linear(3, 3), shared, nn.Sequential(nn.BatchNorm1d(3), shared), nn.InstanceNorm1d(3))
    net[1].weight.requires_grad_(False)
    plain: Any = copy.deepcopy(net)
    before = {name: (id(value), value.shape) for name, value in [*net.named_parameters(), *net.named_buffers()]}
    groups = [{"params": [net[0].weight, net[2][0].weight]}, {"params": [net[0].bias, net[2][0].bias], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    layers = split_batch_norm(net, [optimizer], BranchSwitch())
    assert [id(layer) for layer in layers] == [id(net[1]), id(net[2][0])]
    after = {name: (id(value), value.shape) for name, value in [*net.named_parameters(), *net.named_buffers()]}
    assert {name: value for name, value in after.items() if "auxiliary" not in name} == before
    branch = net[2][0].auxiliary
    sizes = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert sizes[0][2:] == [id(branch.weight)]
    assert sizes[1][2:] == [id(branch.bias)]
    assert optimizer.param_groups[1]["lr"] == 0.5
    assert not net[1].auxiliary.weight.requires_grad
    assert len(net.state_dict()) == len(plain.state_dict()) + 15  # 1, 2.0 and 2.1, which is 1 again
    assert plain_state_dict(net).keys() == plain.state_dict().keys()
    ours, theirs = model_record(net, None), model_record(plain, None)
    assert (ours.parameters, ours.num_parameters) == (theirs.parameters, theirs.num_parameters)
    assert restore_batch_norm(net) == 2
    assert [type(module) for module in net.modules()] == [type(module) for module in plain.modules()]
    assert {name: (id(p), p.shape) for name, p in [*net.named_parameters(), *net.named_buffers()]} == before
    assert (restore_batch_norm(net), split_layers(net)) == (0, [])


def test_a_model_that_is_split_takes_a_new_switch_and_optimizer() -> None:
    net: Any = nn.Sequential(nn.BatchNorm1d(3))
    split_batch_norm(net, [], BranchSwitch())
    branch, switch = net[0].auxiliary, BranchSwitch()
    optimizer = torch.optim.SGD([net[0].weight, net[0].bias], lr=0.1)
    for _ in range(2):
        assert split_batch_norm(net, [optimizer], switch) == [net[0]]
    assert net[0].auxiliary is branch
    assert net[0].switch is switch
    assert [id(p) for p in optimizer.param_groups[0]["params"][2:]] == [id(branch.weight), id(branch.bias)]


def test_a_copy_has_a_switch_of_its_own() -> None:
    net: Any = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    switch = BranchSwitch()
    split_batch_norm(net, [], switch)
    other: Any = copy.deepcopy(net)
    switch.auxiliary = True
    other(torch.randn(4, 3))
    assert [int(other[i].num_batches_tracked) for i in (0, 1)] == [1, 1]
    assert other[0].switch is other[1].switch
    assert other[0].switch is not switch


class Own(nn.BatchNorm2d):
    """A batch norm that may do anything."""


@pytest.mark.parametrize(
    ("layer", "advice"),
    [(Own(3), "Use torch's own class"), (nn.LazyBatchNorm1d(), "Run one batch through the model first")],
    ids=["subclass", "lazy"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_refuses_what_it_does_not_know(layer: nn.Module, advice: str) -> None:
    net: Any = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(layer))
    with pytest.raises(ModelError, match=f"1.0 is a .*{type(layer).__name__}.*{advice}.*split_batch_norm: false"):
        split_batch_norm(net, [], BranchSwitch())
    assert type(net[0]) is nn.BatchNorm1d


def test_plain_weights_go_into_both_branches() -> None:
    plain: Any = model(nn.BatchNorm2d(3))
    plain(torch.randn(4, 3, 2, 2))
    net: Any = nn.Sequential(nn.Identity(), nn.BatchNorm2d(3))
    split_batch_norm(net, [], BranchSwitch())
    net.load_state_dict(plain.state_dict())
    for branch in (net[1], net[1].auxiliary):
        for name, value in plain[1].state_dict().items():
            assert torch.equal(branch.state_dict()[name], value)
    assert net[1].auxiliary.weight is not net[1].weight
    again: Any = copy.deepcopy(net)
    with torch.no_grad():
        net[1].auxiliary.weight.add_(1)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again[1].auxiliary.weight, net[1].weight + 1)
    restart_auxiliary(split_layers(again))
    assert torch.equal(again[1].auxiliary.weight, net[1].weight)


def test_compiled() -> None:
    net: Any = model(nn.BatchNorm2d(3))
    switch = BranchSwitch()
    main, auxiliary = copy.deepcopy(net), copy.deepcopy(net)
    split_batch_norm(net, [], switch)
    compiled = torch.compile(net, backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    for use_auxiliary in (False, True, False, True):
        batch = torch.randn(4, 3, 2, 2, generator=generator)
        switch.auxiliary = use_auxiliary
        torch.testing.assert_close(compiled(batch), (auxiliary if use_auxiliary else main)(batch))
    assert torch.equal(net[1].running_mean, main[1].running_mean)
    assert torch.equal(net[1].auxiliary.running_mean, auxiliary[1].running_mean)


@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("named", [False, True])
def test_auxiliary_parameters_join_any_optimizer_and_leave_it(kind: Any, named: bool) -> None:
    net: Any = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = kind(net.named_parameters() if named else net.parameters(), lr=0.1)
    layers = split_batch_norm(net, [optimizer], BranchSwitch())
    branch, (group,) = net[1].auxiliary, optimizer.param_groups
    assert [id(p) for p in group["params"][4:]] == [id(branch.weight), id(branch.bias)]
    if named:
        assert group["param_names"][3:] == ["1.bias", "1.auxiliary.weight", "1.auxiliary.bias"]
    layers[0].switch.auxiliary = True  # type: ignore[union-attr]
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    kept = copy.deepcopy(optimizer.state_dict())
    taken = take_out(layers, [optimizer])
    assert [type(module) for module in net] == [nn.Linear, nn.BatchNorm1d]
    assert len(optimizer.state_dict()["param_groups"][0]["params"]) == 4
    assert len(group.get("param_names", range(4))) == 4
    assert put_back(taken, [optimizer]) == layers
    assert net[1].auxiliary is branch
    again = optimizer.state_dict()
    assert again["param_groups"] == kept["param_groups"]
    assert again["state"].keys() == kept["state"].keys()
    for place, state in kept["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(again["state"][place][name], value, rtol=0, atol=0)
