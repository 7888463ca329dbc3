"""Copies of a batch that stay what they are, whatever a model does with the batch that it is given.

Forward passes of other people's models take entries out of a batch (``batch.pop("labels")``), add some, and write into
its tensors (``labels[mask] = -100``). Code that reads the batch afterwards needs it as it was before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from reuse_algos.data.nested import fields_of, like_fields, like_sequence, tensors_at
from reuse_algos.errors import DataError


class _Pair(NamedTuple):
    """A tensor of a batch and its copy, which may be itself, with how often each was written into so far."""

    place: str
    tensors: tuple[torch.Tensor, torch.Tensor]
    versions: tuple[int, int]


class BatchGuard:
    """Copies the batches that one model is given.

    A copy has containers of its own. It shares the tensors, except those that the model writes into.

    Args:
        whose: Who writes into the batches, for messages, such as ``the model``.
    """

    def __init__(self, whose: str) -> None:
        self._whose = whose
        self._written: set[str] | None = None
        self._pairs: list[_Pair] = []

    def copy(self, batch: Any) -> Any:
        """Return a copy of a batch, before the model is given one of the two.

        Args:
            batch: Tensors in mappings, lists and tuples, to any depth. Other objects are copied without what they hold.

        Raises:
            DataError: The model wrote into a shared tensor of the batch before.
        """
        self.look()
        kept = _copied(batch, "", self._written)
        self._pairs = [
            _Pair(place, (given, mine), (_version(given), _version(mine)))
            for (place, given), (_, mine) in zip(tensors_at(batch), tensors_at(kept), strict=True)
        ]
        return kept

    def look(self) -> None:
        """Look, after the model has run, at what it wrote into.

        Raises:
            DataError: It wrote into a tensor that the copy shares: in the first batch it had not.
        """
        if not self._pairs:
            return
        pairs, self._pairs = self._pairs, []
        written = {
            pair.place
            for pair in pairs
            if any(_version(tensor) != before for tensor, before in zip(pair.tensors, pair.versions, strict=True))
        }
        if self._written is None:
            self._written = written
        elif new := sorted(written - self._written):
            raise DataError(
                f"{self._whose} wrote into the tensor of the batch at {new[0] or 'its only place'}, which it did "
                "not do in the first batch, so what the batch was before is lost. Let the forward pass work on a clone "
                "of it."
            )


def _copied(value: Any, place: str, written: set[str] | None) -> Any:
    if isinstance(value, torch.Tensor):
        # Of the first batch every tensor is cloned: it shows which ones the model writes into.
        return value.clone() if written is None or place in written else value
    if isinstance(value, Mapping):
        entries = {key: _copied(entry, f"{place}[{key!r}]", written) for key, entry in value.items()}
        if type(value) is dict:
            return entries
        try:
            # Keep the type and what else it carries: a BatchEncoding has attributes that models read.
            kept: Any = copy.copy(value)
            for key, entry in entries.items():
                kept[key] = entry
        except TypeError:  # a mapping that cannot be changed needs no copy of its own type
            return entries
        return kept
    if isinstance(value, (list, tuple)):
        return like_sequence(value, [_copied(item, f"{place}[{n}]", written) for n, item in enumerate(value)])
    if (named := fields_of(value)) is not None:
        return like_fields(value, _copied(named, place, written))
    return value if isinstance(value, (str, bytes, int, float, type(None))) else copy.copy(value)


def _version(tensor: torch.Tensor) -> int:
    # torch's own count of writes; tensors made in inference mode have none.
    return -1 if tensor.is_inference() else tensor._version
