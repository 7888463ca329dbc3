"""The content of single examples, as numbers that another run can compare.

Shapes: N examples, B of them.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from reuse_algos.data.hashing import view_hash
from reuse_algos.data.seeding import seeded_rng, undisturbed
from reuse_algos.errors import DataError

SAMPLE = 64
"""How many examples are hashed where nothing else is asked for."""

_SEED, _SALT = 0x1DE, 48  # fixed: another seed would compare other examples of the same data
_BLOCK = 1024
_CHEAP_BYTES = 256 << 20  # data in memory up to this size are hashed whole; blake2b takes about 1 s for 1 GB


@dataclass(frozen=True, eq=False)
class Content:
    """Reads the raw content of examples, without augmentation.

    Attributes:
        read: Position -> the bytes of that example. The same example gives the same bytes in every process.
        cheap: Whether all examples can be read at the start of a training.
        about: Shape and normalisation of the examples, as text; part of the fingerprint.
        where: int64 ``[N]``: position that ``read`` is asked for, for each example. Default: None, its own.
    """

    read: Callable[[int], bytes]
    cheap: bool = False
    about: str = ""
    where: Tensor | None = None

    def hashes(self, positions_B: Tensor) -> Tensor:
        """Return the content hashes of examples: int64 ``[B]``, 8 bytes of blake2b each."""
        where_B = positions_B if self.where is None else self.where[positions_B]
        positions = where_B.tolist()
        with undisturbed(self.read):
            contents = self.read.each(positions) if isinstance(self.read, _Rows) else map(self.read, positions)
            return torch.tensor([_hash(content) for content in contents], dtype=torch.int64)

    def subset(self, positions_B: Tensor) -> Content:
        """Return the content of some of the examples."""
        return replace(self, where=positions_B if self.where is None else self.where[positions_B])


def sample_of(keys_N: Tensor, size: int = SAMPLE) -> Tensor:
    """Return the positions of a seeded sample: int64 ``[min(size, N)]``.

    It depends on the keys only. Data that have grown keep most of the examples that were compared before.
    """
    hashes_N = view_hash(_SEED, keys_N, torch.zeros((), dtype=torch.int64), _SALT)
    return torch.argsort(hashes_N, stable=True)[:size].sort().values


def content_of(dataset: Any) -> Content | None:
    """Return how to read the raw content of a user's map-style dataset, or None where it differs from read to read.

    Looked for in this order: the tensors of a ``TensorDataset``, the parts of ``Subset`` and ``ConcatDataset``, files
    that the dataset lists, its array ``.data``, rows of a Hugging Face dataset, the examples themselves. These are read
    with ``transform`` switched off on a copy and with seeded generators.
    """
    known = getattr(getattr(dataset, "info", None), "content", None)
    if isinstance(known, Content):
        return known
    if isinstance(dataset, TensorDataset):
        return _rows(_without_labels(dataset.tensors))
    if isinstance(dataset, Subset):
        base = content_of(dataset.dataset)
        return base and base.subset(torch.as_tensor(np.asarray(dataset.indices, dtype=np.int64)))
    if isinstance(dataset, ConcatDataset):
        parts = [content_of(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        # Part of the content would call data equal that differ in the rest.
        if len(known) < len(parts):
            return None
        about = "; ".join(dict.fromkeys(part.about for part in known))
        return Content(_Joined(known, dataset.cumulative_sizes), all(part.cheap for part in known), about)
    if (files := files_of(dataset)) is not None:
        return Content(_Files(files), about="files")
    data = getattr(dataset, "data", None)
    if isinstance(data, Tensor | np.ndarray) and data.ndim > 1 and len(data) == len(dataset):
        return _rows([torch.as_tensor(data)])
    return _items(dataset)


def files_of(dataset: Any) -> list[str] | None:
    """Return the path of each example's file, where the dataset lists one file for each example, else None."""
    for name in ("samples", "imgs", "paths", "files", "image_paths"):
        listed = getattr(dataset, name, None)
        if not isinstance(listed, Sequence) or isinstance(listed, str) or len(listed) != len(dataset) or not listed:
            continue
        paths = [one[0] if isinstance(one, tuple) and one else one for one in listed]
        texts = [path for path in paths if isinstance(path, str | Path)]
        if len(texts) == len(paths):
            folder = getattr(dataset, "root", None)
            found = [Path(path) for path in texts]
            # Some datasets list paths relative to their root.
            if not found[0].exists() and isinstance(folder, str | Path):
                found = [Path(folder) / path for path in found]
            if found[0].is_file():
                return [str(path) for path in found]
    return None


