"""Ids and views for mosaicml-streaming.

The package is not imported here: a ``StreamingDataset`` comes with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from reuse_algos.data.hashing import view_hash
from reuse_algos.data.seeding import seeded_rng
from reuse_algos.data.streams.ids import ID, VIEW
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import DataError

STREAM_BITS = 40
"""An id is ``stream << 40 | index``: 2^40 samples in each of 8 million streams."""

_REMOTE = 1
"""Streaming's mark of a shard that is not here (``_ShardState.REMOTE``)."""

_ADVICE = "What was recorded so far is kept; bring the shard back and resume from the last checkpoint."


class StreamIds:
    """Mixin that puts ``id`` and ``view`` into each sample of a ``StreamingDataset``.

    Write ``class Mine(StreamIds, StreamingDataset): pass``, or use :func:`with_ids`. The id is the number of the stream
    and the sample's index in it, so samples of streams that are appended later leave those before as they are. Name it
    in recorder and algorithms: ``keys={"ids": "id", "views": "view"}``.

    Attributes:
        view_policy: The views. Default: one, for samples that are not augmented.
        augment: Sample -> sample, with the global generators of torch, numpy and random, which are seeded for each view
            from (seed, id, view). Default: None.
    """

    view_policy: ViewPolicy = ViewPolicy(0, 1, "none")
    augment: Callable[[Any], Any] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield this worker's samples of the next epoch.

        Raises:
            DataError: The epoch ended early, because a shard could not be fetched.
        """
        yield from super().__iter__()  # type: ignore[misc]
        # Streaming fetches shards in a thread. Where that fails, the samples just end, as if the epoch were over.
        failed = getattr(self, "_event", None)
        if failed is not None and failed.is_set():
            raise DataError(f"the stream ended early: a shard could not be fetched (see the log above). {_ADVICE}")

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Fetch a shard, as Streaming does, and give it back to the others where that fails.

        Args:
            shard_id: Its number over all streams.
            blocking: Wait where another thread or process is fetching it. Default: True.

        Raises:
            Exception: Whatever the fetching raises.
        """
        try:
            super().prepare_shard(shard_id, blocking)  # type: ignore[misc]
        except Exception:
            # Streaming leaves the shard marked as being fetched. Whoever waits for that, here or in another process,
            # waits for ever; marked as remote, it is tried again, and the reader learns why it cannot be had.
            states = getattr(self, "_shard_states", None)
            if states is not None:
                states[shard_id] = _REMOTE
            raise

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """Return a sample with its id and its view.

        Raises:
            DataError: The shard cannot be had, or the samples have an ``id`` or ``view`` of their own.
        """
        stream = int(np.searchsorted(self.sample_offset_per_stream, sample_id, side="right")) - 1  # type: ignore[attr-defined]
        index = int(sample_id) - int(self.sample_offset_per_stream[stream])  # type: ignore[attr-defined]
        try:
            sample = super().get_item(sample_id, retry)  # type: ignore[misc]
        except (RuntimeError, OSError, ValueError) as error:
            raise DataError(
                f"sample {index} of stream {stream} cannot be read: {error}. A shard is missing or damaged. {_ADVICE}"
            ) from error
        key = stream << STREAM_BITS | index
        # Streaming counts the epoch before its samples are read, in memory that all workers share.
        view = self.view_policy.view_of_epoch(max(0, int(self.next_epoch) - 1))  # type: ignore[attr-defined]
        return seeded_view(sample, key, view, self.view_policy.seed, self.augment)


@functools.cache
def with_ids(dataset_class: type) -> type:
    """Return a subclass of a ``StreamingDataset`` whose samples hold their id and view, see :class:`StreamIds`.

    Args:
        dataset_class: ``StreamingDataset`` or a subclass.

    >>> class Empty:
    ...     pass
    >>> with_ids(Empty).__name__
    'EmptyWithIds'
    """
    return type(f"{dataset_class.__name__}WithIds", (StreamIds, dataset_class), {})


def seeded_view(sample: Any, key: int, view: int, seed: int, augment: Callable[[Any], Any] | None) -> dict[str, Any]:
    """Return a sample in a view, with its key and the number of the view.

    Args:
        sample: A mapping.
        key: Of the example.
        view: Its number; below 0 the augmentation is ordinary and random.
        seed: Of the views.
        augment: What makes a view of a sample; None: nothing.

    Raises:
        DataError: The sample is not a mapping, or it has an ``id`` or ``view`` of its own.
    """
    if not isinstance(sample, dict):
        raise DataError(f"the samples of a stream with ids must be mappings, not {type(sample).__name__}")
    if clash := [name for name in (ID, VIEW) if name in sample]:
        raise DataError(f"the samples have {clash[0]!r} already, where their key would go. Rename it.")
    if augment is not None and view < 0:
        sample = augment(sample)
    elif augment is not None:
        number = view_hash(seed, torch.tensor(key), torch.tensor(view), _SALT)
        with seeded_rng(int(number)):
            sample = augment(sample)
    return {**sample, ID: key, VIEW: view}


_SALT = 18  # 16 and 17 are those of ViewedDataset
