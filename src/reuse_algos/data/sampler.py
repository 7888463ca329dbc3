"""Samplers that are seeded, rank aware, resumable, steerable, and that remember what they handed out.

:class:`EpochSampler` decides which examples an epoch shows and in which order. :class:`TrackedBatchSampler` wraps any
batch sampler and records the index list of every batch, so that a batch of the user's own making can be traced back
to its examples without a change to dataset, collate function or batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from composer.utils import dist
from torch.utils.data import DistributedSampler

from reuse_algos.data.views import ExampleView, ViewPolicy
from reuse_algos.errors import ExampleIdError

__all__ = ["EpochSampler", "Examples", "Plan", "TrackedBatchSampler"]

Plan = Callable[[int], Sequence[int]]
"""A steering function: epoch -> the positions that this epoch shows, over all ranks, in order."""


class EpochSampler(DistributedSampler):
    """The order of examples in each epoch as a function of (seed, epoch) only.

    Rank ``r`` of ``W`` takes elements ``r, r + W, r + 2W, ...`` of the epoch's order, so the k-th global batch holds
    the same examples whatever the number of ranks. Nothing is drawn from a global generator and nothing has to be
    saved: setting the epoch restores the order.

    Args:
        num_examples: length of the dataset.
        seed: seed of the shuffles.
        shuffle: shuffle each epoch; otherwise ascending positions.
        drop_last: where the examples do not divide evenly by the ranks, leave the tail out (True) or fill up from the
            beginning of the epoch's order (False).
        num_replicas: number of ranks. Default: Composer's world size.
        rank: this rank. Default: Composer's global rank.

    Raises:
        ValueError: ``num_examples`` is not positive, or the rank is out of range.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        if num_examples <= 0:
            raise ValueError(f"EpochSampler needs at least one example, got num_examples={num_examples}")
        super().__init__(
            range(num_examples),  # type: ignore[arg-type]  # only its length is read
            num_replicas=dist.get_world_size() if num_replicas is None else num_replicas,
            rank=dist.get_global_rank() if rank is None else rank,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
        self.num_examples = num_examples
        self._plan: Plan | None = None

    def steer(self, plan: Plan | None) -> None:
        """Let ``plan`` choose the examples and order of each epoch (None: back to plain shuffling).

        Every rank must be given the same plan. Positions may repeat or be left out.
        """
        self._plan = plan

    def order(self, epoch: int) -> np.ndarray:
        """Positions of an epoch over all ranks, int64 ``[M]``.

        Raises:
            ValueError: the plan names a position outside ``[0, num_examples)``.
        """
        if self._plan is not None:
            positions = np.asarray(self._plan(epoch), dtype=np.int64)
            if len(positions) and not (positions.min() >= 0 and positions.max() < self.num_examples):
                raise ValueError(f"the plan of epoch {epoch} names positions outside [0, {self.num_examples})")
            return positions
        if self.shuffle:
            return np.random.default_rng([self.seed % 2**63, epoch]).permutation(self.num_examples)
        return np.arange(self.num_examples)

    def __iter__(self) -> Iterator[int]:
        order = self.order(self.epoch)
        ranks = self.num_replicas
        if self.drop_last:
            order = order[: len(order) // ranks * ranks]
        elif len(order) % ranks:
            order = np.resize(order, -(-len(order) // ranks) * ranks)
        return iter(order[self.rank :: ranks].tolist())

    def __len__(self) -> int:
        total = self.num_examples if self._plan is None else len(self._plan(self.epoch))
        return total // self.num_replicas if self.drop_last else -(-total // self.num_replicas)


class Examples(NamedTuple):
    """Which examples the rows of a batch are.

    Attributes:
        positions: int64 ``[B]`` on the CPU, indices into the train dataset (or ids, where a batch key holds them).
        views: int64 ``[B]`` on the CPU, view numbers; -1 where the augmentation is not a known view.
    """

    positions: torch.Tensor
    views: torch.Tensor

    def rows(self, start: int, stop: int) -> Examples:
        """The examples of rows ``start`` to ``stop``."""
        return Examples(self.positions[start:stop], self.views[start:stop])


class TrackedBatchSampler(DistributedSampler):
    """A batch sampler that records what it yields and adds view numbers for datasets that take them.

    It is a ``DistributedSampler`` because Composer calls ``set_epoch`` only on one that it finds as
    ``dataloader.batch_sampler`` or ``.sampler``; the epoch is passed on to whatever is inside.

    Args:
        batch_sampler: yields lists of positions; keeps deciding which.
        dataset: the dataset of the loader; its ``view_policy`` (if any) decides the view of each epoch and its
            ``set_epoch`` (if any) is called with the epoch.
    """

    def __init__(self, batch_sampler: Iterable[Sequence[int]], dataset: object) -> None:
        super().__init__(
            range(1),  # type: ignore[arg-type]  # the length of this class is that of the batch sampler inside
            num_replicas=dist.get_world_size(),
            rank=dist.get_global_rank(),
        )
        self.batch_sampler = batch_sampler
        policy = getattr(dataset, "view_policy", None)
        self.view_policy: ViewPolicy | None = policy if isinstance(policy, ViewPolicy) else None
        self._dataset_set_epoch = getattr(dataset, "set_epoch", None)
        self._record: list[Examples] = []

    def set_epoch(self, epoch: int) -> None:
        """Tell everything below which epoch comes next."""
        self.epoch = epoch
        for inner in (self.batch_sampler, getattr(self.batch_sampler, "sampler", None)):
            if hasattr(inner, "set_epoch"):
                inner.set_epoch(epoch)  # type: ignore[union-attr]
        if self._dataset_set_epoch is not None:
            self._dataset_set_epoch(epoch)

    def __iter__(self) -> Iterator[Sequence[int]]:  # type: ignore[override]
        # A fresh list for each pass: workers of an abandoned pass may still be filling the old one.
        record = self._record = []
        policy = self.view_policy
        view = -1 if policy is None else policy.view_of_epoch(self.epoch)
        for indices in self.batch_sampler:
            positions = [index.position if isinstance(index, ExampleView) else int(index) for index in indices]
            views = [index.view if isinstance(index, ExampleView) else view for index in indices]
            record.append(Examples(torch.tensor(positions), torch.tensor(views)))
            if policy is None:
                yield indices
            else:
                yield [ExampleView(*pair) for pair in zip(positions, views, strict=True)]  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.batch_sampler)  # type: ignore[arg-type]

    def examples(self, batch_in_epoch: int) -> Examples:
        """The examples of the batch with this number in the current epoch.

        Raises:
            ExampleIdError: the batch has not been handed out.
        """
        if not 0 <= batch_in_epoch < len(self._record):
            raise ExampleIdError(
                f"batch {batch_in_epoch} of the epoch was never handed out by the batch sampler (it handed out "
                f"{len(self._record)}). Something other than the Trainer iterates this DataLoader, or the dataset "
                "resumes by itself in mid-epoch; give the ids in the batch instead (id_key)."
            )
        return self._record[batch_in_epoch]
