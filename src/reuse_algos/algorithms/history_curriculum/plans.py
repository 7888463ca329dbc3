"""From scores to the order and weights of an epoch: pure functions of scores, seed and epoch, which strategies share.

The order of an epoch is the order over all ranks, so every rank that computes it from the same scores has the same one.
Whatever is drawn comes from ``numpy``'s generator seeded by (seed, purpose, epoch).

Shapes: N examples of the dataset, M positions that an epoch shows (the same number in every epoch).
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np


class Purpose(IntEnum):
    """What a generator is for: two kinds of draws never share one."""

    TIES = 0
    SHUFFLE = 1
    POOL = 2
    DRAW = 3
    DROP = 4
    RANDOM_ORDER = 5
    RANDOM_SCORES = 6
    SHUFFLED_SCORES = 7


def generator(seed: int, purpose: Purpose, epoch: int = 0) -> np.random.Generator:
    """Return the generator of one purpose in one epoch."""
    return np.random.default_rng([seed % 2**63, purpose, epoch])


class EpochPlan(NamedTuple):
    """One epoch.

    Attributes:
        order_M: int64 positions over all ranks, in the order in which they are shown.
        in_use_M: float64 share of the N examples that may be shown at each place of the order.
        weights_N: float64 weights of the examples' losses, None where all are 1.
        dropped_above_mean: Share of the examples that this epoch drops whose score is at or above the mean; None where
            none is dropped.
    """

    order_M: np.ndarray
    in_use_M: np.ndarray
    weights_N: np.ndarray | None = None
    dropped_above_mean: float | None = None

    def changes(self, num_examples: int) -> bool:
        """Return whether this is anything other than every one of N examples once with weight 1."""
        if self.weights_N is not None and bool(np.any(np.abs(self.weights_N[self.order_M] - 1) > 1e-12)):
            return True
        return len(self.order_M) != num_examples or len(np.unique(self.order_M)) != num_examples


class Candidates(NamedTuple):
    """Scores of the examples with those that have none filled in as asked.

    Attributes:
        scores_N: float64; +inf for an unknown example that is to be kept, NaN for one that is never shown.
        labels_N: int64, the class of each example; None where it is not known.
    """

    scores_N: np.ndarray
    labels_N: np.ndarray | None = None

    @property
    def pool(self) -> np.ndarray:
        """Positions that may be shown, ascending."""
        return np.flatnonzero(~np.isnan(self.scores_N))

    @property
    def finite(self) -> np.ndarray:
        """The scores, those of unknown examples as high as the highest known one."""
        known = self.scores_N[np.isfinite(self.scores_N)]
        top = known.max() if len(known) else 1.0
        return np.where(np.isposinf(self.scores_N), top, self.scores_N)


def candidates(scores_N: np.ndarray, unknown: str, labels_N: np.ndarray | None = None) -> Candidates:
    """Fill in examples without a score.

    Args:
        scores_N: float64, NaN where not known.
        unknown: ``keep`` (harder than all others: always kept, never thinned out), ``drop`` (never shown) or
            ``median`` (the median of the known scores).
        labels_N: int64, the class of each example. Default: not known.
    """
    filled_N = np.array(scores_N, dtype=np.float64)
    missing_N = np.isnan(filled_N)
    if unknown == "keep":
        filled_N[missing_N] = np.inf
    elif unknown == "median" and not missing_N.all():
        filled_N[missing_N] = np.median(filled_N[~missing_N])
    return Candidates(filled_N, labels_N)


def difficulty_order(found: Candidates, seed: int, labels_N: np.ndarray | None = None) -> np.ndarray:
    """Return positions from the lowest to the highest score, int64; ties in an order drawn from the seed.

    Args:
        found: The scores; those that are NaN are left out.
        seed: Of the ties.
        labels_N: int64; with labels the order is balanced: each beginning and each end of it holds every class in
            proportion, as near as whole numbers allow. Default: not balanced.

    >>> difficulty_order(candidates(np.array([0.3, 0.1, 0.2]), "keep"), seed=0)
    array([1, 2, 0])
    """
    # Shuffled before the stable sort: positions of a dataset are often sorted by class, and ties would follow that.
    shuffled = generator(seed, Purpose.TIES).permutation(found.pool)
    order = shuffled[np.argsort(found.scores_N[shuffled], kind="stable")]
    if labels_N is None:
        return order
    # The rank of an example within its own class, from 0 to 1, is what the classes are merged by.
    rank = np.empty(len(order))
    labels = labels_N[order]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(rank, kind="stable")]


def window(
    found: Candidates,
    seed: int,
    count: int,
    *,
    end: str = "hard",
    skip: int = 0,
    labels_N: np.ndarray | None = None,
) -> np.ndarray:
    """Return what static pruning keeps, int64, ascending: ``count`` examples from one end, after ``skip`` at that end.

    Paul et al. 2021, "Deep Learning on a Data Diet" (arXiv 2107.07075), sections 3 and 4.2. Unknown examples that are
    to be kept are among the ``count`` (all of them, even if they are more) and the window is taken of the others.

    Args:
        found: The scores.
        seed: Of ties.
        count: How many to keep.
        end: ``hard`` or ``easy``. Default: ``hard``.
        skip: How many to leave out at that end. Default: 0.
        labels_N: int64, for a part that is balanced by class. Default: not balanced.

    Raises:
        ValueError: The window reaches beyond the data.

    >>> window(candidates(np.array([0.3, 0.1, 0.2]), "keep"), seed=0, count=2, end="easy")
    array([1, 2])
    """
    # An infinite score marks an example of unknown score, which stays whatever the window is.
    unknown = np.flatnonzero(np.isposinf(found.scores_N))
    known = Candidates(np.where(np.isposinf(found.scores_N), np.nan, found.scores_N))
    order = difficulty_order(known, seed, labels_N)
    if end == "hard":
        order = order[::-1]
    wanted = max(0, count - len(unknown))
    if skip + wanted > len(order):
        raise ValueError(
            f"{wanted} examples after the first {skip} are to be kept, but only {len(order)} have a score. Make keep, "
            "examples or offset smaller"
        )
    kept = order[skip : skip + wanted]
    if labels_N is not None and wanted:
        kept = _with_every_class(kept, order[skip:], labels_N)
    return np.sort(np.concatenate([unknown, kept])).astype(np.int64)


def _with_every_class(kept: np.ndarray, order: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Return the kept positions with one of each class: rare classes have no share that rounds to an example."""
    classes = np.unique(labels_N[order])
    if len(classes) > len(kept):
        raise ValueError(
            f"class_balance: {len(classes)} classes cannot all be kept in {len(kept)} examples. Make keep or examples "
            "larger, or class_balance false"
        )
    for label in classes[~np.isin(classes, labels_N[kept])]:
        # The last example of the class with the most of them makes room.
        counts = np.bincount(labels_N[kept])
        crowded = np.flatnonzero(labels_N[kept] == counts.argmax())[-1]
        kept = np.append(np.delete(kept, crowded), order[labels_N[order] == label][0])
    return kept


