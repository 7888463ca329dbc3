"""Image datasets that fit in memory: digits, glyphs, CIFAR, Fashion-MNIST and ``.npz`` files.

Legend: N examples, H height, W width, C channels.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from reuse_algos.data.datasets.config import DataConfig
from reuse_algos.data.datasets.subsets import nested_order
from reuse_algos.data.glyphs import SCRIPTS, glyphs_of_scripts
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import DataError

_DIGITS_EVAL_EXAMPLES = 360  # a fifth of the 1,797
_SALT_DIGITS_SPLIT, _SALT_GLYPHS_SPLIT = 33, 52  # fixed for ever, as the one in subsets.py


@dataclass(frozen=True, eq=False)
class Split:
    """The training or the evaluation part of an image dataset.

    Attributes:
        images: uint8 ``[N, H, W, C]`` on the CPU.
        info: Keys, labels (always known here) and class names.
    """

    images: Tensor
    info: DatasetInfo

    @property
    def labels(self) -> Tensor:
        """int64 ``[N]``."""
        assert self.info.labels is not None
        return self.info.labels


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """An image dataset in memory.

    Attributes:
        train: Training part.
        eval: Evaluation part.
        mean: Mean of each channel over the whole training part, on the scale 0 to 1.
        std: Deviation of each channel, on the same scale.
        num_classes: Number of classes.
    """

    train: Split
    eval: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int


def load_arrays(config: DataConfig) -> ImageArrays:
    """Load the whole of a dataset that fits in memory.

    Args:
        config: Its name must be ``digits``, ``glyphs``, ``cifar10``, ``cifar100``, ``fashion_mnist`` or ``npz``.

    Raises:
        DataError: If the data is not there, or is not what it should be.
    """
    return _LOADERS[config.name](config)


def missing_data(config: DataConfig, error: Exception) -> DataError:
    """Return the error for a dataset that could not be found or fetched."""
    advice = "Check data.root." if config.download else "Set data.root to where it is, or data.download: true."
    return DataError(f"Dataset {config.name!r} could not be read from {config.root!r}: {error} {advice}")


def resize(images_NHWC: Tensor, side: int) -> Tensor:
    """Scale uint8 images to ``side`` x ``side`` pixels (bilinear, antialiased)."""
    if images_NHWC.shape[1:3] == (side, side):
        return images_NHWC
    chunks = []
    # In chunks, as floats take four times the memory of the bytes.
    for chunk in images_NHWC.split(1024):
        floats = F.interpolate(
            chunk.permute(0, 3, 1, 2).float(), size=(side, side), mode="bilinear", antialias=True, align_corners=False
        )
        chunks.append(floats.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(chunks).contiguous()


def _make_split(
    name: str, images: Tensor, labels: Sequence[int] | Tensor, keys: Tensor | None, class_names: Sequence[str] | None
) -> Split:
    labels = torch.as_tensor(labels, dtype=torch.int64)
    # Published datasets have one order for everybody, an .npz file has whatever order it was written in.
    kind = "position" if keys is None and name == "npz" else "id"
    keys = torch.arange(len(labels)) if keys is None else keys
    return Split(images, DatasetInfo(name, keys, labels, None if class_names is None else tuple(class_names), kind))


def _load_digits(config: DataConfig) -> ImageArrays:
    try:
        from sklearn.datasets import load_digits  # only the digits need scikit-learn
    except ImportError as error:
        raise DataError(
            "data.name: the digits come with scikit-learn, which is not installed. Install it with "
            "pip install 'reuse-algos[demo]'"
        ) from error
    bunch: Any = load_digits()
    # Grey values 0 to 16 become bytes; the split is stratified and does not depend on scikit-learn's version.
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[..., None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    keys = torch.arange(len(labels))
    names = [str(name) for name in bunch.target_names]
    whole = _make_split(config.name, images, labels, keys, names)
    return _held_out(whole, _DIGITS_EVAL_EXAMPLES, _SALT_DIGITS_SPLIT)


def _load_glyphs(config: DataConfig) -> ImageArrays:
    chosen, scripts = glyphs_of_scripts()
    images = torch.from_numpy(np.stack([glyph.picture for glyph in chosen]))[..., None]
    # A character's number is its key in glyph_names as well, so that pictures and names are pairs.
    keys = torch.tensor([glyph.code for glyph in chosen])
    names = [script.title() for script in SCRIPTS]
    whole = _make_split(config.name, images, torch.tensor(scripts), keys, names)
    return _held_out(whole, len(chosen) // 10, _SALT_GLYPHS_SPLIT)


def _held_out(whole: Split, count: int, salt: int) -> ImageArrays:
    """Keep some examples for evaluation, stratified by class, the same ones on every machine."""
    order = nested_order(whole.info.keys, whole.labels, salt)
    train, held_out = (
        Split(whole.images[part], whole.info.subset(part))
        for part in (order[count:].sort().values, order[:count].sort().values)
    )
    mean, std = _mean_and_std(train.images)
    return ImageArrays(train, held_out, mean, std, len(whole.info.class_names or ()))


def _load_torchvision(config: DataConfig) -> ImageArrays:
    source, mean, std = _TORCHVISION[config.name]
    try:
        train, held_out = (source(config.root, train=train, download=config.download) for train in (True, False))
    except (RuntimeError, OSError) as error:
        raise missing_data(config, error) from error
    splits = []
    for part in (train, held_out):
        images = torch.as_tensor(part.data)
        splits.append(
            _make_split(
                config.name, images[..., None] if images.ndim == 3 else images, part.targets, None, part.classes
            )
        )
    return ImageArrays(splits[0], splits[1], mean, std, len(train.classes))


# Statistics of the published training sets.
_TORCHVISION: dict[str, tuple[type[Any], tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": (CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": (CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "fashion_mnist": (FashionMNIST, (0.2860,), (0.3530,)),
}


def _load_npz(config: DataConfig) -> ImageArrays:
    arrays = _read_npz(Path(config.path or ""))
    class_names = _npz_class_names(arrays, config)
    # Everything is checked here, since a wrong shape would only show as a bad accuracy.
    splits = {}
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise DataError(
                f"{config.path}: x_{part} must be uint8 of shape [N, H, W] or [N, H, W, C], "
                f"not {images.dtype} of {images.shape}."
            )
        if images.ndim == 4 and images.shape[-1] not in (1, 2, 3, 4):
            if images.shape[1] not in (1, 3, 4):
                raise DataError(
                    f"{config.path}: x_{part} of shape {images.shape} has its channels neither last ([N, H, W, C]) nor "
                    "first ([N, C, H, W]) with 1, 3 or 4 of them."
                )
            images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))  # channels first, as torch has them
        if labels.shape == (len(images), 1):
            labels = labels[:, 0]  # keras.datasets.cifar10 and cifar100 have them as a column
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise DataError(
                f"{config.path}: y_{part} must be {len(images)} whole numbers, one per image, "
                f"not {labels.dtype} of {labels.shape}."
            )
        if not len(labels) or labels.min() < 0:
            raise DataError(f"{config.path}: y_{part} must hold at least one label, and none below 0.")
        keys = arrays.get(f"keys_{part}")
        if keys is not None and (keys.shape != labels.shape or keys.dtype != np.int64):
            raise DataError(
                f"{config.path}: keys_{part} must be {len(labels)} int64 numbers, not {keys.dtype} of {keys.shape}."
            )
        tensor = torch.from_numpy(images)
        splits[part] = _make_split(
            config.name,
            tensor[..., None] if tensor.ndim == 3 else tensor,
            torch.from_numpy(labels.astype(np.int64)),
            None if keys is None else torch.from_numpy(keys),
            class_names,
        )
    train, held_out = splits["train"], splits["test"]
    if train.images.shape[1:] != held_out.images.shape[1:]:
        raise DataError(
            f"{config.path}: images of x_train are {tuple(train.images.shape[1:])}, "
            f"those of x_test {tuple(held_out.images.shape[1:])}."
        )
    highest = max(int(train.labels.max()), int(held_out.labels.max()))
    mean, std = _mean_and_std(train.images)
    return ImageArrays(train, held_out, mean, std, highest + 1 if class_names is None else len(class_names))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    required = ("x_train", "y_train", "x_test", "y_test")
    optional = ("keys_train", "keys_test", "class_names")
    try:
        # Opened here, since numpy leaves a file that it opened itself open if it turns out not to be a zip file.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            missing = [name for name in required if name not in file.files]
            if missing:
                raise DataError(f"{path} has no {', '.join(missing)}; it has {', '.join(file.files) or 'nothing'}.")
            return {name: file[name] for name in (*required, *optional) if name in file.files}
    except FileNotFoundError as error:
        raise DataError(f"data.path: there is no file {path}.") from error
    except DataError:
        raise
    except (OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"data.path: {path} cannot be read as an .npz file of plain arrays: {error}") from error


def _npz_class_names(arrays: dict[str, np.ndarray], config: DataConfig) -> tuple[str, ...] | None:
    names = arrays.get("class_names")
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(
            f"{config.path}: class_names must be a 1-D array of strings, not {names.dtype} of {names.shape}."
        )
    return tuple(str(name) for name in names)


def _mean_and_std(images_NHWC: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel on the scale 0 to 1, exact to float64."""
    # From counts of the 256 values: exact, and without a copy of the images as floats.
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images_NHWC.unbind(-1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        average = float((share * levels).sum())
        mean.append(average)
        # A channel that never changes has deviation 0, which cannot be divided by.
        std.append(float((share * (levels - average) ** 2).sum().sqrt()) or 1.0)
    return tuple(mean), tuple(std)


_LOADERS: dict[str, Callable[[DataConfig], ImageArrays]] = {
    "digits": _load_digits,
    "glyphs": _load_glyphs,
    "cifar10": _load_torchvision,
    "cifar100": _load_torchvision,
    "fashion_mnist": _load_torchvision,
    "npz": _load_npz,
}
