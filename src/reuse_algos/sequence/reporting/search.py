"""What a search found: the best value of a setting in each arm, and whether the arms would choose alike."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reuse_algos.compare.estimates.interval import MIN_RUNS, Interval, difference_interval, mean_interval

__all__ = ["Agreement", "ArmSearch", "Candidate", "SearchResult", "search_result"]

Verdict = Literal["same winner", "statistically equal", "another winner", "not enough runs", "no winner"]
Outcome = tuple[Mapping[str, Any], float]
"""One run: the grid's values, and its final metric."""


@dataclass(frozen=True)
class Candidate:
    """One value that was tried.

    Attributes:
        value: as it stands in the grid.
        n: runs with it.
        final: their mean final metric with its t interval; NaN if one of them ended with NaN or an infinity.
    """

    value: Any
    n: int
    final: Interval


@dataclass(frozen=True)
class ArmSearch:
    """The search of one arm: all candidates in the order of the grid, and the best one's value (None: all diverged)."""

    arm: str
    candidates: list[Candidate]
    winner: Any


@dataclass(frozen=True)
class Agreement:
    """Whether an arm chose as the baseline did.

    Attributes:
        arm: the arm.
        verdict: ``same winner``; ``statistically equal``: another one, but **in the baseline's own runs** the two
            differ by no more than chance; ``another winner``: they differ by more; ``not enough runs``: another one,
            with a single run each; ``no winner``: all runs of one side diverged.
        difference: baseline's runs with its own winner minus its runs with the arm's winner; None where the winner is
            the same, or where the baseline did not try it.
    """

    arm: str
    verdict: Verdict
    difference: Interval | None


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        key: what was searched over, a dotted recipe key.
        arms: in the order of the file.
        agreements: of the other arms with the baseline; empty where nothing is compared or the arms try other values.
    """

    key: str
    arms: list[ArmSearch]
    agreements: list[Agreement]


def search_result(key: str, outcomes: Mapping[str, Sequence[Outcome]], baseline: str | None, mode: str) -> SearchResult:
    """Find each arm's winner, the value whose runs have the best mean final metric.

    Args:
        key: of the grid.
        outcomes: arm -> its runs; each has ``key`` in its point.
        baseline: the arm that the others' choices are judged by, or None.
        mode: whether more (``max``) or less of the metric is better.

    Returns:
        The winners. A value with a run that ended with NaN or an infinity cannot win. Of equals the first wins.
    """
    arms = [_search(key, arm, runs, mode) for arm, runs in outcomes.items()]
    by_name = {arm.arm: arm for arm in arms}
    agreements = []
    if baseline is not None:
        tried = [_key(candidate.value) for candidate in by_name[baseline].candidates]
        for arm in arms:
            if arm.arm != baseline and [_key(candidate.value) for candidate in arm.candidates] == tried:
                agreements.append(_agreement(key, arm, by_name[baseline], outcomes[baseline]))
    return SearchResult(key, arms, agreements)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _runs_with(key: str, value: Any, runs: Sequence[Outcome]) -> list[Outcome]:
    return [run for run in runs if _key(run[0][key]) == _key(value)]


def _search(key: str, arm: str, runs: Sequence[Outcome], mode: str) -> ArmSearch:
    values = {_key(point[key]): point[key] for point, _ in runs}
    candidates = []
    for value in values.values():
        finals = [final for _, final in _runs_with(key, value, runs)]
        candidates.append(Candidate(value, len(finals), mean_interval(finals)))
    sign = 1.0 if mode == "max" else -1.0
    finite = [candidate for candidate in candidates if math.isfinite(candidate.final.estimate)]
    winner = max(finite, key=lambda candidate: sign * candidate.final.estimate).value if finite else None
    return ArmSearch(arm, candidates, winner)


def _agreement(key: str, arm: ArmSearch, baseline: ArmSearch, runs: Sequence[Outcome]) -> Agreement:
    if arm.winner is None or baseline.winner is None:
        return Agreement(arm.arm, "no winner", None)
    if _key(arm.winner) == _key(baseline.winner):
        return Agreement(arm.arm, "same winner", None)
    ours, theirs = (_runs_with(key, side.winner, runs) for side in (baseline, arm))
    # Runs pair where they differ in nothing but the value that is searched for.
    points = [[_key({**point, key: None}) for point, _ in side] for side in (ours, theirs)]
    paired = points[0] == points[1]
    difference = difference_interval([run[1] for run in ours], [run[1] for run in theirs], paired=paired)
    if min(len(ours), len(theirs)) < MIN_RUNS:
        return Agreement(arm.arm, "not enough runs", difference)
    # No estimate: the baseline's runs with the arm's winner diverged.
    equal = math.isfinite(difference.estimate) and difference.low <= 0.0 <= difference.high
    return Agreement(arm.arm, "statistically equal" if equal else "another winner", difference)
