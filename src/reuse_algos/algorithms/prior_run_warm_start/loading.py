"""Archived weights into a model: what is loaded, what changes, what stays, and whether it fits.

Shapes: M classes that the earlier run knew, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from composer import State
from torch import Tensor

from reuse_algos.algorithms.prior_run_warm_start.class_rows import match_rows
from reuse_algos.algorithms.prior_run_warm_start.initial_weights import (
    Plan,
    gaussian_noise,
    initial_values,
    misfits,
    noise_generator,
    shuffled_noise,
)
from reuse_algos.algorithms.prior_run_warm_start.settings import Change, Keep
from reuse_algos.algorithms.prior_run_warm_start.sources import Source, read_sources
from reuse_algos.data.examples.identity import match_keys
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import ModelError, PriorRunMismatchError
from reuse_algos.models.text import TOKEN_KEYS
from reuse_algos.priors.choosing import identity_of_run
from reuse_algos.priors.model import under_our_names
from reuse_algos.training.outputs import plain_state_dict
from reuse_algos.training.parameters.tokens import common_tokens, token_tensors
from reuse_algos.training.parameters.trainable import (
    frozen_at_start,
    head_of,
    holds,
    matches,
    norm_layers,
    pattern_faults,
    plain_parameters,
    refuse_torn_ties,
)

# Corrected labels differ in a few examples, renumbered classes in most.
_MOST_RELABELLED = 0.5

_NOISES = {"initial": shuffled_noise, "gaussian": gaussian_noise}


class Loaded(NamedTuple):
    """What came of loading.

    Attributes:
        share: Of the model's parameters that have an archived value.
        known_classes: M, where the head was matched by class; None elsewhere.
        known_tokens: Tokens whose rows were loaded, where the vocabulary is another one; None elsewhere.
    """

    share: float
    known_classes: int | None
    known_tokens: int | None


def load_weights(
    state: State,
    sources: Sequence[Source],
    info: DatasetInfo | None,
    *,
    change: Change,
    head: Keep,
    seed: int,
    mismatch: str,
) -> Loaded:
    """Put archived weights into the trainer's model.

    Args:
        state: At FIT_START.
        sources: At least one, the newest last; several are averaged.
        info: The train data, where they are known.
        change: What becomes of the weights.
        head: What becomes of the last layer.
        seed: Of the noise.
        mismatch: ``refuse`` or ``allow`` other class names where the head is kept.

    Raises:
        PriorRunMismatchError: Tensors or classes do not fit; all are listed.
        ModelError: A pattern matches nothing, the head cannot be found, or nothing is left to load.
        SignalNotFoundError: A run has no such weights.
    """
    fresh = plain_state_dict(state.model)
    # Parameters must be finite; a buffer may be a mask of infinities.
    trained = {*plain_parameters(state.model, tied=True)}
    # A ComposerModel's prefix may be missing on either side.
    trained |= {name.removeprefix("module.") for name in trained} | {f"module.{name}" for name in trained}
    archived = under_our_names(read_sources(sources, trained), fresh)
    plan = _plan(state, sources, fresh, archived, info, change, head)
    # Everything that does not fit is reported at once: a user who renames layers must not learn of them one by one.
    listed = misfits(archived, fresh, plan)
    # Where the head's rows are tokens, these matched already, and class names have nothing to add.
    by_token = not set(plan.by_token).isdisjoint(_head_names(state, info, change, head))
    if head.name == "keep" and mismatch != "allow" and not by_token:
        listed += _other_classes(sources[-1], info) or _other_numbers(sources[-1], info)
    if listed:
        raise PriorRunMismatchError(
            f"the weights of run {sources[-1].run.id} do not fit this model:\n  " + "\n  ".join(listed) + "\nUse "
            "head: match or head: reset for the last layer, and change: {reset: [pattern, ...]} for others that are to "
            "start from their initialisation."
        )
    identity = "+".join(source.digest for source in sources)

    def noise(name: str, tensor: Tensor) -> Tensor:
        return _NOISES[change.noise](tensor, noise_generator(seed, identity, name))

    values = initial_values(archived, fresh, plan, shrink=change.shrink, perturb=change.perturb, noise=noise)
    parameters = plain_parameters(state.model)
    # A tied parameter is one tensor under two names: written once.
    aliases = plain_parameters(state.model, tied=True).keys() - parameters.keys()
    with torch.no_grad():
        for name in values.keys() - aliases:
            fresh[name].copy_(values[name])
    taken = 0.0
    for name in values.keys() & parameters.keys():
        rows = plan.rows_of(name)
        taken += parameters[name].numel() * (1.0 if rows is None else len(rows[0]) / len(parameters[name]))
    # Training from random numbers would pass for a warm start.
    if not taken:
        raise ModelError("head and reset leave no parameter to load from the prior run. Load some of them.")
    total = sum(parameter.numel() for parameter in parameters.values())
    known = (None if rows is None else len(rows[0]) for rows in (plan.rows, plan.tokens))
    return Loaded(taken / total, *known)


def _plan(
    state: State,
    sources: Sequence[Source],
    fresh: Mapping[str, Tensor],
    archived: Mapping[str, Tensor],
    info: DatasetInfo | None,
    change: Change,
    head: Keep,
) -> Plan:
    """Return which tensors come from where."""
    names = {*fresh, *archived}
    head_names = _head_names(state, info, change, head)
    if faults := pattern_faults("reset", change.patterns, names, head_names):
        raise ModelError("\n".join(faults))
    kept = {name for name in names if matches(name, change.patterns, head_names)}
    tokens = common_tokens(archived, fresh)
    by_token = set() if tokens is None else set(token_tensors(state.model)) - kept
    if tokens is not None:
        kept.add(TOKEN_KEYS)  # the vocabulary is that of this run's data
    by_class: set[str] = set()
    if head.name == "reset":
        kept.update(head_names)
    elif head.name == "match":
        by_class = {name for name in head_names if name not in kept | by_token and fresh[name].dim()}
    refuse_torn_ties(state.model, kept | by_class, "what head and reset cover")
    changing: set[str] = set()
    if change.shrink != 1 or change.perturb != 0:
        is_frozen = frozen_at_start(state)
        changing = {name for name in plain_parameters(state.model) if not is_frozen(name)}
        # As in the authors' code: the archived statistics are of activations that the changed weights do not give.
        kept |= _statistics(state, is_frozen)
    rows = _known_classes(sources, info) if by_class else None
    return Plan(kept, by_class, rows, changing, by_token, tokens)


def _head_names(state: State, info: DatasetInfo | None, change: Change, head: Keep) -> list[str]:
    """Return the names of the head's parameters; none where no setting needs them and they cannot be found."""
    try:
        return head_of(state.model, head.pattern, info and info.num_classes)
    except ModelError:
        # A model without a head that can be found is loaded whole, unless a setting speaks of the head.
        if head.name != "keep" or head.pattern is not None or {"head", "backbone"} & set(change.patterns):
            raise
        return []


