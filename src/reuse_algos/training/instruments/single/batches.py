"""Batches of some examples, whole and one at a time: rows of tensors, or entries of lists as detectors have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from reuse_algos.errors import DataError


def first_examples(batch: Any, count: int) -> Any:
    """Return copies of the first examples of a batch.

    Args:
        batch: Tensors, or mappings, tuples and lists of them, each tensor with one row for each example; or lists with
            one entry for each example, one of them a list of mappings, as detectors have it.
        count: How many examples at most.

    Raises:
        DataError: The batch has no tensors, or its parts differ in their number of examples.
    """
    batch = _plain(batch)
    if in_lists(batch):
        lengths = {len(part) for part in batch}
        if len(lengths) > 1:
            raise DataError(
                "instruments read single examples, but the lists of the batch have "
                f"{', '.join(map(str, sorted(lengths)))} entries. Expected is one entry for each example in each list."
            )
        return tree_map(_copy, tuple(list(part[:count]) for part in batch))
    sizes = {len(leaf) for leaf in tree_flatten(batch)[0] if _is_row(leaf)}
    if len(sizes) != 1:
        seen = "no tensors" if not sizes else f"tensors of {', '.join(map(str, sorted(sizes)))} rows"
        raise DataError(
            f"instruments read single examples, but the batch has {seen}. Expected is one row for each example in "
            "every tensor of the batch: take the callback out, or give such batches."
        )
    return tree_map(lambda leaf: _copy(leaf[:count]) if _is_row(leaf) else leaf, batch)


def in_lists(batch: Any) -> bool:
    """Return whether the examples are entries of lists: a tuple of lists, one of them a list of mappings."""
    # Images and boxes in lists may all be of one length by chance, which is then not the number of examples.
    return (
        isinstance(batch, list | tuple)
        and all(isinstance(part, list | tuple) for part in batch)
        and any(len(part) > 0 and all(isinstance(one, Mapping) for one in part) for part in batch)
    )


class ExampleBatch:
    """The examples that are read.

    Args:
        batch: As :func:`first_examples` returns it. Half-precision tensors become float32.

    Attributes:
        whole: The batch.
        count: Its number of examples.
        in_lists: Whether the examples are entries of lists; else they are rows of tensors.
    """

    def __init__(self, batch: Any) -> None:
        self.whole = tree_map(at_least_float, batch)
        self.in_lists = in_lists(batch)
        self._leaves, self._tree = tree_flatten(self.whole)
        self.count = len(self.whole[0]) if self.in_lists else len(self.rows(slice(None))[0])

    def rows(self, some: slice) -> list[Tensor]:
        """Return the rows of some examples in each tensor; of batches of rows only."""
        return [leaf[some] for leaf in self._leaves if _is_row(leaf)]

    def with_rows(self, rows: Iterable[Tensor]) -> Any:
        """Return a batch that has these rows in the places of its own."""
        given = iter(rows)
        leaves = [next(given) if _is_row(leaf) else leaf for leaf in self._leaves]
        return tree_unflatten(leaves, self._tree)

    def one(self, index: int) -> Any:
        """Return a batch of one example."""
        some = slice(index, index + 1)
        return tuple(part[some] for part in self.whole) if self.in_lists else self.with_rows(self.rows(some))


def at_least_float(value: Any) -> Any:
    """Return half-precision tensors as float32 and anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


def _plain(batch: Any) -> Any:
    """Make dictionaries of all mappings: torch takes those of other libraries for single leaves."""
    if isinstance(batch, Mapping):
        return {key: _plain(value) for key, value in batch.items()}
    return tree_map(lambda leaf: _plain(leaf) if isinstance(leaf, Mapping) else leaf, batch)


def _is_row(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
