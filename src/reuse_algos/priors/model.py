"""Earlier models, brought back."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from reuse_algos.archive import PriorRun
from reuse_algos.errors import ModelError, PriorRunMismatchError
from reuse_algos.models import build_model
from reuse_algos.training.batch_norm import restore_batch_norm

__all__ = ["ModelFactory", "archived_model", "untouched_copy"]

ModelFactory = nn.Module | Callable[[], nn.Module]


def archived_model(
    run: PriorRun, weights: str, *, factory: ModelFactory | None = None, like: nn.Module | None = None
) -> nn.Module:
    """A prior run's model with its archived weights, in evaluation mode and without gradients, on the CPU.

    Args:
        run: the prior run.
        weights: name of archived weights.
        factory: the architecture, a module or a function that makes one; None: as the run's record describes it, or
            else a copy of ``like`` where its parameters have the same names and shapes.
        like: a module of possibly the same architecture.

    Raises:
        ModelError: the record does not say how to build the model, and nothing was given.
        PriorRunMismatchError: the weights do not fit.
    """
    module = _make_module(run, factory, like)
    _load_weights(module, run, weights)
    return module.eval().requires_grad_(False)


def untouched_copy(model: nn.Module) -> nn.Module | None:
    """Return a copy of the model that is about to train, for archived weights of its architecture.

    Args:
        model: The Trainer's at BEFORE_LOAD: later, checkpoints, DDP and ``torch.compile`` have touched it.

    Returns:
        None where the model cannot be copied; it is then said that the archived model cannot be built, if it must be.
    """
    try:
        module = copy.deepcopy(model)
    except Exception:  # modules of other people hold locks, generators and open files
        return None
    restore_batch_norm(module)
    return module


def _make_module(run: PriorRun, factory: ModelFactory | None, like: nn.Module | None) -> nn.Module:
    record = run.manifest.model
    if isinstance(factory, nn.Module):
        return copy.deepcopy(factory)
    # Parameters that are drawn here are replaced at once; the draws must not move the training run's generator.
    if factory is not None:
        with torch.random.fork_rng(devices=[]):
            return factory()
    theirs = {} if record is None else {name: tuple(info.shape) for name, info in record.parameters.items()}
    if record is not None and record.config is not None:
        with torch.random.fork_rng(devices=[]):
            built = build_model(record.config)
        # An algorithm such as SqueezeExcite may have changed the model that the record describes.
        if like is None or _shapes(like) != theirs or _shapes(built) == theirs:
            return built
    if record is not None and like is not None:
        ours = _shapes(like)
        if theirs == ours:
            return copy.deepcopy(like)
        differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        shown = "; ".join(f"{n}: {theirs.get(n)} there, {ours.get(n)} here" for n in differing[:3])
        raise PriorRunMismatchError(
            f"run {run.id} was a {record.name} that differs from this model in {len(differing)} tensors ({shown}). "
            "Give its architecture (teacher_model), or use source: cached."
        )
    raise ModelError(f"run {run.id} does not say how to build its model; give its architecture (teacher_model).")


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _refuse_adapters(module: nn.Module, run: PriorRun, name: str, archived: dict[str, torch.Tensor]) -> None:
    """Refuse weights without those of the model that they were added to: a module may hide these in its state dict."""
    expected, parameters = module.state_dict(), [key for key, _ in module.named_parameters()]
    hidden = [key for key in parameters if key not in expected and key not in archived]
    if hidden:
        raise PriorRunMismatchError(
            f"weights {name!r} of run {run.id} are {len(archived)} tensors, and the module has {len(parameters)} "
            f"parameters: {len(hidden)} of them, first {hidden[0]}, are in no state dict (adapters such as LoRA with "
            "should_save_peft_only). The archive does not hold the base model, so this run's model cannot be rebuilt. "
            "Record runs with the whole state dict (should_save_peft_only=False), or use source: cached."
        )


def _load_weights(module: nn.Module, run: PriorRun, name: str) -> None:
    """Copy archived weights into a module; a ComposerModel's ``module.`` prefix may be missing on either side."""
    archived = dict(run.weights(name))
    _refuse_adapters(module, run, name, archived)
    expected = module.state_dict()
    if archived.keys() != expected.keys():
        prefix = "module."
        stripped = {key.removeprefix(prefix): value for key, value in archived.items()}
        added = {prefix + key: value for key, value in archived.items()}
        archived = next((c for c in (stripped, added) if c.keys() == expected.keys()), archived)
    wrong = sorted(
        key
        for key in archived.keys() | expected.keys()
        if key not in archived or key not in expected or archived[key].shape != expected[key].shape
    )
    if wrong:
        key = wrong[0]
        there = tuple(archived[key].shape) if key in archived else "absent"
        here = tuple(expected[key].shape) if key in expected else "absent"
        raise PriorRunMismatchError(
            f"weights {name!r} of run {run.id} do not fit the module in {len(wrong)} tensors, first {key}: "
            f"{there} in the archive, {here} in the module. Give the right architecture (teacher_model)."
        )
    module.load_state_dict(archived)
