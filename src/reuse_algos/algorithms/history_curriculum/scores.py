"""Where the scores of the examples come from, and what makes them unusable.

Shapes: N training examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reuse_algos.algorithms.history_curriculum.plans import Purpose, generator
from reuse_algos.algorithms.history_curriculum.strategies import Strategy
from reuse_algos.archive import PriorRun
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.text import example_lengths
from reuse_algos.errors import DataError, nearest
from reuse_algos.priors.scores.run_scores import SCORES, ScoreSpec, prior_scores
from reuse_algos.sections import fit_section

LOSS_SCORES = ("loss", "loss_mean")
"""Scores that losses of the running model can go on from."""

Scores = ScoreSpec | torch.Tensor | str
"""Read from prior runs, given, ``random`` or ``length``."""

_WITHOUT_RUNS = ("random", "length")


@dataclass(frozen=True)
class Score:
    """The score that examples go by.

    Attributes:
        name: One of :data:`~reuse_algos.priors.scores.run_scores.SCORES`. Default: the strategy's own.
        epoch: Whole epochs that the prior runs had trained, see
            :class:`~reuse_algos.priors.scores.run_scores.ScoreSpec`. Default: the last one, or all.
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
        """Return what is asked of the prior runs."""
        if self.name in _WITHOUT_RUNS:
            raise ValueError(f"{self.name} reads no run and has no settings: write score: {self.name}")
        known = (*SCORES, *_WITHOUT_RUNS)
        if self.name is not None and self.name not in known:
            raise ValueError(f"there is no score {self.name!r}.{nearest(self.name, known)}")
        return ScoreSpec(default if self.name is None else self.name, self.epoch, self.aggregate)


def read_score(score: str | Mapping[str, Any] | Score | torch.Tensor | None, default: str) -> tuple[Scores, bool]:
    """Return where scores come from, and whether they are shuffled.

    Args:
        score: The name of a score, ``random``, ``length``, a section, or the scores themselves; None: the default.
        default: The score where none is named.

    Raises:
        ValueError: A name or key is unknown.
    """
    if isinstance(score, torch.Tensor):
        return score, False
    if isinstance(score, str) and score in _WITHOUT_RUNS:
        return score, False
    section: Score = fit_section(Score, {"name": score} if isinstance(score, str) else score or {}, "score")
    return section.spec(default), section.shuffled


def goes_on(score: Scores, strategy: Strategy) -> bool:
    """Return whether this run's own losses take the place of the scores after each epoch.

    Args:
        score: From :func:`read_score`.
        strategy: Its ``update`` may ask for it; by default it does where it knows how and the score is a loss.

    Raises:
        ValueError: It is asked for, and the score is something other than a loss.
    """
    wanted = getattr(strategy, "update", None)
    from_losses = isinstance(score, ScoreSpec) and score.name in LOSS_SCORES and score.aggregate == "mean"
    if wanted is None:
        return strategy.updates and from_losses
    if wanted and not (from_losses or isinstance(score, torch.Tensor)):
        raise ValueError(
            "HistoryCurriculum: update: true goes on with this run's losses, so the score must be one of "
            f"{', '.join(LOSS_SCORES)} (aggregate: mean). Choose one of them, or say update: false"
        )
    return wanted


def find_scores(
    score: Scores,
    runs: Sequence[PriorRun],
    info: DatasetInfo,
    strategy: Strategy,
    dataset: Any,
    *,
    seed: int,
    mismatch: str,
) -> torch.Tensor:
    """Return the score of each example: float64 ``[N]``, higher is harder, NaN where it is not known.

    Args:
        score: From :func:`read_score`.
        runs: Prior runs to read from.
        info: The train data.
        strategy: What the scores are for.
        dataset: The train dataset, which is asked for the lengths of its texts.
        seed: Of random numbers.
        mismatch: ``refuse`` or ``allow`` runs on other data.

    Raises:
        DataError: Scores are infinite, of another number of examples, or negative where they must not be.
        SignalNotFoundError, PriorRunMismatchError: A run cannot give them.
    """
    if isinstance(score, ScoreSpec):
        values_N = prior_scores(runs, score, info, mismatch=mismatch)
    elif isinstance(score, torch.Tensor):
        values_N = score.detach().to("cpu", torch.float64)
        if values_N.shape != (info.num_examples,):
            raise DataError(f"scores of shape {tuple(values_N.shape)} were given for {info.num_examples} examples.")
    elif score == "length":
        values_N = example_lengths(dataset, info.num_examples)
    else:
        values_N = torch.from_numpy(generator(seed, Purpose.RANDOM_SCORES).random(info.num_examples))
    # Infinity stands for "unknown, but kept" in the plans.
    if bool(torch.isinf(values_N).any()):
        raise DataError("some scores are infinite: the prior run diverged on them. Choose another run or score.")
    if strategy.in_proportion and bool((values_N < 0).any()):
        raise DataError(
            f"{strategy.name} shows examples in proportion to their score, and some scores are negative "
            f"({float(values_N[values_N < 0].min()):.4g}). Choose another score, such as loss, or strategy: prune."
        )
    return values_N


def score_owners(scores_N: np.ndarray, seed: int) -> np.ndarray:
    """Return whose score each example gets in the control ``shuffled``: int64 ``[N]``."""
    # Only among examples with a score, so that as many are shown as with their own scores.
    known = np.flatnonzero(~np.isnan(scores_N))
    owner_N = np.arange(len(scores_N))
    owner_N[known] = generator(seed, Purpose.SHUFFLED_SCORES).permutation(known)
    return owner_N
