"""Image datasets that are read file by file: Caltech-101 and folders with one sub-folder per class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets import Caltech101
from torchvision.datasets.folder import IMG_EXTENSIONS

from reuse_algos.data.datasets.arrays import missing_data
from reuse_algos.data.datasets.config import DataConfig
from reuse_algos.data.datasets.subsets import nested_order
from reuse_algos.data.images.augment import cutout
from reuse_algos.data.info import DatasetInfo, key_of_path
from reuse_algos.errors import DataError

# What the pretrained models of torchvision expect.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CALTECH101_EVAL_SHARE = 0.2
_SALT_CALTECH101_SPLIT = 34  # fixed for ever, as the one in subsets.py


class FileImages(Dataset[tuple[Any, int]]):
    """Image files with labels; an example is (transformed RGB image, label).

    Args:
        root: Folder that the paths are relative to.
        paths: Path of each file.
        info: Keys, labels and names, one per path.
        transform: Turns a PIL image into what the dataset gives.
    """

    def __init__(
        self, root: Path, paths: Sequence[str], info: DatasetInfo, transform: Callable[[Any], Any] | None = None
    ) -> None:
        if info.labels is None:
            raise DataError(f"Dataset {info.name!r}: image files need labels.")
        self.root = root
        self.paths = list(paths)
        self.info = info
        self.transform = transform
        self._labels = info.labels.tolist()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        image = read_image(self.root / self.paths[position])
        return image if self.transform is None else self.transform(image), self._labels[position]

    def with_transform(self, transform: Callable[[Any], Any]) -> FileImages:
        """Return the same files, shown another way."""
        return FileImages(self.root, self.paths, self.info, transform)

    def take(self, positions: Tensor, info: DatasetInfo) -> FileImages:
        """Return some of the files (int64 ``[n]``) under another info (their keys, perhaps new labels)."""
        return FileImages(self.root, [self.paths[position] for position in positions.tolist()], info, self.transform)


def load_files(config: DataConfig) -> tuple[FileImages, FileImages]:
    """List the training and evaluation files of ``caltech101`` or ``image_folder``; nothing is decoded yet.

    Caltech-101 has no official split: a fixed, stratified 20 % is held out.

    Raises:
        DataError: If the folders are not there, are empty, or hold different classes.
    """
    return _load_caltech101(config) if config.name == "caltech101" else _load_image_folder(config)


def _files(
    name: str, root: Path, paths: Sequence[str], labels: Sequence[int], class_names: Sequence[str]
) -> FileImages:
    keys = torch.tensor([key_of_path(path) for path in paths], dtype=torch.int64)
    return FileImages(root, paths, DatasetInfo(name, keys, torch.tensor(labels), tuple(class_names), "path"))


def _load_caltech101(config: DataConfig) -> tuple[FileImages, FileImages]:
    root = Path(config.root) / "caltech101" / "101_ObjectCategories"
    if config.download:
        try:
            Caltech101(config.root, download=True)
        except (RuntimeError, OSError, ValueError) as error:
            raise missing_data(config, error) from error
    if not root.is_dir():
        raise missing_data(config, FileNotFoundError(f"there is no folder {root}."))
    # torchvision numbers the files and removes a class that many copies do not have. Here they are listed.
    paths, labels, classes = _listed(root, leave_out=("BACKGROUND_Google",))
    if not paths:
        raise missing_data(config, FileNotFoundError(f"there are no images in {root}."))
    files = _files(config.name, root, paths, labels, classes)
    order = nested_order(files.info.keys, torch.tensor(labels), _SALT_CALTECH101_SPLIT)
    held_out = round(_CALTECH101_EVAL_SHARE * len(order))
    parts = order[held_out:].sort().values, order[:held_out].sort().values
    train, evaluation = (files.take(part, files.info.subset(part)) for part in parts)
    return train, evaluation


def _load_image_folder(config: DataConfig) -> tuple[FileImages, FileImages]:
    parts = []
    for folder in ("train", "val"):
        root = Path(config.root) / folder
        paths, labels, classes = _listed(root) if root.is_dir() else ([], [], [])
        if not paths:
            there = "holds no images in folders of classes" if root.is_dir() else "is not there"
            raise DataError(
                f"Dataset 'image_folder' needs {ascii(str(root))[1:-1]}/<class>/<image>, and the same in val: it "
                f"{there}."
            )
        parts.append(_files(config.name, root, paths, labels, classes))
    train, evaluation = parts
    if train.info.class_names != evaluation.info.class_names:
        only = set(train.info.class_names or ()) ^ set(evaluation.info.class_names or ())
        raise DataError(
            f"Dataset 'image_folder' at {config.root}: train and val must hold the same classes, "
            f"but these are in one only: {', '.join(sorted(only)[:10])}."
        )
    return train, evaluation


def _listed(root: Path, leave_out: Sequence[str] = ()) -> tuple[list[str], list[int], list[str]]:
    """Return paths relative to ``root``, class numbers and class names of images in one sub-folder per class."""
    # Hidden files and folders (._0001.jpg, .ipynb_checkpoints) are neither images nor classes.
    classes = sorted(
        one.name for one in root.iterdir() if one.is_dir() and one.name[0] != "." and one.name not in leave_out
    )
    paths, labels = [], []
    for number, name in enumerate(classes):
        found = sorted(
            one.relative_to(root).as_posix()
            for one in (root / name).rglob("*")
            if one.suffix.lower() in IMG_EXTENSIONS
            and one.is_file()
            and not any(part.startswith(".") for part in one.relative_to(root).parts)
        )
        if not found:
            raise DataError(f"The class {name!a} in {str(root)!a} has no images. Remove the folder or fill it.")
        paths += found
        labels += [number] * len(found)
    return paths, labels, classes


def read_image(path: Path) -> Image.Image:
    """Read an image file as 8-bit RGB, turned as its EXIF orientation says.

    Grey values of 16 bits are divided by 256, and those of floating point from 0 to 1 are scaled to 255. (Pillow
    clips both at 255, which makes them white or black.)

    Raises:
        DataError: The file is damaged or truncated, or its values cannot be brought to 8 bits; it is named.
    """
    try:
        with Image.open(path) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") or image.mode == "F":
                image = Image.fromarray(_to_bytes(np.asarray(image), path))
            # By RGBA where a palette has transparent colours: Pillow warns where it turns these into RGB at once.
            return image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"The image {str(path)!a} cannot be read: {error}. Replace or remove the file.") from error


def _to_bytes(values_HW: np.ndarray, path: Path) -> np.ndarray:
    low, high = float(values_HW.min()), float(values_HW.max())
    if values_HW.dtype.kind in "iu" and low >= 0 and high < 1 << 16:
        return (values_HW.astype(np.int64) >> 8).astype(np.uint8)
    if values_HW.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(values_HW * 255).astype(np.uint8)
    raise DataError(
        f"The image {str(path)!a} has values from {low:g} to {high:g} of type {values_HW.dtype}. Grey images may "
        "have 8 or 16 bits, or floating point from 0 to 1. Convert the file."
    )


def _square(side: int) -> list[Any]:
    # The usual evaluation crop of ImageNet models: the middle 7/8 of the shorter side.
    return [transforms.Resize(round(side * 8 / 7)), transforms.CenterCrop(side)]


def train_transform(augment: str, side: int) -> tuple[Callable[[Any], Tensor], str]:
    """Return the augmentation of image files.

    Args:
        augment: ``none``, ``crop``, ``crop_flip`` or ``crop_flip_cutout``.
        side: Pixels of the result.

    Returns:
        PIL image -> normalised float32 ``[3, side, side]``, and its stable description.
    """
    if augment == "none":
        steps = [*_square(side), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        return transforms.Compose(steps), f"center_crop(size={side})"
    steps = [
        transforms.RandomResizedCrop(side),
        *([] if augment == "crop" else [transforms.RandomHorizontalFlip()]),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    if augment in ("crop", "crop_flip"):
        return transforms.Compose(steps), f"random_resized_{augment}(size={side})"
    # Even, as a cutout's side must be.
    length = max(2, side // 8 * 2)
    return transforms.Compose(
        [*steps, _Cutout(length)]
    ), f"random_resized_crop_flip_cutout(size={side},length={length})"


class _Cutout:
    """A cutout at a random place, drawn from torch's global generator as torchvision's transforms do."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, image_CHW: Tensor) -> Tensor:
        row, column = (torch.randint(size, (1,)) for size in image_CHW.shape[-2:])
        return cutout(image_CHW[None], row, column, self.length)[0]


def decode_squares(files: FileImages, side: int) -> Tensor:
    """Decode every file once, cropped as for evaluation.

    Returns:
        uint8 ``[N, side, side, 3]``.
    """
    shown = files.with_transform(transforms.Compose(_square(side)))
    # Filled in place: a list of images would need the memory twice.
    images_NHWC = torch.empty((len(files), side, side, 3), dtype=torch.uint8)
    for position in range(len(files)):
        images_NHWC[position] = torch.from_numpy(np.array(shown[position][0]))
    return images_NHWC
