"""The strategies of HistoryCurriculum: one section each, with how it chooses examples, epoch by epoch.

Shapes: N examples of the dataset, M positions that an epoch shows (the same number in every epoch).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from reuse_algos.algorithms.history_curriculum.pacing import PACINGS, allowed_examples
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
from reuse_algos.training.window import Window


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


class Strategy:
    """What HistoryCurriculum asks of every strategy.

    Attributes:
        name: How a recipe calls it.
        default_score: The score that it goes by where none is named.
        in_proportion: Whether scores are used as weights, and so must not be negative.
        when: The part of training in which it is on where ``when`` is not given.
        updates: Whether it can go on with this run's own losses.
        weights_losses: Whether losses of examples may weigh differently.
        needs_labels: Whether the class of each example counts.
    """

    name: ClassVar[str]
    default_score: ClassVar[str]
    in_proportion: ClassVar[bool] = False
    when: ClassVar[Window] = Window()
    updates: ClassVar[bool] = False
    weights_losses: bool = False
    needs_labels: bool = False

    def length(self, found: Candidates, *, update: bool = False) -> int:
        """Return M, how many examples every epoch shows.

        Args:
            found: The scores at the start.
            update: Whether the scores will follow the losses of the run. Default: False.

        Raises:
            ValueError: More examples are to be kept than there are.
        """
        return len(found.scores_N)

    def plan(self, epoch: int, found: Candidates, length: int, clock: Clock, seed: int) -> EpochPlan:
        """Return one epoch.

        Args:
            epoch: Its number.
            found: The scores of now.
            length: M, from :meth:`length` at the start.
            clock: How long training is.
            seed: Of everything that is drawn.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Curriculum(Strategy):
    """The allowed part of the ordered data grows (Wu et al. 2021, arXiv 2012.03107, algorithm 1).

    The allowed part is shuffled and gone through once; then its size is looked up again. At least one batch of examples
    is always allowed.

    Attributes:
        order: ``easy_first``, ``hard_first`` or ``random`` (the control). Default: ``easy_first``.
        pacing: ``linear``, ``quadratic``, ``root``, ``step``, ``exponential`` or ``logarithmic``. Default: ``linear``.
        start_fraction: Share of the data allowed at the start, from 0 to 1. Default: 0.2.
        full_data_at: Share of training until all data is allowed, at least 0. Default: 0.8.
        class_balance: Whether every class comes in proportion. Default: false.
    """

    name: ClassVar[str] = "curriculum"
    default_score: ClassVar[str] = "loss"
    order: str = "easy_first"
    pacing: str = "linear"
    start_fraction: float = 0.2
    full_data_at: float = 0.8
    class_balance: bool = False

    def __post_init__(self) -> None:
        _one_of("order", self.order, ("easy_first", "hard_first", "random"))
        _one_of("pacing", self.pacing, PACINGS)
        _in_range("start_fraction", self.start_fraction, 0 <= self.start_fraction <= 1, "from 0 to 1")
        _in_range("full_data_at", self.full_data_at, self.full_data_at >= 0, "at least 0")

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        """Whether the class of each example counts."""
        return self.class_balance

    def plan(self, epoch: int, found: Candidates, length: int, clock: Clock, seed: int) -> EpochPlan:
        """Return passes through the allowed part."""
        if self.order == "random":
            order = generator(seed, Purpose.RANDOM_ORDER).permutation(found.pool)
        else:
            order = difficulty_order(found, seed, found.labels_N if self.class_balance else None)
        if self.order == "hard_first":
            order = order[::-1]
        rng = generator(seed, Purpose.SHUFFLE, epoch)
        # Each epoch starts with a fresh pass, so that it is an ordinary epoch once all data is allowed.
        parts, in_use_M, start = [], np.empty(length), 0
        while start < length:
            step = epoch * clock.epoch_batches + start // clock.batch_size
            share = {"start_fraction": self.start_fraction, "full_data_at": self.full_data_at}
            size = allowed_examples(self.pacing, step, clock.total_batches, len(order), **share)
            size = max(size, min(clock.batch_size, len(order)))
            parts.append(rng.permutation(order[:size])[: length - start])
            in_use_M[start : start + size] = size / len(found.scores_N)
            start += size
        return EpochPlan(np.concatenate(parts), in_use_M)


