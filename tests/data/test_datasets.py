"""Datasets in memory: digits, npz, and torchvision's read from small files in the published formats."""

import hashlib
import pickle
import struct
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from reuse_algos.data.datasets.coarse_labels import CIFAR100_COARSE_NAMES, CIFAR100_FINE_NAMES, coarse_labels
from reuse_algos.data.datasets.config import DataConfig
from reuse_algos.data.datasets.load import LoadedData, load_datasets
from reuse_algos.data.images import device_loader
from reuse_algos.data.images.device_loader import DeviceImages, WorkerImages
from reuse_algos.data.text.config import TextConfig
from reuse_algos.errors import DataError

UNPACK = Path(__file__).resolve().parents[3] / "shared" / "data" / "unpack_cifar100.py"


def load(**settings) -> LoadedData:
    return load_datasets(DataConfig(**{"batch_size": 1, **settings}))


def labels_of(dataset) -> list[int]:
    return [int(dataset[position][1]) for position in range(len(dataset))]


def write_npz(path, classes=4, per_class=6, shape=(8, 8, 3), **replaced):
    numbers = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", classes * per_class), ("test", classes * 2)):
        arrays[f"x_{part}"] = numbers.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % classes
    arrays.update(replaced)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return arrays


def test_digits_are_the_default_and_split_by_class():
    loaded = load()
    assert (len(loaded.train), len(loaded.eval)) == (1437, 360)  # type: ignore[arg-type]
    assert loaded.image_shape == (1, 8, 8)
    assert loaded.num_classes == 10
    keys = torch.cat([loaded.info.keys, loaded.eval_info.keys])
    assert sorted(keys.tolist()) == list(range(1797))
    target = torch.from_numpy(load_digits().target)
    assert loaded.info.labels is not None
    assert loaded.eval_info.labels is not None
    assert torch.equal(target[loaded.info.keys], loaded.info.labels)
    share = torch.bincount(loaded.eval_info.labels) / torch.bincount(target)
    assert (share - 0.2).abs().max() < 0.005


def test_pictures_and_names_of_characters_are_pairs() -> None:
    pictures, names = load(name="glyphs"), load(name="glyph_names", text=TextConfig(max_tokens=12, vocabulary=1024))
    keys, text_keys = (torch.cat([one.info.keys, one.eval_info.keys]) for one in (pictures, names))
    assert torch.equal(keys.sort().values, text_keys.sort().values)
    assert (len(keys), pictures.image_shape, len(pictures.eval_info.keys)) == (3232, (1, 28, 28), 323)
    for loaded, kind in ((pictures, "Greek"), (names, "small")):
        labels, classes = loaded.info.labels, loaded.class_names
        assert labels is not None
        assert classes is not None
        for key, label in zip(loaded.info.keys.tolist(), labels.tolist(), strict=True):
            name, character = unicodedata.name(chr(key)), chr(key)
            true = name.startswith("GREEK") if kind == "Greek" else unicodedata.category(character) == "Ll"
            assert (classes[label] == kind) == true, name
    # A vertical bar of boxes is a bright column in the middle of a dark picture.
    column = pictures.train.__getitems__([pictures.info.keys.tolist().index(0x2503)])[0][0, 0]  # type: ignore[attr-defined]
    assert column.max(0).values.argmax() in range(12, 16)
    assert (column > column.min()).any(0).sum() <= 5


def test_digit_images_are_normalised():
    loaded = load()
    assert isinstance(loaded.train, DeviceImages)
    images, _ = loaded.train.__getitems__(list(range(1437)))
    assert images.mean().abs() < 1e-4
    assert (images.std() - 1).abs() < 1e-3
    original = torch.from_numpy(load_digits().images[loaded.info.keys[5]]) / 16
    shown = images[5, 0] * loaded.std[0] + loaded.mean[0]
    torch.testing.assert_close(shown.double(), original, atol=0.5 / 255 + 1e-6, rtol=0)


