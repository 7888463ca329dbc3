"""The sections of PriorRunDistillation beside the loss: the combination of teachers, where they come from, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from composer import Time, TimeUnit

from reuse_algos.algorithms.prior_run_distillation.loss.terms import mean_weights, mixup_weights, sample_weights
from reuse_algos.priors.model import ModelFactory
from reuse_algos.training.window import Window


@dataclass(frozen=True)
class Mean:
    """All teachers alike."""

    name: ClassVar[str] = "mean"

    def weights(self, num_teachers: int, rng: np.random.Generator) -> np.ndarray:
        """Return the teachers' weights for one batch, float64 ``[M]``."""
        return mean_weights(num_teachers)


@dataclass(frozen=True)
class Mixup:
    """A random convex combination of the teachers, drawn for each batch.

    Attributes:
        alpha: Concentration of the Dirichlet distribution, above 0; 1 is uniform over all combinations. Default: 1.0.
    """

    name: ClassVar[str] = "mixup"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")

    def weights(self, num_teachers: int, rng: np.random.Generator) -> np.ndarray:
        """Return the teachers' weights for one batch, float64 ``[M]``."""
        return mixup_weights(num_teachers, rng, self.alpha)


@dataclass(frozen=True)
class Sample:
    """Some of the teachers, drawn for each batch.

    Attributes:
        size: How many, at least 1. Default: 1.
    """

    name: ClassVar[str] = "sample"
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")

    def weights(self, num_teachers: int, rng: np.random.Generator) -> np.ndarray:
        """Return the teachers' weights for one batch, float64 ``[M]``."""
        return sample_weights(num_teachers, rng, self.size)


@dataclass(frozen=True)
class _Weights:
    """Whose logits teach."""

    weights: str | Sequence[str] = "last"

    @property
    def weight_names(self) -> list[str]:
        """The archived weights as a list."""
        return [self.weights] if isinstance(self.weights, str) else list(self.weights)


@dataclass(frozen=True)
class Cached(_Weights):
    """Archived logits, looked up by example and view.

    Attributes:
        weights: Which archived weights of each run teach: ``last``, ``best``, ``100ep`` ..., or a list of these; each
            (run, weights) pair is one teacher. Default: ``last``.
        oldest: How long before the end of its run a view may have been captured, a share of the run (``"0.4dur"``) or
            epochs (``"3ep"``): a model says less of the truth in early epochs. ``1dur`` takes all. Harvested logits
            have no age. Default: ``"0.4dur"``.

    Raises:
        ValueError: ``oldest`` is not a time in epochs or shares of the duration.
    """

    name: ClassVar[str] = "cached"
    oldest: str | Time = "0.4dur"

    def __post_init__(self) -> None:
        if self.oldest_time.unit not in (TimeUnit.DURATION, TimeUnit.EPOCH):
            raise ValueError(f"oldest must be a share of the duration (0.4dur) or epochs (3ep), got {self.oldest!r}")

    @property
    def oldest_time(self) -> Time:
        """The age as a Composer time."""
        return Time.from_input(self.oldest)


@dataclass(frozen=True)
class Auto(Cached):
    """Archived logits where they are true for what this run sees, else live teachers.

    Attributes:
        weights: Which archived weights of each run teach: ``last``, ``best``, ``100ep`` ..., or a list of these; each
            (run, weights) pair is one teacher. Default: ``last``.
        oldest: How long before the end of its run a view may have been captured, a share of the run (``"0.4dur"``) or
            epochs (``"3ep"``). Where one is older, live teachers are taken. Default: ``"0.4dur"``.
        model: The architecture of live teachers, a module or a function that makes one. Default: rebuilt from the run's
            record, or a copy of the student.

    Raises:
        ValueError: ``oldest`` is not a time in epochs or shares of the duration.
    """

    name: ClassVar[str] = "auto"
    model: ModelFactory | None = None


@dataclass(frozen=True)
class Live(_Weights):
    """Archived models that run on every batch.

    Attributes:
        weights: Which archived weights of each run teach: ``last``, ``best``, ``100ep`` ..., or a list of these; each
            (run, weights) pair is one teacher. Default: ``last``.
        model: The teachers' architecture, a module or a function that makes one. Default: rebuilt from the run's
            record, or a copy of the student.
    """

    name: ClassVar[str] = "live"
    model: ModelFactory | None = None


@dataclass(frozen=True)
class TeachingWindow(Window):
    """The batches in which the term is on.

    Attributes:
        start: Composer time from which it is on, such as ``"5ep"`` or ``"0.1dur"``. Default: ``"0ba"``.
        stop: Composer time from which it is off again. Default: ``"1dur"``.
        every_n_batches: It is on at every n-th batch only, and off (the model's own loss alone) at the others. Default:
            1.
        stop_when_better: Switch it off for good once the student passes the best teacher in this metric; ``true`` is
            the metric that the first prior run monitored. Default: never.
        stop_when_harmful: Switch it off for good, with a warning, where a few batches of each epoch show that it does
            harm: its gradient opposes that of the model's own loss, the student answers more of the training rows
            rightly than its teachers, or channels die. As long as it is on, training is the same with or without this.
            Default: True.
    """

    stop_when_better: bool | str = False
    stop_when_harmful: bool = True
