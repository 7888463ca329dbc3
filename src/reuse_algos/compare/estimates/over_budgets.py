"""The speed-up between two budget-accuracy curves: where each one reaches the target, and how sure that is.

A group was trained at M budgets, each run with a schedule of its own. Its **mean curve** joins the mean final metric at
each budget by straight lines over log steps; its cost to the target is its cost where this line *first* is at or beyond
it. **Target**: a given number, or the baseline's mean at its largest budget, whose noise is counted. **Interval**: at
every position each seed's interpolated value minus the target has a t interval; the positions where it holds 0 are a
confidence set of the crossing (Fieller's theorem), and its hull is reported. Nothing is extrapolated.

Limits: roughly normal values over seeds; values without any spread (copies of one run) are not evidence. What a
position costs, and the speed-up, are in :mod:`reuse_algos.compare.estimates.cost`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reuse_algos.compare.estimates.interval import CONFIDENCE, MIN_RUNS, Bound, FloatArray, sum_of_means

# Shapes: M budgets of a group, P positions, S seeds. A position is the index of a budget plus how much of the way to
# the next one is behind it, in log steps: 1.5 is at the geometric mean of the second and the third budget.
_GRID = 128

Seeds = tuple[int | None, ...]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """The runs of one group at one budget.

    Attributes:
        seeds: Of the runs.
        values: Final metric of each run, **larger is better** (negate a loss); not finite for a diverged run.
    """

    seeds: Seeds
    values: FloatArray

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.seeds),) or not self.seeds:
            raise ValueError(f"{len(self.seeds)} seeds, but values of the shape {self.values.shape}")

    @property
    def mean(self) -> float:
        """Mean; ``-inf`` if a run diverged, so that the target is not reached here."""
        return float(self.values.mean()) if np.isfinite(self.values).all() else -math.inf

    @property
    def by_seed(self) -> dict[int, float]:
        """Values by seed; empty if a seed is missing or there twice, since nothing pairs then."""
        known = {seed: float(value) for seed, value in zip(self.seeds, self.values, strict=True) if seed is not None}
        return known if len(known) == len(self.seeds) else {}


@dataclass(frozen=True)
class Curve:
    """One group at M >= 1 budgets: mean numbers of steps [M], positive and ascending, and the runs at each."""

    steps_M: FloatArray
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        good = self.steps_M.shape == (len(self.samples),) and len(self.samples) > 0
        if not good or not (self.steps_M > 0).all() or not (np.diff(self.steps_M) > 0).all():
            raise ValueError(f"a curve needs ascending positive steps, one for each sample; got {self.steps_M}")

    @property
    def last(self) -> int:
        """Index of the largest budget."""
        return len(self.samples) - 1

    @property
    def mean_M(self) -> FloatArray:
        """Mean final metric [M], ``-inf`` where a run diverged."""
        return np.array([sample.mean for sample in self.samples])

    @property
    def seeds(self) -> list[set[int]]:
        """For each gap between two budgets (or the only budget), the seeds that both of its ends have, each once."""
        gaps = [(m, m + 1) for m in range(self.last)] or [(0,)]
        return [set.intersection(*(set(self.samples[m].by_seed) for m in gap)) for gap in gaps]


@dataclass(frozen=True)
class BudgetCrossing:
    """Where a mean curve reaches the target, as positions (index of a budget plus the part of the way to the next).

    Attributes:
        estimate: Of the crossing; with a ``bound`` the smallest or largest budget.
        low: Lower limit, None where there is none (the cost may be anything above 0).
        high: Upper limit, None where there is none.
        bound: ``"<="`` already there at the smallest budget, ``">="`` not yet there at the largest, else ``""``.
    """

    estimate: float
    low: float | None
    high: float | None
    bound: Bound


def _first_at(mean_M: FloatArray, target: float) -> float | None:
    """Return the first position at which the lines between means are at or beyond the target; None if nowhere."""
    reached = np.flatnonzero(mean_M >= target)
    if not reached.size:
        return None
    m = int(reached[0])
    # A line from a diverged budget has no crossing: the budget itself counts.
    if m == 0 or not math.isfinite(mean_M[m - 1]):
        return float(m)
    return m - 1 + float((target - mean_M[m - 1]) / (mean_M[m] - mean_M[m - 1]))


def _interpolations(
    x_M: FloatArray, m: int, x_P: FloatArray, outer: Sequence[int]
) -> Iterator[tuple[list[int], FloatArray]]:
    """Yield budgets K and weights [P, K]: of the line from m to m + 1, and of the parabola through each outer one."""
    # What lies between two budgets was not measured, and a line is under a concave curve. Where the third derivative
    # keeps its sign (a - b budget^-c, for one) the parabolas enclose the truth, so all of them have to agree.
    for knots in ([m, m + 1], *([m, m + 1, other] for other in outer)):
        weights = []
        for k in knots:
            others = [j for j in knots if j != k]
            weights.append(np.prod([(x_P - x_M[j]) / (x_M[k] - x_M[j]) for j in others], axis=0))
        yield knots, np.stack(weights, axis=1)


def _signs(
    curve: Curve, m: int, part_P: FloatArray, target: float | Sample, *, paired: bool, confidence: float
) -> tuple[Mask, Mask]:
    """Return whether the curve is surely below [P], and surely at or above [P], at these parts of the gap after m."""
    never = np.zeros(part_P.shape, dtype=bool)
    samples = curve.samples
    inner = [m] if curve.last == 0 else [m, m + 1]
    finite = {k for k, sample in enumerate(samples) if np.isfinite(sample.values).all()}
    # Against a diverged baseline nothing is significant.
    if isinstance(target, Sample) and not np.isfinite(target.values).all():
        return never, never
    if not finite.issuperset(inner):
        # A run diverged at one end. Between the two nothing is known; the other end still counts.
        below, above = never.copy(), never.copy()
        for k in finite.intersection(inner) if len(inner) > 1 else ():
            alone = Curve(curve.steps_M[k : k + 1], (samples[k],))
            here = part_P == k - m
            below[here], above[here] = _signs(alone, 0, part_P[here], target, paired=paired, confidence=confidence)
        return below, above
    common = sorted(set.intersection(*(set(samples[k].by_seed) for k in inner)))
    finals = target.by_seed if isinstance(target, Sample) else {}
    if paired:
        common = [seed for seed in common if seed in finals]
    # Paired values are interpolated per seed; without common seeds each budget varies by itself.
    by_seed = len(common) >= MIN_RUNS
    if curve.last == 0:
        curves = iter([([0], np.ones((part_P.size, 1)))])
    else:
        outer = [k for k in (m - 1, m + 2) if k in finite and (not by_seed or samples[k].by_seed.keys() >= set(common))]
        x_M = np.log(curve.steps_M)
        curves = _interpolations(x_M, m, x_M[m] + part_P * (x_M[m + 1] - x_M[m]), outer)
    below, above = ~never, ~never
    for knots, weights_PK in curves:
        if by_seed:
            values_SK = np.array([[samples[k].by_seed[seed] for k in knots] for seed in common])
            components = [values_SK @ weights_PK.T]
        else:
            components = [samples[k].values[:, None] * weights_PK[:, i] for i, k in enumerate(knots)]
        offset = 0.0
        if not isinstance(target, Sample):
            offset = target
        elif paired:
            components = [components[0] - np.array([finals[seed] for seed in common])[:, None]]
        else:
            components.append(-target.values[:, None])
        mean_P, half_P = sum_of_means(components, confidence)
        below &= mean_P - offset + half_P < 0
        above &= mean_P - offset - half_P >= 0
    return below, above


def crossing(
    curve: Curve, target: float | Sample, *, paired: bool = False, confidence: float = CONFIDENCE
) -> BudgetCrossing:
    """Return where a group's mean curve reaches the target, with limits.

    Args:
        curve: Of the group.
        target: A number, or the runs whose mean it is (the baseline at its largest budget), then with their noise.
        paired: Compare runs of one seed with each other; each gap of the curve must have seeds that the target has.
            Default: False.
        confidence: Two-sided, between 0 and 1. Default: 0.95.
    """
    level = target.mean if isinstance(target, Sample) else target
    found = _first_at(curve.mean_M, level) if math.isfinite(level) else None
    parts_P = np.arange(_GRID + 1, dtype=np.float64) / _GRID
    gaps = range(max(curve.last, 1))

    def signs(m: int, part_P: FloatArray) -> tuple[Mask, Mask]:
        return _signs(curve, m, part_P, target, paired=paired, confidence=confidence)

    # In closed form the limits would be roots of quartics, and under Welch there is none. A grid of 128 positions in
    # each gap, and 128 in the cell of a limit, is closer than 0.01 % of the cost between budgets a factor of 2 apart.
    grid = [signs(m, parts_P) for m in gaps]
    below = np.concatenate([cell[0] for cell in grid])
    above = np.concatenate([cell[1] for cell in grid])

    def position(index: int, offset: float = 0.0) -> float:
        m, part = divmod(index, _GRID + 1)
        return min(m + part / _GRID + offset, float(curve.last))

    # There is no lower limit unless the group is surely below the target at its smallest budget, and no upper one
    # unless it is surely at or above it at its largest.
    low: float | None = None
    if below.all():
        low = float(curve.last)
    elif below[0]:
        last_below = int(np.argmin(below)) - 1
        low = position(last_below, _refined(signs, last_below, first=True))
    high: float | None = None
    if above.all():
        high = 0.0
    elif above[-1]:
        last_not = int(np.flatnonzero(~above)[-1])
        high = position(last_not, _refined(signs, last_not, first=False))
    bound: Bound = ">=" if found is None else "<=" if found == 0.0 else ""
    estimate = float(curve.last) if found is None else found
    # The estimate uses all runs, the limits those that pair: it must not fall outside of them.
    low = None if bound == "<=" or low is None else min(low, estimate)
    high = None if bound == ">=" or high is None else max(high, estimate)
    return BudgetCrossing(estimate, low, high, bound)


def _refined(signs: Callable[[int, FloatArray], tuple[Mask, Mask]], index: int, *, first: bool) -> float:
    """Return how far after grid position ``index``, and before the next, a limit lies, rounded outwards.

    ``first`` looks for the last position that is surely below, otherwise for the first with nothing but surely above it
    from there on.
    """
    m, part = divmod(index, _GRID + 1)
    if part == _GRID:  # the end of a gap and the start of the next are one position
        return 0.0
    below, above = signs(m, (part + np.linspace(0.0, 1.0, _GRID + 1)) / _GRID)
    mask, step = (~below, -1) if first else (~above, 1)
    hits = np.flatnonzero(mask)
    k = int(hits[0] if first else hits[-1]) + step
    return min(max(k, 0), _GRID) / _GRID**2


def own_level(curve: Curve, confidence: float = CONFIDENCE) -> BudgetCrossing:
    """Return where a group reached the level of its largest budget: there, or earlier if the curve is flat by then.

    The estimate is where its mean curve first is at or beyond its last mean; ``low`` is the first budget that is not
    surely below it (one-sided, half of 1 - confidence, Welch), if that is earlier; ``high`` is the largest budget.
    A budget at which a run diverged did not reach anything.

    Args:
        curve: Of the group; its last mean is finite.
        confidence: Two-sided, between 0 and 1. Default: 0.95.
    """
    final = curve.samples[-1]
    found = _first_at(curve.mean_M, final.mean)
    estimate = float(curve.last) if found is None else found
    earliest = float(curve.last)
    # Whether the baseline was flat before its end is itself uncertain, so a speed-up's lower limit counts only up to
    # the first budget that is not surely below its last level.
    for m, sample in enumerate(curve.samples[:-1]):
        mean_P, half_P = sum_of_means([sample.values[:, None], -final.values[:, None]], confidence)
        if math.isfinite(sample.mean) and not mean_P[0] + half_P[0] < 0:
            earliest = float(m)
            break
    return BudgetCrossing(estimate, min(earliest, estimate), float(curve.last), "")