def test_loading_draws_no_global_numbers():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    load(augment="crop_flip", num_views=2, train_fraction=0.5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3)])
def test_npz(tmp_path, shape):
    arrays = write_npz(tmp_path / "a.npz", shape=shape)
    loaded = load(name="npz", path=str(tmp_path / "a.npz"))
    channels = shape[2] if len(shape) == 3 else 1
    assert loaded.image_shape == (channels, 8, 8)
    assert loaded.info.keys.tolist() == list(range(24))
    assert labels_of(loaded.train) == arrays["y_train"].tolist()
    assert labels_of(loaded.eval) == arrays["y_test"].tolist()
    scaled = arrays["x_train"].reshape(24, 8, 8, channels) / 255
    np.testing.assert_allclose(loaded.mean, scaled.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(loaded.std, scaled.std((0, 1, 2)), rtol=1e-9)
    expected = (scaled[7] - loaded.mean) / loaded.std
    np.testing.assert_allclose(loaded.train[7][0].permute(1, 2, 0).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_npz_with_keys_names_and_a_column_of_labels(tmp_path):
    keys = np.arange(24) * 7 - 3
    names = np.array(["a", "b", "c", "d", "e"])
    write_npz(tmp_path / "a.npz", keys_train=keys, class_names=names, y_test=(np.arange(8) % 4)[:, None])
    loaded = load(name="npz", path=str(tmp_path / "a.npz"))
    assert loaded.info.keys.tolist() == keys.tolist()
    assert loaded.class_names == ("a", "b", "c", "d", "e")
    assert loaded.num_classes == 5
    assert labels_of(loaded.eval) == [0, 1, 2, 3] * 2


def test_a_colour_that_never_changes_does_not_divide_by_zero(tmp_path):
    write_npz(tmp_path / "a.npz", x_train=np.full((24, 8, 8, 3), 51, np.uint8))
    loaded = load(name="npz", path=str(tmp_path / "a.npz"))
    assert loaded.train[0][0].abs().max() < 1e-6


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"x_test": None, "y_train": None}, "has no y_train, x_test; it has"),
        ({"x_train": np.zeros((24, 8, 8, 3), np.float32)}, "x_train must be uint8 .* not float32"),
        ({"x_train": np.zeros((24, 8), np.uint8)}, "x_train must be uint8 of shape"),
        ({"y_train": np.zeros(24)}, "y_train must be 24 whole numbers, .* not float64"),
        ({"y_train": np.zeros(5, int)}, r"y_train must be 24 whole numbers, .* not int64 of \(5,\)"),
        ({"y_train": np.full(24, -1)}, "none below 0"),
        ({"x_train": np.zeros((0, 8, 8, 3), np.uint8), "y_train": np.zeros(0, int)}, "at least one label"),
        ({"x_test": np.zeros((8, 4, 4, 3), np.uint8)}, r"images of x_train are \(8, 8, 3\), those of x_test"),
        ({"keys_train": np.arange(24.0)}, "keys_train must be 24 int64"),
        ({"keys_train": np.zeros(24, np.int64)}, "key 0 belongs to more than one"),
        ({"class_names": np.array(["a", "b"])}, "2 class names but labels from 0 to 3"),
        ({"class_names": np.arange(4)}, "class_names must be a 1-D array of strings"),
        ({"y_train": np.array([None] * 24)}, "cannot be read as an .npz file of plain arrays"),
    ],
)
def test_wrong_npz_files_are_refused(tmp_path, replaced, message):
    write_npz(tmp_path / "a.npz", **replaced)
    with pytest.raises(DataError, match=message):
        load(name="npz", path=str(tmp_path / "a.npz"))


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 torn"])
def test_files_that_are_no_npz_are_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz cannot be read"):
        load(name="npz", path=str(tmp_path / "a.npz"))
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"b\.npy cannot be read"):
        load(name="npz", path=str(tmp_path / "b.npy"))
    with pytest.raises(DataError, match="there is no file"):
        load(name="npz", path=str(tmp_path / "none.npz"))


def test_parts_are_nested_and_keep_keys_views_and_statistics(tmp_path):
    write_npz(tmp_path / "a.npz", per_class=20)
    settings = {"name": "npz", "path": str(tmp_path / "a.npz"), "augment": "crop_flip", "num_views": 2}
    whole, half, tenth = (load(**settings, train_fraction=fraction) for fraction in (1.0, 0.5, 0.1))
    assert len(half.info.keys) == 40
    assert set(tenth.info.keys.tolist()) < set(half.info.keys.tolist()) < set(whole.info.keys.tolist())
    assert half.mean == whole.mean
    assert len(tenth.eval) == len(whole.eval)  # type: ignore[arg-type]
    position = int(torch.nonzero(whole.info.keys == half.info.keys[3]))
    view = device_loader.ExampleView
    assert torch.equal(half.train[view(3, 1)][0], whole.train[view(position, 1)][0])
    other_views = load(**settings, train_fraction=0.5, view_seed=9)
    assert torch.equal(other_views.info.keys, half.info.keys)


