"""What each epoch of a run shows: plans from scores that may change, and the train DataLoader that follows them.

Shapes: N training examples.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
from composer import State
from torch import Tensor

from reuse_algos.algorithms.history_curriculum.durations import (
    check_schedulers,
    epochs_of,
    refuse_single_row,
    total_batches,
)
from reuse_algos.algorithms.history_curriculum.own_losses import OwnLosses
from reuse_algos.algorithms.history_curriculum.plans import Candidates, EpochPlan, candidates, merge_losses, plan_of_all
from reuse_algos.algorithms.history_curriculum.strategies import Clock, Strategy
from reuse_algos.data.example_ids import place_stream
from reuse_algos.data.sampler import TrackedBatchSampler
from reuse_algos.data.streams.steering import SteeredStream
from reuse_algos.data.streams.streaming import StreamIds
from reuse_algos.errors import DataError
from reuse_algos.training.window import Window

log = logging.getLogger(__name__)


class Planned(NamedTuple):
    """One epoch, planned.

    Attributes:
        found: The scores that it was planned by.
        plan: Order and weights.
        changes: Whether it is anything other than every example once with weight 1.
    """

    found: Candidates
    plan: EpochPlan
    changes: bool


class Epochs:
    """The epochs of a run, all of the same length.

    Args:
        prior_N: float64, the scores of the examples; NaN where not known.
        strategy: How examples are chosen.
        labels_N: int64, where they are known.
        own: This run's own losses, which take the place of the scores; None where they do not.
        owner_N: int64, whose score each example gets; None: its own.
        when: The epochs in which the strategy is on; in the others all examples are shown in turn. Default: the
            strategy's own.
        unknown: What becomes of examples without a score: ``keep``, ``drop`` or ``median``. Default: ``keep``.
        seed: Of everything that is drawn. Default: 0.

    Attributes:
        length: Examples of an epoch over all ranks.
        clock: Batches, from :meth:`steer` on.

    Raises:
        DataError: No example is left, or labels are needed and not known.
        ValueError: The strategy is to keep more examples than there are.
    """

    def __init__(
        self,
        prior_N: np.ndarray,
        strategy: Strategy,
        labels_N: np.ndarray | None,
        own: OwnLosses | None,
        *,
        owner_N: np.ndarray | None = None,
        when: Window | None = None,
        unknown: str = "keep",
        seed: int = 0,
    ) -> None:
        self._prior_N, self._own, self._owner_N = prior_N, own, owner_N
        self._unknown, self._seed, self._labels_N = unknown, seed, labels_N
        self._when, self._on = when or strategy.when, (0, 0)
        start = self._candidates(prior_N)
        if not len(start.pool):
            raise DataError("no example has a score, and unknown: drop leaves out those without. Choose other runs.")
        if strategy.needs_labels and labels_N is None:
            raise DataError("class_balance needs the labels of the train data; give them by dataset=DatasetInfo(...).")
        # The length is fixed with the scores of the start: with update they move, and Composer needs equal epochs.
        self._strategy = strategy
        self.length = strategy.length(start, update=own is not None)
        self.clock = Clock(1, 1, 1)
        self._current: tuple[int, Planned] | None = None
        self._stream: SteeredStream | None = None

    def _candidates(self, scores_N: np.ndarray) -> Candidates:
        scores_N = scores_N if self._owner_N is None else scores_N[self._owner_N]
        return candidates(scores_N, self._unknown, self._labels_N)

    def steer(self, state: State, loader: Any) -> None:
        """Put the plans into a DataLoader, and tell Composer the length of an epoch.

        Args:
            state: At FIT_START.
            loader: Of the training, with a tracked batch sampler or over a stream with ids.

        Raises:
            ExampleIdError: Its order cannot be taken over.
            DataError: A torch scheduler reckons with epochs of another length, or a batch would have too few rows.
        """
        num_examples = len(self._prior_N)
        before, limit = len(loader), state.dataloader_len  # of before the plans shorten it
        if isinstance(loader.dataset, StreamIds):
            tracked = self._stream = SteeredStream(loader)
        else:
            tracked = loader.batch_sampler
            assert isinstance(tracked, TrackedBatchSampler)  # ExampleIds put it there
        batch_size = tracked.steer(
            lambda epoch: self.plan(epoch).plan.order_M, num_examples=num_examples, length=self.length, seed=self._seed
        )
        inner: Any = tracked.batch_sampler
        full = num_examples // batch_size if inner.drop_last else -(-num_examples // batch_size)
        batches = len(inner)
        if limit is not None and int(limit) < before:  # train_subset_num_batches
            batches, full = min(batches, int(limit)), min(full, int(limit))
        # Composer asked the loader for its length before, and schedules and durations reckon with what it has.
        state.dataloader_len = batches
        if self.length < num_examples and not inner.drop_last:
            refuse_single_row(state.model, len(inner.sampler), inner.batch_size)
        samples = min(batches * batch_size, len(inner.sampler) * inner.sampler.num_replicas)
        self.clock = Clock(batch_size, batches, total_batches(state, batches, samples, batch_size))
        self._on = epochs_of(self._when, self.clock.epochs, batches, samples)
        check_schedulers(state, batches, full)
        if self._stream is not None:
            self._stream.start(int(state.timestamp.epoch), batches)
            place_stream(state)
        log.info(
            "%s: %d of %d examples in each epoch of %d batches", self._strategy.name, self.length, num_examples, batches
        )

    def plan(self, epoch: int) -> Planned:
        """Return the plan of an epoch, from the scores of now.

        Scores change only when an epoch ends, so the plan of the running one is the same whenever it is asked for.
        """
        if self._current is None or self._current[0] != epoch:
            scores_N = self._prior_N if self._own is None else merge_losses(self._prior_N, self._own.known)
            found = self._candidates(scores_N)
            first, past = self._on
            if first <= epoch < past:
                plan = self._strategy.plan(epoch, found, self.length, self.clock, self._seed)
            else:
                # Epochs with all examples are counted by themselves, so that their passes go on where the last one
                # ended.
                plan = plan_of_all(found, epoch if epoch < first else epoch - (past - first), self.length, self._seed)
            self._current = epoch, Planned(found, plan, plan.changes(len(scores_N)))
        return self._current[1]

    def check(self, batch_in_epoch: int, positions_B: Tensor) -> None:
        """Compare a batch of this rank with the plan, where its ids come from a stream.

        Raises:
            DataError: The batch holds other examples.
        """
        if self._stream is not None:
            self._stream.check(batch_in_epoch, positions_B)

    def end_epoch(self, next_epoch: int) -> None:
        """Let the next plan go by the losses of the epoch that ends. Every rank must call this."""
        if self._own is not None:
            self._own.end_epoch()
            self._current = None
        if self._stream is not None:
            self._stream.show(next_epoch)
