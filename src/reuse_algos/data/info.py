"""What a map-style dataset is: its name, the identity (key) of each example, and the labels.

Shapes: N examples.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from reuse_algos.data.examples.content import Content, content_of, files_of, sample_of
from reuse_algos.data.seeding import seeded_rng, undisturbed
from reuse_algos.errors import DataError

# Where the map-style datasets of torchvision and others keep one class number per example, in the order of trust.
_LABEL_ATTRIBUTES = ("targets", "labels")
_LABELS_COMPARED = 16  # each costs a read of an example; a shifted or shuffled list of labels shows in a few


@dataclass(frozen=True, eq=False)
class DatasetInfo:
    """Identity of a map-style dataset.

    Attributes:
        name: Name of the dataset, for example ``"cifar100"``.
        keys: int64 ``[N]`` on the CPU, all different: the identity of the example at each position. A key stays the
            same when the dataset grows, shrinks or is reordered.
        labels: int64 ``[N]`` on the CPU, or None where they are not known.
        class_names: Name of each class, or None. Their Unicode is brought into one form (NFC).
        key_kind: ``id`` for keys that mean something outside of this dataset, ``path`` for file paths, ``position``
            where nothing better was found. Positions alone never identify an example.
        content: How to read the raw content of the examples, or None where it cannot be compared.

    Raises:
        DataError: If the tensors have another dtype, shape or device, if a key occurs twice, or if a label is not
            among the class names.
    """

    name: str
    keys: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    key_kind: str = "id"
    content: Content | None = None

    def __post_init__(self) -> None:
        if self.class_names is not None:
            # macOS decomposes letters with accents in file names, Linux keeps what it is given.
            object.__setattr__(self, "class_names", tuple(plain_name(name) for name in self.class_names))
        _check_vector("keys", self.name, self.keys)
        # Two examples under one key would share a row of every signal.
        unique = torch.unique(self.keys)
        if len(unique) != len(self.keys):
            ordered = torch.sort(self.keys).values
            twice = int(ordered[1:][ordered[1:] == ordered[:-1]][0])
            # A key of a text is a hash, which says nothing to its owner; positions do.
            where = (self.keys == twice).nonzero().flatten()[:2].tolist()
            raise DataError(
                f"Dataset {self.name!r}: key {twice} belongs to more than one example, such as {where[0]} and "
                f"{where[1]} (from 0); keys must differ."
            )
        if self.labels is None:
            return
        _check_vector("labels", self.name, self.labels)
        if len(self.labels) != len(self.keys):
            raise DataError(f"Dataset {self.name!r} has {len(self.keys)} keys but {len(self.labels)} labels.")
        if self.class_names is not None and len(self.labels):
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= len(self.class_names):
                raise DataError(
                    f"Dataset {self.name!r} has {len(self.class_names)} class names but labels from {low} to {high}."
                )

    @property
    def num_examples(self) -> int:
        """Number of examples N."""
        return len(self.keys)

    @property
    def num_classes(self) -> int | None:
        """Number of classes: of the class names, else the highest label + 1, else None."""
        if self.class_names is not None:
            return len(self.class_names)
        if self.labels is None or not len(self.labels):
            return None
        return int(self.labels.max()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """Hash (64 hex digits) over :attr:`key_fingerprint` and the content of the examples (:attr:`known_content`)."""
        if self.content is None:
            return self.key_fingerprint
        digest = hashlib.sha256(self.key_fingerprint.encode() + self.content.about.encode())
        digest.update(_little_endian(self.known_content[1]))
        return digest.hexdigest()

    @cached_property
    def known_content(self) -> tuple[Tensor, Tensor]:
        """Positions and content hashes, both int64 ``[S]``: of all examples where that is cheap or asked for."""
        if self.content is None:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        rows = torch.arange(self.num_examples) if self.content.cheap else sample_of(self.keys)
        return rows, self.content.hashes(rows)

    @cached_property
    def key_fingerprint(self) -> str:
        """Hash (64 hex digits of sha256) over name, N, keys and labels, without content, as older archives have it."""
        digest = hashlib.sha256()
        name = self.name.encode()
        digest.update(len(name).to_bytes(8, "little") + name)
        digest.update(self.num_examples.to_bytes(8, "little"))
        digest.update(_little_endian(self.keys))
        # The word in front keeps labels from being read as further keys.
        digest.update(b"unlabelled" if self.labels is None else b"labelled" + _little_endian(self.labels))
        return digest.hexdigest()

    @cached_property
    def _ordered(self) -> tuple[Tensor, Tensor]:
        """Keys in ascending order, and where each one is."""
        return torch.sort(self.keys)

    def positions_of(self, keys_B: Tensor) -> Tensor:
        """Return the positions of the examples with these keys, both int64 ``[B]``.

        Raises:
            DataError: If a key is not in the dataset.
        """
        ordered, where = self._ordered
        place = torch.searchsorted(ordered, keys_B).clamp_(max=max(len(ordered) - 1, 0))
        if not len(ordered) or not torch.equal(ordered[place], keys_B):
            unknown = keys_B[ordered[place] != keys_B] if len(ordered) else keys_B
            raise DataError(f"Dataset {self.name!r} has no example with the key {int(unknown[0])}.")
        return where[place]

    def subset(self, positions: Tensor) -> DatasetInfo:
        """Return the info of the examples at ``positions`` (int64 ``[n]``), which keep their keys and labels."""
        labels = None if self.labels is None else self.labels[positions]
        content = None if self.content is None else self.content.subset(positions)
        return replace(self, keys=self.keys[positions], labels=labels, content=content)

    def with_content_of(self, dataset: Any) -> DatasetInfo:
        """Return this info with the content of a dataset, where it has none yet and the lengths agree."""
        if self.content is not None or isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
            return self
        return self if len(dataset) != self.num_examples else replace(self, content=content_of(dataset))


def _check_vector(what: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.int64 or tensor.ndim != 1 or tensor.device.type != "cpu":
        raise DataError(
            f"Dataset {name!r}: {what} must be a 1-D int64 tensor on the CPU, "
            f"not {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}."
        )


def _little_endian(vector: Tensor) -> bytes:
    return vector.numpy().astype("<i8", copy=False).tobytes()


def plain_name(text: str) -> str:
    """Return a file's or class's name in one Unicode form (NFC), with bytes that are not UTF-8 escaped."""
    whole = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", whole)


def key_of_path(path: str | PurePath) -> int:
    """Return the key of a file: 8 bytes of blake2b of its relative path with forward slashes, as signed int64.

    The path's Unicode is brought into one form first (:func:`plain_name`).
    """
    text = path.as_posix() if isinstance(path, PurePath) else path
    return int.from_bytes(hashlib.blake2b(plain_name(text).encode()).digest()[:8], "little", signed=True)


def infer_info(dataset: Dataset[Any]) -> DatasetInfo:
    """Find out name, keys, labels, class names and content of a user's map-style dataset.

    At most 20 examples are read here, with the global generators put back afterwards. Labels are left out where one of
    these examples shows another label than the dataset claims. Tried in this order:

    1. ``dataset.info``, if it is a :class:`DatasetInfo`;
    2. a ``Subset``: the info of what it was taken from, with the keys and labels of its indices;
    3. keys from the paths in ``.samples``, ``.imgs``, ``.paths`` or ``.files``, else positions;
    4. labels from ``.targets`` or ``.labels`` (whole numbers, one per example), from the second tensor of a
       ``TensorDataset`` or else its last 1-D whole-number one, or from the parts of a ``ConcatDataset``, changed by
       ``.target_transform`` where there is one;
    5. class names from ``.class_to_idx`` or ``.classes``; the name is the name of the dataset's class.

    Raises:
        DataError: If the dataset is iterable or has no length, or a ``Subset`` holds an index twice.
    """
    info = getattr(dataset, "info", None)
    if isinstance(info, DatasetInfo):
        return info
    if isinstance(dataset, Subset):
        base = infer_info(dataset.dataset)
        return base.subset(torch.as_tensor(np.asarray(dataset.indices, dtype=np.int64)))
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise DataError(
            f"The examples of {type(dataset).__name__} cannot be numbered: it is iterable or has no length. "
            "Use a map-style dataset (with __len__ and __getitem__)."
        )
    count = len(dataset)
    keys, kind = _find_keys(dataset, count)
    labels, class_names = _find_labels(dataset, count), _find_class_names(dataset)
    if labels is not None and not _shown(dataset, labels, keys):
        labels = class_names = None  # what the batches show is something else
    if labels is not None and class_names is not None and len(labels) and int(labels.max()) >= len(class_names):
        class_names = None  # names that do not cover the labels are names of something else
    return DatasetInfo(type(dataset).__name__, keys, labels, class_names, kind, content_of(dataset))


def try_info(dataset: Any) -> DatasetInfo | None:
    """Return what :func:`infer_info` does, or None where a dataset is not map-style or has no unique keys.

    For callers that can do without. Those that need to tell examples apart call :func:`infer_info`, which raises.
    """
    if dataset is None:
        return None
    if isinstance(dataset, IterableDataset) and not isinstance(getattr(dataset, "info", None), DatasetInfo):
        return None
    try:
        return infer_info(dataset)
    except DataError:
        return None


def _find_keys(dataset: Any, count: int) -> tuple[Tensor, str]:
    """Return keys, and what kind they are."""
    files = files_of(dataset)
    if files is not None:
        folder = getattr(dataset, "root", None)
        base = os.fspath(folder) if isinstance(folder, str | os.PathLike) else None
        if base is None or not all(path.startswith(base + os.sep) for path in files):
            base = os.path.commonpath([os.path.dirname(path) for path in files])
        keys = torch.tensor([key_of_path(PurePath(os.path.relpath(path, base))) for path in files])
        # Several examples of one file (frames, crops) share its path: then positions must do.
        if len(torch.unique(keys)) == count:
            return keys, "path"
    return torch.arange(count, dtype=torch.int64), "position"


def _find_labels(dataset: Dataset[Any], count: int) -> Tensor | None:
    if isinstance(dataset, TensorDataset):
        # (input, target) is the usual order; an index may follow.
        ordered = [*dataset.tensors[1:2], *reversed(dataset.tensors)]
        candidates = [_as_labels(tensor, count) for tensor in ordered]
    elif isinstance(dataset, ConcatDataset):
        parts = [infer_info(part).labels for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        candidates = [torch.cat(known) if len(known) == len(parts) else None]
    else:
        candidates = [_as_labels(getattr(dataset, name, None), count) for name in _LABEL_ATTRIBUTES]
        if (change := getattr(dataset, "target_transform", None)) is not None:
            candidates = [_changed(labels, change) for labels in candidates]
    return next((labels for labels in candidates if labels is not None), None)


def _as_labels(values: Any, count: int) -> Tensor | None:
    """Return values as int64 ``[count]`` on the CPU if that is what they are: whole numbers, one per example."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy() if values.dtype != torch.bfloat16 else None
    elif isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        # Looking at the first one keeps a list of file names or boxes from being turned into an array.
        first = values[0] if len(values) else 0
        try:
            values = np.asarray(values) if isinstance(first, (int, np.integer, Tensor)) else None
        except (ValueError, TypeError):  # lists of different lengths, tensors on a GPU or with several elements
            return None
    if not isinstance(values, np.ndarray) or values.shape != (count,) or values.dtype.kind not in "iu":
        return None
    return torch.from_numpy(values.astype(np.int64))


