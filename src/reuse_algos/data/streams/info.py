"""What the examples of a stream are, so that a run can record them.

Shapes: N examples.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping
from typing import Any

import torch
from composer.utils import dist
from torch import Tensor

from reuse_algos.data.examples.content import Content, example_bytes, sample_of
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.streams.ids import ID, VIEW
from reuse_algos.data.streams.streaming import STREAM_BITS, StreamIds
from reuse_algos.errors import DataError, ExampleIdError, nearest


def stream_info(dataset: StreamIds, labels: Tensor | None = None, *, content: bool = True) -> DatasetInfo:
    """Return keys and content of a ``StreamingDataset`` with ids (:func:`~reuse_algos.data.streams.with_ids`).

    N is known from the index of its streams. Of the content, 64 samples are read here, not when the run ends: by then
    the stream may be gone.

    Args:
        dataset: The dataset.
        labels: int64 ``[N]``, in order of the streams. Default: not known.
        content: Whether 64 samples are read and compared with those of an earlier run. Without, streams that changed
            places are not noticed. Default: True.
    """
    counts = [int(count) for count in dataset.samples_per_stream]  # type: ignore[attr-defined]
    keys = torch.cat([(stream << STREAM_BITS) + torch.arange(count) for stream, count in enumerate(counts)])

    if not content:
        return DatasetInfo("stream", keys, labels)
    known = {position: _bytes_of(dataset[position]) for position in sample_of(keys).tolist()}  # type: ignore[index]

    def read(position: int) -> bytes:
        return known[position] if position in known else _bytes_of(dataset[position])  # type: ignore[index]

    return DatasetInfo("stream", keys, labels, content=Content(read, about="samples of a stream"))


def scan_stream(dataset: Any, label: str | None = None, names: tuple[str, ...] | None = None) -> DatasetInfo:
    """Read a stream of unknown length once, and return what its examples are.

    An id that comes again with the same content is the same example, shown again. Every rank must call this: each reads
    its share. The result is also kept as ``dataset.info``, where recorders look.

    Args:
        dataset: An :class:`~reuse_algos.data.streams.IdStream`, or any iterable of mappings with an ``id``.
        label: Field with the class number. Default: labels are not known.
        names: Name of each class. Default: not known.

    Raises:
        ExampleIdError: A sample has no id.
        DataError: Two different samples have the same id, or there is no sample.
    """
    found: dict[int, tuple[bytes, int]] = {}
    first: dict[int, int] = {}
    for number, sample in enumerate(dataset):
        if ID not in sample:
            raise ExampleIdError(f"a sample of the stream has no {ID!r}; it has {', '.join(sample)}. Use IdStream.")
        row = (_bytes_of(sample), -1 if label is None else _label(sample, label))
        key = int(sample[ID])
        # An id of a text is a hash, which says nothing to its owner; numbers of samples do.
        _add(found, key, row, f", number {first.setdefault(key, number)} and number {number} from 0,")
    # Each rank has read a part of the stream.
    if dist.get_world_size() > 1:
        for theirs in dist.all_gather_object(found):
            for key, row in theirs.items():
                _add(found, key, row)
    if not found:
        raise DataError("the stream has no sample. Look at its shards, and at how they are shared among workers.")
    # Sorted, so that every rank numbers the examples alike.
    keys = sorted(found)
    contents = [found[key][0] for key in keys]
    labels = None if label is None else torch.tensor([found[key][1] for key in keys], dtype=torch.int64)
    content = Content(lambda position: contents[position], cheap=True, about="samples of a stream")
    info = DatasetInfo("stream", torch.tensor(keys, dtype=torch.int64), labels, names, content=content)
    dataset.info = info
    return info


def _label(sample: Mapping[str, Any], name: str) -> int:
    if name not in sample:
        raise DataError(f"label={name!r} is not a field of the stream's samples.{nearest(name, sample)}")
    value = sample[name]
    try:
        return operator.index(value)  # of tensors and arrays with one whole number, too
    except TypeError as error:
        raise DataError(f"label={name!r} must be a class number in each sample, not {value!r:.80}") from error


def _bytes_of(sample: Mapping[str, Any]) -> bytes:
    """Return what identifies a sample's content: 16 bytes, however large it is."""
    rest = {name: value for name, value in sample.items() if name not in (ID, VIEW)}
    return hashlib.blake2b(example_bytes(rest), digest_size=16).digest()


def _add(found: dict[int, tuple[bytes, int]], key: int, row: tuple[bytes, int], where: str = "") -> None:
    if found.setdefault(key, row) != row:
        raise DataError(
            f"two different samples of the stream{where} have the id {key}. Signals of one would be taken for the "
            "other's. Give every sample an id of its own: IdStream(source, key=...)."
        )
