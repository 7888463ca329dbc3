"""Image data sets that are read file by file: Caltech-101 and folders with one sub-folder per class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets import Caltech101, ImageFolder
from torchvision.datasets.folder import default_loader

from reuse_algos.data.arrays import missing_data
from reuse_algos.data.augment import cutout
from reuse_algos.data.config import DataConfig
from reuse_algos.data.info import DatasetInfo, key_of_path
from reuse_algos.data.subsets import nested_order
from reuse_algos.errors import DataError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "FileImages",
    "decode_squares",
    "load_files",
    "train_transform",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CALTECH101_EVAL_SHARE = 0.2
_SALT_CALTECH101_SPLIT = 34


class FileImages(Dataset[tuple[Any, int]]):
    """Image files with labels; an example is (transformed RGB image, label).

    Args:
        root: Folder that the paths are relative to.
        paths: Path of each file.
        info: Keys, labels and names, one per path.
        transform: Turns a PIL image into what the data set gives.
    """

    def __init__(
        self, root: Path, paths: Sequence[str], info: DatasetInfo, transform: Callable[[Any], Any] | None = None
    ) -> None:
        if info.labels is None:
            raise DataError(f"Data set {info.name!r}: image files need labels.")
        self.root = root
        self.paths = list(paths)
        self.info = info
        self.transform = transform
        self._labels = info.labels.tolist()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        image = default_loader(self.root / self.paths[position])
        return image if self.transform is None else self.transform(image), self._labels[position]

    def with_transform(self, transform: Callable[[Any], Any]) -> FileImages:
        """The same files, shown another way."""
        return FileImages(self.root, self.paths, self.info, transform)

    def take(self, positions: Tensor, info: DatasetInfo) -> FileImages:
        """Some of the files (int64 ``[n]``) under another info (their keys, perhaps new labels)."""
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
    folder = Path(config.root) / "caltech101"
    if not config.download and not folder.is_dir():  # torchvision would make the folder and then miss its contents
        raise missing_data(config, FileNotFoundError(f"there is no folder {folder}."))
    try:
        source = Caltech101(config.root, download=config.download)
    except (RuntimeError, OSError, ValueError) as error:
        raise missing_data(config, error) from error
    paths = [
        f"{source.categories[label]}/image_{number:04d}.jpg"
        for label, number in zip(source.y, source.index, strict=True)
    ]
    root = Path(source.root) / "101_ObjectCategories"
    files = _files(config.name, root, paths, source.y, source.categories)
    labels = torch.tensor(source.y)
    order = nested_order(files.info.keys, labels, _SALT_CALTECH101_SPLIT)
    held_out = round(_CALTECH101_EVAL_SHARE * len(order))
    parts = order[held_out:].sort().values, order[:held_out].sort().values
    train, evaluation = (files.take(part, files.info.subset(part)) for part in parts)
    return train, evaluation


def _load_image_folder(config: DataConfig) -> tuple[FileImages, FileImages]:
    parts = []
    for folder in ("train", "val"):
        root = Path(config.root) / folder
        try:
            source = ImageFolder(root)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(
                f"Data set 'image_folder' needs {root}/<class>/<image> and {config.root}/val/<class>/<image>: {error}"
            ) from error
        paths = [Path(path).relative_to(root).as_posix() for path, _ in source.samples]
        parts.append(_files(config.name, root, paths, source.targets, source.classes))
    train, evaluation = parts
    if train.info.class_names != evaluation.info.class_names:
        only = set(train.info.class_names or ()) ^ set(evaluation.info.class_names or ())
        raise DataError(
            f"Data set 'image_folder' at {config.root}: train and val must hold the same classes, "
            f"but these are in one only: {', '.join(sorted(only)[:10])}."
        )
    return train, evaluation


def _square(side: int) -> list[Any]:
    # The usual evaluation crop of ImageNet models: the middle 7/8 of the shorter side.
    return [transforms.Resize(round(side * 8 / 7)), transforms.CenterCrop(side)]


def train_transform(augment: str, side: int) -> tuple[Callable[[Any], Tensor], str]:
    """The augmentation of image files.

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
    images_NHWC = torch.empty((len(files), side, side, 3), dtype=torch.uint8)
    for position in range(len(files)):
        images_NHWC[position] = torch.from_numpy(np.array(shown[position][0]))
    return images_NHWC
