"""Copies of batches that a model's forward pass leaves alone."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch

from reuse_algos.data.nested import take_rows, tensors_at
from reuse_algos.data.trainer import num_rows
from reuse_algos.errors import DataError
from reuse_algos.training.batch_guard import BatchGuard
from reuse_algos.training.first_batch.task_reader import targets_of

Pair = namedtuple("Pair", "x y")


def _batch() -> dict[str, Any]:
    return {"x": torch.zeros(2, 3), "deep": {"labels": torch.ones(2), "ids": [torch.arange(2), "a"]}, "n": 3}


def _write(batch: dict[str, Any]) -> None:
    batch["x"].add_(5)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "pop": lambda batch: batch.pop("x"),
    "pop within": lambda batch: batch["deep"].pop("labels"),
    "add": lambda batch: batch.update(more=1),
    "replace": lambda batch: batch.update(x=torch.ones(2, 3)),
    "lists": lambda batch: batch["deep"]["ids"].clear(),
    "write": _write,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_to_one_leaves_the_other(change: str) -> None:
    """Either may be given to the model; the second batch, too, whose tensors are shared where they can be."""
    for given_is_copy in (False, True):
        guard = BatchGuard("the model")
        for _ in range(2):
            batch = _batch()
            copy = guard.copy(batch)
            CHANGES[change](copy if given_is_copy else batch)
            guard.look()
            left = batch if given_is_copy else copy
            assert left.keys() == {"x", "deep", "n"}
            assert torch.equal(left["x"], torch.zeros(2, 3))
            assert torch.equal(left["deep"]["labels"], torch.ones(2))
            assert left["deep"]["ids"][1] == "a"


def test_only_what_is_written_into_is_cloned() -> None:
    """Of the first batch everything; then what the model wrote into."""
    guard = BatchGuard("the model")
    first, second = _batch(), _batch()
    copy = guard.copy(first)
    assert copy["x"] is not first["x"]
    _write(first)
    copy = guard.copy(second)
    assert copy["x"] is not second["x"]
    assert copy["deep"]["labels"] is second["deep"]["labels"]


def test_a_tensor_that_is_written_into_later_is_an_error() -> None:
    guard = BatchGuard("the model")
    guard.copy(_batch())
    later = _batch()
    guard.copy(later)
    later["deep"]["ids"][0].add_(1)
    with pytest.raises(DataError, match=r"the model wrote into .* \['deep'\]\['ids'\]\[0\]"):
        guard.look()


@pytest.mark.parametrize(
    "batch",
    [
        (torch.ones(2), torch.zeros(2)),
        Pair(torch.ones(2), torch.zeros(2)),
        OrderedDict(x=torch.ones(2)),
        UserDict(x=torch.ones(2)),
        torch.ones(2),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_kinds_of_batches(batch: Any) -> None:
    assert type(BatchGuard("the model").copy(batch)) is type(batch)


def test_mappings_that_cannot_be_copied_become_plain_ones() -> None:
    assert BatchGuard("the model").copy(MappingProxyType({"x": 1})) == {"x": 1}


def test_tensors_of_inference_mode() -> None:
    with torch.inference_mode():
        batch = {"x": torch.ones(2)}
    guard = BatchGuard("the model")
    guard.copy(batch)
    assert guard.copy(batch)["x"] is batch["x"]


@dataclass(frozen=True)
class _Parts:
    x: torch.Tensor
    labels: torch.Tensor


def test_fields_of_a_dataclass_are_parts_of_a_batch() -> None:
    batch, guard = _Parts(torch.arange(6.0).reshape(3, 2), torch.arange(3)), BatchGuard("the model")
    kept = guard.copy(batch)
    batch.x.add_(5)
    assert kept.x.tolist() == [[0, 1], [2, 3], [4, 5]]
    taken = take_rows(kept, torch.tensor([2, 0]), 3)
    assert isinstance(taken, _Parts)
    assert (taken.x.tolist(), taken.labels.tolist()) == ([[4, 5], [0, 1]], [2, 0])
    assert [place for place, _ in tensors_at(kept)] == ["['x']", "['labels']"]
    assert num_rows(kept) == 3
    assert targets_of(kept) is kept.labels


def test_named_fields_say_where_targets_are() -> None:
    Batch = namedtuple("Batch", "inputs lengths targets")
    batch = Batch(torch.zeros(3, 2), torch.ones(3), torch.arange(3))
    assert targets_of(batch) is batch.targets
    assert targets_of(Pair(torch.zeros(3, 2), torch.arange(3))).tolist() == [0, 1, 2]
    unnamed = namedtuple("Unnamed", "image number")(torch.zeros(3, 2), torch.arange(3))
    assert targets_of(unnamed) is unnamed.number
