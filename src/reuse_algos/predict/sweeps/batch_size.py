"""Steps to a result over the batch size: where larger batches stop paying.

Sources: Shallue et al., "Measuring the effects of data parallelism on neural network training", JMLR 2019,
https://arxiv.org/abs/1811.03600; the noise scale is that of McCandlish et al., "An empirical model of large-batch
training", 2018, https://arxiv.org/abs/1812.06162.

Legend: N batch sizes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from reuse_algos.errors import NotEnoughEvidenceError

Regime = Literal["perfect scaling", "diminishing returns", "maximal parallelism", "undecided", "not claimed"]

PERFECT, MAXIMAL = -0.9, -0.1
"""Slopes of log steps over log batch size that part the regimes."""


@dataclass(frozen=True)
class Trial:
    """One run of the study.

    Attributes:
        batch: Examples of a step, at least 1.
        value: Of the tuned setting, such as the learning rate.
        steps: Step of each evaluation, ascending.
        metric: Validation metric at those steps.
        diverged: Whether the loss was not finite at some time: then the trial reached nothing.
        name: Of the run. Ties go to the name that sorts first. Default: empty.
        momentum: Of SGD, where ``value`` is its learning rate, in [0, 1). Default: None, which is not known.
    """

    batch: int
    value: float
    steps: Sequence[float]
    metric: Sequence[float]
    diverged: bool = False
    name: str = ""
    momentum: float | None = None

    def steps_to(self, goal: float, mode: Literal["max", "min"] = "max") -> float:
        """Return the first step whose metric is strictly better than the goal; infinite if there is none.

        Args:
            goal: Value of the metric.
            mode: Whether more or less of the metric is better. Default: ``max``.
        """
        if self.diverged:
            return math.inf
        sign = 1.0 if mode == "max" else -1.0
        reached = [step for step, value in zip(self.steps, self.metric, strict=True) if sign * value > sign * goal]
        return float(reached[0]) if reached else math.inf


@dataclass(frozen=True)
class BatchPoint:
    """The best trial of one batch size.

    Attributes:
        batch: Examples of a step.
        steps: Least steps to the goal over the trials; infinite if none reached it.
        best: The trial that needed them; None if none reached the goal.
        num_trials: Number of trials.
        num_reached: Number of trials that reached the goal.
        perfect: Steps under perfect scaling from the smallest batch size that reached the goal; infinite before it.
        flags: What stands against this point, in words.
        linear: Best value of that batch size, times the ratio of the two sizes: the linear rule. NaN before it.
            Default: NaN.
        square_root: That value times the root of the ratio: the square-root rule. Default: NaN.
        effective: Effective learning rate of the best trial; None where its momentum is not known. Default: None.
    """

    batch: int
    steps: float
    best: Trial | None
    num_trials: int
    num_reached: int
    perfect: float
    flags: tuple[str, ...] = ()
    linear: float = math.nan
    square_root: float = math.nan
    effective: float | None = None


@dataclass(frozen=True)
class BatchSweep:
    """Steps to a result over the batch size.

    Attributes:
        goal: Value that the metric has to pass.
        points: One for each batch size, ascending.
        regimes: One for each pair of neighbours, from the smaller to the larger.
        slopes: Slope of log steps over log batch size between neighbours, with its bootstrap interval of 95 %.
        flags: What stands against the study as a whole, in words.
    """

    goal: float
    points: list[BatchPoint]
    regimes: list[Regime]
    slopes: list[tuple[float, float, float]]
    flags: list[str] = field(default_factory=list)


def effective_rate(learning_rate: float, momentum: float = 0.0) -> float:
    """Return the effective learning rate ``lr / (1 - momentum)`` of SGD with momentum.

    Args:
        learning_rate: Of SGD.
        momentum: In [0, 1). Default: 0.0.

    Raises:
        ValueError: The momentum is out of its range.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), not {momentum}")
    return learning_rate / (1 - momentum)


def regime(slope: float, low: float, high: float) -> Regime:
    """Return the regime of a slope ``d log2 steps / d log2 B``.

    Args:
        slope: The slope itself.
        low: Lower end of its interval.
        high: Upper end of its interval.

    Returns:
        ``perfect scaling`` up to -0.9, ``maximal parallelism`` from -0.1, ``diminishing returns`` between;
        ``undecided`` where the interval spans one of the two.
    """
    if any(low < limit < high for limit in (PERFECT, MAXIMAL)):
        return "undecided"
    if slope <= PERFECT:
        return "perfect scaling"
    return "maximal parallelism" if slope >= MAXIMAL else "diminishing returns"