def example_bytes(example: Any) -> bytes:
    """Return the content of an example as bytes: its tensors, arrays, images, texts and numbers in order.

    Single numbers beside tensors, texts or images are labels or indices, and are left out: a label that was corrected
    does not make another example.
    """
    parts: list[bytes] = []
    numbers: list[bytes] = []

    def visit(part: Any) -> None:
        if isinstance(part, Mapping):
            # By name: not every dataset fills its mappings in the same order.
            for key in sorted(part, key=str):
                visit(part[key])
        elif isinstance(part, list | tuple):
            for value in part:
                visit(value)
        elif isinstance(part, str | bytes):
            # Names of files that are not UTF-8 hold surrogates.
            parts.append(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
        elif part is None or isinstance(part, bool | int | float | np.generic):
            numbers.append(repr(part).encode())
        else:
            array = part.detach().cpu() if isinstance(part, Tensor) else np.asarray(part)
            if isinstance(array, Tensor):
                # numpy has no bfloat16, and float32 holds each of its numbers.
                array = array.float().numpy() if array.dtype == torch.bfloat16 else array.numpy()
            if array.dtype.kind == "O":
                raise DataError(f"an example holds a {type(part).__name__}, which has no bytes to compare")
            (parts if array.ndim else numbers).append(f"{array.dtype}{array.shape}".encode() + array.tobytes())

    visit(example)
    # Each part with its length: ("ab", "c") and ("a", "bc") are different examples.
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts or numbers)


def _hash(content: bytes) -> int:
    # Signed, as torch's tensors of hashes are int64.
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def _without_labels(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors but for those with one number per example, unless there are no others."""
    # A label that was corrected makes no other example.
    wide = [tensor for tensor in tensors if tensor.ndim > 1]
    return wide or list(tensors)


def _rows(tensors: Sequence[Tensor]) -> Content:
    about = ", ".join(f"{tensor.dtype}{list(tensor.shape[1:])}" for tensor in tensors)
    return Content(_Rows(tensors), sum(tensor.nbytes for tensor in tensors) <= _CHEAP_BYTES, about)


def _items(dataset: Any) -> Content | None:
    plain = dataset
    if hasattr(dataset, "with_format") and hasattr(dataset, "column_names"):  # Hugging Face datasets
        # With a format the rows come as tensors of a chosen framework, or transformed.
        plain = dataset.with_format(None)
    else:
        # The raw example is what stays the same; a random crop of it is another array each time.
        names = [name for name in ("transform", "transforms", "target_transform") if hasattr(dataset, name)]
        if names:
            plain = copy.copy(dataset)  # the user's own object stays as it is
            for name in names:
                plain.__dict__[name] = None
    for candidate in (plain, dataset) if plain is not dataset else (dataset,):
        read = _Items(candidate)
        try:
            with undisturbed(candidate):  # around both, or a generator of its own would give the same twice
                first, again = (read(0), read(0)) if len(dataset) else (b"", None)
            if first == again:
                return Content(read, about=f"{len(first)} bytes")
        except Exception:  # a user's __getitem__ without its transform may raise anything
            continue
    return None


@dataclass(frozen=True)
class _Rows:
    tensors: Sequence[Tensor]

    def __call__(self, position: int) -> bytes:
        return next(self.each([position]))

    def each(self, positions: Sequence[int]) -> Iterator[bytes]:
        """Yield the bytes of many examples."""
        arrays = [_plain(tensor) for tensor in self.tensors]
        # In blocks: 50,000 images of 32 pixels take 0.5 s instead of 1.9 s by one index for each, and twice that where
        # channels lie first in memory.
        for start in range(0, len(positions), _BLOCK):
            wanted = np.asarray(positions[start : start + _BLOCK], dtype=np.int64)
            blocks = [np.ascontiguousarray(array[wanted]) for array in arrays]
            for row in range(len(wanted)):
                yield b"".join([block[row].tobytes() for block in blocks])


@dataclass(frozen=True)
class _Files:
    paths: list[str]

    def __call__(self, position: int) -> bytes:
        try:
            return Path(self.paths[position]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.paths[position]!a} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class _Items:
    dataset: Dataset[Any]

    def __call__(self, position: int) -> bytes:
        with seeded_rng(_SEED):
            return example_bytes(self.dataset[position])


@dataclass(frozen=True)
class _Joined:
    parts: list[Content]
    ends: list[int]

    def __call__(self, position: int) -> bytes:
        number = int(np.searchsorted(self.ends, position, side="right"))
        part, start = self.parts[number], self.ends[number - 1] if number else 0
        inner = position - start
        return part.read(inner if part.where is None else int(part.where[inner]))


def _plain(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    # The same bits as whole numbers, as numpy has no bfloat16.
    return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def rows_content(images: Tensor, about: str) -> Content:
    """Return the content of images in memory.

    Args:
        images: ``[N, ...]`` on the CPU.
        about: Their normalisation.
    """
    content = _rows([images])
    return replace(content, about=f"{content.about} {about}")