def test_classes_are_chosen_in_both_parts(tmp_path):
    write_npz(tmp_path / "a.npz", class_names=np.array(["a", "b", "c", "d"]))
    loaded = load(name="npz", path=str(tmp_path / "a.npz"), classes=["d", 1])
    assert loaded.class_names == ("d", "b")
    assert loaded.num_classes == 2
    assert set(labels_of(loaded.train)) == set(labels_of(loaded.eval)) == {0, 1}
    assert all(
        int(key) % 4 == (1 if label else 3) for key, label in zip(loaded.info.keys, loaded.info.labels, strict=True)
    )  # type: ignore[arg-type]


def test_coarse_labels_of_an_npz_with_a_hundred_classes(tmp_path):
    write_npz(tmp_path / "a.npz", classes=100, per_class=2)
    settings = {"name": "npz", "path": str(tmp_path / "a.npz"), "train_examples": 150}
    fine, coarse = load(**settings), load(**settings, labels="coarse")
    assert coarse.num_classes == 20
    assert coarse.class_names == CIFAR100_COARSE_NAMES
    assert torch.equal(coarse.info.keys, fine.info.keys)
    assert labels_of(coarse.train) == coarse_labels(torch.tensor(labels_of(fine.train))).tolist()
    with pytest.raises(DataError, match="coarse is for CIFAR-100's 100 classes; 'digits' has 10"):
        load(labels="coarse")


def test_images_are_resized_once(tmp_path):
    arrays = write_npz(tmp_path / "a.npz", shape=(8, 8, 3))
    loaded = load(name="npz", path=str(tmp_path / "a.npz"), image_size=4)
    assert loaded.image_shape == (3, 4, 4)
    flat = write_npz(tmp_path / "b.npz", x_train=np.full((24, 8, 8, 3), 77, np.uint8), x_test=arrays["x_test"])
    loaded = load(name="npz", path=str(tmp_path / "b.npz"), image_size=16)
    assert loaded.image_shape == (3, 16, 16)
    assert flat["x_train"].shape[1] == 8
    assert loaded.train[0][0].abs().max() < 1e-6


def write_cifar(folder, monkeypatch, source, meta_key, names, label_key):
    """The published batches in small, and the checksums that go with them."""
    base = folder / source.base_folder
    base.mkdir(parents=True)
    numbers = np.random.default_rng(1)
    written, lists = [], {}
    for attribute in ("train_list", "test_list"):
        lists[attribute] = []
        for file_name, _ in getattr(source, attribute):
            rows = numbers.integers(0, 256, (len(names), 3072), dtype=np.uint8)
            labels = list(range(len(names)))
            content = pickle.dumps({"data": rows, label_key: labels})
            (base / file_name).write_bytes(content)
            lists[attribute].append([file_name, hashlib.md5(content).hexdigest()])
            written.append(rows)
    content = pickle.dumps({meta_key: names})
    (base / source.meta["filename"]).write_bytes(content)
    for attribute, value in lists.items():
        monkeypatch.setattr(source, attribute, value)
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": hashlib.md5(content).hexdigest()})
    return np.concatenate(written[: len(lists["train_list"])])


@pytest.mark.parametrize(
    ("name", "source", "meta_key", "label_key", "names"),
    [
        ("cifar10", CIFAR10, "label_names", "labels", [f"c{number}" for number in range(10)]),
        ("cifar100", CIFAR100, "fine_label_names", "fine_labels", list(CIFAR100_FINE_NAMES)),
    ],
)
def test_cifar_from_its_own_files(tmp_path, monkeypatch, name, source, meta_key, label_key, names):
    rows = write_cifar(tmp_path, monkeypatch, source, meta_key, names, label_key)
    loaded = load(name=name, root=str(tmp_path))
    assert loaded.class_names == tuple(names)
    assert loaded.info.name == name
    assert loaded.image_shape == (3, 32, 32)
    assert labels_of(loaded.eval) == list(range(len(names)))
    expected = (rows[3].reshape(3, 32, 32) / 255 - np.reshape(loaded.mean, (3, 1, 1))) / np.reshape(
        loaded.std, (3, 1, 1)
    )
    np.testing.assert_allclose(loaded.train[3][0].numpy(), expected, rtol=1e-4, atol=1e-5)
    if name == "cifar100":
        coarse = load(name=name, root=str(tmp_path), labels="coarse", classes=["trees", "people"])
        assert coarse.class_names == ("trees", "people")
        assert [CIFAR100_FINE_NAMES[key] for key in coarse.eval_info.keys.tolist()] == [
            *("baby", "boy", "girl", "man", "maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree", "woman"),
        ]


