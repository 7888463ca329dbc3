"""A plan decides which samples of a StreamingDataset an epoch shows, and in which order.

Streaming asks ``StreamingDataset.resample_streams`` for the samples of an epoch, and shares what it gets among nodes,
ranks and workers, also in mid-epoch. :class:`~reuse_algos.data.streams.StreamIds` answers with the plan, and the
shuffle that would follow is switched off.

Shapes: M samples of an epoch over all ranks, B rows of a batch of this rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from composer.utils import dist
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from reuse_algos.data.sampler import EpochSampler, Plan, batches_of
from reuse_algos.data.streams.streaming import StreamIds, StreamOrder
from reuse_algos.errors import DataError, ExampleIdError

_SET = ("epoch_size", "length", "shuffle", "num_canonical_nodes")
_READ = (
    *("streams", "samples_per_stream", "num_samples", "batch_size", "batching_method", "replication"),
    *("next_epoch", "state_dict", "load_state_dict"),
)


class SteeredStream:
    """The train DataLoader of a stream whose epochs follow a plan.

    The k-th batch over all ranks holds the examples that it would hold with a map-style dataset. An example that comes
    several times in an epoch is shown in the same view. Shards are read in the order of the plan, so the cache should
    hold all of them.

    Args:
        loader: Over a ``StreamingDataset`` with ids (:func:`~reuse_algos.data.streams.with_ids`).

    Attributes:
        batch_sampler: The batches as those of a map-style dataset; empty before :meth:`steer`.

    Raises:
        ExampleIdError: Something else decides what an epoch of the stream shows, or the installed version of
            mosaicml-streaming has another form.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        release_stream(loader)
        _check(loader)
        self._loader = loader
        self._dataset: Any = loader.dataset
        self._shown_M = np.zeros(0, dtype=np.int64)
        self.batch_sampler: Any = BatchSampler([], 1, False)

    def steer(self, plan: Plan, *, num_examples: int, length: int, seed: int) -> int:
        """Prepare for a plan; the stream follows it from :meth:`start` on.

        Args:
            plan: Epoch -> positions over all ranks, the same on every rank. Positions count through all streams.
            num_examples: Samples of all streams.
            length: How many positions the plan gives in every epoch.
            seed: Of the sampler, which draws nothing.

        Returns:
            Number of examples of a batch over all ranks.

        Raises:
            ExampleIdError: No batch would be left.
        """
        sampler = EpochSampler(num_examples, seed=seed, drop_last=self._loader.drop_last)
        sampler.steer(plan, length=length)
        self.batch_sampler = batches_of(sampler, self._dataset.batch_size, self._loader.drop_last)
        return self._dataset.batch_size * sampler.num_replicas

    def start(self, epoch: int, batches: int) -> None:
        """Let the plan choose what every epoch shows, until :func:`release_stream`. Every rank must call this.

        Args:
            epoch: The one that comes next.
            batches: Of an epoch.
        """
        dataset, sampler = self._dataset, self.batch_sampler.sampler
        # Samples of batches that are never asked for would make an epoch longer that is resumed in its middle.
        total = min(len(sampler), batches * dataset.batch_size) * sampler.num_replicas
        dataset.order = StreamOrder(total, {name: getattr(dataset, name) for name in _SET})
        # One canonical node: Streaming gives the samples out in their order, to each rank in turn. What a rank has is
        # the length of the dataset, by which DataLoader and Trainer go.
        dataset.epoch_size, dataset.length, dataset.shuffle, dataset.num_canonical_nodes = total, len(sampler), False, 1
        # Workers that run already (persistent_workers) hold a copy of the dataset that knows nothing of this.
        vars(self._loader)["_iterator"] = None
        self.show(epoch)

    def show(self, epoch: int) -> None:
        """Set the samples of the coming epoch, as the plan has them now. Every rank must call this.

        Raises:
            ValueError: The plan names other positions than those of the samples.
        """
        order: StreamOrder = self._dataset.order
        self._shown_M = self.batch_sampler.sampler.shown(epoch)[: len(order)]
        # Streaming gives them to the nodes in turn, and then to the ranks of each; the ranks of a node have consecutive
        # numbers.
        local = dist.get_local_world_size()
        nodes = dist.get_world_size() // local
        order.set(epoch, self._shown_M.reshape(-1, nodes, local).transpose(0, 2, 1).reshape(-1))

    def check(self, batch_in_epoch: int, positions_B: Tensor) -> None:
        """Compare the examples of a batch of this rank with the plan.

        Args:
            batch_in_epoch: Its number, from 0.
            positions_B: int64, the examples by the ids in the batch.

        Raises:
            DataError: They are others.
        """
        sampler: EpochSampler = self.batch_sampler.sampler
        size = self._dataset.batch_size * sampler.num_replicas
        planned_B = self._shown_M[batch_in_epoch * size :][:size][sampler.rank :: sampler.num_replicas]
        if not np.array_equal(planned_B, positions_B.numpy()):
            raise DataError(
                f"batch {batch_in_epoch} of the epoch begins with samples {positions_B[:4].tolist()} of the stream, "
                f"and with {planned_B[:4].tolist()} in the plan: the dataset or the DataLoader has an order of its "
                "own, or something other than the Trainer iterates it. Use with_ids(StreamingDataset) in a "
                "StreamingDataLoader, and one dataset for each Trainer."
            )


def release_stream(loader: Any) -> None:
    """Let a stream decide again what its epochs show; nothing where it does, or where the loader is of another kind."""
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, StreamIds) and dataset.order is not None:
        vars(dataset).update(dataset.order.before, order=None)
        vars(loader)["_iterator"] = None


def _check(loader: Any) -> None:
    """Refuse a stream whose samples something else decides, too."""
    dataset: Any = loader.dataset
    name = type(dataset).__name__
    if missing := [one for one in (*_SET, *_READ) if not hasattr(dataset, one)]:
        raise ExampleIdError(
            f"{name} has no {missing[0]}, so a plan cannot decide what it shows. Install a version of "
            "mosaicml-streaming from 0.12 on and below 0.14."
        )
    own = [one.__name__ for one in type(dataset).__mro__ if "resample_streams" in vars(one)]
    if len(own) != 2:  # StreamIds and StreamingDataset
        raise ExampleIdError(
            f"{name} has {'a' if own[2:] else 'no'} resample_streams of its own ({', '.join(own)}), which decides what "
            "an epoch shows. Use with_ids(StreamingDataset) of a version that has one."
        )
    chosen, held = [int(stream.choose) for stream in dataset.streams], [int(n) for n in dataset.samples_per_stream]
    if chosen != held or dataset.epoch_size != dataset.num_samples:
        raise ExampleIdError(
            f"an epoch of {name} shows {chosen} samples of streams that hold {held}, and the plan decides how often "
            "each comes. Leave out epoch_size, and proportion, repeat and choose of the streams."
        )
    if dataset.batching_method != "random" or (dataset.replication or 1) != 1:
        raise ExampleIdError(
            f"{name} has batching_method={dataset.batching_method!r} and replication={dataset.replication}, which "
            "decide who is shown what. Use batching_method='random' and no replication."
        )
    if loader.batch_size is None or dataset.batch_size != loader.batch_size:
        raise ExampleIdError(
            f"{name} has batch_size={dataset.batch_size} and its DataLoader {loader.batch_size}. Streaming shares "
            "batches among workers by its own number: give both the same."
        )
    if not getattr(loader, "in_order", True):
        raise ExampleIdError(
            "the DataLoader has in_order=False: its batches come in no known order. Use in_order=True."
        )
