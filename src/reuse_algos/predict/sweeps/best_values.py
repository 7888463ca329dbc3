"""The best outcome at each value of one setting, tuned over another: a metric, or what a goal costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from reuse_algos.errors import NotEnoughEvidenceError


@dataclass(frozen=True)
class Attempt:
    """One run of a sweep.

    Attributes:
        at: Its value of the setting that is swept.
        tuned: Its value of the tuned setting; None where nothing is tuned.
        outcome: Metric or cost. NaN or infinite where the run diverged or did not reach the goal.
    """

    at: float
    tuned: float | None
    outcome: float


@dataclass(frozen=True)
class BestValue:
    """The best tuned value at one value of the swept setting.

    Attributes:
        at: Value of the setting that is swept.
        tuned: Tuned value with the best mean outcome; None where nothing is tuned, or no value has an outcome.
        outcome: That mean over its runs, which differ in their seeds; NaN where no value has an outcome.
        spread: Standard deviation over these runs; NaN for one run.
        num_runs: Number of these runs.
        num_tried: Number of tuned values that were tried.
        flags: What stands against this point, in words.
    """

    at: float
    tuned: float | None
    outcome: float
    spread: float
    num_runs: int
    num_tried: int
    flags: tuple[str, ...] = ()


def best_values(attempts: Iterable[Attempt], mode: Literal["max", "min"]) -> list[BestValue]:
    """Return the best outcome at each value of a setting, ascending.

    Args:
        attempts: The runs. Those that differ in nothing but their seeds are averaged.
        mode: Whether more (``max``) or less of the outcome is better.

    Raises:
        NotEnoughEvidenceError: There are fewer than two values, or no run has an outcome.
    """
    groups: dict[float, dict[float | None, list[float]]] = {}
    for one in attempts:
        groups.setdefault(one.at, {}).setdefault(one.tuned, []).append(one.outcome)
    if len(groups) < 2:
        raise NotEnoughEvidenceError(f"a sweep needs runs at two or more values, got {sorted(groups)}")
    found = [_best(at, groups[at], 1.0 if mode == "max" else -1.0) for at in sorted(groups)]
    if not any(one.num_runs for one in found):
        raise NotEnoughEvidenceError(f"no run at any of {len(found)} values reached the goal or stayed finite")
    return found


def _best(at: float, tried: dict[float | None, list[float]], sign: float) -> BestValue:
    # One seed that failed is enough: a value that works now and then is not the best one.
    means = {value: statistics.fmean(own) for value, own in tried.items() if all(map(math.isfinite, own))}
    if not means:
        return BestValue(at, None, math.nan, math.nan, 0, len(tried), ("no value reached the goal or stayed finite",))
    best = max(means, key=lambda value: sign * means[value])
    values = sorted(value for value in tried if value is not None)
    flags = []
    # Beyond the edge there may be a better value.
    if len(values) > 1 and best in (values[0], values[-1]):
        flags.append(f"the best value is at the {'lower' if best == values[0] else 'upper'} edge of the search")
    own = tried[best]
    spread = statistics.stdev(own) if len(own) > 1 else math.nan
    return BestValue(at, best, means[best], spread, len(own), len(tried), tuple(flags))
