"""From the ``data:`` section of a recipe to training and evaluation datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from reuse_algos.data.datasets.arrays import ImageArrays, Split, load_arrays, resize
from reuse_algos.data.datasets.coarse_labels import CIFAR100_COARSE_NAMES, CIFAR100_FINE_NAMES, coarse_labels
from reuse_algos.data.datasets.config import DataConfig
from reuse_algos.data.datasets.files import IMAGENET_MEAN, IMAGENET_STD, decode_squares, load_files, train_transform
from reuse_algos.data.datasets.pseudo import Chosen, chosen_info
from reuse_algos.data.datasets.rotation import rotate_arrays
from reuse_algos.data.datasets.subsets import select_classes, take_part
from reuse_algos.data.dense import DENSE_NAMES, DETECTION_NAMES, DenseDataset, load_boxes, load_dense
from reuse_algos.data.images.augment import Augmentation
from reuse_algos.data.images.device_loader import DeviceImages, WorkerImages
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.text.config import TEXT_NAMES, TextConfig
from reuse_algos.data.text.corpora import content_key, load_corpus
from reuse_algos.data.text.dataset import TextDataset, corpus_info
from reuse_algos.data.text.vocabulary import Vocabulary, token_keys
from reuse_algos.data.views import ViewedDataset, ViewPolicy
from reuse_algos.errors import DataError

_FILE_SETS = ("caltech101", "image_folder")
_DEFAULT_FILE_SIDE = 224  # of the images that torchvision's models were trained on
_GPU_MEMORY_SHARE = 0.25  # the rest is for weights, optimizer and activations, which are not known here


@dataclass(frozen=True, eq=False)
class LoadedData:
    """Datasets ready for training.

    Attributes:
        train: Training data: ``DeviceImages`` (for ``dataloader_of``), ``WorkerImages`` or ``ViewedDataset`` (for
            an ordinary DataLoader). It takes positions or ``ExampleView`` and has ``view_policy``, ``info``,
            ``pixel_space`` and ``set_epoch``.
        eval: Evaluation data of the same kind, not augmented.
        num_classes: Number of classes.
        image_shape: (C, H, W) of an image; () of texts.
        mean: Mean per channel that was subtracted, on the scale 0 to 1; () of texts.
        std: Deviation per channel that was divided by, on the same scale; () of texts.
        inputs: What else a model must know of its inputs. Of texts: ``vocabulary`` (V), ``max_tokens`` (T), ``learn``
            and ``token_keys`` (int64 ``[V]``). Default: nothing.
    """

    train: Dataset[Any]
    eval: Dataset[Any]
    num_classes: int
    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def info(self) -> DatasetInfo:
        """Identity of the training examples."""
        return self.train.info  # type: ignore[attr-defined]

    @property
    def eval_info(self) -> DatasetInfo:
        """Identity of the evaluation examples."""
        return self.eval.info  # type: ignore[attr-defined]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, or None."""
        return self.info.class_names


def load_datasets(config: DataConfig, device: torch.device | str = "cpu", chosen: Chosen | None = None) -> LoadedData:
    """Load what the recipe asks for.

    Args:
        config: The ``data:`` section.
        device: Where data that is held on the device goes.
        chosen: The training images to take and their labels, where the section has ``pseudo_labels``. Default: None.

    Raises:
        DataError: If the section is wrong, the data is not there or not what it should be, or the section has
            ``pseudo_labels`` and nothing is chosen.
    """
    config.check()
    if config.pseudo_labels is not None and chosen is None:
        raise DataError(
            "data.pseudo_labels: these labels are in a run archive, and this data is loaded without one. Train by a "
            "recipe with archive: ..., or load the pool without pseudo_labels."
        )
    if config.name in _FILE_SETS:
        loaded = _load_file_sets(config, device, chosen)
    elif config.name in TEXT_NAMES:
        loaded = _load_texts(config)
    elif config.name in DENSE_NAMES:
        loaded = _load_masks(config)
    elif config.name in DETECTION_NAMES:
        loaded = _load_boxes(config)
    else:
        loaded = _load_array_sets(load_arrays(config), config, device, chosen)
    if not loaded.info.num_examples:
        raise DataError(
            f"data: no training example of {config.name} is left. Look at the data, data.train_fraction, "
            "data.train_examples and data.text.held_out."
        )
    if config.drop_last and loaded.info.num_examples < config.batch_size:
        raise DataError(
            f"data.batch_size {config.batch_size} is more than the {loaded.info.num_examples} training examples, so "
            "with data.drop_last: true no batch would be left. Make one smaller or the other false."
        )
    return loaded