def _known_classes(sources: Sequence[Source], info: DatasetInfo | None) -> tuple[Tensor, Tensor]:
    """Return the rows of the classes that both sides know, here and there."""
    names = [source.run.manifest.dataset and source.run.manifest.dataset.class_names for source in sources]
    differing = next((s.run.id for s, theirs in zip(sources, names, strict=True) if theirs != names[0]), None)
    if differing is not None:
        raise PriorRunMismatchError(
            f"runs {sources[0].run.id} and {differing} have different classes, so no row of their averaged head "
            "belongs to one class. Choose runs with the same classes, or use head: reset."
        )
    return match_rows(names[0], info and info.class_names)


def _other_classes(source: Source, info: DatasetInfo | None) -> list[str]:
    """Return in what the class names differ; nothing where they are the same, or not known on both sides."""
    record = source.run.manifest.dataset
    theirs, ours = record and record.class_names, info and info.class_names
    if not theirs or not ours or list(theirs) == list(ours):
        return []
    pairs = enumerate(zip(theirs, ours, strict=False))
    shown = "; ".join([f"class {i} is {a!r} there and {b!r} here" for i, (a, b) in pairs if a != b][:3])
    return [
        f"the classes: {shown or f'{len(theirs)} there, {len(ours)} here'} (head: match goes by their names, "
        "head: reset leaves the head as it was initialised, mismatch: allow takes the rows as they are)"
    ]


def _other_numbers(source: Source, info: DatasetInfo | None) -> list[str]:
    """Return that the classes have other numbers, where nothing names them and the examples of both runs show it."""
    run, record = source.run, source.run.manifest.dataset
    theirs = None if record is None else run.labels()
    if (
        record is None
        or theirs is None
        or info is None
        or info.labels is None
        or (record.class_names and info.class_names)
    ):
        return []
    match = match_keys(identity_of_run(run), info)
    if match.problem or not match.checked:  # positions alone say nothing of which example is there
        return []
    common_M = (match.rows >= 0).nonzero().flatten()
    there_M, here_M = theirs[match.rows[common_M]], info.labels[common_M]
    differing = (there_M != here_M).nonzero().flatten()
    if len(differing) <= _MOST_RELABELLED * len(common_M):
        return []
    first = int(differing[0])
    return [
        f"the class numbers: {len(differing)} of {len(common_M)} common examples have another label, first "
        f"{int(there_M[first])} there and {int(here_M[first])} here (head: reset leaves the head as it was "
        "initialised, mismatch: allow takes the rows as they are)"
    ]


def _statistics(state: State, is_frozen: Callable[[str], bool]) -> set[str]:
    """Return the running statistics that shrinking and perturbing make void: those of layers that train."""
    return {
        f"{name}.{key}"
        for name, layer in norm_layers(state.model).items()
        if not holds(name, layer, is_frozen)
        for key, _ in layer.named_buffers(recurse=False)
    }