@dataclass(frozen=True)
class Subset(Strategy):
    """The examples that earlier models disagree on (Chitta et al. 2019, arXiv 1905.12737); shorter epochs.

    Attributes:
        keep: Share of the examples to keep, above 0 and at most 1. Default: 0.7.
        examples: How many to keep, at least 1, instead of ``keep``. Default: ``keep`` counts.
        class_balance: Whether every class comes in proportion. Default: false.
    """

    name: ClassVar[str] = "subset"
    default_score: ClassVar[str] = "variation_ratio"
    end: ClassVar[str] = "hard"
    offset: ClassVar[float] = 0.0
    keep: float | None = None
    examples: int | None = None
    class_balance: bool = False

    def __post_init__(self) -> None:
        _in_range("keep", self.keep, self.keep is None or 0 < self.keep <= 1, "above 0 and at most 1")
        _in_range("examples", self.examples, self.examples is None or self.examples >= 1, "at least 1")
        if self.keep is not None and self.examples is not None:
            raise ValueError("give keep (a share) or examples (a number), not both")

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        """Whether the class of each example counts."""
        return self.class_balance

    def length(self, found: Candidates, *, update: bool = False) -> int:
        """Return as many as are kept."""
        self._kept(found, 0)  # raises where it reaches beyond the data
        # Unknown examples that are to be kept come on top where they are more than that.
        return max(self._part(found)[0], int(np.isposinf(found.scores_N).sum()))

    def plan(self, epoch: int, found: Candidates, length: int, clock: Clock, seed: int) -> EpochPlan:
        """Return the kept part, shuffled."""
        order = passes(self._kept(found, seed), length, generator(seed, Purpose.SHUFFLE, epoch))
        return EpochPlan(order, np.full(length, length / len(found.scores_N)))

    def _part(self, found: Candidates) -> tuple[int, int]:
        """Return how many examples are kept, and how many are skipped at the end that they are taken from."""
        pool, keep = len(found.pool), 0.7 if self.keep is None else self.keep
        count = max(1, round(keep * pool)) if self.examples is None else int(self.examples)
        skip = round(self.offset * pool)
        # keep and offset may be everything together, and both may be rounded up.
        if self.examples is None and keep + self.offset <= 1 + 1e-9:
            skip = min(skip, pool - count)
        return count, skip

    def _kept(self, found: Candidates, seed: int) -> np.ndarray:
        count, skip = self._part(found)
        labels_N = found.labels_N if self.class_balance else None
        return window(found, seed, count, end=self.end, skip=skip, labels_N=labels_N)


@dataclass(frozen=True)
class Prune(Subset):
    """A fixed part of the data, by score (Paul et al. 2021, arXiv 2107.07075); shorter epochs.

    Attributes:
        keep: Share of the examples to keep, above 0 and at most 1. Default: 0.7.
        examples: How many to keep, at least 1, instead of ``keep``. Default: ``keep`` counts.
        class_balance: Whether every class comes in proportion. Default: false.
        end: Keep from the ``hard`` or the ``easy`` end. Default: ``hard``.
        offset: Share of the examples to skip at that end, at least 0 and below 1. Default: 0.
    """

    name: ClassVar[str] = "prune"
    default_score: ClassVar[str] = "el2n"
    end: str = "hard"  # type: ignore[misc]
    offset: float = 0.0  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("end", self.end, ("hard", "easy"))
        _in_range("offset", self.offset, 0 <= self.offset < 1, "at least 0 and below 1")


