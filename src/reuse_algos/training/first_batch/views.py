"""What the first batch shows of the views: is what the model gets what the archive will say, or says, it got?

Archived logits are true for one view of an example. These checks find, before the first step, whatever makes a batch
something else than the examples' views: random transforms with generators of their own, MixUp in a ``collate_fn``,
transforms of a ``DataSpec``. They read a few examples once more, and never run the model.

Shapes: B rows of the batch, E rows that are looked at.
"""

from __future__ import annotations

from typing import Any

import torch

from reuse_algos.data.sampler import Examples
from reuse_algos.data.seeding import seeded_rng, undisturbed
from reuse_algos.data.views import ExampleView, declared_views
from reuse_algos.errors import DataError
from reuse_algos.training.nested import tensors_at

ROWS = 4  # each costs a read of the dataset, and what mixes or moves rows shows in the first of them
# Of the norm of the inputs: inputs may have been cast to bfloat16, which keeps three digits.
_TOLERANCE = 1e-2


# Places of targets in a batch, whatever keys say: they are compared exactly, inputs up to a normalisation.
_TARGETS = ("[1]", "['labels']", "['label']", "['targets']", "['target']", "['y']")


def read_rows(dataset: Any, examples: Examples, epoch: int, collate: Any) -> Any:
    """Read some examples and collate them, as the DataLoader does, without moving the global generators.

    Args:
        dataset: Map-style; it gets ``ExampleView`` indices where views are known, else plain positions.
        examples: Which ones.
        epoch: Number of the epoch, for datasets that depend on it.
        collate: The DataLoader's ``collate_fn``.
    """
    positions, views = examples.positions.tolist(), examples.views.tolist()
    takes_views = declared_views(dataset) is not None
    indices = [
        ExampleView(position, view) if takes_views and view >= 0 else position
        for position, view in zip(positions, views, strict=True)
    ]
    fetch = getattr(dataset, "__getitems__", None)
    # Any seed will do: what is a view seeds itself, and the generators are put back afterwards.
    with seeded_rng(epoch):
        return collate([dataset[index] for index in indices] if fetch is None else fetch(indices))


def check_same_view_twice(dataset: Any, examples: Examples, collate: Any) -> None:
    """Read the same views twice and refuse a dataset that gives different examples.

    Args:
        dataset: Of the train DataLoader.
        examples: Some examples with known views.
        collate: The DataLoader's ``collate_fn``.

    Raises:
        DataError: The two readings differ.
    """
    with undisturbed(dataset, collate):  # around both readings: a generator of its own must show itself
        first, second = (read_rows(dataset, examples, seed, collate) for seed in (0, 1))
    for (where, one), (_, other) in zip(tensors_at(first), tensors_at(second), strict=True):
        if one.shape != other.shape or not torch.equal(one, other):
            raise DataError(
                f"view {int(examples.views[0])} of example {int(examples.positions[0])} was read twice and was not the "
                f"same{_words(where)}: something draws from a generator of its own (a transform with its own seed, "
                "MixUp in the collate_fn), so no archived row is true for it. Let it draw from torch's, numpy's or "
                "Python's global generator, or set data.num_views: 0 to train on ordinary random augmentation."
            )


