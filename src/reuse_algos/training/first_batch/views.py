"""What the first batch shows of the views: is what the model gets what the archive will say, or says, it got?

Archived logits are true for one view of an example. These checks find, before the first step, whatever makes a batch
something else than the examples' views: random transforms with generators of their own, MixUp in a ``collate_fn``,
transforms of a ``DataSpec``. They read a few examples once more, and never run the model.

Shapes: B rows of the batch, E rows that are looked at.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from reuse_algos.data.nested import tensors_at
from reuse_algos.data.sampler import Examples
from reuse_algos.data.seeding import seeded_rng, undisturbed
from reuse_algos.data.views import ExampleView, declared_views
from reuse_algos.errors import DataError

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
                "Python's global generator, or say that views are not known: data.num_views: 0 in a recipe, "
                "ViewedDataset(dataset, ViewPolicy(seed=0, num_views=0)) elsewhere."
            )


_SEEDS = 4  # a permutation leaves the row that is exchanged to itself once in four times


def check_rows_apart(who: str, dataset: Any, examples: Examples, collate: Any) -> None:
    """Refuse a ``collate_fn`` that makes a row out of several examples, as MixUp does, whatever it does to targets.

    One example is exchanged for another, under the same random numbers: the other rows must stay what they are.

    Args:
        who: What needs rows of single examples, in the plural, for the message.
        dataset: Of the train DataLoader.
        examples: A few examples; fewer than two show nothing.
        collate: The DataLoader's ``collate_fn``.

    Raises:
        DataError: Other rows change as well.
    """
    positions = examples.positions.tolist()
    other = next((number for number in range(len(dataset)) if number not in positions), None)
    if len(positions) < 2 or other is None:
        return
    try:
        with undisturbed(dataset, collate):
            with seeded_rng(0):
                items = [dataset[position] for position in (*positions, other)]
            pairs = [
                [_collated(some, seed, collate) for some in (items[:-1], [*items[:-2], items[-1]])]
                for seed in range(_SEEDS)
            ]
    except Exception:  # a user's code may raise anything; training will show it
        return
    for one, exchanged in pairs:
        for (where, rows), (_, now) in zip(tensors_at(one), tensors_at(exchanged), strict=False):
            if not rows.dim() or not len(rows) == len(now) == len(positions):
                continue
            alike = (rows, now) if rows.shape == now.shape else _without_padding(rows, now)
            if alike is not None and not torch.equal(*(part[:-1].nan_to_num() for part in alike)):
                raise DataError(
                    f"{who} need to know what each row is, but the collate_fn makes rows out of several examples"
                    f"{_words(where)} (MixUp, CutMix, a sort by length): another example in the last place changes the "
                    "rows before it. Use Composer's algorithms of that name without what needs single examples, or "
                    "leave it out."
                )


def _collated(items: list[Any], seed: int, collate: Any) -> Any:
    with seeded_rng(seed):
        return collate(copy.deepcopy(items))


def changed_inputs(given: torch.Tensor, read: torch.Tensor) -> str | None:
    """Say how inputs of the batch differ from the examples, or None where they are the same.

    A scale and a shift for each channel (normalisation on the device, a cast) do not count.

    Args:
        given: ``[E, ...]`` as the model gets them.
        read: ``[E, ...]`` as the dataset gives them, collated.
    """
    given, read = given.detach().cpu(), read.detach().cpu()
    if given.shape != read.shape:
        if (alike := _in_shape_of(given, read)) is not None:
            return changed_inputs(*alike)
        return f"they have shape {tuple(given.shape[1:])} in the batch and {tuple(read.shape[1:])} in the dataset"
    if torch.equal(given, read):
        return None
    if not given.is_floating_point():
        rows = (given != read).reshape(len(given), -1).any(1).sum()
        return f"{int(rows)} of {len(given)} rows differ"
    # Normalisation treats all examples alike, so it is fitted by least squares, and only what it leaves counts.
    by = _by_channel
    if given.dim() == 2 and len(given) > 2:  # columns of a table, each of which has a scale of its own
        by = _by_column
    x, y = (by(values.double()) for values in (read, given))
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


def _by_column(values: torch.Tensor) -> torch.Tensor:
    return values.T


def _in_shape_of(given: torch.Tensor, read: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return both in one shape where they hold the same in other shapes; None where they cannot."""
    if given.dim() == read.dim() == 4:
        if given.shape == read.permute(0, 3, 1, 2).shape:  # channels in front
            return given, read.permute(0, 3, 1, 2)
        if read.shape[1] == 1 and given.shape == read.expand(-1, given.shape[1], -1, -1).shape:  # grey as colours
            return given, read.expand_as(given)
        return None
    if given.dim() != read.dim():
        same = given.numel() == read.numel() and len(given) == len(read)  # flattened, or the other way round
        return (given.reshape(read.shape), read) if same else None
    return _without_padding(given, read)