def batch_sweep(
    trials: Iterable[Trial],
    goal: float,
    *,
    mode: Literal["max", "min"] = "max",
    num_examples: int | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> BatchSweep:
    """Return the steps to a goal for each batch size, the regimes between them, and what stands against them.

    A regime is not claimed beside a batch size whose best setting lies at the edge of its search, or whose goal fewer
    than two trials reached. The interval of a slope is a bootstrap over the trials of the two batch sizes.

    Args:
        trials: Runs at constant learning rates, each with its whole history; several settings for each batch size.
        goal: Value that the metric has to pass.
        mode: Whether more or less of the metric is better. Default: ``max``.
        num_examples: Size of the training data, to refuse larger batches. Default: None.
        num_resamples: Number of bootstrap draws. Default: 1000.
        seed: Of these draws. Default: 0.

    Raises:
        NotEnoughEvidenceError: There are fewer than two batch sizes, a batch is larger than the data, or no trial
            reached the goal.
    """
    sizes: dict[int, list[Trial]] = {}
    for trial in trials:
        sizes.setdefault(trial.batch, []).append(trial)
    if len(sizes) < 2:
        raise NotEnoughEvidenceError(f"a sweep over the batch size needs at least two of them, got {sorted(sizes)}")
    if num_examples is not None and max(sizes) > num_examples:
        raise NotEnoughEvidenceError(
            f"batch size {max(sizes)} is larger than the {num_examples} training examples: such a step is never whole"
        )
    points: list[BatchPoint] = []
    for batch in sorted(sizes):
        # The smallest batch size may need more steps than any of its trials had.
        first = next((point for point in points if point.best is not None), None)
        points.append(_point(batch, sizes[batch], goal, mode, first))
    if all(point.best is None for point in points):
        raise NotEnoughEvidenceError(f"none of {sum(map(len, sizes.values()))} runs reached the goal {goal:g}")
    counts = {point.num_trials for point in points}
    flags = [] if len(counts) == 1 else [f"batch sizes have different numbers of trials: {sorted(counts)}"]
    generator = np.random.default_rng(seed)
    slopes, regimes = [], []
    for near, far in itertools.pairwise(points):
        slope = _slope(near.batch, near.steps, far.batch, far.steps)
        draws = [
            _slope(
                near.batch,
                _least(sizes[near.batch], goal, mode, generator),
                far.batch,
                _least(sizes[far.batch], goal, mode, generator),
            )
            for _ in range(num_resamples)
        ]
        # A draw in which no trial reached the goal has no slope.
        finite = [draw for draw in draws if math.isfinite(draw)]
        low, high = np.percentile(finite, [2.5, 97.5]).tolist() if finite else (-math.inf, math.inf)
        slopes.append((slope, low, high))
        # A best value at the edge may not be the best: the steps are then an upper bound.
        claimed = not (near.flags or far.flags) and math.isfinite(slope)
        regimes.append(regime(slope, low, high) if claimed else "not claimed")
    return BatchSweep(goal, points, regimes, slopes, flags)


def _point(
    batch: int, trials: list[Trial], goal: float, mode: Literal["max", "min"], first: BatchPoint | None
) -> BatchPoint:
    # Ties go to the name that sorts first, so that the choice does not depend on the order of reading.
    ranked = sorted(trials, key=lambda trial: (trial.steps_to(goal, mode), trial.name))
    steps = [trial.steps_to(goal, mode) for trial in ranked]
    reached = sum(map(math.isfinite, steps))
    flags = []
    best = ranked[0] if reached else None
    if best is not None:
        values = sorted({trial.value for trial in trials})
        # Beyond the edge there may be a better value.
        if len(values) > 1 and best.value in (values[0], values[-1]):
            end = "lower" if best.value == values[0] else "upper"
            flags.append(f"the best value {best.value:g} is at the {end} edge of the search")
        gap = _gap(best, steps[0])
        # The goal was passed somewhere between two evaluations.
        if gap > 0.05 * steps[0]:
            flags.append(f"evaluations are {gap:g} steps apart, more than 5 % of {steps[0]:g} steps")
    if reached < 2:
        flags.append(f"{reached} of {len(trials)} trials reached the goal; two are needed")
    perfect = steps[0] if first is None else first.steps * first.batch / batch
    # What the two rules of thumb make of the best value there.
    ratio = 1.0 if first is None else batch / first.batch
    start = best if first is None else first.best
    value = math.nan if start is None else start.value
    return BatchPoint(
        batch,
        steps[0],
        best,
        len(trials),
        reached,
        perfect,
        tuple(flags),
        linear=value * ratio,
        square_root=value * math.sqrt(ratio),
        effective=None if best is None or best.momentum is None else effective_rate(best.value, best.momentum),
    )


def _gap(trial: Trial, step: float) -> float:
    """Return the steps between the evaluation that reached the goal and the one before it."""
    earlier = [other for other in trial.steps if other < step]
    return step - (earlier[-1] if earlier else 0.0)


def _least(trials: list[Trial], goal: float, mode: Literal["max", "min"], generator: np.random.Generator) -> float:
    drawn = generator.integers(len(trials), size=len(trials))
    return min(trials[at].steps_to(goal, mode) for at in drawn)


def _slope(batch: float, steps: float, larger: float, fewer: float) -> float:
    if not (math.isfinite(steps) and math.isfinite(fewer)):
        return math.nan
    return math.log2(fewer / steps) / math.log2(larger / batch)


@dataclass(frozen=True)
class NoiseScale:
    """The hyperbola ``steps = least_steps * (1 + noise / B)``.

    Attributes:
        least_steps: Steps that no batch size gets below.
        noise: Batch size at which twice as many steps are needed.
        low: Lower end of the interval of the noise.
        high: Upper end of that interval.
    """

    least_steps: float
    noise: float
    low: float
    high: float

    def steps(self, batch: ArrayLike) -> NDArray[np.float64]:
        """Return the steps at these batch sizes.

        Args:
            batch: Batch sizes, above 0, of any shape.
        """
        return self.least_steps * (1 + self.noise / np.asarray(batch, dtype=np.float64))


def noise_scale(batch: ArrayLike, steps: ArrayLike, *, level: float = 0.95) -> NoiseScale:
    """Fit the noise scale to steps over batch sizes, by least squares on the logarithm of the steps.

    The interval of the noise is that of Student's t for the linearised fit of its logarithm.

    Args:
        batch: ``[N]``, above 0.
        steps: ``[N]``, above 0; infinite ones are left out.
        level: Of the interval, in (0, 1). Default: 0.95.

    Raises:
        NotEnoughEvidenceError: Fewer than four batch sizes reached the goal, or the steps do not fall with the batch
            size.
    """
    batch_N, steps_N = np.asarray(batch, dtype=np.float64), np.asarray(steps, dtype=np.float64)
    finite_N = np.isfinite(steps_N)
    batch_N, steps_N = batch_N[finite_N], steps_N[finite_N]
    if len(np.unique(batch_N)) < 4 or not (batch_N > 0).all() or not (steps_N > 0).all():
        raise NotEnoughEvidenceError(
            f"the noise scale needs steps to the goal at four or more batch sizes, got {len(np.unique(batch_N))}"
        )

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return logs[0] + np.log1p(np.exp(logs[1]) / batch_N) - np.log(steps_N)

    # Between the smallest and the largest batch, where the bend is looked for.
    start = np.log([steps_N.min(), np.sqrt(batch_N.min() * batch_N.max())])
    low, high = math.log(batch_N.min() / 1e3), math.log(batch_N.max() * 1e3)
    found = optimize.least_squares(errors, start, bounds=([-np.inf, low], [np.inf, high]))
    noise = float(found.x[1])
    if noise - low < 1e-3 or high - noise < 1e-3:
        raise NotEnoughEvidenceError(
            "the steps show no bend between perfect scaling and maximal parallelism, so there is no noise scale"
        )
    freedom = len(batch_N) - 2
    covariance = np.linalg.inv(found.jac.T @ found.jac) * (found.fun**2).sum() / freedom
    half = float(stats.t.ppf(0.5 + level / 2, freedom) * math.sqrt(covariance[1, 1]))
    return NoiseScale(float(np.exp(found.x[0])), math.exp(noise), math.exp(noise - half), math.exp(noise + half))
