"""Groups of an optimizer: rates of their own for some parameters, and none of the frozen ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from reuse_algos.errors import ModelError

# Attribute of an optimizer: id of a parameter -> factor that its group's rates have been multiplied by.
_APPLIED = "_reuse_algos_factors"


def arrange_groups(
    optimizer: Optimizer, multipliers: Mapping[Parameter, float], frozen: Collection[Parameter]
) -> list[dict[str, Any]]:
    """Split the groups of an optimizer by learning rate, and take frozen parameters out of it.

    Each group falls into one for every multiplier among its parameters, with the group's other settings. Call this
    before schedulers are made.

    Args:
        optimizer: Its groups are replaced.
        multipliers: Factor of the learning rate for some parameters; 1 for the others.
        frozen: Parameters to take out.

    Returns:
        The groups of the frozen parameters, for :func:`add_groups`.

    Raises:
        ModelError: Nothing is left to train.
    """
    frozen_ids = {id(parameter) for parameter in frozen}
    wanted = {id(parameter): factor for parameter, factor in multipliers.items()}
    applied: dict[int, float] = vars(optimizer).get(_APPLIED, {})
    # An optimizer that has served another Trainer has its rates from then, and gets what they lack.
    factors = {key: wanted.get(key, 1.0) / applied.get(key, 1.0) for key in wanted.keys() | applied.keys()}
    arranged: list[dict[str, Any]] = []
    held: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts: dict[tuple[bool, float], list[Parameter]] = {}
        for parameter in group["params"]:
            key = id(parameter) in frozen_ids, factors.get(id(parameter), 1.0)
            parts.setdefault(key, []).append(parameter)
        for (is_frozen, factor), parameters in parts.items():
            part = {**group, "params": parameters}
            # With initial_lr, too: schedulers and decoupled weight decay reckon from it.
            part.update({key: group[key] * factor for key in ("lr", "initial_lr") if key in group})
            (held if is_frozen else arranged).append(part)
    if not arranged:
        raise ModelError("freeze leaves the optimizer nothing to train. Freeze less, such as freeze: backbone.")
    optimizer.param_groups[:] = arranged  # in place: wrappers such as SAM share the list
    vars(optimizer)[_APPLIED] = wanted
    return held


def add_groups(optimizer: Optimizer, groups: Sequence[Mapping[str, Any]], schedulers: Sequence[Any]) -> None:
    """Take groups into an optimizer while training, each at the rate that it would have had all along.

    Args:
        optimizer: The groups come behind those that it has.
        groups: From :func:`arrange_groups`.
        schedulers: Of the optimizer, ones that :func:`check_schedulers` lets pass.
    """
    factor = 1.0
    for scheduler in schedulers:
        if isinstance(scheduler, LambdaLR) and scheduler.base_lrs[0]:
            # What the others have now. Composer's rules look at the time of the state, which they were asked before the
            # last batch was counted; asked now, they would be one batch ahead.
            factor = optimizer.param_groups[0]["lr"] / scheduler.base_lrs[0]
    for group in groups:
        start = group.get("initial_lr", group["lr"])
        for scheduler in schedulers:
            # LambdaLR pairs its rules with the groups by position.
            if isinstance(scheduler, LambdaLR):
                scheduler.base_lrs.append(start)
                scheduler.lr_lambdas.append(scheduler.lr_lambdas[0])
        optimizer.add_param_group({**group, "lr": start * factor, "initial_lr": start})


def put_back_groups(optimizer: Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    """Give an optimizer the groups that it had before :func:`arrange_groups`.

    Args:
        optimizer: Its groups are replaced.
        groups: Copies of the groups, from before.
    """
    optimizer.param_groups[:] = [dict(group) for group in groups]
    vars(optimizer).pop(_APPLIED, None)


def fit_schedulers(optimizer: Optimizer, schedulers: Sequence[Any]) -> None:
    """Let schedulers that are made already drive the groups that the optimizer has now, before the first step.

    Args:
        optimizer: After :func:`arrange_groups` or :func:`put_back_groups`.
        schedulers: Composer's own, which are compiled to one ``LambdaLR`` each, with one rule for all groups.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    for scheduler in schedulers:
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
            scheduler.lr_lambdas = [scheduler.lr_lambdas[0]] * len(scheduler.base_lrs)


def check_schedulers(optimizer: Optimizer, schedulers: Sequence[Any], *, will_grow: bool) -> None:
    """Refuse schedulers that would not drive the optimizer's groups.

    Args:
        optimizer: After :func:`arrange_groups`.
        schedulers: As Composer has them: its own are compiled to one ``LambdaLR`` each.
        will_grow: Whether :func:`add_groups` will be called.

    Raises:
        ModelError: One was made before the groups were arranged, or cannot take in another group.
    """
    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    for scheduler in schedulers:
        name = type(scheduler).__name__
        if [float(rate) for rate in getattr(scheduler, "base_lrs", rates)] != [float(rate) for rate in rates]:
            raise ModelError(
                f"the scheduler {name} was made for other parameter groups than learning_rates and freeze make. Give "
                "the Trainer one of Composer's schedulers, which are made after them."
            )
        one_rule = isinstance(scheduler, LambdaLR) and len({id(rule) for rule in scheduler.lr_lambdas}) == 1
        if will_grow and not one_rule:
            raise ModelError(
                f"unfreeze_at adds parameter groups while training, and the scheduler {name} cannot take them in. Give "
                "the Trainer one of Composer's schedulers."
            )
