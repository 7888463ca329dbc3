"""The first batch is held against the examples that it is said to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset, default_collate

from reuse_algos.data import DatasetInfo, ViewedDataset, ViewPolicy
from reuse_algos.data.sampler import Examples
from reuse_algos.errors import DataError
from reuse_algos.training.first_batch.views import (
    changed_inputs,
    check_first_batch,
    check_same_view_twice,
    mixed_targets,
)

_IMAGES = torch.rand(12, 3, 5, 5, generator=torch.Generator().manual_seed(0))
_LABELS = torch.arange(12) % 4


_POLICY = ViewPolicy(seed=3, num_views=2)


class _Transformed(torch.utils.data.Dataset):
    def __init__(self, transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return len(_IMAGES)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(_IMAGES[index]), _LABELS[index]


def _viewed(transform: Callable[[torch.Tensor], torch.Tensor] = lambda image: image) -> ViewedDataset:
    return ViewedDataset(
        _Transformed(transform), ViewPolicy(seed=3, num_views=2), DatasetInfo("some", torch.arange(12))
    )


def _examples(view: int = 1) -> Examples:
    return Examples(torch.tensor([5, 2, 9, 0]), torch.full((4,), view))


def _mixup(items: list[Any]) -> Any:
    images, labels = default_collate(items)
    share = float(torch.rand(()))
    return share * images + (1 - share) * images.flip(0), labels


_OWN = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("transform", "collate"),
    [
        (lambda image: image + float(_OWN.random()), default_collate),
        (lambda image: image.roll(int(_OWN.integers(1, 5)), -1), default_collate),
        (lambda image: image, _mixup),
    ],
    ids=["noise of its own", "shift of its own", "mixup in collate_fn"],
)
def test_a_view_that_is_another_each_time_is_refused(transform: Any, collate: Any) -> None:
    with pytest.raises(DataError, match="read twice and was not the same"):
        check_same_view_twice(_viewed(transform), _examples(), collate)


def test_views_by_the_global_generators_are_the_same_and_leave_them_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    check_same_view_twice(
        _viewed(lambda image: image + torch.rand(()) + np.random.random()), _examples(), default_collate
    )
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index]


_MEAN, _STD = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([2, 3, 4.0]).view(3, 1, 1)
_GIVEN = {
    "the same": (lambda x: x, None),
    "normalised": (
        lambda x: (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([2, 3, 4.0]).view(3, 1, 1),
        None,
    ),
    "bfloat16": (lambda x: x.bfloat16(), None),
    "from bytes": (lambda x: x / 255, None),
    "mixed with the next": (lambda x: 0.7 * x + 0.3 * x.flip(0), "beyond a scale"),
    "flipped": (lambda x: x.flip(-1), "beyond a scale"),
    "noise": (lambda x: x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1)), "beyond a scale"),
    "cut": (lambda x: x[..., :3], "shape"),
    "inverted": (lambda x: 1 - x, "inverted: a scale of -1"),
    "one channel inverted": (lambda x: x * torch.tensor([1.0, -2.0, 1.0]).view(3, 1, 1), "inverted: a scale of -2"),
}


@pytest.mark.parametrize("case", _GIVEN)
def test_changed_inputs(case: str) -> None:
    change, told = _GIVEN[case]
    found = changed_inputs(change(_IMAGES[:4]), _IMAGES[:4])
    assert (found is None) if told is None else (told in (found or ""))


_WIDE = torch.rand(4, 6, generator=torch.Generator().manual_seed(2))
_OTHER_SHAPES = {
    "flattened": (_IMAGES[:4].flatten(1), _IMAGES[:4], None),
    "flattened and mixed": ((_IMAGES[:4] + _IMAGES[:4].flip(0)).flatten(1), _IMAGES[:4], "beyond a scale"),
    "grey as three colours": (_IMAGES[:4, :1].repeat(1, 3, 1, 1) / 2, _IMAGES[:4, :1], None),
    "standardised by column": ((_WIDE - torch.arange(6)) / torch.arange(1, 7), _WIDE, None),
    "mixed columns": (_WIDE + _WIDE.flip(0), _WIDE, "beyond a scale"),
    "padded further": (torch.nn.functional.pad(_WIDE, (0, 3)), _WIDE, None),
    "padded less": (_WIDE, torch.nn.functional.pad(_WIDE, (0, 3), value=-1.0), None),
    "cut": (_WIDE[:, :4], _WIDE, "shape"),
}


@pytest.mark.parametrize("case", _OTHER_SHAPES)
def test_inputs_in_another_shape(case: str) -> None:
    given, read, told = _OTHER_SHAPES[case]
    found = changed_inputs(given, read)
    assert (found is None) if told is None else (told in (found or ""))


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (torch.eye(4)[_LABELS[:4]], None),
        (torch.eye(4)[_LABELS[:4].flip(0)], "soft targets"),
        (torch.nn.functional.pad(_LABELS[:4, None], (0, 2), value=-100)[:, :1].expand(4, 1), "shape"),
    ],
)
def test_targets_in_another_form(targets: torch.Tensor, told: str | None) -> None:
    found = mixed_targets(targets, _LABELS[:4])
    assert (found is None) if told is None else (told in (found or ""))


def test_targets_that_were_padded_or_cast_are_the_examples_own() -> None:
    tokens, numbers = torch.arange(12).reshape(4, 3), 3 * torch.rand(4, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(tokens, (0, 2), value=-100)
    assert mixed_targets(padded, tokens) is None
    assert mixed_targets(tokens, padded) is None
    assert mixed_targets(padded.flip(0), tokens) is not None
    assert mixed_targets(torch.cat([tokens, tokens], 1), tokens) is not None
    assert mixed_targets(numbers.bfloat16(), numbers) is None
    assert mixed_targets(numbers.bfloat16() * 1.1, numbers) is not None


def test_changed_tokens() -> None:
    tokens = torch.arange(12).reshape(3, 4)
    assert changed_inputs(tokens, tokens.clone()) is None
    assert changed_inputs(tokens + (tokens == 5), tokens) == "1 of 3 rows differ"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x, y: (x, y), None),
        (lambda x, y: (x / 0.5 - 1, y), None),
        (lambda x, y: (x.flip(-1), y), "inputs at .0. are not the examples'"),
        (lambda x, y: (x.roll(1, 0), y), "inputs at .0."),
        (lambda x, y: (x, y.roll(1, 0)), "other targets than its examples"),
        (lambda x, y: (x, torch.nn.functional.one_hot(y, 4) * 0.9), "soft targets"),
    ],
    ids=["the same", "normalised", "flipped", "rows moved", "labels moved", "smoothed labels"],
)
def test_the_first_batch(change: Any, told: str | None) -> None:
    data, examples = _viewed(), Examples(torch.tensor([5, 2, 9, 0, 1, 3]), torch.ones(6, dtype=torch.int64))
    batch = change(_IMAGES[examples.positions], _LABELS[examples.positions])
    if told is None:
        assert "4 rows" in check_first_batch("capture", batch, data, examples, 0, default_collate)
    else:
        with pytest.raises(DataError, match=told):
            check_first_batch("capture", batch, data, examples, 0, default_collate)


def test_the_first_batch_of_a_plain_dataset() -> None:
    examples = Examples(torch.tensor([5, 2]), torch.full((2,), -1))
    data = TensorDataset(_IMAGES, _LABELS)
    batch = (_IMAGES[examples.positions], _LABELS[examples.positions])
    assert "2 rows" in check_first_batch("capture", batch, data, examples, 0, default_collate)
