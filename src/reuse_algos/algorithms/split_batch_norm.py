"""Batch norm in two branches: one for clean rows, an auxiliary one for rows of another distribution.

Adversarial examples have other activation statistics than clean ones, and one batch norm for both serves neither. Xie
et al., "Adversarial examples improve image recognition", CVPR 2020, https://arxiv.org/abs/1911.09665, section 4: give
them statistics and affine parameters of their own, and drop these when training is over.

Legend: B rows, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from reuse_algos.errors import ModelError

__all__ = [
    "BranchSwitch",
    "SplitBatchNorm1d",
    "SplitBatchNorm2d",
    "SplitBatchNorm3d",
    "SplitSyncBatchNorm",
    "auxiliary_parameters",
    "main_parameters",
    "restart_auxiliary",
    "restore_batch_norm",
    "split_batch_norm",
    "split_layers",
    "without_auxiliary",
]

_AUXILIARY = "auxiliary"


class BranchSwitch:
    """Which branch the batch norms of a model use in training mode; one object for all of them.

    Attributes:
        auxiliary: True for the auxiliary branch. In evaluation mode the main branch is used whatever this says.
    """

    def __init__(self) -> None:
        self.auxiliary = False


class _SplitNorm(nn.Module):
    """What the split classes add to torch's: a child ``auxiliary`` and the switch.

    Parameters and buffers of the main branch are the very objects of the layer before, under the same names.
    """

    auxiliary: nn.Module
    switch: BranchSwitch

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``[B, C, ...]`` with the branch that the switch names, or with the main one in evaluation mode."""
        if self.training and self.switch.auxiliary:
            return self.auxiliary(input)
        return super().forward(input)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Also takes the plain layer's weights: the auxiliary branch then starts as a copy of the main one."""
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

    The modules stay the same objects, and so do their parameters and buffers; only their class changes (as torch's lazy
    modules and parametrizations do it), which keeps hooks and references. The auxiliary branch is a copy of the layer,
    and its parameters go into the parameter groups of the main ones. Layers that are split already take the new switch.

    Args:
        model: the model, before it is wrapped or compiled.
        optimizers: those that train it.
        switch: decides between the branches from now on.

    Returns:
        The split layers; empty where the model has no batch norm.

    Raises:
        ModelError: a layer is a batch norm of a class of its own, whose forward pass is not known, or a lazy one; then
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
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for module in found:
        if not isinstance(module, _SplitNorm):
            branch = copy.deepcopy(module)
            module.__class__ = _SPLIT[type(module)]
            module.auxiliary = branch
        module.switch = switch  # type: ignore[assignment]
        _join_groups(module, groups)
    return found


def _join_groups(module: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Add a layer's auxiliary parameters to the groups of its main ones."""
    auxiliary = dict(module.get_submodule(_AUXILIARY).named_parameters())
    for name, parameter in module.named_parameters(recurse=False):
        for group in groups:
            members = {id(member) for member in group["params"]}
            if id(parameter) in members and id(auxiliary[name]) not in members:
                group["params"].append(auxiliary[name])


def restore_batch_norm(model: nn.Module) -> int:
    """Undo :func:`split_batch_norm`: the main branches become plain layers again, the auxiliary ones are dropped.

    For weights that are to be exported, or a copy of the model that is to be a plain one. Optimizers keep the
    parameters that were dropped; they get no gradients any more.

    Returns:
        How many layers were restored.
    """
    layers = split_layers(model)
    for layer in layers:
        del layer.auxiliary
        del layer.switch
        layer.__class__ = _PLAIN[type(layer)]
    return len(layers)


def split_layers(model: nn.Module) -> list[nn.Module]:
    """All split layers of a model, each once."""
    return [module for module in model.modules() if isinstance(module, _SplitNorm)]


def auxiliary_parameters(layers: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """Trained parameters of the auxiliary branches."""
    for layer in layers:
        yield from (p for p in layer.get_submodule(_AUXILIARY).parameters() if p.requires_grad)


def main_parameters(layers: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """Trained parameters of the main branches."""
    for layer in layers:
        yield from (p for p in layer.parameters(recurse=False) if p.requires_grad)


@torch.no_grad()
def restart_auxiliary(layers: Iterable[nn.Module]) -> None:
    """Let the auxiliary branches go on from where the main ones are now: parameters and statistics."""
    for layer in layers:
        branch = layer.get_submodule(_AUXILIARY)
        for name, parameter in branch.named_parameters():
            parameter.copy_(layer.get_parameter(name))
        for name, buffer in branch.named_buffers():
            buffer.copy_(layer.get_buffer(name))


def without_auxiliary(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those names of a model's state dict that the plain model has, too."""
    prefixes = tuple(
        f"{name}.{_AUXILIARY}." if name else f"{_AUXILIARY}."
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _SplitNorm)
    )
    return [name for name in names if not name.startswith(prefixes)] if prefixes else list(names)
