import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reuse_algos.data.datasets.subsets import nested_order, select_classes, take_part
from reuse_algos.data.hashing import view_hash
from reuse_algos.errors import DataError

LABELS = torch.randint(0, 7, (1000,), generator=torch.Generator().manual_seed(0))
KEYS = torch.randperm(5000, generator=torch.Generator().manual_seed(1))[:1000]


@given(st.integers(1, 1000), st.integers(1, 1000))
@settings(max_examples=30, deadline=None)
def test_smaller_parts_lie_inside_larger_ones(a, b):
    small, large = sorted((a, b))
    inner = take_part(KEYS, LABELS, fraction=small / 1000)
    outer = take_part(KEYS, LABELS, examples=large)
    assert len(inner) == small
    assert len(outer) == large
    assert set(inner.tolist()) <= set(outer.tolist())
    assert inner.tolist() == sorted(inner.tolist())


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.37, 0.5, 0.9])
def test_every_class_keeps_its_share(fraction):
    part = take_part(KEYS, LABELS, fraction=fraction)
    share = torch.bincount(LABELS[part], minlength=7) - fraction * torch.bincount(LABELS)
    assert share.abs().max() <= 1


def test_balanced_classes_stay_balanced():
    labels = torch.arange(1000) % 10
    assert torch.bincount(labels[take_part(KEYS, labels, examples=50)]).tolist() == [5] * 10


def test_a_part_depends_on_keys_and_not_on_the_order():
    part = set(KEYS[take_part(KEYS, LABELS, examples=300)].tolist())
    turned = torch.randperm(1000, generator=torch.Generator().manual_seed(2))
    keys, labels = KEYS[turned], LABELS[turned]
    assert set(keys[take_part(keys, labels, examples=300)].tolist()) == part
    assert set((KEYS + 1)[take_part(KEYS + 1, LABELS, examples=300)].tolist()) != part


def test_parts_never_change():
    # Recorded: a recipe of long ago must still mean the same examples.
    assert take_part(torch.arange(20), torch.arange(20) % 2, examples=6).tolist() == [0, 5, 9, 16, 17, 18]


def test_order_is_by_share_of_the_class_then_by_hash():
    hashes = dict(enumerate(view_hash(0x5EED, KEYS, torch.tensor(0), 32).tolist()))
    expected = []
    for label in range(7):
        members = sorted(torch.nonzero(label == LABELS).flatten().tolist(), key=hashes.__getitem__)
        expected += [((rank + 0.5) / len(members), hashes[one], one) for rank, one in enumerate(members)]
    assert nested_order(KEYS, LABELS).tolist() == [one for _, _, one in sorted(expected)]


def test_whole_and_order():
    assert take_part(KEYS, LABELS).tolist() == list(range(1000))
    order = nested_order(KEYS, LABELS)
    assert sorted(order.tolist()) == list(range(1000))
    assert not torch.equal(order, nested_order(KEYS, LABELS, salt=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "above 0 and at most 1"),
        ({"fraction": 1.5}, "above 0 and at most 1"),
        ({"fraction": float("nan")}, "above 0 and at most 1"),
        ({"examples": 0}, "from 1 to the 1000"),
        ({"examples": 1001}, "from 1 to the 1000"),
        ({"examples": 5, "fraction": 0.5}, "not both"),
    ],
)
def test_impossible_parts_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        take_part(KEYS, LABELS, **options)


def test_classes_are_numbered_in_the_order_wanted():
    labels = torch.tensor([0, 1, 2, 0, 2])
    positions, new = select_classes(labels, ["c", 0], ["a", "b", "c"], 3)
    assert positions.tolist() == [0, 2, 3, 4]
    assert new.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("wanted", "names", "message"),
    [
        (["cta"], ["cat", "dog"], "unknown class 'cta'. Did you mean 'cat'"),
        ([2], ["cat", "dog"], "no class 2; classes are numbered 0 to 1"),
        (["cat"], None, "no class names"),
        (["cat", 0], ["cat", "dog"], "none twice"),
        ([], ["cat", "dog"], "at least one"),
    ],
)
def test_impossible_classes_are_refused(wanted, names, message):
    with pytest.raises(DataError, match=message):
        select_classes(torch.tensor([0, 1]), wanted, names, 2)
