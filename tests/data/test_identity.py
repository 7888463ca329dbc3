"""Which example is which: content stands behind keys, and positions alone match nothing."""

import os
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from reuse_algos.data.datasets.config import DataConfig
from reuse_algos.data.datasets.load import load_datasets
from reuse_algos.data.examples.identity import identify, identity_of, match_keys, same_data
from reuse_algos.data.info import DatasetInfo, infer_info, key_of_path
from reuse_algos.errors import DataError

LABELS = torch.arange(40) % 4


def _tensors(seed: int, labels: torch.Tensor | None = LABELS) -> TensorDataset:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sum(1)) if labels is None else TensorDataset(x, labels)


class Rows(Dataset):
    """A dataset of dictionaries, which says nothing of itself."""

    def __init__(self, rows: list[int], scale: float = 1.0) -> None:
        self.rows, self.scale = rows, scale

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict:
        row = self.rows[position]
        return {"x": self.scale * torch.tensor([row, row * row]), "labels": torch.tensor(row % 3)}


class Noisy(Rows):
    """Another example at each read."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(rows)
        self.generator = torch.Generator().manual_seed(0)

    def __getitem__(self, position: int) -> dict:
        return {"x": torch.randn(3, generator=self.generator)}


class Table:
    """The parts of a Hugging Face ``datasets.Dataset`` that matter here."""

    column_names = ("text", "label", "id")

    def __init__(self, texts: list[str], transformed: bool = False) -> None:
        self.texts, self.transformed = texts, transformed

    def __len__(self) -> int:
        return len(self.texts)

    def with_format(self, kind: None) -> "Table":
        return Table(self.texts)

    def __getitem__(self, index: int | str) -> object:
        if isinstance(index, str):
            return [f"id-{text}" for text in self.texts]
        if self.transformed:
            return {"text": torch.randn(3)}
        return {"text": self.texts[index], "label": index % 2}


def _same(one: DatasetInfo, other: DatasetInfo) -> bool:
    return same_data(other, one.fingerprint, None if one.content is None else one.key_fingerprint)


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (_tensors(0), _tensors(0), _tensors(1)),
        (_tensors(0, None), _tensors(0, None), _tensors(1, None)),
        (Subset(_tensors(0), range(9)), Subset(_tensors(0), range(9)), Subset(_tensors(0), [*range(1, 9), 12])),
        (Rows([1, 2, 3]), Rows([1, 2, 3]), Rows([1, 2, 6])),
        (Rows([1, 2, 3]), Rows([1, 2, 3]), Rows([1, 2, 3], scale=2.0)),
        (Table(["a", "b"]), Table(["a", "b"], transformed=True), Table(["a", "c"])),
        (
            ConcatDataset([Rows([1, 2]), Rows([3])]),
            ConcatDataset([Rows([1, 2]), Rows([3])]),
            ConcatDataset([Rows([1, 2]), Rows([6])]),
        ),
    ],
    ids=["tensors", "regression", "subset", "own", "scaled", "hugging face", "concatenated"],
)
def test_the_fingerprint_is_of_the_content(one: Dataset, same: Dataset, other: Dataset) -> None:
    assert infer_info(one).fingerprint == infer_info(same).fingerprint
    assert _same(infer_info(one), infer_info(same))
    assert infer_info(one).key_fingerprint == infer_info(other).key_fingerprint or isinstance(one, Subset)
    assert not _same(infer_info(one), infer_info(other))


def test_reading_content_moves_no_generator() -> None:
    before = torch.get_rng_state()
    infer_info(Rows([1, 2, 3])).fingerprint  # noqa: B018
    assert torch.equal(before, torch.get_rng_state())


def test_examples_that_are_never_the_same_have_no_content() -> None:
    info = infer_info(Noisy([1, 2]))
    assert info.content is None
    assert info.fingerprint == info.key_fingerprint


def test_records_without_content_are_compared_by_keys_and_labels() -> None:
    info = infer_info(_tensors(0))
    assert same_data(info, info.key_fingerprint, None)
    assert not same_data(infer_info(_tensors(0, LABELS.flip(0))), info.key_fingerprint, None)


def test_another_split_is_matched_by_content() -> None:
    base = _tensors(0)
    chosen = [torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:30] for seed in (0, 1)]
    there, here = (infer_info(TensorDataset(*(tensor[rows] for tensor in base.tensors))) for rows in chosen)
    assert there.key_kind == "position"
    match = match_keys(identity_of(there), here)
    where = {int(row): place for place, row in enumerate(chosen[0])}
    assert match.rows.tolist() == [where.get(int(row), -1) for row in chosen[1]]
    assert not match.problem


def test_positions_with_a_sample_of_the_content_match_nothing() -> None:
    there, here = infer_info(Rows(list(range(100)))), infer_info(Rows(list(range(1, 101))))
    assert len(identity_of(there).rows) == 64
    assert "known by their positions only" in match_keys(identity_of(there), here).problem
    whole = identify(Rows(list(range(100))), fingerprint="full")
    assert match_keys(identity_of(whole), here).rows.tolist() == [*range(1, 100), -1]


def test_keys_of_one_s_own() -> None:
    rows, more = Rows([5, 6, 7]), Rows([4, 7, 5])
    there, here = (identify(one, key=lambda position, one=one: one.rows[position]) for one in (rows, more))
    assert there.keys.tolist() == [5, 6, 7]
    assert match_keys(identity_of(there), here).rows.tolist() == [-1, 2, 0]
    replaced = identify(Rows([4, 9, 5]), key=lambda position: [4, 7, 5][position])
    match = match_keys(identity_of(there), replaced)
    assert (match.checked, match.differing) == (2, 1)
    assert "1 of 2 examples that were compared have another content" in match.problem


def test_with_everything_hashed_only_what_changed_is_left_out() -> None:
    there = identify(Rows([5, 6, 7]), key="rows", fingerprint="full")
    here = identify(Rows([5, 60, 7]), key=lambda position: [5, 6, 7][position], fingerprint="full")
    match = match_keys(identity_of(there), here)
    assert match.rows.tolist() == [0, -1, 2]
    assert (match.differing, match.problem) == (1, "")


def test_keys_of_a_column_are_texts_or_numbers() -> None:
    info = identify(Table(["a", "b"]), key="id")  # type: ignore[arg-type]
    assert info.keys.tolist() == [key_of_path("id-a"), key_of_path("id-b")]
    with pytest.raises(DataError, match="key='ids' is not a column or list of Table. Did you mean 'id'"):
        identify(Table(["a", "b"]), key="ids")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a key must be a whole number or a text, not 0.5"):
        identify(Rows([1]), key=lambda position: 0.5)  # type: ignore[arg-type, return-value]
    with pytest.raises(DataError, match="fingerprint must be 'full' or 64, not 'all'"):
        identify(Rows([1]), fingerprint="all")


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("10", "2", "7"):
        os.makedirs(tmp_path / label)
        for number in range(5):
            pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    return tmp_path


def _paths(folder) -> list[str]:
    return [path for path, _ in ImageFolder(folder).samples]


@pytest.mark.parametrize("change", ["deleted", "added", "renamed", "replaced"])
def test_files_are_known_by_their_paths(folder, change: str) -> None:
    there, before = infer_info(ImageFolder(folder)), _paths(folder)
    prior = identity_of(there)
    assert there.key_kind == "path"
    first = folder / "10" / "0.png"
    if change == "deleted":
        first.unlink()
    elif change == "added":
        Image.new("RGB", (6, 6)).save(folder / "10" / "00.png")
    elif change == "renamed":
        first.rename(folder / "10" / "9.png")
    else:
        Image.new("RGB", (6, 6)).save(first)
    here, now = infer_info(ImageFolder(folder)), _paths(folder)
    assert not _same(there, here)
    match = match_keys(prior, here)
    if change == "replaced":
        assert "1 of 15 examples" in match.problem
    else:
        assert match.rows.tolist() == [before.index(path) if path in before else -1 for path in now]


def test_class_names_go_by_their_numbers(folder) -> None:
    class Numeric(ImageFolder):
        def find_classes(self, directory):
            classes, _ = super().find_classes(directory)
            return classes, {name: number for number, name in enumerate(sorted(classes, key=int))}

    dataset = Numeric(folder)
    info = infer_info(dataset)
    assert dataset.classes == ["10", "2", "7"]
    assert info.class_names == ("2", "7", "10")
    assert all(info.class_names[label] == path.split("/")[-2] for path, label in dataset.samples)


def test_labels_are_those_after_target_transform(folder) -> None:
    info = infer_info(ImageFolder(folder, target_transform=lambda label: label // 2))
    assert info.labels is not None
    assert info.labels.tolist() == [0] * 10 + [1] * 5
    assert info.class_names is None


class Claims(Dataset):
    """Claims some labels, and shows others."""

    classes = ("a", "b", "c", "d")

    def __init__(self, change, as_dict: bool = False) -> None:
        self.targets, self.change, self.as_dict = LABELS.tolist(), change, as_dict

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, position: int):
        x, label = torch.tensor([float(position)] * 2), torch.tensor(self.change(self.targets[position]))
        return {"x": x, "labels": label} if self.as_dict else (x, int(label))


@pytest.mark.parametrize("as_dict", [False, True])
def test_labels_are_known_only_where_the_examples_show_them(as_dict: bool) -> None:
    same = infer_info(Claims(lambda label: label, as_dict))
    assert same.labels is not None
    assert torch.equal(same.labels, LABELS)
    other = infer_info(Claims(lambda label: label ^ 1, as_dict))
    assert (other.labels, other.class_names) == (None, None)
    assert not _same(same, other)


def test_an_index_behind_the_target_is_no_label() -> None:
    info = infer_info(TensorDataset(torch.randn(40, 2), LABELS, torch.arange(40)))
    assert info.labels is not None
    assert torch.equal(info.labels, LABELS)


def test_names_have_one_unicode_form() -> None:
    forms = [unicodedata.normalize(form, "Käfer/größe.png") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    assert key_of_path(forms[0]) == key_of_path(forms[1])
    names = [DatasetInfo("x", torch.arange(1), class_names=(form,)).class_names for form in forms]
    assert names[0] == names[1]
    assert key_of_path(os.fsdecode(b"caf\xe9.png")) != key_of_path("caf.png")


@pytest.mark.parametrize("change", [{"pixels": 1}, {"shape": (4, 4, 3)}, {"image_size": 16}])
def test_other_images_with_the_same_labels_are_other_data(tmp_path, change) -> None:
    def load(name: str, pixels: int = 0, shape=(8, 8, 3), **settings) -> DatasetInfo:
        x = np.random.default_rng(pixels).integers(0, 256, (12, *shape), dtype=np.uint8)
        y = np.arange(12) % 3
        np.savez(tmp_path / name, x_train=x, y_train=y, x_test=x, y_test=y)
        config = DataConfig(name="npz", path=str(tmp_path / name), batch_size=2, **settings)
        return load_datasets(config).train.info  # type: ignore[attr-defined]

    assert load("a.npz").fingerprint == load("b.npz").fingerprint
    assert load("a.npz").fingerprint != load("c.npz", **change).fingerprint
