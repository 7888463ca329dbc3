"""Samplers that are seeded, rank aware, resumable, steerable, and that remember what they handed out.

:class:`EpochSampler` decides which examples an epoch shows and in which order. :class:`TrackedBatchSampler` wraps any
batch sampler and records the index list of every batch, so that a batch of the user's own making can be traced back
to its examples without a change to dataset, collate function or batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from composer.utils import dist
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler

from reuse_algos.data.views import ExampleView, ViewPolicy, declared_views, views_of
from reuse_algos.errors import ExampleIdError

Plan = Callable[[int], "Sequence[int] | np.ndarray"]
"""A steering function: epoch -> the positions that this epoch shows, over all ranks, in order."""


class EpochSampler(DistributedSampler):
    """The order of examples in each epoch as a function of (seed, epoch) only.

    Rank ``r`` of ``W`` takes elements ``r, r + W, r + 2W, ...`` of the epoch's order, so the k-th global batch holds
    the same examples whatever the number of ranks. Nothing is drawn from a global generator and nothing has to be
    saved: setting the epoch restores the order.

    Args:
        num_examples: Length of the dataset.
        seed: Seed of the shuffles.
        shuffle: Shuffle each epoch; otherwise ascending positions.
        drop_last: Where the examples do not divide evenly by the ranks, leave the tail out (True) or fill up from the
            beginning of the epoch's order (False).
        num_replicas: Number of ranks. Default: Composer's world size.
        rank: This rank. Default: Composer's global rank.

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
        self._plan_length: int | None = None
        self._num_views = 0

    def steer(self, plan: Plan | None, *, length: int | None = None, num_views: int = 0) -> None:
        """Let ``plan`` choose the examples and order of each epoch (None: back to plain shuffling).

        Every rank must be given the same plan. Positions may repeat or be left out.

        Args:
            plan: Epoch -> positions.
            length: How many positions it gives in every epoch, so that ``len()`` need not ask it; None: it varies.
            num_views: Number of views of the dataset; with more than one, an example that comes several times in an
                epoch is shown in its next views the second, third ... time.
        """
        self._plan, self._plan_length, self._num_views = plan, length, num_views

    def order(self, epoch: int) -> np.ndarray:
        """Return the positions of an epoch over all ranks, int64 ``[M]``.

        Raises:
            ValueError: The plan names a position outside ``[0, num_examples)``.
        """
        if self._plan is not None:
            positions = np.asarray(self._plan(epoch), dtype=np.int64)
            if len(positions) and not (positions.min() >= 0 and positions.max() < self.num_examples):
                raise ValueError(f"the plan of epoch {epoch} names positions outside [0, {self.num_examples})")
            if self._plan_length is not None and len(positions) != self._plan_length:
                raise ValueError(f"the plan of epoch {epoch} has {len(positions)} positions, not {self._plan_length}")
            return positions
        if self.shuffle:
            # A generator for each epoch: the order has no state to save, and moves no other generator.
            # The remainder, as numpy takes no negative seeds.
            return np.random.default_rng([self.seed % 2**63, epoch]).permutation(self.num_examples)
        return np.arange(self.num_examples)

    def shown(self, epoch: int) -> np.ndarray:
        """Return the positions that an epoch shows over all ranks, as many on each of them, int64 ``[M]``.

        Raises:
            ValueError: The plan names a position outside ``[0, num_examples)``.
        """
        order, ranks = self.order(epoch), self.num_replicas
        if self.drop_last:
            return order[: len(order) // ranks * ranks]
        # Filled up from the beginning: DDP would wait for ever for a rank with a batch less.
        return np.resize(order, -(-len(order) // ranks) * ranks) if len(order) % ranks else order

    def __iter__(self) -> Iterator[int]:
        order, ranks = self.shown(self.epoch), self.num_replicas
        mine = order[self.rank :: ranks].tolist()
        if self._plan is None or self._num_views < 2:
            return iter(mine)
        # Counted over all ranks, so that who shows which view does not depend on their number.
        repeats = _occurrences(order)[self.rank :: ranks].tolist()
        views = ((self.epoch + repeat) % self._num_views for repeat in repeats)
        return iter([ExampleView(*pair) for pair in zip(mine, views, strict=True)])  # type: ignore[misc]

    def __len__(self) -> int:
        if self._plan is None:
            total = self.num_examples
        else:
            total = len(self._plan(self.epoch)) if self._plan_length is None else self._plan_length
        return total // self.num_replicas if self.drop_last else -(-total // self.num_replicas)


def _occurrences(order: np.ndarray) -> np.ndarray:
    """Return how many times each element came before: ``[4, 7, 4, 4]`` -> ``[0, 0, 1, 2]``."""
    # Stable, so that equal elements keep their order and are counted in it.
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    first = np.searchsorted(ordered, ordered, side="left")
    counts = np.empty_like(order)
    counts[by_value] = np.arange(len(order)) - first
    return counts


class Examples(NamedTuple):
    """Which examples the rows of a batch are.

    Attributes:
        positions: int64 ``[B]`` on the CPU, indices into the train dataset (or ids, where a batch key holds them).
        views: int64 ``[B]`` on the CPU, view numbers; -1 where the augmentation is not a known view.
    """

    positions: torch.Tensor
    views: torch.Tensor

    def rows(self, start: int, stop: int) -> Examples:
        """Return the examples of rows ``start`` to ``stop``."""
        return Examples(self.positions[start:stop], self.views[start:stop])


def views_of_loader(loader: Any) -> ViewPolicy | None:
    """Return the views that a train DataLoader shows, as far as they are declared or its sampler has found them."""
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, TrackedBatchSampler):
        return sampler.view_policy
    return declared_views(getattr(loader, "dataset", None))


class TrackedBatchSampler(DistributedSampler):
    """A batch sampler that records what it yields and adds view numbers for datasets that take them.

    The epoch is passed on to the sampler and the dataset inside.

    Args:
        batch_sampler: Yields lists of positions; keeps deciding which.
        dataset: The dataset of the loader; its views (see :func:`~reuse_algos.data.views.views_of`) decide what each
            epoch shows, and its ``set_epoch`` (if any) is called with the epoch.
        collate: The loader's ``collate_fn``, which may augment as well. Default: None, which is not looked at.

    Attributes:
        held: What is remembered of a few examples
            (:class:`~reuse_algos.data.examples.held_examples.HeldExamples`); None before a training starts.
    """

    def __init__(
        self, batch_sampler: Iterable[Sequence[int]], dataset: object, collate: Callable[[list[Any]], Any] | None = None
    ) -> None:
        # A DistributedSampler, because Composer calls set_epoch only on one that it finds as dataloader.batch_sampler
        # or .sampler.
        super().__init__(
            range(1),  # type: ignore[arg-type]  # the length of this class is that of the batch sampler inside
            num_replicas=dist.get_world_size(),
            rank=dist.get_global_rank(),
        )
        self.batch_sampler = batch_sampler
        self.view_policy = views_of(dataset, collate)
        self._takes_views = declared_views(dataset) is not None
        self._dataset_set_epoch = getattr(dataset, "set_epoch", None)
        self._record: list[Examples] = []
        self.held: Any = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of everything below."""
        self.epoch = epoch
        # Composer reaches this object only; samplers of users wait for the epoch further inside.
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
            # Recorded when it is handed out: workers fetch ahead, so batches are looked up by number and not as the
            # last one.
            record.append(Examples(torch.tensor(positions), torch.tensor(views)))
            if not self._takes_views:
                yield indices
            else:
                yield [ExampleView(*pair) for pair in zip(positions, views, strict=True)]  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.batch_sampler)  # type: ignore[arg-type]

    def steer(self, plan: Plan, *, num_examples: int, length: int, seed: int) -> int:
        """Let a plan choose what every epoch shows, in batches of the same size as before.

        An :class:`EpochSampler` inside gets the plan; a standard random, sequential or distributed sampler inside is
        replaced by one. What the plan leaves out is never loaded.

        Args:
            plan: Epoch -> positions over all ranks, the same on every rank.
            num_examples: Length of the dataset.
            length: How many positions the plan gives in every epoch.
            seed: Of an ``EpochSampler`` that is put in.

        Returns:
            Number of examples of a batch over all ranks.

        Raises:
            ExampleIdError: The order is decided by a sampler of another kind, or no batch would be left.
        """
        batches = self.batch_sampler
        if type(batches) is not BatchSampler:
            raise ExampleIdError(
                f"batches are made by a {type(batches).__name__}, whose choice of examples cannot be taken over. Give "
                "the DataLoader batch_size and shuffle (or an EpochSampler), and no batch_sampler."
            )
        # A plan gives whole epochs, so the sampler below must be one whose order can be replaced.
        sampler = _steerable(batches.sampler, num_examples, batches.drop_last, seed)
        views = 0 if self.view_policy is None else self.view_policy.num_views
        sampler.steer(plan, length=length, num_views=views)
        self.batch_sampler = batches_of(sampler, batches.batch_size, batches.drop_last)
        return batches.batch_size * sampler.num_replicas

    def examples(self, batch_in_epoch: int) -> Examples:
        """Return the examples of the batch with this number in the current epoch.

        Raises:
            ExampleIdError: The batch has not been handed out.
        """
        if not 0 <= batch_in_epoch < len(self._record):
            raise ExampleIdError(
                f"batch {batch_in_epoch} of the epoch was never handed out by the batch sampler (it handed out "
                f"{len(self._record)}). Something other than the Trainer iterates this DataLoader, or the dataset "
                "resumes by itself in mid-epoch; give the ids in the batch instead (id_key)."
            )
        return self._record[batch_in_epoch]


def batches_of(sampler: EpochSampler, batch_size: int, drop_last: bool) -> BatchSampler:
    """Return the batches of a steered sampler.

    Args:
        sampler: Decides which examples an epoch shows.
        batch_size: Examples of a batch on each rank.
        drop_last: Leave out a last batch that is smaller.

    Raises:
        ExampleIdError: No batch would be left.
    """
    if drop_last and len(sampler) < batch_size:
        raise ExampleIdError(
            f"an epoch of {len(sampler)} examples on each of {sampler.num_replicas} ranks has no full batch of "
            f"{batch_size}, and drop_last leaves all else out. Keep more examples, or make the batches smaller."
        )
    return BatchSampler(sampler, batch_size, drop_last)


def _steerable(sampler: object, num_examples: int, drop_last: bool, seed: int) -> EpochSampler:
    """Return the sampler itself where it can be steered, or one that stands for it."""
    advice = "Use DataLoader(shuffle=True), a DistributedSampler or an EpochSampler over the whole dataset."
    if isinstance(sampler, EpochSampler):
        return sampler
    if type(sampler) not in (RandomSampler, SequentialSampler, DistributedSampler):
        raise ExampleIdError(
            f"the order of the examples is decided by a {type(sampler).__name__}, which cannot be steered. {advice}"
        )
    if isinstance(sampler, RandomSampler) and (sampler.replacement or sampler.num_samples != num_examples):
        raise ExampleIdError(f"the RandomSampler draws with replacement or another number of examples. {advice}")
    if isinstance(sampler, DistributedSampler):
        if len(sampler.dataset) != num_examples:  # type: ignore[arg-type]
            raise ExampleIdError(f"the DistributedSampler was made for another dataset. {advice}")
        return EpochSampler(
            num_examples,
            seed=seed,
            drop_last=sampler.drop_last,
            num_replicas=sampler.num_replicas,
            rank=sampler.rank,
        )
    if dist.get_world_size() > 1:
        raise ExampleIdError(
            f"a {type(sampler).__name__} shows every rank all examples. Use DataLoader(sampler=EpochSampler(...)) or a "
            "DistributedSampler."
        )
    return EpochSampler(num_examples, seed=seed, drop_last=drop_last)