def build_dataset(
    arrays: ImageArrays, config: DataConfig, device: torch.device | str = "cpu"
) -> tuple[DeviceImages | WorkerImages, DeviceImages | WorkerImages]:
    """Return training and evaluation datasets over images in memory, augmented as the recipe asks.

    Args:
        arrays: Images and labels.
        config: ``augment``, ``num_views``, ``view_seed`` and ``device_resident`` count.
        device: Where they go if they are held on the device.

    Returns:
        ``DeviceImages`` where held on the device, else ``WorkerImages``; both give the same bits.
    """
    side, num_bytes = arrays.train.images.shape[1], arrays.train.images.nbytes + arrays.eval.images.nbytes
    resident = _held_on_device(config, torch.device(device), num_bytes)
    # He et al. pad images of 32 pixels by 4. DeVries & Taylor cut 16 pixels with 10 classes and 8 with 100.
    length = side // 2 if arrays.num_classes <= 10 else side // 4
    augmentation = Augmentation(config.augment, padding=max(1, round(side / 8)), length=max(2, length // 2 * 2))
    datasets = []
    for split, kind in ((arrays.train, augmentation), (arrays.eval, Augmentation("none"))):
        images = DeviceImages(
            split.images,
            split.labels,
            pixels=PixelSpace(arrays.mean, arrays.std),
            augmentation=kind,
            view_seed=config.view_seed,
            num_views=config.num_views,
            info=split.info,
            device=device if resident else "cpu",
        )
        datasets.append(images if resident else WorkerImages(images))
    return datasets[0], datasets[1]


def _load_array_sets(
    arrays: ImageArrays, config: DataConfig, device: torch.device | str, chosen: Chosen | None
) -> LoadedData:
    if config.rotated is not None:
        arrays = rotate_arrays(arrays, config.rotated)
    splits = []
    choices = [_choose(split.info, arrays.num_classes, config) for split in (arrays.train, arrays.eval)]
    # Classes and coarse labels are chosen for both, a part only of the training examples.
    choices[0] = _part(choices[0], config, chosen)
    for split, choice in zip((arrays.train, arrays.eval), choices, strict=True):
        # Indexing by all positions would copy every image.
        everything = torch.equal(choice.positions, torch.arange(split.info.num_examples))
        images = split.images if everything else split.images[choice.positions]
        splits.append(Split(images if config.image_size is None else resize(images, config.image_size), choice.info))
    train, held_out = splits
    arrays = ImageArrays(train, held_out, arrays.mean, arrays.std, choices[0].num_classes)
    train_set, eval_set = build_dataset(arrays, config, device)
    return LoadedData(
        train=train_set,
        eval=eval_set,
        num_classes=arrays.num_classes,
        image_shape=train_set.image_shape,
        mean=arrays.mean,
        std=arrays.std,
    )


def _load_file_sets(config: DataConfig, device: torch.device | str, chosen: Chosen | None) -> LoadedData:
    side = _DEFAULT_FILE_SIDE if config.image_size is None else config.image_size
    files = load_files(config)
    choices = [_choose(part.info, len(part.info.class_names or ()), config) for part in files]
    choices[0] = _part(choices[0], config, chosen)
    train, held_out = (part.take(choice.positions, choice.info) for part, choice in zip(files, choices, strict=True))
    num_classes = choices[0].num_classes
    if config.device_resident is True:
        splits = [Split(decode_squares(part, side), part.info) for part in (train, held_out)]
        arrays = ImageArrays(splits[0], splits[1], IMAGENET_MEAN, IMAGENET_STD, num_classes)
        train_set, eval_set = build_dataset(arrays, config, device)
    else:
        transform, description = train_transform(config.augment, side)
        policy = ViewPolicy(config.view_seed, 1 if config.augment == "none" else config.num_views, description)
        space = PixelSpace(IMAGENET_MEAN, IMAGENET_STD)
        train_set = ViewedDataset(train.with_transform(transform), policy, train.info, space)
        plain, description = train_transform("none", side)
        eval_policy = ViewPolicy(config.view_seed, 1, description)
        eval_set = ViewedDataset(held_out.with_transform(plain), eval_policy, held_out.info, space)
    return LoadedData(
        train=train_set,
        eval=eval_set,
        num_classes=num_classes,
        image_shape=(3, side, side),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _load_texts(config: DataConfig) -> LoadedData:
    options = config.text or TextConfig()
    # The default root is that of images; texts lie in the folders of their packages.
    root = None if config.root == DataConfig.root and config.name != "text_files" else config.root
    corpus = load_corpus(config.name, root, config.classes if config.name == "fortunes" else None)
    info = corpus_info(corpus, config.name)
    if corpus.held_out is None:
        # By content, so that equal texts are on one side.
        keys = torch.tensor([content_key(text) for text in corpus.texts], dtype=torch.int64)
        assert info.labels is not None
        held = torch.zeros(len(keys), dtype=torch.bool)
        held[take_part(keys, info.labels, fraction=options.held_out)] = True
        sides = [(corpus, info, positions.nonzero().flatten()) for positions in (~held, held)]
    else:
        eval_info = corpus_info(corpus.held_out, config.name)
        pairs = ((corpus, info), (corpus.held_out, eval_info))
        sides = [(one, known, torch.arange(known.num_examples)) for one, known in pairs]
    parts: list[tuple[list[str], DatasetInfo, int]] = []
    for number, (one, known, positions) in enumerate(sides):
        known = known.subset(positions)
        choice = _choose(known, len(one.class_names), config)
        choice = choice if number else _part(choice, config, None)
        texts = [one.texts[place] for place in positions[choice.positions].tolist()]
        parts.append((texts, choice.info, choice.num_classes))
    vocabulary = Vocabulary.of(parts[0][0], options.level, options.vocabulary)
    train, held_out = (
        TextDataset(texts, known, vocabulary, options.max_tokens, options.learn, config.view_seed)
        for texts, known, _ in parts
    )
    num_classes = len(vocabulary) if options.learn == "tokens" else parts[0][2]
    return LoadedData(
        train=train,
        eval=held_out,
        num_classes=num_classes,
        image_shape=(),
        mean=(),
        std=(),
        inputs={
            "vocabulary": len(vocabulary),
            "max_tokens": options.max_tokens,
            "learn": options.learn,
            "token_keys": token_keys(vocabulary.tokens),
        },
    )


def _load_masks(config: DataConfig) -> LoadedData:
    root = None if config.root == DataConfig.root else config.root
    part, held_out = load_dense(config.name, root, config.path, config.scenes)
    keys = part.keys
    # Pictures with masks have no class to stratify by.
    rows = take_part(keys, torch.zeros_like(keys), fraction=config.train_fraction, examples=config.train_examples)
    chosen = part._replace(images=part.images[rows], masks=part.masks[rows], keys=keys[rows])
    train, evaluated = (DenseDataset(one, config.name, config.view_seed) for one in (chosen, held_out))
    return LoadedData(
        train=train,
        eval=evaluated,
        num_classes=len(part.class_names),
        image_shape=train.image_shape,
        mean=(),
        std=(),
    )


def _load_boxes(config: DataConfig) -> LoadedData:
    if config.train_fraction != 1 or config.train_examples is not None:
        raise DataError("data.train_fraction: of digit_boxes, set the number of scenes (data.scenes.train) instead.")
    train, evaluated = load_boxes(config.name, config.scenes, config.view_seed)
    return LoadedData(train, evaluated, len(train.info.class_names or ()), train.image_shape, (), ())


class _Choice(NamedTuple):
    """Some examples of a dataset.

    Attributes:
        positions: int64 ``[n]``: where they were.
        info: What they are now.
        strata: int64 ``[n]``: the labels they came with, so that fine and coarse labels share parts.
        num_classes: Number of classes now.
    """

    positions: Tensor
    info: DatasetInfo
    strata: Tensor
    num_classes: int


def _choose(info: DatasetInfo, num_classes: int, config: DataConfig) -> _Choice:
    """Return the data with coarse labels and chosen classes, the same for training and evaluation."""
    assert info.labels is not None  # every loader gives labels
    labels = strata = info.labels
    class_names, positions = info.class_names, torch.arange(info.num_examples)
    # Before classes are chosen, which may name superclasses.
    if config.labels == "coarse":
        if num_classes != len(CIFAR100_FINE_NAMES) or class_names not in (None, CIFAR100_FINE_NAMES):
            raise DataError(
                f"data.labels: coarse is for CIFAR-100's 100 classes; {config.name!r} has {num_classes} others."
            )
        labels, class_names, num_classes = coarse_labels(labels), CIFAR100_COARSE_NAMES, len(CIFAR100_COARSE_NAMES)
    if config.classes is not None:
        positions, labels = select_classes(labels, config.classes, class_names, num_classes)
        if class_names is not None:
            class_names = tuple(class_names[one] if isinstance(one, int) else one for one in config.classes)
        num_classes = len(config.classes)
    info = replace(info.subset(positions), labels=labels, class_names=class_names)
    return _Choice(positions, info, strata[positions], num_classes)


def _part(choice: _Choice, config: DataConfig, chosen: Chosen | None) -> _Choice:
    """Return the part of the training examples that is asked for, and what of it was chosen under other labels."""
    part = take_part(
        choice.info.keys,
        choice.strata,
        fraction=config.train_fraction,
        examples=config.train_examples,
        rest=config.train_rest,
    )
    info = choice.info.subset(part)
    if chosen is not None:
        part, info = part[chosen.positions], chosen_info(info, chosen)
    return _Choice(choice.positions[part], info, choice.strata[part], choice.num_classes)


def _held_on_device(config: DataConfig, device: torch.device, num_bytes: int) -> bool:
    if isinstance(config.device_resident, bool):
        return config.device_resident
    if device.type != "cuda":  # without a GPU the device's memory is that of the images
        return True
    # A share of what is free now: the model and its activations come later.
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return num_bytes < _GPU_MEMORY_SHARE * free_bytes
