"""Whether the rows of the first batch are the examples, views and targets that a record would say they are."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from composer import State
from torch.utils.data import DataLoader, IterableDataset

from reuse_algos.data.examples.content import sample_of
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.nested import take_rows
from reuse_algos.data.sampler import Examples
from reuse_algos.data.seeding import undisturbed
from reuse_algos.errors import ArchiveWarning, DataError, TaskError
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.first_batch.task_reader import targets_of
from reuse_algos.training.first_batch.views import (
    ROWS,
    check_first_batch,
    check_rows_apart,
    check_same_view_twice,
    mixed_targets,
    read_rows,
)
from reuse_algos.training.interplay import hides_inputs


def check_labels(state: State, info: DatasetInfo | None, keys: BatchKeys, *, given: bool) -> DatasetInfo | None:
    """Hold the recorded labels of a few examples against those that a batch of them has.

    Args:
        state: At FIT_START, with the train loader.
        info: What is known of the train data; None: nothing.
        keys: Where targets lie.
        given: Whether the user said what the data are.

    Returns:
        ``info``; without labels and class names, and with a warning, where the loader's ``collate_fn`` shows others
        than the dataset claims.

    Raises:
        DataError: They differ from what the user said.
    """
    loader: Any = state.dataloader
    # Without a batch sampler a dataset makes its own batches, and examples cannot be read one by one.
    if info is None or info.labels is None or not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return info
    positions = sample_of(info.keys, ROWS)
    try:
        with undisturbed(loader.dataset, loader.collate_fn):
            some = Examples(positions, torch.full_like(positions, -1))
            shown = targets_of(read_rows(loader.dataset, some, 0, loader.collate_fn), keys.target).cpu()
    except Exception:  # a user's dataset may raise anything; training will show it
        return info
    claimed = info.labels[positions]
    if shown.is_floating_point() or shown.shape != claimed.shape or torch.equal(shown, claimed):
        return info
    first = int((shown != claimed).nonzero()[0])
    told = (
        f"the labels of the dataset are not those of its batches: example {int(positions[first])} has label "
        f"{int(claimed[first])} in the dataset and {int(shown[first])} in a batch"
    )
    if given:
        raise DataError(f"RunRecorder dataset: {told}. Give the labels that the model is trained on.")
    warnings.warn(
        f"{told}, so labels and class names are not recorded. Give them by dataset=DatasetInfo(...).",
        ArchiveWarning,
        stacklevel=2,
    )
    return replace(info, labels=None, class_names=None)


def check_rows(
    state: State, batch: Any, examples: Examples, clean_R: torch.Tensor | None, keys: BatchKeys, who: str
) -> str:
    """Hold a few rows of the first batch against the dataset; the model is not run.

    Where views are known, they are read twice, and inputs and targets are compared. Where inputs are augmented at
    random or hidden, only targets are.

    Args:
        state: After the forward pass of the first batch.
        batch: As the model got it.
        examples: Of the rows; view -1 where it is not known.
        clean_R: int64 on the CPU: the rows that no algorithm replaced. None: all.
        keys: Where targets lie.
        who: What needs the rows to be the examples, in the plural, for messages.

    Returns:
        What was checked and found, in words.

    Raises:
        DataError: The rows are not the examples: the batch mixes or changes them, or a view is not reproducible.
    """
    loader = state.dataloader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return "rows not compared, as the dataset has no positions"
    rows_R = torch.arange(len(examples.positions)) if clean_R is None else clean_R
    if not len(rows_R):
        return "rows not compared, as other algorithms replaced all of them"
    epoch, collate, dataset = int(state.timestamp.epoch), loader.collate_fn, loader.dataset
    some, rows_R = _readable(loader, examples, rows_R, epoch)
    if some is None:
        return "rows not compared, as the collate_fn does not take them once more"
    given = take_rows(batch, rows_R, len(examples.positions))
    if bool((some.views < 0).any()):  # known views are compared whole below
        check_rows_apart(who, dataset, some, collate)
    with undisturbed(dataset, collate):
        targets = _check_targets(state, given, some, keys, who)
    if bool((some.views >= 0).all()) and not hides_inputs(state):
        check_same_view_twice(dataset, some, collate)
        found = check_first_batch(who, given, dataset, some, epoch, collate, len(rows_R))
        return f"{len(rows_R)} views are the same when read twice; {found}"
    return targets


def _readable(
    loader: Any, examples: Examples, rows_R: torch.Tensor, epoch: int
) -> tuple[Examples | None, torch.Tensor]:
    """Return the first rows as examples that the ``collate_fn`` takes: a few, else all; None where it takes neither."""
    # One that draws a negative for each row, or pairs them, fails on few rows.
    for count in (ROWS, len(rows_R)):
        some = Examples(examples.positions[rows_R[:count]], examples.views[rows_R[:count]])
        try:
            with undisturbed(loader.dataset, loader.collate_fn):
                read_rows(loader.dataset, some, epoch, loader.collate_fn)
        except Exception:  # a user's code may raise anything
            continue
        return some, rows_R[:count]
    return None, rows_R


def _alone(loader: Any, one: Examples, epoch: int, key: str | int) -> torch.Tensor | None:
    """Return the targets of an example that is collated alone; None where the ``collate_fn`` needs company."""
    try:
        return targets_of(read_rows(loader.dataset, one, epoch, loader.collate_fn), key)
    except Exception:  # a user's code may raise anything
        return None


def _check_targets(state: State, given: Any, some: Examples, keys: BatchKeys, who: str) -> str:
    """Hold the targets of some rows against those of their examples, read together and one by one."""
    loader: Any = state.dataloader
    epoch = int(state.timestamp.epoch)
    together = read_rows(loader.dataset, some, epoch, loader.collate_fn)
    try:
        targets, expected = targets_of(given, keys.target), targets_of(together, keys.target)
    except TaskError:
        return "rows not compared, as the batches have no targets and their views are not known"
    again = targets_of(read_rows(loader.dataset, some, epoch + 1, loader.collate_fn), keys.target)
    if again.shape == expected.shape and not torch.allclose(again.double(), expected.double(), equal_nan=True):
        if expected.dim() == 1:  # masked tokens are drawn in every row, and say nothing of the index
            warnings.warn(
                f"{who}: targets are drawn at random whenever an example is read, so the rows are of one such draw. "
                "Where the dataset chooses another example than the one it is asked for, they are of other examples.",
                ArchiveWarning,
                stacklevel=2,
            )
        return f"{len(some.positions)} rows are of single examples; their targets are drawn at random"
    told = mixed_targets(targets, expected)
    for row in range(min(ROWS, len(some.positions))):
        # A collate_fn that mixes rows mixes an example that it gets alone with itself: that shows the example's own.
        alone = _alone(loader, some.rows(row, row + 1), epoch, keys.target)
        # Other shapes come of padding to the longest of a batch.
        if alone is not None and alone.shape == targets[row : row + 1].shape:
            told = told or mixed_targets(targets[row : row + 1], alone)
    if told:
        raise DataError(
            f"{who} need to know what each row is, but the targets are not the examples': {told}. MixUp "
            "or CutMix in a collate_fn or transforms of a DataSpec mix them. Use Composer's algorithms of that name "
            "without what needs single examples, or take them out."
        )
    count = len(some.positions)
    return f"{count} rows of the first batch have the targets of their examples; their views are not known"