def test_fashion_mnist_from_its_own_files(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(2).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 0x803, 12, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, 12) + bytes([*range(10), 0, 1]))
    loaded = load(name="fashion_mnist", root=str(tmp_path), augment="crop_flip")
    assert loaded.image_shape == (1, 28, 28)
    assert loaded.class_names is not None
    assert loaded.class_names[9] == "Ankle boot"
    assert labels_of(loaded.train) == [*range(10), 0, 1]
    assert loaded.train.view_policy.transform == "crop_flip(padding=4)"  # type: ignore[attr-defined]
    np.testing.assert_allclose(loaded.eval[0][0][0].numpy() * 0.353 + 0.286, images[0] / 255, atol=1e-5)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "caltech101", "image_folder"])
def test_data_that_is_not_there(tmp_path, name):
    with pytest.raises(DataError, match=name):
        load(name=name, root=str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere" / "caltech101").exists()


def test_settings_choose_augmentation_and_where_the_data_is_held():
    loaded = load(augment="crop_flip_cutout", num_views=3, view_seed=5, device_resident=False)
    assert isinstance(loaded.train, WorkerImages)
    assert isinstance(loaded.eval, WorkerImages)
    assert loaded.train.view_policy.num_views == 3
    assert loaded.train.view_policy.seed == 5
    assert loaded.train.view_policy.transform == "crop_flip_cutout(padding=1,length=4)"
    assert loaded.eval.view_policy.transform == "none"
    resident = load(augment="crop_flip_cutout", num_views=3, view_seed=5, device_resident=True)
    assert isinstance(resident.train, DeviceImages)
    assert torch.equal(resident.train[4][0], loaded.train[4][0])


def test_all_faults_of_the_section_are_told_at_once():
    wrong = DataConfig(
        name="cifar", augment="crap", labels="corse", device_resident="maybe", batch_size=0, num_views=-1,
        train_fraction=2.0, train_examples=0, image_size=0,
    )  # fmt: skip
    with pytest.raises(DataError) as caught:
        load_datasets(wrong)
    lines = str(caught.value).splitlines()
    assert len(lines) == 10
    assert "Did you mean 'cifar10' or 'cifar100'?" in lines[0]
    with pytest.raises(DataError, match=r"data\.path"):
        load(name="npz")
    with pytest.raises(DataError, match="batch_size 2000 is more than the 1437"):
        load(batch_size=2000)
    assert len(load(batch_size=2000, drop_last=False).train) == 1437  # type: ignore[arg-type]


def test_the_section_is_a_structured_config():
    section = OmegaConf.merge(
        OmegaConf.structured(DataConfig), OmegaConf.create("{name: npz, classes: [1, cat], device_resident: true}")
    )
    config = OmegaConf.to_object(section)
    assert isinstance(config, DataConfig)
    assert config.classes == [1, "cat"]
    assert config.device_resident is True


@pytest.mark.skipif(not UNPACK.exists(), reason="the CIFAR-100 sheets are not here")
def test_the_shared_cifar100_has_a_hundred_classes_in_alphabetical_order():
    labels = torch.from_numpy(np.load(UNPACK.parent / "cifar100" / "train_labels.npy").astype(np.int64))
    assert torch.bincount(labels).tolist() == [500] * 100
    assert torch.bincount(coarse_labels(labels)).tolist() == [2500] * 20


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_with_channels_first(tmp_path, channels):
    x = np.random.default_rng(0).integers(0, 256, (8, channels, 6, 5), dtype=np.uint8)
    y = np.arange(8) % 2
    infos = []
    for name, images in (("first", x), ("last", np.ascontiguousarray(x.transpose(0, 2, 3, 1)))):
        np.savez(tmp_path / name, x_train=images, y_train=y, x_test=images, y_test=y)
        loaded = load(name="npz", path=str(tmp_path / f"{name}.npz"), batch_size=1)
        assert loaded.image_shape == (channels, 6, 5)
        infos.append(loaded.info.fingerprint)
    assert infos[0] == infos[1]


@pytest.mark.parametrize("shape", [(8, 7, 6, 5), (8, 2, 6, 7)])
def test_npz_without_a_known_place_of_channels_is_refused(tmp_path, shape):
    x, y = np.zeros(shape, np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "odd", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(DataError, match="channels neither last"):
        load(name="npz", path=str(tmp_path / "odd.npz"), batch_size=1)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # as where it is not installed
    with pytest.raises(DataError, match=r"pip install 'reuse-algos\[demo\]'"):
        load_datasets(DataConfig(name="digits"), torch.device("cpu"))
