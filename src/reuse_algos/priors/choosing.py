"""Choosing prior runs and making sure that they fit the current one. Every algorithm goes through here."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.data.examples.identity import Identity, match_keys, same_data
from reuse_algos.data.info import DatasetInfo, plain_name
from reuse_algos.errors import ArchiveWarning, PriorRunMismatchError, RunNotFoundError, nearest
from reuse_algos.training.ranks import on_rank_zero

RunSelection = str | Mapping[str, Any] | PriorRun | Sequence[str] | Sequence[PriorRun]
"""A run id (or unique run name), a list of those, a query (the keywords of ``RunArchive.runs``), or the runs.

The algorithms also take ``if_empty`` in a query, see :func:`split_if_empty`.
"""

_QUERY_KEYS = ("where", "tags", "run_name", "order", "metric", "limit", "unfinished", "unhealthy")


def open_archive(archive: RunArchive | str | os.PathLike[str], *, create: bool = False) -> RunArchive:
    """Return the archive itself, or the one at this path.

    Args:
        archive: The archive or its path.
        create: Whether to make an archive where there is none. Default: False, it must exist.
    """
    return archive if isinstance(archive, RunArchive) else RunArchive(archive, create=create)


def split_if_empty(runs: RunSelection) -> tuple[RunSelection, bool]:
    """Take ``if_empty`` out of a query.

    Args:
        runs: What to select. In a query, ``if_empty: refuse`` is an error where nothing matches, and ``if_empty: skip``
            trains without prior runs then. Default: ``refuse``.

    Returns:
        The selection without it, and whether to skip.

    Raises:
        ValueError: ``if_empty`` is neither of the two.
    """
    if not isinstance(runs, Mapping) or "if_empty" not in runs:
        return runs, False
    query = {key: value for key, value in runs.items() if key != "if_empty"}
    if runs["if_empty"] not in ("refuse", "skip"):
        raise ValueError(f"runs: if_empty must be 'refuse' or 'skip', got {runs['if_empty']!r}")
    return query, runs["if_empty"] == "skip"


def select_runs(archive: RunArchive, runs: RunSelection) -> list[PriorRun]:
    """Return the prior runs that a selection names, at least one.

    Raises:
        RunNotFoundError: An id is unknown, or nothing matches the query.
        ValueError: The query has an unknown key.
    """
    if isinstance(runs, PriorRun):
        return [runs]
    if isinstance(runs, str):
        return [archive.run(runs)]
    if isinstance(runs, Mapping):
        for key in runs:
            if key not in _QUERY_KEYS:
                raise ValueError(f"runs: unknown key {key!r}.{nearest(str(key), _QUERY_KEYS)}")
        found = archive.runs(**runs)
        if not found:
            raise RunNotFoundError(
                f"no finished run in {archive.location} matches {dict(runs)}. `reuse-algos runs {archive.location}` "
                "lists what is there; record one first (RunRecorder(..., tags=...)), change the selection, or begin "
                "without prior runs (runs: {..., if_empty: skip})."
            )
        return found
    chosen = [run if isinstance(run, PriorRun) else archive.run(run) for run in runs]
    if not chosen:
        raise RunNotFoundError("runs: the list of prior runs is empty; name at least one run.")
    return chosen


def choose_runs(
    archive: RunArchive, runs: RunSelection, pinned: Sequence[tuple[str, int]] | None = None
) -> list[tuple[str, int]]:
    """Select on rank 0: run ids and generations, the same ones on every rank.

    Args:
        archive: Where the runs are.
        runs: What to select.
        pinned: The outcome of an earlier selection, from a checkpoint or an earlier fit: taken instead of a new one, so
            that runs archived in the meantime change nothing.

    Raises:
        ReuseAlgosError: As :func:`select_runs`, on every rank.
    """
    # Asked once: another run may be archived between the looks of two ranks.
    return on_rank_zero(
        lambda: list(pinned) if pinned else [(run.id, run.manifest.generation) for run in select_runs(archive, runs)]
    )


def match_classes(run: PriorRun, num_classes: int | None, class_names: Sequence[str] | None) -> None:
    """Refuse a prior run with other classes than the current one.

    Raises:
        PriorRunMismatchError: Number or names of the classes differ; the message has both.
    """
    data, model = run.manifest.dataset, run.manifest.model
    # The model's number first: a part of the data may lack some of its classes.
    theirs = (model.num_classes if model else None) or (data.num_classes if data else None)
    if theirs is not None and num_classes is not None and theirs != num_classes:
        raise PriorRunMismatchError(
            f"run {run.id} has {theirs} classes, this run has {num_classes}. Choose runs with the same classes."
        )
    # In one form: macOS and Linux write letters with accents in different ways.
    names = [plain_name(name) for name in (data and data.class_names) or ()]
    class_names = [plain_name(name) for name in class_names or ()]
    if names and class_names and list(names) != list(class_names):
        differing = [(i, a, b) for i, (a, b) in enumerate(zip(names, class_names, strict=False)) if a != b][:3]
        shown = "; ".join(f"class {i} is {a!r} there and {b!r} here" for i, a, b in differing)
        raise PriorRunMismatchError(
            f"run {run.id} has other classes: {shown or f'{len(names)} there, {len(class_names)} here'}. "
            "Choose runs with the same classes in the same order."
        )


def identity_of_run(run: PriorRun) -> Identity:
    """Return what tells a run's examples apart; a run without a record of its data has keys of an unknown kind."""
    record = run.manifest.dataset
    return Identity(run.keys(), None if record is None else record.key_kind, *run.content())


