"""The strategies of HistoryCurriculum as sections: one dataclass with its own settings for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from reuse_algos.algorithms.history_curriculum.pacing import PACINGS
from reuse_algos.algorithms.history_curriculum.plans import Candidates, window
from reuse_algos.algorithms.history_curriculum.strategies import (
    BiasPlanner,
    GrowthPlanner,
    KeepPlanner,
    Planner,
    PrunePlanner,
)
from reuse_algos.priors.run_scores import ScoreSpec
from reuse_algos.training.window import Window

__all__ = ["LOSS_SCORES", "ActiveBias", "Curriculum", "DynamicPrune", "Focus", "Prune", "Score", "Strategy", "Subset"]

LOSS_SCORES = ("loss", "loss_mean")
"""Scores that losses of the running model can go on from."""


@dataclass(frozen=True)
class Score:
    """The score that examples go by.

    Attributes:
        name: One of :data:`~reuse_algos.priors.run_scores.SCORES`. Default: the strategy's own.
        epoch: Whole epochs that the prior runs had trained; see :class:`~reuse_algos.priors.run_scores.ScoreSpec`.
            Default: the last one, or all.
        aggregate: ``mean`` of the runs' values, or of their ``rank`` from 0 to 1. Default: ``mean``.
        shuffled: Whether every example gets the score of another one: a control. Default: false.
    """

    name: str | None = None
    epoch: int | None = None
    aggregate: str = "mean"
    shuffled: bool = False

    def __post_init__(self) -> None:
        self.spec("loss")  # raises where one of them is unknown

    def spec(self, default: str) -> ScoreSpec:
        """Return what is asked of the prior runs.

        Args:
            default: The score where none is named.
        """
        return ScoreSpec(default if self.name is None else self.name, self.epoch, self.aggregate)


class Strategy:
    """What HistoryCurriculum asks of every strategy.

    Attributes:
        name: How a recipe calls it.
        default_score: The score that it goes by where none is named.
        in_proportion: Whether scores are used as weights, and so must not be negative.
        weights_losses: Whether losses of examples may weigh differently.
        needs_labels: Whether the class of each example counts.
        when: The part of training in which it is on where ``when`` is not given.
        updates: Whether it can go on with this run's own losses.
    """

    name: ClassVar[str]
    default_score: ClassVar[str]
    in_proportion: ClassVar[bool] = False
    when: ClassVar[Window] = Window()
    updates: ClassVar[bool] = False
    weights_losses: bool = False
    needs_labels: bool = False

    def build(self, found: Candidates, labels_N: np.ndarray | None, *, update: bool = False) -> Planner:
        """Return what plans the epochs.

        Args:
            found: The scores at the start.
            labels_N: Int64, needed where :attr:`needs_labels`.
            update: Whether the scores will follow the losses of the run. Default: False.

        Raises:
            ValueError: More examples are to be kept than there are.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Curriculum(Strategy):
    """The allowed part of the ordered data grows (Wu et al. 2021, arXiv 2012.03107).

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

    def build(self, found: Candidates, labels_N: np.ndarray | None, *, update: bool = False) -> Planner:
        """Return what plans the epochs."""
        del found, update
        labels_N = labels_N if self.class_balance else None
        return GrowthPlanner(self.order, self.pacing, self.start_fraction, self.full_data_at, labels_N)


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

    def build(self, found: Candidates, labels_N: np.ndarray | None, *, update: bool = False) -> Planner:
        """Return what plans the epochs."""
        del update
        return self._part(found, labels_N, "hard", 0.0)

    def _part(self, found: Candidates, labels_N: np.ndarray | None, end: str, offset: float) -> KeepPlanner:
        pool, keep = len(found.pool), 0.7 if self.keep is None else self.keep
        count = max(1, round(keep * pool)) if self.examples is None else int(self.examples)
        skip = round(offset * pool)
        # keep and offset may be everything together, and both may be rounded up.
        if self.examples is None and keep + offset <= 1 + 1e-9:
            skip = min(skip, pool - count)
        window(found, 0, count, end=end, skip=skip)  # raises where it reaches beyond the data
        return KeepPlanner(count, end, skip, labels_N if self.class_balance else None)


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
    end: str = "hard"
    offset: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("end", self.end, ("hard", "easy"))
        _in_range("offset", self.offset, 0 <= self.offset < 1, "at least 0 and below 1")

    def build(self, found: Candidates, labels_N: np.ndarray | None, *, update: bool = False) -> Planner:
        """Return what plans the epochs."""
        del update
        return self._part(found, labels_N, self.end, self.offset)


@dataclass(frozen=True)
class DynamicPrune(Strategy):
    """Some easy examples are left out in turn, the others weigh more (Qin et al. 2024, arXiv 2303.04947).

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

    def build(self, found: Candidates, labels_N: np.ndarray | None, *, update: bool = False) -> Planner:
        """Return what plans the epochs."""
        del labels_N
        dropped = PrunePlanner.count_dropped(found, self.prune_rate, easy_share=self.easy_share, scores_move=update)
        return PrunePlanner(self.prune_rate, self.rescale, dropped, self.easy_share)


@dataclass(frozen=True)
class ActiveBias(Strategy):
    """Uncertain examples more often, or with more weight (Chang et al. 2017, arXiv 1704.07433).

    Attributes:
        mode: ``sampling`` or ``weighting``. Default: ``sampling``.
        smoothing: Constant added to every score, at least 0. Default: the mean score.
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

    def build(self, found: Candidates, labels_N: np.ndarray | None, *, update: bool = False) -> Planner:
        """Return what plans the epochs."""
        del found, labels_N, update
        return BiasPlanner(self.mode, self.smoothing)


@dataclass(frozen=True)
class Focus(Strategy):
    """Examples are drawn in proportion to their score.

    Attributes:
        smoothing: Constant added to every score, at least 0. Default: 0.
    """

    name: ClassVar[str] = "focus"
    default_score: ClassVar[str] = "loss"
    in_proportion: ClassVar[bool] = True
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        _in_range("smoothing", self.smoothing, self.smoothing >= 0, "at least 0")

    def build(self, found: Candidates, labels_N: np.ndarray | None, *, update: bool = False) -> Planner:
        """Return what plans the epochs."""
        del found, labels_N, update
        return BiasPlanner("sampling", self.smoothing)


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def _in_range(key: str, value: float | None, good: bool, wanted: str) -> None:
    if not good:
        raise ValueError(f"{key} must be {wanted}, got {value}")