def _shown(dataset: Any, labels: Tensor, keys: Tensor) -> bool:
    """Return whether some examples, as a batch gets them, have the labels that the dataset claims."""
    if isinstance(dataset, TensorDataset | ConcatDataset):
        return True  # read off the tensors themselves, and part by part
    for position in sample_of(keys, _LABELS_COMPARED).tolist():
        try:
            with seeded_rng(0), undisturbed(dataset):
                example = dataset[position]
        except Exception:  # a user's __getitem__ may raise anything; training will show it
            return True
        shown = label_of(example)
        if shown is not None and shown != int(labels[position]):
            return False
    return True


def label_of(example: Any) -> int | None:
    """Return the class number of an example as a dataset gives it; None where it shows none.

    Args:
        example: A pair of input and target, or a mapping with ``label``, ``labels``, ``target`` or ``targets``.
    """
    if isinstance(example, Mapping):
        shown = next((example[name] for name in ("label", "labels", "target", "targets") if name in example), None)
    else:
        shown = example[1] if isinstance(example, tuple | list) and len(example) > 1 else None
    if isinstance(shown, Tensor) and shown.numel() == 1 and not shown.is_floating_point():
        shown = int(shown)
    return int(shown) if isinstance(shown, int | np.integer) else None


def _changed(labels: Tensor | None, change: Any) -> Tensor | None:
    """Return the labels as batches show them, or None where they are not whole numbers then."""
    if labels is None:
        return None
    try:
        table = {label: change(label) for label in labels.unique().tolist()}
    except Exception:  # a user's function may raise anything where it needs more than a number
        return None
    if not all(isinstance(value, int | np.integer) for value in table.values()):
        return None
    return torch.tensor([int(table[label]) for label in labels.tolist()], dtype=torch.int64)


def _find_class_names(dataset: Any) -> tuple[str, ...] | None:
    if getattr(dataset, "target_transform", None) is not None:
        return None  # the names are those of the numbers before it
    numbers = getattr(dataset, "class_to_idx", None)
    if isinstance(numbers, Mapping) and numbers and all(isinstance(number, int) for number in numbers.values()):
        names = {number: str(name) for name, number in numbers.items()}
        whole = len(names) == len(numbers) and sorted(names) == list(range(len(names)))
        return tuple(names[number] for number in range(len(names))) if whole else None
    names = getattr(dataset, "classes", None)
    if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None