def match_examples(run: PriorRun, info: DatasetInfo, mismatch: str) -> torch.Tensor | None:
    """Return which row of a prior run's signals belongs to each example of the current data.

    Args:
        run: The prior run.
        info: The current train data.
        mismatch: ``refuse``, or ``allow``: match examples by key and content, and leave out those that are new or whose
            label changed. Where both sides name their classes, labels are compared by name: a class that was added or
            removed gives the others new numbers, which does not count as a change.

    Returns:
        None where the data are the same (row = position), else int64 ``[N]``: the prior position, or -1.

    Raises:
        PriorRunMismatchError: The data differ and ``mismatch`` is ``refuse``, or no example is common to both.
    """
    record = run.manifest.dataset
    if record is None:
        raise PriorRunMismatchError(
            f"run {run.id} has no record of its data, so its signals cannot be matched with examples. "
            "Record runs with RunRecorder."
        )
    if same_data(info, record.fingerprint, record.key_fingerprint):
        # Equal keys and labels do not show equal images.
        if record.key_fingerprint is None and info.content is not None:
            warnings.warn(
                f"run {run.id} was recorded without the content of its examples: only keys and labels were compared",
                ArchiveWarning,
                stacklevel=2,
            )
        return None
    prior_labels = run.labels()
    match = match_keys(identity_of_run(run), info)
    # -1 would read the last row; "known" leaves these out.
    rows, known = match.rows.clamp_min(0), match.rows >= 0
    relabelled = torch.zeros_like(known)
    if prior_labels is not None and info.labels is not None:
        relabelled = known & (_labels_here(prior_labels, record.class_names, info.class_names)[rows] != info.labels)
    common = int((known & ~relabelled).sum())
    difference = (
        f"run {run.id} was trained on {record.name} with {record.num_examples} examples (fingerprint "
        f"{record.fingerprint[:12]}), this run on {info.name} with {info.num_examples} (fingerprint "
        f"{info.fingerprint[:12]}): {int(known.sum())} examples are common by key, {int(relabelled.sum())} of them "
        f"with another label; of {match.checked} compared by content {match.differing} differ"
    )
    if match.problem:
        raise PriorRunMismatchError(f"{difference}. They cannot be matched: {match.problem}.")
    if mismatch != "allow":
        raise PriorRunMismatchError(
            f"{difference}. Choose a run on the same data, or say mismatch: allow to use the prior run for the common "
            "examples and go without it for the others."
        )
    if not match.checked and common and record.key_fingerprint is None and info.content is not None:
        warnings.warn(f"{difference}; examples are matched by key alone", ArchiveWarning, stacklevel=2)
    if common == 0:
        raise PriorRunMismatchError(f"{difference}. There is nothing to reuse.")
    return torch.where(known & ~relabelled, rows, torch.full_like(rows, -1))


def _labels_here(labels_N: torch.Tensor, theirs: Sequence[str] | None, ours: Sequence[str] | None) -> torch.Tensor:
    """Return labels of a prior run as numbers of the current classes, by name; -1 for classes that are gone."""
    # As they are without names on a side, or where no name is common: then the classes were renamed, all at once.
    if not theirs or not ours or list(theirs) == list(ours) or not set(theirs) & set(ours):
        return labels_N
    # A name that stands for two classes names neither.
    if len(set(theirs)) < len(theirs) or len(set(ours)) < len(ours):
        return labels_N
    place = {name: number for number, name in enumerate(ours)}
    numbers_J = torch.tensor([place.get(name, -1) for name in theirs], dtype=labels_N.dtype)
    named_N = (labels_N >= 0) & (labels_N < len(theirs))
    return torch.where(named_N, numbers_J[labels_N.clamp(0, len(theirs) - 1).long()], labels_N)
