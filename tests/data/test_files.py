"""Datasets of image files: folders by class, and Caltech-101."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from reuse_algos.data.datasets.config import DataConfig
from reuse_algos.data.datasets.files import IMAGENET_MEAN, IMAGENET_STD, read_image
from reuse_algos.data.datasets.load import LoadedData, load_datasets
from reuse_algos.data.images.device_loader import DeviceImages
from reuse_algos.data.info import key_of_path
from reuse_algos.data.views import ExampleView, ViewedDataset
from reuse_algos.errors import DataError


def write_image(path, size=(20, 14), colour=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(key_of_path(path.name) % 1000)
    pixels = numbers.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels = pixels if colour is None else np.full_like(pixels, colour)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 5), ("val", 2)):
        for name in ("cat", "dog", "eel"):
            for number in range(count):
                write_image(
                    tmp_path / part / name / f"{name}{number}.png", colour=(10, 200, 90) if number == 0 else None
                )
    return tmp_path


def load(root, **settings) -> LoadedData:
    return load_datasets(
        DataConfig(**{"name": "image_folder", "root": str(root), "batch_size": 1, "image_size": 8, **settings})
    )


def test_image_folder(folder):
    loaded = load(folder)
    assert isinstance(loaded.train, ViewedDataset)
    assert loaded.class_names == ("cat", "dog", "eel")
    assert (loaded.info.num_examples, loaded.eval_info.num_examples) == (15, 6)
    assert loaded.info.keys[1] == key_of_path("cat/cat1.png")
    assert loaded.image_shape == (3, 8, 8)
    image, label = loaded.eval[2]
    assert label == 1
    expected = (torch.tensor([10, 200, 90]) / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(image, expected[:, None, None].expand(3, 8, 8))
    assert loaded.train.view_policy.transform == "center_crop(size=8)"
    assert loaded.train.view_policy.num_views == 1


@pytest.mark.parametrize("augment", ["crop_flip", "crop_flip_cutout"])
def test_views_of_files_are_replayed_by_workers(folder, augment):
    loaded = load(folder, augment=augment, num_views=2)
    wanted = [ExampleView(position, position % 2) for position in (1, 7, 3, 12)]
    expected = torch.stack([loaded.train[index][0] for index in wanted])
    torch.manual_seed(4)
    images, labels = next(iter(DataLoader(loaded.train, 4, sampler=wanted, num_workers=2)))
    assert torch.equal(images, expected)
    assert labels.tolist() == [0, 1, 0, 2]
    assert not torch.equal(loaded.train[ExampleView(1, 0)][0], loaded.train[ExampleView(1, 1)][0])
    assert "random_resized_crop_flip" in loaded.train.view_policy.transform  # type: ignore[attr-defined]


def test_cutout_leaves_a_square_of_zeros(folder):
    loaded = load(folder, augment="crop_flip_cutout", num_views=20)
    squares = [(loaded.train[ExampleView(0, view)][0] == 0).all(0).sum().item() for view in range(20)]
    assert max(squares) == 4  # two by two of eight pixels; less at the edge
    assert set(squares) <= {1, 2, 4}


def test_parts_classes_and_growth_keep_the_keys(folder):
    before = load(folder, train_examples=6, classes=["eel", "cat"])
    assert before.class_names == ("eel", "cat")
    assert before.info.labels is not None
    assert torch.bincount(before.info.labels).tolist() == [3, 3]
    kept = dict(zip(before.info.keys.tolist(), before.info.labels.tolist(), strict=True))
    position = 4
    image = load(folder, train_examples=6, classes=["eel", "cat"]).train[position][0]
    write_image(folder / "train" / "ant" / "ant0.png")
    write_image(folder / "val" / "ant" / "ant0.png")
    after = load(folder, classes=["eel", "cat"])
    assert after.info.labels is not None
    grown = dict(zip(after.info.keys.tolist(), after.info.labels.tolist(), strict=True))
    assert kept.items() <= grown.items()
    again = int(torch.nonzero(after.info.keys == before.info.keys[position]))
    assert torch.equal(after.train[again][0], image)


def test_files_can_be_held_on_the_device(folder):
    plain, resident = load(folder), load(folder, device_resident=True)
    assert isinstance(resident.train, DeviceImages)
    assert torch.equal(resident.info.keys, plain.info.keys)
    for position in (0, 7):
        torch.testing.assert_close(resident.train[position][0], plain.train[position][0], atol=1e-5, rtol=1e-4)
    augmented = load(folder, device_resident=True, augment="crop_flip", num_views=2)
    assert augmented.train.view_policy.transform == "crop_flip(padding=1)"  # type: ignore[attr-defined]


def test_wrong_folders_are_refused(folder):
    with pytest.raises(DataError, match=r"needs .*train/<class>/<image>"):
        load(folder / "train")
    write_image(folder / "val" / "fox" / "fox0.png")
    with pytest.raises(DataError, match="these are in one only: fox"):
        load(folder)
    (folder / "val" / "fox" / "fox0.png").unlink()
    with pytest.raises(DataError, match="fox"):
        load(folder)


def test_caltech101(tmp_path):
    root = tmp_path / "caltech101"
    (root / "Annotations").mkdir(parents=True)
    for name, count in (("BACKGROUND_Google", 2), ("Faces", 10), ("anchor", 5)):
        for number in range(1, count + 1):
            write_image(root / "101_ObjectCategories" / name / f"image_{number:04d}.jpg")
    loaded = load(tmp_path, name="caltech101")
    assert loaded.class_names == ("Faces", "anchor")
    assert (loaded.info.num_examples, loaded.eval_info.num_examples) == (12, 3)
    assert loaded.info.labels is not None
    assert torch.bincount(loaded.info.labels).tolist() == [8, 4]
    keys = {*loaded.info.keys.tolist(), *loaded.eval_info.keys.tolist()}
    assert keys == {
        key_of_path(f"{c}/image_{n:04d}.jpg") for c, m in (("Faces", 10), ("anchor", 5)) for n in range(1, m + 1)
    }
    assert loaded.train[0][0].shape == (3, 8, 8)


# Files as people have them -------------------------------------------------------------------------------------------


def _pixels(path) -> np.ndarray:
    return np.asarray(read_image(path))[..., 0]


@pytest.mark.parametrize(
    ("values", "suffix", "expected"),
    [
        (np.array([[0, 255, 256, 65535]], np.uint16), "png", [0, 0, 1, 255]),
        (np.array([[0, 32768, 40000, 65535]], np.uint16), "tiff", [0, 128, 156, 255]),
        (np.array([[0.0, 0.25, 0.5, 1.0]], np.float32), "tiff", [0, 64, 128, 255]),
        (np.array([[0, 127, 128, 255]], np.uint8), "png", [0, 127, 128, 255]),
    ],
)
def test_grey_values_of_every_depth(tmp_path, values: np.ndarray, suffix: str, expected: list[int]) -> None:
    Image.fromarray(values).save(tmp_path / f"grey.{suffix}")
    assert _pixels(tmp_path / f"grey.{suffix}").tolist() == [expected]


@pytest.mark.parametrize("values", [[[-1.0, 2.0]], [[0.0, 300.0]]])
def test_grey_values_without_a_scale_are_refused(tmp_path, values) -> None:
    Image.fromarray(np.array(values, np.float32)).save(tmp_path / "far.tiff")
    with pytest.raises(DataError, match="far.tiff' has values from .* float32"):
        read_image(tmp_path / "far.tiff")


@pytest.mark.parametrize("content", [b"", b"GIF89a", None])
def test_a_damaged_file_is_named(tmp_path, content: bytes | None) -> None:
    path = tmp_path / "torn.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:600] if content is None else content)
    with pytest.raises(DataError, match=r"The image '.*torn.jpg' cannot be read"):
        read_image(path)


def test_a_picture_is_turned_as_its_camera_says(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.concatenate([np.zeros((8, 16, 3), np.uint8), np.full((8, 16, 3), 255, np.uint8)]))
    image.save(tmp_path / "turned.jpg", exif=exif)
    grey = _pixels(tmp_path / "turned.jpg").astype(float)
    assert abs(grey[:4].mean() - grey[-4:].mean()) < 5 < 200 < abs(grey[:, :4].mean() - grey[:, -4:].mean())


def test_hidden_files_and_folders_are_no_data(folder) -> None:
    before = load(folder)
    for part in ("train", "val"):
        (folder / part / ".ipynb_checkpoints").mkdir()
        write_image(folder / part / ".ipynb_checkpoints" / "cat.png")
        (folder / part / ".DS_Store").write_bytes(b"")
    kind = next(one for one in (folder / "train").iterdir() if not one.name.startswith("."))
    (kind / "._picture.png").write_bytes(b"\0\5\x16\7")
    (kind / "notes.txt").write_text("")
    after = load(folder)
    assert after.class_names == before.class_names
    assert after.info.keys.tolist() == before.info.keys.tolist()
    (folder / "train" / "empty").mkdir()
    with pytest.raises(DataError, match="The class 'empty' in .* has no images"):
        load(folder)


def test_names_that_are_not_utf_8(folder) -> None:
    kind = next((folder / "train").iterdir())
    first = sorted(kind.iterdir())[0]
    os.rename(os.fsencode(first), os.path.join(os.fsencode(kind), b"caf\xe9.png"))
    loaded = load(folder)
    assert all(len(loaded.train[position]) == 2 for position in range(len(loaded.train)))  # type: ignore[arg-type, index]


def _caltech(tmp_path, *, leave_out: tuple[str, ...] = ()):
    root = tmp_path / "caltech101" / "101_ObjectCategories"
    for name in ("BACKGROUND_Google", "Faces", "anchor"):
        for number in range(1, 6):
            if name not in leave_out:
                (root / name).mkdir(parents=True, exist_ok=True)
                write_image(root / name / f"image_{number:04d}.jpg")
    return root


def _caltech_keys(tmp_path) -> set[int]:
    loaded = load_datasets(DataConfig(name="caltech101", root=str(tmp_path), batch_size=1, image_size=8))
    assert loaded.class_names == ("Faces", "anchor")
    return set(loaded.info.keys.tolist()) | set(loaded.eval_info.keys.tolist())


@pytest.mark.parametrize("change", ["none", "no background", "removed", "renamed", "stray"])
def test_caltech101_as_people_have_it(tmp_path, change: str) -> None:
    root = _caltech(tmp_path, leave_out=("BACKGROUND_Google",) if change == "no background" else ())
    names = {f"{kind}/image_{number:04d}.jpg" for kind in ("Faces", "anchor") for number in range(1, 6)}
    if change == "removed":
        (root / "anchor" / "image_0003.jpg").unlink()
        names.remove("anchor/image_0003.jpg")
    elif change == "renamed":
        (root / "anchor" / "image_0003.jpg").rename(root / "anchor" / "image_0003.JPG")
        names.remove("anchor/image_0003.jpg")
        names.add("anchor/image_0003.JPG")
    elif change == "stray":
        (root / ".DS_Store").write_bytes(b"")
        (root / "anchor" / "tmp").write_bytes(b"")
        (root / "anchor" / "._image_0001.jpg").write_bytes(b"\0")
    assert _caltech_keys(tmp_path) == {key_of_path(name) for name in names}
