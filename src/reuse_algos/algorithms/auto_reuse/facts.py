"""What the archive and the Trainer show before the first step: the facts of a decision."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from reuse_algos.algorithms.auto_reuse.decision import RunFacts
from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.data.examples.identity import same_data
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import ArchiveWarning, PriorRunMismatchError, ReuseAlgosError, SignalNotFoundError
from reuse_algos.priors.choosing import match_classes, match_examples
from reuse_algos.training.outputs import plain_state_dict, unwrap_model

_MOST_RUNS = 50
"""The latest runs that are looked at; each costs a few small reads."""

_MOST_MATCHED = 10
"""Of these, runs on other data whose examples are matched one by one."""


def facts_of(
    archive: RunArchive, query: Mapping[str, Any], model: torch.nn.Module, info: DatasetInfo | None
) -> list[RunFacts] | None:
    """Return the facts of an archive's latest finished and healthy runs.

    Args:
        archive: May be empty.
        query: Keywords of :meth:`RunArchive.runs <reuse_algos.archive.RunArchive.runs>` that narrow the runs down.
        model: The Trainer's.
        info: The current train data; None: their examples cannot be told apart.

    Returns:
        None where the examples cannot be told apart.
    """
    if info is None:
        return None
    found, matched = [], 0
    for run in archive.runs(**{"limit": _MOST_RUNS, **query}):
        record = run.manifest.dataset
        if record is None:
            continue
        same = same_data(info, record.fingerprint, record.key_fingerprint)
        # Counted, as to match examples one by one reads all keys of the run.
        matched += not same
        found.append(facts_of_run(run, model, info, look_for_common=matched <= _MOST_MATCHED))
    return found


def facts_of_run(run: PriorRun, model: torch.nn.Module, info: DatasetInfo, look_for_common: bool = True) -> RunFacts:
    """Return what is known of one prior run.

    Args:
        run: It must have a record of its data.
        model: The Trainer's.
        info: The current train data.
        look_for_common: Whether examples are matched one by one where the data are not the same. Default: True.
    """
    record = run.manifest.dataset
    assert record is not None
    same = same_data(info, record.fingerprint, record.key_fingerprint)
    common = record.num_examples if same else _common(run, info) if look_for_common else 0
    shapes = {name: tuple(tensor.shape) for name, tensor in plain_state_dict(model).items()}
    described = run.manifest.model
    theirs = {} if described is None else {name: tuple(one.shape) for name, one in described.parameters.items()}
    same_model, weights = theirs == shapes, "last" in run.weight_names
    # A model without a recorded configuration can be built only where the current one is of its shapes.
    buildable = weights and (same_model or (described is not None and described.config is not None))
    return RunFacts(
        id=run.id,
        num_examples=record.num_examples,
        same_data=same,
        common=common,
        same_classes=_same_classes(run, model, info),
        same_model=same_model,
        can_teach="logits" in run.signal_names or buildable,
        has_weights=weights,
        score=_score(run),
    )


def _common(run: PriorRun, info: DatasetInfo) -> int:
    try:
        with warnings.catch_warnings():
            # Warnings about a match are for a run that is used, not for one that is looked at.
            warnings.simplefilter("ignore", ArchiveWarning)
            rows = match_examples(run, info, "allow")
    except PriorRunMismatchError:
        return 0
    return info.num_examples if rows is None else int((rows >= 0).sum())


def _same_classes(run: PriorRun, model: torch.nn.Module, info: DatasetInfo) -> bool:
    count = getattr(unwrap_model(model), "num_classes", None) or info.num_classes
    try:
        match_classes(run, count, info.class_names)
    except PriorRunMismatchError:
        return False
    return True


def _score(run: PriorRun) -> float | None:
    """Return the run's monitor at its end, so that more is better."""
    if run.manifest.monitor is None:
        return None
    try:
        value = run.final_metric()
    except (SignalNotFoundError, ReuseAlgosError):
        return None
    if value is None:
        return None
    return float(value) if run.manifest.monitor_mode == "max" else -float(value)
