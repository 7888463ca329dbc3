import pytest
import torch

from reuse_algos.data.datasets.coarse_labels import (
    CIFAR100_COARSE_NAMES,
    CIFAR100_FINE_NAMES,
    COARSE_TO_FINE,
    coarse_labels,
)
from reuse_algos.errors import DataError

# Coarse number of each fine number as found in the data files of CIFAR-100 (fine_labels beside coarse_labels).
# fmt: off
FROM_THE_FILES = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
]
# fmt: on


def test_all_hundred_classes_are_as_in_the_data_files():
    assert coarse_labels(torch.arange(100)).tolist() == FROM_THE_FILES


def test_every_superclass_has_five_classes_and_every_class_one():
    assert len(COARSE_TO_FINE) == 20
    assert len(CIFAR100_FINE_NAMES) == len(set(CIFAR100_FINE_NAMES)) == 100
    assert torch.bincount(coarse_labels(torch.arange(100))).tolist() == [5] * 20


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [
        ("maple_tree", "trees"),
        ("mushroom", "fruit_and_vegetables"),
        ("otter", "aquatic_mammals"),
        ("shrew", "small_mammals"),
        ("elephant", "large_omnivores_and_herbivores"),
        ("lawn_mower", "vehicles_2"),
        ("pickup_truck", "vehicles_1"),
        ("crab", "non-insect_invertebrates"),
    ],
)
def test_published_table(fine, coarse):
    number = coarse_labels(torch.tensor([CIFAR100_FINE_NAMES.index(fine)]))
    assert CIFAR100_COARSE_NAMES[int(number)] == coarse


def test_labels_of_other_data_are_refused():
    with pytest.raises(DataError, match="labels from 0 to 100"):
        coarse_labels(torch.tensor([0, 100]))
    assert coarse_labels(torch.empty(0, dtype=torch.int64)).tolist() == []
