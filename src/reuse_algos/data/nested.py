"""Tensors in mappings, tuples, lists and dataclasses: the walks over a batch that many rooms share.

Shapes: B rows, R of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from composer.utils.batch_helpers import batch_set
from torch import Tensor

from reuse_algos.errors import ModelError


def tensors_at(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor with its place, such as ``['labels'][0]``; the place of a bare tensor is empty.

    A field of a dataclass has the place of a mapping's entry.
    """
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from tensors_at(entry, f"{place}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from tensors_at(item, f"{place}[{number}]")
    elif (named := fields_of(value)) is not None:
        yield from tensors_at(named, place)


def fields_of(value: Any) -> dict[str, Any] | None:
    """Return the fields of a dataclass's object by name; None for everything else."""
    if not is_dataclass(value) or isinstance(value, type):
        return None
    return {field.name: getattr(value, field.name) for field in fields(value)}


def like_fields(like: Any, items: Mapping[str, Any]) -> Any:
    """Return a copy of a dataclass's object with other values in its fields."""
    found = copy.copy(like)
    for name, value in items.items():
        object.__setattr__(found, name, value)  # also where it is frozen
    return found


def take_rows(data: Any, rows_R: Tensor, num_rows: int, *, strict: str | None = None) -> Any:
    """Return some rows of everything in a batch (or in outputs) that has one row per example.

    Args:
        data: Tensors, and mappings, tuples, lists and dataclasses of them; what has no rows is passed on as it is.
        rows_R: int64, on any device.
        num_rows: Rows of the data, B.
        strict: Advice for the error where a tensor has no rows. Default: such tensors are passed on, too.

    Raises:
        ModelError: (strict) A tensor has no rows.
    """
    if isinstance(data, Tensor):
        if not data.dim() or len(data) != num_rows:
            if strict:
                raise ModelError(
                    f"the model's outputs hold {describe(data)} for {num_rows} rows, so clean and replayed rows "
                    f"cannot be told apart. {strict}."
                )
            return data
        # index_select gives channels-last images back as ordinary ones.
        taken = data.index_select(0, rows_R.to(data.device, non_blocking=True))
        return taken.contiguous(memory_format=_memory_format(data))
    if isinstance(data, Mapping):
        return like_mapping(data, {k: take_rows(v, rows_R, num_rows, strict=strict) for k, v in data.items()})
    if isinstance(data, (tuple, list)):
        # Texts or paths, one for each row, have rows as well.
        plain = all(isinstance(value, (str, int, float, bool)) for value in data)
        if plain and len(data) == num_rows:
            return like_sequence(data, [data[row] for row in rows_R.tolist()])
        return like_sequence(data, [take_rows(value, rows_R, num_rows, strict=strict) for value in data])
    if (named := fields_of(data)) is not None:
        return like_fields(data, take_rows(named, rows_R, num_rows, strict=strict))
    return data


def with_item(batch: Any, key: Any, value: Any) -> Any:
    """Return a batch with another item under a key; the given one stays as it is."""
    # batch_set changes mappings and lists in place, and makes a new tuple.
    return batch_set(batch if isinstance(batch, tuple) else copy.copy(batch), key=key, value=value)


def like_mapping(like: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Return items as a mapping of the type of ``like``, with its attributes, where that type can be changed."""
    if type(like) is dict or not isinstance(like, MutableMapping):
        return items
    found = copy.copy(like)
    for key, value in items.items():
        found[key] = value
    return found


def like_sequence(like: Any, values: list[Any]) -> Any:
    """Return values as a tuple (named or not) or list of the type of ``like``."""
    return type(like)(*values) if hasattr(like, "_fields") else type(like)(values)


def describe(part: Any) -> str:
    """Return what a part of a batch is, in words."""
    return f"a tensor {tuple(part.shape)}" if isinstance(part, Tensor) else f"a {type(part).__name__}"


def _memory_format(tensor: Tensor) -> torch.memory_format:
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not tensor.is_contiguous() else torch.contiguous_format