@dataclass(frozen=True)
class DynamicPrune(Strategy):
    """Some easy examples are left out in turn, the others weigh more (Qin et al. 2024, "InfoBatch", arXiv 2303.04947).

    Examples whose score is below the mean are easy. In each epoch a share of them is dropped at random, and the losses
    of the other easy ones are multiplied by 1 / (1 - share). So the weighted sum over the epoch has the expectation of
    the sum over all examples (equation 5 of the paper).

    With ``easy_share`` the easy ones are that share of the examples with the lowest scores. A larger share at a smaller
    rate leaves out as many with smaller weights, so with less noise in the gradient.

    In InfoBatch ``prune_rate`` of those that are easy *now* are dropped, and epochs differ in length. Here the number
    that is dropped is fixed at the start.

    Attributes:
        prune_rate: Share of the easy examples that each epoch leaves out, at least 0 and below 1. Default: 0.5.
        easy_share: The share of the examples, lowest scores first, that count as easy, above 0 and at most 1. Default:
            those below the mean score.
        rescale: Whether the kept easy examples weigh more, so that the sum over an epoch stays unbiased. Default: true.
        update: Whether to go on with this run's own losses after each epoch. Default: where the score is a loss.
    """

    name: ClassVar[str] = "dynamic_prune"
    default_score: ClassVar[str] = "loss"
    when: ClassVar[Window] = Window(stop="0.875dur")  # as in the paper: what pruning makes noisy settles on all data
    updates: ClassVar[bool] = True
    prune_rate: float = 0.5
    easy_share: float | None = None
    rescale: bool = True
    update: bool | None = None

    def __post_init__(self) -> None:
        _in_range("prune_rate", self.prune_rate, 0 <= self.prune_rate < 1, "at least 0 and below 1")
        easy = self.easy_share is None or 0 < self.easy_share <= 1
        _in_range("easy_share", self.easy_share, easy, "above 0 and at most 1")

    @property
    def weights_losses(self) -> bool:  # type: ignore[override]
        """Whether losses of examples may weigh differently."""
        return self.rescale and self.prune_rate > 0

    def length(self, found: Candidates, *, update: bool = False) -> int:
        """Return the number of those that are neither unknown and left out, nor dropped."""
        known = int(np.isfinite(found.scores_N).sum())
        if self.easy_share is not None:
            return len(found.pool) - round(self.prune_rate * self.easy_share * known)
        easy = int(_below_mean(found.scores_N).sum())
        # Where scores move, no more than half count as easy: losses at the end of a run are skewed, with far more than
        # half of them below the mean, and losses at the start of one are not.
        return len(found.pool) - round(self.prune_rate * (min(easy, known // 2) if update else easy))

    def plan(self, epoch: int, found: Candidates, length: int, clock: Clock, seed: int) -> EpochPlan:
        """Return all but some of the easy ones, with the weights of those that are kept."""
        num_examples, pool = len(found.scores_N), found.pool
        # Fixed at the start, so that schedules in epochs hold; the share follows from the number that is easy now.
        num_dropped = len(pool) - length
        easy = self._easy(found, num_dropped, seed)
        rng = generator(seed, Purpose.DROP, epoch)
        dropped = rng.choice(easy, size=num_dropped, replace=False)
        order = rng.permutation(np.setdiff1d(pool, dropped, assume_unique=True))
        weights_N = above = None
        if self.rescale and num_dropped:
            weights_N = np.ones(num_examples)
            # Equation 5 of InfoBatch, with the share that is dropped now in place of the rate.
            weights_N[easy] = len(easy) / (len(easy) - num_dropped)
        if num_dropped:
            above = 1 - float(_below_mean(found.scores_N)[dropped].mean())
        return EpochPlan(order, np.full(length, length / num_examples), weights_N, above)

    def _easy(self, found: Candidates, num_dropped: int, seed: int) -> np.ndarray:
        """Return those that count as easy: so many that no more than ``prune_rate`` of them is dropped."""
        if self.easy_share is not None:
            known = int(np.isfinite(found.scores_N).sum())
            return np.sort(difficulty_order(found, seed)[: max(num_dropped, round(self.easy_share * known))])
        # Where too few are below the mean, the easiest others count as easy, so that the share stays within the rate.
        easy = np.flatnonzero(_below_mean(found.scores_N))
        least = min(len(found.pool), math.ceil(num_dropped / self.prune_rate)) if num_dropped else 0
        return easy if len(easy) >= least else np.sort(difficulty_order(found, seed)[:least])


@dataclass(frozen=True)
class ActiveBias(Strategy):
    """Uncertain examples more often, or with more weight (Chang et al. 2017, arXiv 1704.07433, sections 3.3 and 3.4).

    With a score s (the deviation of the true-class probability, or its closeness to the threshold), examples are drawn
    in proportion to ``s + smoothing``, or their losses weighted by that over its mean.

    Attributes:
        mode: ``sampling`` or ``weighting``. Default: ``sampling``.
        smoothing: Constant added to every score, at least 0. Default: the mean score, as in the paper.
    """

    name: ClassVar[str] = "active_bias"
    default_score: ClassVar[str] = "variance"
    in_proportion: ClassVar[bool] = True
    mode: str = "sampling"
    smoothing: float | None = None

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, ("sampling", "weighting"))
        _in_range("smoothing", self.smoothing, self.smoothing is None or self.smoothing >= 0, "at least 0")

    @property
    def weights_losses(self) -> bool:  # type: ignore[override]
        """Whether losses of examples may weigh differently."""
        return self.mode == "weighting"

    def plan(self, epoch: int, found: Candidates, length: int, clock: Clock, seed: int) -> EpochPlan:
        """Return a draw in proportion, or all examples with weights."""
        num_examples, pool = len(found.scores_N), found.pool
        scores = found.finite[pool]
        emphasis = scores + (scores.mean() if self.smoothing is None else self.smoothing)
        if emphasis.sum() <= 0:  # all scores are 0: none is preferred
            emphasis = np.ones(len(pool))
        if self.mode == "weighting":
            weights_N = np.ones(num_examples)
            weights_N[pool] = emphasis / emphasis.mean()
            order = passes(pool, length, generator(seed, Purpose.SHUFFLE, epoch))
            return EpochPlan(order, np.full(length, len(pool) / num_examples), weights_N)
        order = pool[draw_in_proportion(emphasis, length, generator(seed, Purpose.DRAW, epoch))]
        return EpochPlan(order, np.full(length, len(np.unique(order)) / num_examples))


@dataclass(frozen=True)
class Focus(ActiveBias):
    """Examples are drawn in proportion to their score.

    Attributes:
        smoothing: Constant added to every score, at least 0. Default: 0.
    """

    name: ClassVar[str] = "focus"
    default_score: ClassVar[str] = "loss"
    mode: ClassVar[str] = "sampling"  # type: ignore[misc]
    smoothing: float = 0.0


def _below_mean(scores_N: np.ndarray) -> np.ndarray:
    finite_N = np.isfinite(scores_N)
    mean = scores_N[finite_N].mean() if finite_N.any() else 0.0
    return finite_N & (scores_N < mean)


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def _in_range(key: str, value: float | None, good: bool, wanted: str) -> None:
    if not good:
        raise ValueError(f"{key} must be {wanted}, got {value}")
