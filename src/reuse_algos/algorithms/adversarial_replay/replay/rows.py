"""Rows of batches and outputs: which are replayed, taking them out, and putting them together again.

Legend: B rows of a microbatch, R of them replayed, K the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from reuse_algos.data.nested import describe, like_mapping, like_sequence
from reuse_algos.errors import ModelError

ADVICE = "Let every output have one row per example, or replay with mode: append and split_batch_norm: true"


def replayed_rows(fraction: float, num_rows: int, batch: int = 0) -> Tensor:
    """Return which rows of a batch are replayed: evenly spread, ``fraction * num_rows`` of them on the average.

    What is left of a row is carried over to the next batch: with ``o`` the fractional part of
    ``batch * fraction * num_rows``, row i is one of them where
    ``floor(o + fraction * (i + 1)) > floor(o + fraction * i)``.

    Args:
        fraction: In (0, 1].
        num_rows: Rows of the whole batch.
        batch: Number of the batch. Default: 0.

    Returns:
        int64 row numbers, ascending.

    >>> replayed_rows(0.5, num_rows=6)
    tensor([1, 3, 5])
    """
    # A function of the number of the batch: independent of the cut into microbatches, as much on every rank, and
    # nothing to remember for a resume. The small number keeps 0.29 * 100 = 28.999999999999996 from counting as 28.
    carried = (batch * fraction * num_rows + 1e-6) % 1.0
    return torch.floor(fraction * torch.arange(num_rows + 1, dtype=torch.float64) + carried).diff().nonzero().flatten()


def tensors_of(data: Any) -> Iterator[Tensor]:
    """Yield all tensors in mappings, tuples, lists and plain objects."""
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from tensors_of(value)
    elif isinstance(data, (tuple, list)):
        for value in data:
            yield from tensors_of(value)
    elif hasattr(data, "__dict__"):
        for value in vars(data).values():
            if isinstance(value, (Tensor, Mapping, tuple, list)):
                yield from tensors_of(value)


def nothing_of(parameters: Iterable[Tensor]) -> Tensor:
    """Return 0 as a function of tensors, so that backward gives all of them a gradient of zeros."""
    # The sum of no elements, as 0 * sum is NaN for infinite ones.
    return torch.cat([parameter.reshape(-1)[:0] for parameter in parameters]).sum()


def add_to_first(data: Any, number: Tensor) -> Any:
    """Return the structure with a number added to its first floating point tensor; None where there is none."""
    if isinstance(data, Tensor):
        return data + number.to(data.dtype) if data.is_floating_point() else None
    if isinstance(data, Mapping):
        for key, value in data.items():
            if (found := add_to_first(value, number)) is not None:
                return like_mapping(data, {**data, key: found})
    elif isinstance(data, (tuple, list)):
        for place, value in enumerate(data):
            if (found := add_to_first(value, number)) is not None:
                return like_sequence(data, [*data[:place], found, *data[place + 1 :]])
    return None


def join_rows(first: Any, second: Any, counts: tuple[int, int], order_B: Tensor | None, *, strict: bool) -> Any:
    """Return the rows of two batches (or outputs) of the same structure, one after the other.

    Args:
        first: The one.
        second: The other.
        counts: Their numbers of rows.
        order_B: int64: where each row of the result is found in (first, second); None: as they come.
        strict: Whether to refuse what has no rows; otherwise that of ``first`` is taken.

    Raises:
        ModelError: The structures differ, or (strict) something has no rows.
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.dim() and second.dim() and (len(first), len(second)) == counts:
            joined = torch.cat([first, second])
            return joined if order_B is None else joined.index_select(0, order_B.to(joined.device, non_blocking=True))
    elif isinstance(first, Mapping) and isinstance(second, Mapping) and first.keys() == second.keys():
        found = {key: join_rows(first[key], second[key], counts, order_B, strict=strict) for key in first}
        return like_mapping(first, found)
    elif isinstance(first, (tuple, list)) and type(first) is type(second) and len(first) == len(second):
        pairs = zip(first, second, strict=True)
        return like_sequence(first, [join_rows(a, b, counts, order_B, strict=strict) for a, b in pairs])
    elif first is None and second is None:
        return None
    if strict:
        raise ModelError(
            f"the model's outputs hold {describe(first)} for {counts[0]} clean rows and {describe(second)} for "
            f"{counts[1]} replayed ones, which cannot be put together. {ADVICE}."
        )
    return first
