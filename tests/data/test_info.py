import hashlib

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from reuse_algos.data.info import DatasetInfo, infer_info, key_of_path
from reuse_algos.errors import DataError


def info_of(keys, labels=None, name="set", class_names=None):
    return DatasetInfo(name, torch.tensor(keys), None if labels is None else torch.tensor(labels), class_names)


class Plain(Dataset):
    """A map-style dataset that may not be looked into."""

    def __init__(self, length, **attributes):
        self.length = length
        vars(self).update(attributes)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        raise AssertionError("__getitem__ may draw random numbers")


def test_fingerprint_is_of_name_length_keys_and_labels():
    parts = (3).to_bytes(8, "little") + b"set" + (2).to_bytes(8, "little") + np.array([7, -1], "<i8").tobytes()
    parts += b"labelled" + np.array([0, 4], "<i8").tobytes()
    assert info_of([7, -1], [0, 4]).fingerprint == hashlib.sha256(parts).hexdigest()


def test_fingerprint_changes_with_everything_that_matters():
    infos = [
        info_of([0, 1], [0, 1]),
        info_of([0, 1], [0, 1], name="other"),
        info_of([0, 2], [0, 1]),
        info_of([1, 0], [0, 1]),
        info_of([0, 1], [1, 0]),
        info_of([0, 1]),
        info_of([0], [0]),
    ]
    assert len({info.fingerprint for info in infos}) == len(infos)
    assert infos[0].fingerprint == info_of([0, 1], [0, 1], class_names=("a", "b")).fingerprint


def test_number_of_classes():
    assert info_of([0, 1], [0, 4]).num_classes == 5
    assert info_of([0, 1], [0, 1], class_names=("a", "b", "c")).num_classes == 3
    assert info_of([0, 1]).num_classes is None
    assert info_of([3, 1]).num_examples == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: info_of([3, 5, 3]), "key 3 belongs to more than one"),
        (lambda: info_of([0.5]), "keys must be a 1-D int64"),
        (lambda: info_of([[0]]), "keys must be a 1-D int64"),
        (lambda: info_of([0, 1], [0]), "2 keys but 1 labels"),
        (lambda: info_of([0, 1], [0, 2], class_names=("a", "b")), "2 class names but labels from 0 to 2"),
        (lambda: info_of([0, 1], [-1, 0], class_names=("a", "b")), "labels from -1"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_subset_keeps_keys_and_labels():
    part = info_of([10, 20, 30], [0, 1, 2], class_names=("a", "b", "c")).subset(torch.tensor([2, 0]))
    assert part.keys.tolist() == [30, 10]
    assert part.labels is not None
    assert part.labels.tolist() == [2, 0]
    assert part.class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0, 2],
        (1, 0, 2),
        np.array([1, 0, 2], dtype=np.uint8),
        torch.tensor([1, 0, 2], dtype=torch.int32),
        [torch.tensor(1), torch.tensor(0), torch.tensor(2)],
    ],
)
@pytest.mark.parametrize("attribute", ["targets", "labels"])
def test_labels_are_found_without_loading_examples(labels, attribute):
    info = infer_info(Plain(3, **{attribute: labels}, classes=["a", "b", "c"]))
    assert info.labels is not None
    assert info.labels.tolist() == [1, 0, 2]
    assert info.keys.tolist() == [0, 1, 2]
    assert info.name == "Plain"
    assert info.class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    "labels", [None, [0.5, 1.0, 2.0], ["a", "b", "c"], [0, 1], [0, [1], [2]], torch.zeros(3), "abc", [], {1: 2}]
)
def test_what_is_not_one_whole_number_per_example_is_no_label(labels):
    assert infer_info(Plain(3, targets=labels)).labels is None


def test_second_attribute_is_used_where_the_first_does_not_fit():
    info = infer_info(Plain(2, targets=["cat", "dog"], labels=[1, 0]))
    assert info.labels is not None
    assert info.labels.tolist() == [1, 0]


def test_tensor_dataset_takes_the_last_whole_numbers():
    info = infer_info(TensorDataset(torch.zeros(3, 2), torch.tensor([2, 0, 1]), torch.rand(3)))
    assert info.labels is not None
    assert info.labels.tolist() == [2, 0, 1]
    assert infer_info(TensorDataset(torch.zeros(3, 2))).labels is None


def test_nested_subsets_keep_the_keys_of_the_whole():
    whole = Plain(5, targets=[5, 6, 7, 8, 9])
    info = infer_info(Subset(Subset(whole, [4, 2, 0]), [0, 2]))
    assert info.keys.tolist() == [4, 0]
    assert info.labels is not None
    assert info.labels.tolist() == [9, 5]
    assert info.name == "Plain"
    with pytest.raises(DataError, match="key 2 belongs to more"):
        infer_info(Subset(whole, [2, 2]))
    assert infer_info(Subset(whole, [])).num_examples == 0


def test_concatenation_joins_labels_if_all_are_known():
    known, unknown = Plain(2, targets=[1, 2]), Plain(1)
    joined = infer_info(ConcatDataset([known, known]))
    assert joined.labels is not None
    assert joined.labels.tolist() == [1, 2, 1, 2]
    assert joined.keys.tolist() == [0, 1, 2, 3]
    assert infer_info(ConcatDataset([known, unknown])).labels is None


def test_own_info_wins_and_a_set_without_length_is_refused():
    own = info_of([9, 8])
    assert infer_info(Plain(2, info=own, targets=[0, 1])) is own
    assert infer_info(Plain(2, info="a text")).keys.tolist() == [0, 1]

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    class CountedStream(Stream):
        def __len__(self):
            return 3

    for stream in (Stream(), CountedStream()):
        with pytest.raises(DataError, match=f"examples of {type(stream).__name__} cannot be numbered"):
            infer_info(stream)


def test_key_of_path_is_the_start_of_blake2b():
    digest = hashlib.blake2b(b"cat/1.png").digest()
    assert key_of_path("cat/1.png") & (2**64 - 1) == int.from_bytes(digest[:8], "little")
    assert -(2**63) <= key_of_path("cat/1.png") < 2**63


def test_positions_of_keys():
    info = DatasetInfo("d", torch.tensor([30, -10, 20]))
    assert info.positions_of(torch.tensor([20, 30, 20, -10])).tolist() == [2, 0, 2, 1]
    with pytest.raises(DataError, match="no example with the key 7"):
        info.positions_of(torch.tensor([20, 7]))