def passes(pool: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``length`` elements of a pool: shuffled passes through it, one after the other.

    >>> sorted(passes(np.arange(3), 6, np.random.default_rng(0)).tolist())
    [0, 0, 1, 1, 2, 2]
    """
    rounds = -(-length // len(pool))
    return np.concatenate([rng.permutation(pool) for _ in range(rounds)])[:length]


def plan_of_all(found: Candidates, turn: int, length: int, seed: int) -> EpochPlan:
    """Return an epoch that shows all examples, or as many as fit: shuffled passes that go over the ends of epochs.

    Args:
        found: The scores; examples that are never shown are left out.
        turn: How many such epochs came before.
        length: Positions of an epoch.
        seed: Of the shuffling.
    """
    # A pass goes on where the last such epoch ended, so every example has been shown as often as any other, give or
    # take one, also where an epoch is shorter than the data.
    pool, start = found.pool, turn * length
    first, offset = divmod(start, len(pool))
    rounds = -(-(offset + length) // len(pool))
    order = np.concatenate([generator(seed, Purpose.POOL, first + i).permutation(pool) for i in range(rounds)])
    return EpochPlan(order[offset : offset + length], np.full(length, len(pool) / len(found.scores_N)))


def draw_in_proportion(weights: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``length`` indices in random order, each in proportion to its weight.

    Systematic sampling (Madow 1949): index i comes ``floor`` or ``ceil`` of ``length * w_i / sum(w)`` times.

    Args:
        weights: float64 >= 0, not all 0.
        length: Number of draws.
        rng: Drawn from.

    >>> sorted(draw_in_proportion(np.array([1.0, 3.0]), 4, np.random.default_rng(0)).tolist())
    [0, 1, 1, 1]
    """
    # The probabilities of independent draws with less noise: with equal weights and as many draws as indices, each
    # comes once. Mixed first, as neighbours in the order exclude each other.
    mixed = rng.permutation(len(weights))
    ends = np.cumsum(weights[mixed])
    marks = (rng.random() + np.arange(length)) * (ends[-1] / length)
    drawn = mixed[np.minimum(np.searchsorted(ends, marks, side="right"), len(mixed) - 1)]
    return rng.permutation(drawn)


def merge_losses(prior_N: np.ndarray, own_N: np.ndarray) -> np.ndarray:
    """Return this run's own losses, and for examples that it has not shown yet the prior ones on the same scale.

    Prior losses are multiplied by (mean own / mean prior) over the examples that have both.

    Args:
        prior_N: float64, NaN where not known.
        own_N: float64, NaN where not shown yet.

    Returns:
        float64 ``[N]``, NaN where neither is known.

    >>> merge_losses(np.array([0.2, 0.4]), np.array([1.0, np.nan]))
    array([1., 2.])
    """
    # Losses of the end of an earlier run are far below those of the start of this one.
    both_N = ~np.isnan(own_N) & ~np.isnan(prior_N)
    scale = 1.0
    if both_N.any() and prior_N[both_N].mean() > 0:
        scale = own_N[both_N].mean() / prior_N[both_N].mean()
    return np.where(np.isnan(own_N), scale * prior_N, own_N)
