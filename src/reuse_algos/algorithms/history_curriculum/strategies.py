"""The planners of the strategies: how examples are chosen, epoch by epoch.

Shapes: N examples of the dataset, M positions that an epoch shows (the same number in every epoch).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from reuse_algos.algorithms.history_curriculum.pacing import allowed_examples
from reuse_algos.algorithms.history_curriculum.plans import (
    Candidates,
    EpochPlan,
    Purpose,
    difficulty_order,
    draw_in_proportion,
    generator,
    passes,
    window,
)

__all__ = ["BiasPlanner", "Clock", "GrowthPlanner", "KeepPlanner", "Planner", "PrunePlanner"]


@dataclass(frozen=True)
class Clock:
    """How long training is, for strategies that change over time.

    Attributes:
        batch_size: Examples of a batch over all ranks.
        epoch_batches: Batches of an epoch.
        total_batches: Batches of the whole training.
    """

    batch_size: int
    epoch_batches: int
    total_batches: int

    @property
    def epochs(self) -> float:
        """Length of training in epochs."""
        return self.total_batches / self.epoch_batches


class Planner(Protocol):
    """How examples are chosen, epoch by epoch."""

    # Every epoch has the same length, as Composer's schedules reckon with one number of batches for all of them.

    def length(self, found: Candidates) -> int:
        """Return M, the number of positions in each epoch."""
        ...

    def plan(self, epoch: int, found: Candidates, length: int, clock: Clock, seed: int) -> EpochPlan:
        """Return one epoch of ``length`` positions."""
        ...


@dataclass(frozen=True)
class GrowthPlanner:
    """Easy first: the allowed part of the ordered data grows, Wu et al. 2021 (arXiv 2012.03107), algorithm 1.

    The allowed part is shuffled and gone through once; then its size is looked up again. At least one batch of examples
    is always allowed.
    """

    order: str
    pacing: str
    start_fraction: float
    full_data_at: float
    labels_N: np.ndarray | None = None

    def length(self, found: Candidates) -> int:
        """Return as many as there are examples."""
        return len(found.scores_N)

    def plan(self, epoch: int, found: Candidates, length: int, clock: Clock, seed: int) -> EpochPlan:
        """Return passes through the allowed part."""
        if self.order == "random":
            order = generator(seed, Purpose.RANDOM_ORDER).permutation(found.pool)
        else:
            order = difficulty_order(found, seed, self.labels_N)
        if self.order == "hard_first":
            order = order[::-1]
        rng = generator(seed, Purpose.SHUFFLE, epoch)
        # Each epoch starts with a fresh pass, so that it is an ordinary epoch once all data is allowed.
        parts, in_use_M, start = [], np.empty(length), 0
        while start < length:
            step = epoch * clock.epoch_batches + start // clock.batch_size
            size = allowed_examples(
                self.pacing,
                step,
                clock.total_batches,
                len(order),
                start_fraction=self.start_fraction,
                full_data_at=self.full_data_at,
            )
            size = max(size, min(clock.batch_size, len(order)))
            parts.append(rng.permutation(order[:size])[: length - start])
            in_use_M[start : start + size] = size / len(found.scores_N)
            start += size
        return EpochPlan(np.concatenate(parts), in_use_M)


@dataclass(frozen=True)
class KeepPlanner:
    """A fixed part of the data, and shorter epochs: static pruning (Data Diet) and subset search (Chitta et al.).

    Attributes:
        count: How many examples are kept, see :func:`window`.
        end: ``hard`` or ``easy``. Default: ``hard``.
        skip: How many are left out at that end. Default: 0.
        labels_N: For a part that is balanced by class.
    """

    count: int
    end: str = "hard"
    skip: int = 0
    labels_N: np.ndarray | None = None

    def length(self, found: Candidates) -> int:
        """Return as many as are kept."""
        # Unknown examples that are to be kept come on top where they are more than that.
        return max(self.count, int(np.isposinf(found.scores_N).sum()))

    def plan(self, epoch: int, found: Candidates, length: int, clock: Clock, seed: int) -> EpochPlan:
        """Return the kept part, shuffled."""
        del clock
        kept = window(found, seed, self.count, end=self.end, skip=self.skip, labels_N=self.labels_N)
        share = length / len(found.scores_N)
        return EpochPlan(passes(kept, length, generator(seed, Purpose.SHUFFLE, epoch)), np.full(length, share))


@dataclass(frozen=True)
class PrunePlanner:
    """Leave out some of the easy examples, others in each epoch; Qin et al. 2024, "InfoBatch" (arXiv 2303.04947).

    Examples whose score is below the mean are easy. In each epoch a share of them is dropped at random and the losses
    of the other easy ones are multiplied by 1 / (1 - share), so that the weighted sum over the epoch has the
    expectation of the sum over all examples (equation 5 there).

    With ``easy_share`` the easy ones are that share of the examples with the lowest scores. A larger share at a smaller
    rate leaves out as many with smaller weights, so with less noise in the gradient.

    One thing differs from InfoBatch, where ``prune_rate`` of those that are easy *now* are dropped and epochs differ in
    length. Here ``num_dropped`` is fixed at the start, so that schedules in epochs hold, and ``share`` follows from the
    number that is easy now. It is never more than ``prune_rate``: where fewer than ``num_dropped / prune_rate`` are
    below the mean, the easiest that many count as easy, some of them at or above the mean (the plan says what share of
    the dropped those are). To keep that rare where scores move, :meth:`count_dropped` takes no more than half of the
    known examples as easy: losses at the end of a run are skewed, with far more than half of them below the mean, and
    losses at the start of one are not.

    Attributes:
        prune_rate: In [0, 1).
        rescale: Whether the kept easy ones weigh more.
        num_dropped: How many each epoch leaves out, fixed at the start.
        easy_share: In (0, 1]; None: those below the mean are easy.
    """

    prune_rate: float
    rescale: bool
    num_dropped: int
    easy_share: float | None = None

    @staticmethod
    def count_dropped(
        found: Candidates, prune_rate: float, *, easy_share: float | None = None, scores_move: bool = False
    ) -> int:
        """Return ``prune_rate`` of the number of easy examples.

        Args:
            found: The scores at the start.
            prune_rate: In [0, 1).
            easy_share: In (0, 1]; None: those below the mean are easy.
            scores_move: Whether the scores will change, so that no more than half of the known examples count
                where the mean decides.
        """
        known = int(np.isfinite(found.scores_N).sum())
        if easy_share is not None:
            return round(prune_rate * easy_share * known)
        easy = int(_below_mean(found.scores_N).sum())
        return round(prune_rate * (min(easy, known // 2) if scores_move else easy))

    def length(self, found: Candidates) -> int:
        """Return the number of those that are neither unknown and left out, nor dropped."""
        return len(found.pool) - self.num_dropped

    def plan(self, epoch: int, found: Candidates, length: int, clock: Clock, seed: int) -> EpochPlan:
        """Return all but some of the easy ones, with the weights of those that are kept."""
        del clock
        num_examples, pool = len(found.scores_N), found.pool
        easy = self._easy(found, seed)
        rng = generator(seed, Purpose.DROP, epoch)
        dropped = rng.choice(easy, size=self.num_dropped, replace=False)
        order = rng.permutation(np.setdiff1d(pool, dropped, assume_unique=True))
        weights_N = None
        if self.rescale and self.num_dropped:
            weights_N = np.ones(num_examples)
            # Equation 5 of InfoBatch, with the share that is dropped now in place of the rate.
            weights_N[easy] = len(easy) / (len(easy) - self.num_dropped)
        above = None
        if self.num_dropped:
            above = 1 - float(_below_mean(found.scores_N)[dropped].mean())
        return EpochPlan(order, np.full(length, length / num_examples), weights_N, above)

    def _easy(self, found: Candidates, seed: int) -> np.ndarray:
        """Return those that count as easy: so many that no more than ``prune_rate`` of them is dropped."""
        if self.easy_share is not None:
            known = int(np.isfinite(found.scores_N).sum())
            return np.sort(difficulty_order(found, seed)[: max(self.num_dropped, round(self.easy_share * known))])
        easy = np.flatnonzero(_below_mean(found.scores_N))
        least = min(len(found.pool), math.ceil(self.num_dropped / self.prune_rate)) if self.num_dropped else 0
        return easy if len(easy) >= least else np.sort(difficulty_order(found, seed)[:least])


def _below_mean(scores_N: np.ndarray) -> np.ndarray:
    finite_N = np.isfinite(scores_N)
    mean = scores_N[finite_N].mean() if finite_N.any() else 0.0
    return finite_N & (scores_N < mean)


@dataclass(frozen=True)
class BiasPlanner:
    """Prefer uncertain examples; Chang et al. 2017, "Active Bias" (arXiv 1704.07433), sections 3.3 and 3.4.

    With a statistic s (the deviation of the true-class probability, or its closeness to the threshold), examples are
    drawn in proportion to ``s + eps`` or their losses weighted by ``(s + eps) / mean(s + eps)``. With eps 0 and the
    loss as the statistic this is the strategy ``focus``.

    Attributes:
        mode: ``sampling`` or ``weighting``.
        smoothing: eps >= 0; None: the mean of s, as in the paper.
    """

    mode: str
    smoothing: float | None = None

    def length(self, found: Candidates) -> int:
        """Return as many as there are examples."""
        return len(found.scores_N)

    def plan(self, epoch: int, found: Candidates, length: int, clock: Clock, seed: int) -> EpochPlan:
        """Return a draw in proportion, or all examples with weights."""
        del clock
        num_examples, pool = len(found.scores_N), found.pool
        statistic = found.finite[pool]
        emphasis = statistic + (statistic.mean() if self.smoothing is None else self.smoothing)
        if emphasis.sum() <= 0:  # all scores are 0: none is preferred
            emphasis = np.ones(len(pool))
        if self.mode == "weighting":
            weights_N = np.ones(num_examples)
            weights_N[pool] = emphasis / emphasis.mean()
            order = passes(pool, length, generator(seed, Purpose.SHUFFLE, epoch))
            return EpochPlan(order, np.full(length, len(pool) / num_examples), weights_N)
        order = pool[draw_in_proportion(emphasis, length, generator(seed, Purpose.DRAW, epoch))]
        return EpochPlan(order, np.full(length, len(np.unique(order)) / num_examples))
