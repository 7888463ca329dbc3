"""Batch norm in two branches: one for clean rows, an auxiliary one for rows of another distribution.

Adversarial examples have other activation statistics than clean ones, and one batch norm for both serves neither. Xie
et al., "Adversarial examples improve image recognition", CVPR 2020, https://arxiv.org/abs/1911.09665, section 4: give
them statistics and affine parameters of their own, and drop these when training is over.

Legend: B rows, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from composer.utils import dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from reuse_algos.errors import ModelError

_AUXILIARY = "auxiliary"


class BranchSwitch:
    """Which branch the batch norms of a model use in training mode; one object for all of them.

    Attributes:
        auxiliary: True for the auxiliary branch. In evaluation mode the main branch is used whatever this says.
        too_few: What to say where a layer is given one value per channel, in which case there are no statistics.
            None: torch says it.
    """

    def __init__(self) -> None:
        self.auxiliary = False
        self.too_few: str | None = None


class _SplitNorm(nn.Module):
    """What the split classes add to torch's: a child ``auxiliary`` and the switch.

    Parameters and buffers of the main branch are the very objects of the layer before, under the same names.
    """

    auxiliary: nn.Module
    switch: BranchSwitch

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``[B, C, ...]`` with the branch that the switch names, or with the main one in evaluation mode."""
        # SyncBatchNorm counts the values of all ranks, so one value here may be enough.
        if self.training and input.numel() == input.size(1) and not isinstance(self, nn.SyncBatchNorm):
            self._refuse_one_value()
        if self.training and self.switch.auxiliary:
            return self.auxiliary(input)
        return super().forward(input)

    def _refuse_one_value(self) -> None:
        if self.switch.too_few is not None:
            raise ModelError(self.switch.too_few)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take the plain layer's weights, too: the auxiliary branch then starts as a copy of the main one."""
        branch = f"{prefix}{_AUXILIARY}."
        names = [*self._parameters, *self._buffers]
        if not any(key.startswith(branch) for key in state_dict):
            plain = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
            state_dict.update({branch + name: value.clone() for name, value in plain.items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class SplitBatchNorm1d(_SplitNorm, nn.BatchNorm1d):
    """``BatchNorm1d`` in two branches. Made by :func:`split_batch_norm`."""


class SplitBatchNorm2d(_SplitNorm, nn.BatchNorm2d):
    """``BatchNorm2d`` in two branches. Made by :func:`split_batch_norm`."""


class SplitBatchNorm3d(_SplitNorm, nn.BatchNorm3d):
    """``BatchNorm3d`` in two branches. Made by :func:`split_batch_norm`."""


class SplitSyncBatchNorm(_SplitNorm, nn.SyncBatchNorm):
    """``SyncBatchNorm`` in two branches. Made by :func:`split_batch_norm`."""


_SPLIT: dict[type, type[_SplitNorm]] = {
    nn.BatchNorm1d: SplitBatchNorm1d,
    nn.BatchNorm2d: SplitBatchNorm2d,
    nn.BatchNorm3d: SplitBatchNorm3d,
    nn.SyncBatchNorm: SplitSyncBatchNorm,
}
_PLAIN: dict[type, type] = {split: plain for plain, split in _SPLIT.items()}


def split_batch_norm(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], switch: BranchSwitch
) -> list[nn.Module]:
    """Give every batch norm of a model an auxiliary branch, in place.

    The auxiliary branch is a copy of the layer, and its parameters go into the parameter groups of the main ones.
    Layers that are split already take the new switch.

    Returns:
        The split layers; empty where the model has no batch norm.

    Raises:
        ModelError: A layer is a batch norm of a class of its own, whose forward pass is not known, or a lazy one; then
            nothing has been changed.
    """
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        if type(module) in _SPLIT or isinstance(module, _SplitNorm):
            found.append(module)
        elif isinstance(module, _BatchNorm):
            lazy = isinstance(module, LazyModuleMixin)
            advice = "Run one batch through the model first" if lazy else "Use torch's own class"
            raise ModelError(
                f"{name} is a {type(module).__module__}.{type(module).__qualname__}, and only BatchNorm1d, 2d, 3d and "
                f"SyncBatchNorm of torch.nn can be split. {advice}, or say split_batch_norm: false."
            )
    # The auxiliary branch of a layer that is split already is a batch norm, too, but no layer of the model's own.
    branches = {id(module.auxiliary) for module in found if isinstance(module, _SplitNorm)}
    found = [module for module in found if id(module) not in branches]
    optimizers = list(optimizers)
    for module in found:
        if not isinstance(module, _SplitNorm):
            branch = copy.deepcopy(module)
            # Only the class changes, as torch's lazy modules do it: hooks, references and optimizers keep the same
            # objects.
            module.__class__ = _SPLIT[type(module)]
            module.auxiliary = branch
        module.switch = switch  # type: ignore[assignment]
        for optimizer in optimizers:
            _join_groups(module, optimizer)
    return found


def _join_groups(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Add a layer's auxiliary parameters to the groups of its main ones."""
    auxiliary = dict(module.get_submodule(_AUXILIARY).named_parameters())
    for name, parameter in module.named_parameters(recurse=False):
        branch = auxiliary[name]
        for group in optimizer.param_groups:
            places = {id(member): place for place, member in enumerate(group["params"])}
            if id(parameter) not in places or id(branch) in places:
                continue
            group["params"].append(branch)
            if "param_names" in group:  # of optimizers that were made from named_parameters()
                path, dot, last = group["param_names"][places[id(parameter)]].rpartition(".")
                group["param_names"].append(f"{path}{dot}{_AUXILIARY}.{last}")
            # Some optimizers (Adagrad) make the state of their parameters when they are made. The auxiliary parameters
            # are copies of the main ones, and so is their state.
            if optimizer.state.get(parameter):
                optimizer.state[branch] = copy.deepcopy(optimizer.state[parameter])


def restore_batch_norm(model: nn.Module) -> int:
    """Undo :func:`split_batch_norm`: the main branches become plain layers again, the auxiliary ones are dropped.

    For weights that are to be exported, or a copy of the model that is to be a plain one. Optimizers keep the
    parameters that were dropped; they get no gradients any more.

    Returns:
        How many layers were restored.
    """
    layers = split_layers(model)
    for layer in layers:
        _make_plain(layer)
    return len(layers)


class TakenOut(NamedTuple):
    """An auxiliary branch that is put aside.

    Attributes:
        layer: Whose it is, a plain one now.
        branch: Its parameters and statistics.
        switch: Of the layer.
        states: What the optimizers keep of the branch's parameters, by optimizer and parameter.
    """

    layer: nn.Module
    branch: nn.Module
    switch: BranchSwitch
    states: list[dict[nn.Parameter, Any]]


def take_out(layers: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer]) -> list[TakenOut]:
    """Make split layers plain ones and put their auxiliary branches aside, with what optimizers keep of them."""
    optimizers = list(optimizers)
    taken = []
    for layer in layers:
        branch: Any = layer.get_submodule(_AUXILIARY)
        switch: Any = layer.switch
        states = [_leave_groups(branch, optimizer) for optimizer in optimizers]
        taken.append(TakenOut(layer, branch, switch, states))
        _make_plain(layer)
    return taken


def put_back(taken: Iterable[TakenOut], optimizers: Iterable[torch.optim.Optimizer]) -> list[nn.Module]:
    """Undo :func:`take_out`, with the same optimizers.

    Returns:
        The layers.
    """
    layers = []
    for layer, branch, switch, states in taken:
        layer.__class__ = _SPLIT[type(layer)]
        layer.auxiliary, layer.switch = branch, switch  # type: ignore[assignment]
        for optimizer, kept in zip(optimizers, states, strict=True):
            _join_groups(layer, optimizer)
            # _join_groups has given them a copy of the main branch's state; their own was put aside.
            for parameter in branch.parameters():
                optimizer.state.pop(parameter, None)
            for parameter, state in kept.items():
                optimizer.state[parameter] = state
        layers.append(layer)
    return layers


def _leave_groups(branch: nn.Module, optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, Any]:
    """Take a branch's parameters out of an optimizer; what it kept of them."""
    gone = {id(parameter) for parameter in branch.parameters()}
    for group in optimizer.param_groups:
        stay = [place for place, parameter in enumerate(group["params"]) if id(parameter) not in gone]
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [group[key][place] for place in stay]
    return {p: optimizer.state.pop(p) for p in branch.parameters() if p in optimizer.state}


def _make_plain(layer: nn.Module) -> None:
    del layer.auxiliary
    del layer.switch
    layer.__class__ = _PLAIN[type(layer)]


def split_layers(model: nn.Module) -> list[nn.Module]:
    """Return all split layers of a model, each once."""
    return [module for module in model.modules() if isinstance(module, _SplitNorm)]


def share_statistics(model: nn.Module) -> None:
    """Give every rank the running statistics of rank 0. Every rank must call this."""
    if dist.get_world_size() == 1:
        return
    # DDP does this at its next forward pass. What looks at the model in evaluation mode before that would see what each
    # rank's own rows made of them since, which no checkpoint has: a resumed run would go another way.
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            for buffer in module.buffers(recurse=False):
                dist.broadcast(buffer, src=0)


def auxiliary_parameters(layers: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """Yield trained parameters of the auxiliary branches."""
    for layer in layers:
        yield from (p for p in layer.get_submodule(_AUXILIARY).parameters() if p.requires_grad)


def main_parameters(layers: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """Yield trained parameters of the main branches."""
    for layer in layers:
        yield from (p for p in layer.parameters(recurse=False) if p.requires_grad)


@torch.no_grad()
def restart_auxiliary(layers: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
    """Let the auxiliary branches go on from where the main ones are now: parameters, statistics, optimizer state."""
    optimizers = list(optimizers)
    for layer in layers:
        branch = layer.get_submodule(_AUXILIARY)
        for name, parameter in branch.named_parameters():
            main = layer.get_parameter(name)
            parameter.copy_(main)
            for optimizer in optimizers:
                if optimizer.state.get(main):
                    optimizer.state[parameter] = copy.deepcopy(optimizer.state[main])
        for name, buffer in branch.named_buffers():
            buffer.copy_(layer.get_buffer(name))


def leave_auxiliary(layers: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer], first: bool) -> None:
    """Keep momentum and weight decay from moving auxiliary branches without rows, before the optimizers step."""
    states = [optimizer.state for optimizer in optimizers]
    for layer in layers:
        for name, parameter in layer.get_submodule(_AUXILIARY).named_parameters():
            main = layer.get_parameter(name)
            # An optimizer leaves a parameter without a gradient alone. In the first step the gradients become zeros
            # instead: a checkpoint of an optimizer can only be loaded where it has made the state of all parameters.
            stateless = not first and not any(state.get(main) for state in states)
            if stateless or any(state.get(parameter) for state in states):
                parameter.grad = None
            elif parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)


def without_auxiliary(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return those names of a model's state dict that the plain model has, too."""
    prefixes = tuple(
        f"{name}.{_AUXILIARY}." if name else f"{_AUXILIARY}."
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _SplitNorm)
    )
    return [name for name in names if not name.startswith(prefixes)] if prefixes else list(names)