def _without_padding(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the common part of sequences that were padded to two lengths; None where the rest is not padding."""
    # A collate_fn pads to the longest example of those it is given, and the checks read fewer than a batch has.
    if one.dim() != other.dim() or one.dim() not in (2, 3) or len(one) != len(other):
        return None
    sizes = [min(pair) for pair in zip(one.shape, other.shape, strict=True)]
    parts = []
    for values in (one, other):
        common = torch.ones(values.shape, dtype=torch.bool, device=values.device)
        common[tuple(slice(0, size) for size in sizes)] = False
        if len(values[common].unique()) > 1:
            return None
        parts.append(values[tuple(slice(0, size) for size in sizes)])
    return parts[0], parts[1]


def mixed_targets(targets: torch.Tensor, recorded: torch.Tensor | None) -> str | None:
    """Say why targets of the batch are not those of single examples, or None where they may be.

    Args:
        targets: ``[E, ...]`` of the batch.
        recorded: ``[E, ...]`` as the dataset gives them; None: not known.
    """
    if recorded is None:
        return None
    targets, recorded = targets.detach().cpu(), recorded.detach().cpu()
    if targets.shape != recorded.shape:
        if (padded := _without_padding(targets, recorded)) is not None and padded[0].numel():
            targets, recorded = padded
        elif _is_one_hot_of(targets, recorded):
            return None
    if targets.shape == recorded.shape:
        # On the device targets may be cast to half precision.
        digits = torch.finfo(targets.dtype).eps if targets.is_floating_point() else 0.0
        same = torch.allclose(targets.double(), recorded.double(), atol=1e-6, rtol=digits, equal_nan=True)
        return None if same else "the batch has other targets than its examples"
    if targets.is_floating_point() and not recorded.is_floating_point():
        return f"the batch has soft targets {tuple(targets.shape)}, the examples have class numbers"
    return f"the batch has targets of shape {tuple(targets.shape)}, the examples {tuple(recorded.shape)}"


def _is_one_hot_of(targets: torch.Tensor, numbers: torch.Tensor) -> bool:
    """Return whether targets are class numbers in one-hot form, with the classes in dimension 1 or the last."""
    if targets.dim() != numbers.dim() + 1 or numbers.is_floating_point():
        return False
    for dim in (1, -1):
        hard = bool((((targets == 0) | (targets == 1)).all(dim) & (targets.sum(dim) == 1)).all())
        if hard and torch.equal(targets.argmax(dim), numbers.long()):
            return True
    return False


def check_first_batch(
    who: str, batch: Any, dataset: Any, examples: Examples, epoch: int, collate: Any, most: int = ROWS
) -> str:
    """Hold the first rows of the first batch against the examples that they are said to be.

    Args:
        who: What needs known views, in the plural, for the message.
        batch: As the model gets it.
        dataset: Of the train DataLoader.
        examples: Of the batch.
        epoch: Number of the running epoch.
        collate: The DataLoader's ``collate_fn``.
        most: How many rows are compared. Default: 4.

    Returns:
        What was checked, in one line.

    Raises:
        DataError: Inputs or targets of the batch are not those of its examples.
    """
    some = examples.rows(0, min(most, len(examples.positions)))
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