def changed_inputs(given: torch.Tensor, read: torch.Tensor) -> str | None:
    """Say how inputs of the batch differ from the examples, or None where they are the same.

    A scale and a shift for each channel (normalisation on the device, a cast) do not count.

    Args:
        given: ``[E, ...]`` as the model gets them.
        read: ``[E, ...]`` as the dataset gives them, collated.
    """
    given, read = given.detach().cpu(), read.detach().cpu()
    if given.shape != read.shape:
        # A dataset may keep images as NHWC, and a DataSpec turn them: that changes no example.
        if given.dim() == 4 and given.shape == read.permute(0, 3, 1, 2).shape:
            return changed_inputs(given, read.permute(0, 3, 1, 2))
        return f"they have shape {tuple(given.shape[1:])} in the batch and {tuple(read.shape[1:])} in the dataset"
    if torch.equal(given, read):
        return None
    if not given.is_floating_point():
        rows = (given != read).reshape(len(given), -1).any(1).sum()
        return f"{int(rows)} of {len(given)} rows differ"
    # Normalisation treats all examples alike, so it is fitted by least squares, and only what it leaves counts.
    x, y = (_by_channel(values.double()) for values in (read, given))
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    spread = (x - x_mean).square().sum(1, keepdim=True)
    scale = ((x - x_mean) * (y - y_mean)).sum(1, keepdim=True) / spread.clamp_min(1e-12)
    rest = y - (y_mean + scale * (x - x_mean))
    off = float(rest.norm() / (y - y_mean).norm().clamp_min(1e-12))
    if off <= _TOLERANCE:
        if bool((scale < 0).any()):  # a normalisation never turns light into dark
            return f"they are inverted: a scale of {float(scale.min()):.3g} in a channel"
        return None
    return f"they differ by {100 * off:.2g} % beyond a scale and a shift of each channel"


def _by_channel(values: torch.Tensor) -> torch.Tensor:
    """Return ``[C, rest]`` of ``[E, C, ...]``; one channel where there is no further dimension."""
    if values.dim() < 3:
        return values.reshape(1, -1)
    return values.movedim(1, 0).reshape(values.shape[1], -1)


def mixed_targets(targets: torch.Tensor, recorded: torch.Tensor | None) -> str | None:
    """Say why targets of the batch are not those of single examples, or None where they may be.

    Args:
        targets: ``[E, ...]`` of the batch.
        recorded: ``[E, ...]`` as the dataset gives them; None: not known.
    """
    if recorded is None or targets.shape == recorded.shape:
        same = recorded is None or torch.allclose(
            targets.detach().cpu().double(), recorded.detach().cpu().double(), atol=1e-6, equal_nan=True
        )
        return None if same else "the batch has other targets than its examples"
    if targets.is_floating_point() and not recorded.is_floating_point():
        return f"the batch has soft targets {tuple(targets.shape)}, the examples have class numbers"
    return f"the batch has targets of shape {tuple(targets.shape)}, the examples {tuple(recorded.shape)}"


def check_first_batch(who: str, batch: Any, dataset: Any, examples: Examples, epoch: int, collate: Any) -> str:
    """Hold the first rows of the first batch against the examples that they are said to be.

    Args:
        who: What needs known views, in the plural, for the message.
        batch: As the model gets it.
        dataset: Of the train DataLoader.
        examples: Of the batch.
        epoch: Number of the running epoch.
        collate: The DataLoader's ``collate_fn``.

    Returns:
        What was checked, in one line.

    Raises:
        DataError: Inputs or targets of the batch are not those of its examples.
    """
    some = examples.rows(0, min(ROWS, len(examples.positions)))
    with undisturbed(dataset, collate):
        read = dict(tensors_at(read_rows(dataset, some, epoch, collate)))
    advice = (
        "MixUp or CutMix in a collate_fn, transforms of a DataSpec or another algorithm change them. Remove that, use "
        "Composer's algorithms of that name beside live teachers, or leave out what needs archived views."
    )
    for where, tensor in tensors_at(batch):
        rows = tensor[: len(some.positions)] if tensor.dim() else tensor
        if where not in read or not tensor.dim():
            continue
        is_target = where in _TARGETS
        told = mixed_targets(rows, read[where]) if is_target else changed_inputs(rows, read[where])
        if told:
            what = "targets" if is_target else "inputs"
            raise DataError(
                f"{who} need to know what each row is, but the {what}{_words(where)} are not the examples': {told}. "
                f"{advice}"
            )
    return f"{len(some.positions)} rows of the first batch are the examples that they are said to be"


def _words(where: str) -> str:
    return f" at {where}" if where else ""
