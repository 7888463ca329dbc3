"""Earlier models, brought back.

What a run's record says of its model is a claim of its writer. Only settings of the architecture are taken from
it, and the model is made on torch's meta device first: memory is taken once it has the shapes of the archived weights,
which a file of that size backs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from composer import State
from composer.core import get_precision_context
from composer.models import ComposerModel
from composer.utils.batch_helpers import batch_get
from torch import Tensor, nn

from reuse_algos.archive import PriorRun
from reuse_algos.errors import ModelError, PriorRunMismatchError, nearest
from reuse_algos.models import build_model, model_names, outline_model
from reuse_algos.models.text import TEXT_MODELS
from reuse_algos.training.batch_guard import BatchGuard
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.outputs import hidden_parameters
from reuse_algos.training.parameters.batch_norm import restore_batch_norm

ModelFactory = nn.Module | Callable[[], nn.Module]

_PREFIX = "module."  # of a ComposerModel, before the names of its network
_SIZES = ("num_classes", "width", "depth", "vocabulary", "max_tokens")
_ALLOWED = ("name", "image_shape", "autocast", *_SIZES)


def archived_model(
    run: PriorRun, weights: str, *, factory: ModelFactory | None = None, like: nn.Module | None = None
) -> nn.Module:
    """Return a prior run's model with its archived weights, in evaluation mode and without gradients, on the CPU.

    Args:
        run: The prior run.
        weights: Name of archived weights.
        factory: The architecture, a module or a function that makes one. Default: None, as the run's record describes
            it, or else a copy of ``like`` where its parameters have the same names and shapes.
        like: A module of possibly the same architecture. Default: None.

    Raises:
        ModelError: The record does not say how to build the model, or says more than its architecture, and nothing was
            given.
        PriorRunMismatchError: The weights do not fit.
    """
    archived = run.weights(weights)  # first: the file proves these shapes, and the record only claims some
    module = _make_module(run, weights, archived, factory, like)
    fitting = _fitting(run, weights, archived, module)
    refuse_broken(run, weights, fitting, dict(module.named_parameters()))
    # What is not a tensor (get_extra_state) is in no archive: the module keeps its own.
    others = {name: value for name, value in module.state_dict().items() if not isinstance(value, Tensor)}
    module.load_state_dict({**others, **fitting})
    return module.eval().requires_grad_(False)


def ask(module: nn.Module, batch: Any, state: State, keys: BatchKeys, guard: BatchGuard | None = None) -> Any:
    """Return the outputs of an archived model for a microbatch, without gradient, in the trainer's precision.

    Args:
        module: The model, on the trainer's device.
        batch: The microbatch, of which the model gets a copy.
        state: The trainer's.
        keys: Where inputs lie, for a model that is a plain module.
        guard: Of a model that is asked often: it copies what the model writes into only. Default: all is copied.
    """
    guard = guard or BatchGuard("an archived model")
    given = guard.copy(batch)
    inputs = given if isinstance(module, ComposerModel) else batch_get(given, keys.input)
    with torch.no_grad(), get_precision_context(state.precision, state.precision_config):
        outputs = module(inputs)
    guard.look()
    return outputs


def under_our_names(archived: Mapping[str, Tensor], ours: Collection[str]) -> dict[str, Tensor]:
    """Return archived weights under the names of a module, as many of them as possible."""
    # A ComposerModel's ``module.`` before each name may be missing on either side.
    candidates = (
        dict(archived),
        {name.removeprefix(_PREFIX): value for name, value in archived.items()},
        {_PREFIX + name: value for name, value in archived.items()},
    )
    return max(candidates, key=lambda named: len(named.keys() & set(ours)))


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


def recorded_architecture(run: PriorRun) -> dict[str, Any] | None:
    """Return the settings of a run's model that :func:`~reuse_algos.models.build_model` may be given.

    They open no file, download nothing, and may ask for any amount of memory: build on the meta device first.

    Returns:
        The settings, or None where the model was the user's own.

    Raises:
        ModelError: The record holds settings that are not of the architecture, such as ``weights_path``, or sizes that
            are not whole numbers.
    """
    record = run.manifest.model
    if record is None or record.config is None:
        return None
    config = dict(record.config)
    advice = "Give its architecture (teacher_model)."
    if others := sorted(set(config) - set(_ALLOWED)):
        raise ModelError(
            f"run {run.id} says that its model is to be built with {', '.join(map(repr, others))}; from an archive "
            f"only {', '.join(_ALLOWED)} are taken. {advice}"
        )
    sizes = [config[key] for key in _SIZES if config.get(key) is not None]
    shape = config.get("image_shape")
    if shape is not None or config.get("name") not in TEXT_MODELS:
        sizes += shape if isinstance(shape, list) and len(shape) == 3 else [None]
    if not all(isinstance(size, int) and not isinstance(size, bool) and 0 < size < 1 << 31 for size in sizes):
        raise ModelError(f"run {run.id} has a model of sizes that cannot be: {sizes!r}. {advice}")
    name, autocast = config.get("name"), config.get("autocast")
    if not isinstance(name, str) or name not in model_names():
        raise ModelError(f"run {run.id} has an unknown model {name!r}.{nearest(str(name), model_names())} {advice}")
    if autocast is not None and not isinstance(autocast, str):
        raise ModelError(f"run {run.id} has a model with autocast {autocast!r}. {advice}")
    return config


def _make_module(
    run: PriorRun,
    weights: str,
    archived: Mapping[str, Tensor],
    factory: ModelFactory | None,
    like: nn.Module | None,
) -> nn.Module:
    if isinstance(factory, nn.Module):
        return copy.deepcopy(factory)
    # Parameters that are drawn here are replaced at once; the draws must not move the training run's generator.
    if factory is not None:
        with torch.random.fork_rng(devices=[]):
            return factory()
    record = run.manifest.model
    theirs = {} if record is None else {name: tuple(info.shape) for name, info in record.parameters.items()}
    # An algorithm such as SqueezeExcite may have changed the model that the record describes.
    changed = like is not None and _shapes(like) == theirs
    if (config := recorded_architecture(run)) is not None:
        outline = _outline(run, config)
        # Settings that give the recorded shapes are the model, whatever this run's looks like.
        if not changed or _shapes(outline) == theirs:
            _fitting(run, weights, archived, outline)
            with torch.random.fork_rng(devices=[]):
                return build_model(config)
    if changed:
        return copy.deepcopy(like)  # type: ignore[return-value]  # changed says that there is one
    if record is not None and like is not None:
        ours = _shapes(like)
        differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        shown = "; ".join(f"{n}: {theirs.get(n)} there, {ours.get(n)} here" for n in differing[:3])
        raise PriorRunMismatchError(
            f"run {run.id} was a {record.name} that differs from this model in {len(differing)} tensors ({shown}). "
            "Give its architecture (teacher_model), or use source: cached."
        )
    raise ModelError(f"run {run.id} does not say how to build its model; give its architecture (teacher_model).")


def _outline(run: PriorRun, config: dict[str, Any]) -> nn.Module:
    """Return the model with the shapes of its tensors and without their memory."""
    try:
        return outline_model(config)
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        raise ModelError(f"run {run.id} has a model that cannot be built: {str(error)[:200]}") from error


def refuse_broken(run: PriorRun, name: str, weights: Mapping[str, Tensor], parameters: Collection[str]) -> None:
    """Refuse the weights of a run that diverged: it looks like any other until its first answer.

    Args:
        run: The prior run.
        name: Of its weights.
        weights: The tensors.
        parameters: Names of those that were trained. Others may hold infinities on purpose, as causal masks do.

    Raises:
        PriorRunMismatchError: A floating-point tensor holds NaN, or a parameter NaN or Inf.
    """
    broken = [
        key
        for key, tensor in weights.items()
        if tensor.is_floating_point()
        and bool(tensor.isnan().any() if key not in parameters else (~tensor.isfinite()).any())
    ]
    if broken:
        raise PriorRunMismatchError(
            f"weights {name!r} of run {run.id} hold NaN or Inf in {len(broken)} tensors, first {broken[0]}. Choose "
            "another run, or weights from before it diverged."
        )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module's state dict."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in _tensors(module).items()}


def _refuse_adapters(module: nn.Module, run: PriorRun, name: str, archived: Mapping[str, Tensor]) -> None:
    """Refuse weights without those of the model that they were added to: a module may hide these in its state dict."""
    parameters = dict(module.named_parameters())
    if hidden := [key for key in hidden_parameters(parameters, _tensors(module)) if key not in archived]:
        raise PriorRunMismatchError(
            f"weights {name!r} of run {run.id} are {len(archived)} tensors, and the module has {len(parameters)} "
            f"parameters: {len(hidden)} of them, first {hidden[0]}, are in no state dict (adapters such as LoRA with "
            "should_save_peft_only). The archive does not hold the base model, so this run's model cannot be rebuilt. "
            "Record runs with the whole state dict (should_save_peft_only=False), or use source: cached."
        )


def _fitting(run: PriorRun, name: str, archived: Mapping[str, Tensor], module: nn.Module) -> Mapping[str, Tensor]:
    """Return archived weights under a module's names; the prefix ``module.`` may be missing on one side."""
    _refuse_adapters(module, run, name, archived)
    expected = _tensors(module)
    archived = under_our_names(archived, expected)
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
    return archived
