"""Ids and views for mosaicml-streaming.

The package is not imported here: a ``StreamingDataset`` comes with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from reuse_algos.data.hashing import view_hash
from reuse_algos.data.seeding import seeded_rng
from reuse_algos.data.streams.ids import ID, VIEW
from reuse_algos.data.views import EpochCell, ViewPolicy
from reuse_algos.errors import DataError

STREAM_BITS = 40
"""An id is ``stream << 40 | index``: 2^40 samples in each of 8 million streams."""

_REMOTE = 1
"""Streaming's mark of a shard that is not here (``_ShardState.REMOTE``)."""

_ADVICE = "What was recorded so far is kept; bring the shard back and resume from the last checkpoint."


class StreamOrder:
    """The samples of the coming epoch in their order, in memory that DataLoader workers share.

    Args:
        length: Samples of an epoch over all ranks.
        before: Attributes of the dataset as they were before it followed this order.
    """

    def __init__(self, length: int, before: Mapping[str, Any]) -> None:
        self.before = before
        # Persistent workers keep the copy of the dataset they were started with, so a plain array would never change.
        self._epoch = EpochCell()
        self._samples_M = torch.zeros(length, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        """Return how many samples an epoch has."""
        return len(self._samples_M)

    def set(self, epoch: int, samples_M: np.ndarray) -> None:
        """Set the samples of an epoch: int64 ``[M]``, numbers over all streams."""
        self._samples_M.copy_(torch.from_numpy(samples_M))
        self._epoch.set(epoch)

    def of_epoch(self, epoch: int) -> np.ndarray:
        """Return the samples of an epoch: int64 ``[M]``.

        Raises:
            DataError: They were set for another epoch.
        """
        if self._epoch.value != epoch:
            raise DataError(
                f"the stream is in epoch {epoch}, and its order was planned for epoch {self._epoch.value}: something "
                "other than the Trainer iterates this dataset, or its Trainer was interrupted. Make a new dataset."
            )
        return self._samples_M.numpy().copy()


class StreamIds:
    """Mixin that puts ``id`` and ``view`` into each sample of a ``StreamingDataset``.

    Write ``class Mine(StreamIds, StreamingDataset): pass``, or use :func:`with_ids`. The id is the number of the stream
    and the sample's index in it, so samples of streams that are appended later leave those before as they are. Name it
    in recorder and algorithms: ``keys={"ids": "id", "views": "view"}``.

    Attributes:
        view_policy: The views. Default: one, for samples that are not augmented.
        augment: Sample -> sample, with the global generators of torch, numpy and random, which are seeded for each view
            from (seed, id, view). Default: None.
        order: What decides the samples of each epoch (:class:`~reuse_algos.data.streams.SteeredStream`). Default: None,
            for those that Streaming draws.
    """

    view_policy: ViewPolicy = ViewPolicy(0, 1, "none")
    augment: Callable[[Any], Any] | None = None
    order: StreamOrder | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that comes next, on every rank."""
        self.next_epoch = epoch

    def go_on(self, epoch: int, sample_in_epoch: int) -> None:
        """Let the next pass begin at this place of a training, whatever was read or loaded before.

        Every rank must call it, before any of their workers reads. Streaming counts its epochs by itself: a checkpoint
        of the end of an epoch would show that epoch again, and a second training would begin where the first one ended.

        Args:
            epoch: Whole epochs that are over.
            sample_in_epoch: Samples of this epoch that were shown, over all ranks.
        """
        self.set_epoch(epoch)
        # The rest of the state is that of a loaded checkpoint, where there is one.
        place = self.state_dict(sample_in_epoch, True)  # type: ignore[attr-defined]
        place.update(epoch=epoch, sample_in_epoch=sample_in_epoch)
        if self.order is not None:
            place["num_canonical_nodes"] = 1  # also where the checkpoint is of a run that followed no plan
        self.load_state_dict(place)  # type: ignore[attr-defined]

    def resample_streams(self, epoch: int, stream_id: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the shuffle units and samples of an epoch, which Streaming shares among ranks and workers.

        Args:
            epoch: Its number.
            stream_id: One stream. Default: all of them.

        Raises:
            DataError: The dataset follows a plan, and the plan is of another epoch.
        """
        if self.order is None:
            return super().resample_streams(epoch, stream_id)  # type: ignore[misc]
        samples_M = self.order.of_epoch(epoch)
        return np.array([len(samples_M)], dtype=np.int64), samples_M

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
