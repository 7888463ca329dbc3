"""Choosing some classes, or a part of the examples, of a dataset.

Parts are nested: of two fractions, the smaller part lies inside the larger. They are stratified by class and depend on
the examples' keys only, never on a seed, so that runs on grown data contain the examples of the runs before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reuse_algos.data.hashing import view_hash
from reuse_algos.errors import DataError, nearest

# Fixed for ever: another seed would make other parts out of the same recipe.
_SEED, _SALT_PART = 0x5EED, 32


def nested_order(keys_N: Tensor, labels_N: Tensor, salt: int = _SALT_PART) -> Tensor:
    """Order the examples so that every beginning of the order is a stratified sample.

    Within each class the examples come in the order of a hash of their keys. The r-th (from 0) of a class of n has the
    rank (r + 1/2) / n, and the ranks of all classes are merged (Webster's method of apportionment); the hash breaks
    ties.

    Args:
        keys_N: int64.
        labels_N: int64.
        salt: Keeps orders for different purposes apart.

    Returns:
        int64 ``[N]``: positions, first to be taken first.
    """
    # By key and not by position: data that grow keep the order of what was there.
    hashes = view_hash(_SEED, keys_N, torch.zeros((), dtype=torch.int64), salt)
    by_hash = torch.argsort(hashes, stable=True)
    classes, class_of = torch.unique(labels_N, return_inverse=True)
    rank_N = torch.empty(len(keys_N), dtype=torch.float64)
    for number in range(len(classes)):
        members = by_hash[class_of[by_hash] == number]
        rank_N[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return by_hash[torch.argsort(rank_N[by_hash], stable=True)]


def take_part(
    keys_N: Tensor, labels_N: Tensor, *, fraction: float = 1.0, examples: int | None = None, rest: bool = False
) -> Tensor:
    """Return positions (int64 ``[n]``, ascending) of a nested, stratified part of the examples.

    Args:
        keys_N: int64.
        labels_N: int64.
        fraction: Above 0, up to 1; at least one example is taken.
        examples: How many instead; with this the fraction must be 1.
        rest: Return the examples that this part leaves out. Default: False.

    Raises:
        DataError: If the fraction or the number is out of range, both are given, or nothing is left out for ``rest``.
    """
    count = len(keys_N)
    if not 0 < fraction <= 1:
        raise DataError(f"data.train_fraction must be above 0 and at most 1, not {fraction}.")
    if examples is not None:
        if fraction != 1:
            raise DataError("Give data.train_fraction or data.train_examples, not both.")
        if not 1 <= examples <= count:
            raise DataError(f"data.train_examples must be from 1 to the {count} that there are, not {examples}.")
        wanted = examples
    else:
        wanted = max(1, round(fraction * count))
    if wanted == count:
        if rest:
            raise DataError(f"data.train_rest: the part takes all {count} training examples, so nothing is left out.")
        return torch.arange(count)
    # Nested, so that a larger part holds every smaller one.
    order = nested_order(keys_N, labels_N)
    return torch.sort(order[wanted:] if rest else order[:wanted]).values


def select_classes(
    labels_N: Tensor, wanted: Sequence[int | str], class_names: Sequence[str] | None, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Keep the examples of some classes and renumber these classes in the order in which they are wanted.

    Args:
        labels_N: int64, 0 to ``num_classes - 1``.
        wanted: Class numbers or names.
        class_names: Name of each class, or None.
        num_classes: How many there are.

    Returns:
        Positions (int64 ``[n]``, ascending) and new labels (int64 ``[n]``, 0 to ``len(wanted) - 1``).

    Raises:
        DataError: If a class is unknown or wanted twice, or none is wanted.
    """
    numbers = [_class_number(one, class_names, num_classes) for one in wanted]
    if not numbers or len(set(numbers)) != len(numbers):
        raise DataError(f"data.classes must name at least one class and none twice, not {list(wanted)}.")
    new_label = torch.full((num_classes,), -1)
    new_label[numbers] = torch.arange(len(numbers))
    labels_N = new_label[labels_N]
    positions = torch.nonzero(labels_N >= 0).flatten()
    return positions, labels_N[positions]


def _class_number(one: int | str, class_names: Sequence[str] | None, num_classes: int) -> int:
    if isinstance(one, int):
        if 0 <= one < num_classes:
            return one
        raise DataError(f"data.classes: there is no class {one}; classes are numbered 0 to {num_classes - 1}.")
    if class_names is None:
        raise DataError(f"data.classes: {one!r} is a name, but this data has no class names; give numbers.")
    if one not in class_names:
        raise DataError(f"data.classes: unknown class {one!r}.{nearest(one, class_names)}")
    return list(class_names).index(one)
