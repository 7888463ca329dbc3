"""What a search found: the best value of a setting in each arm, and whether the arms would choose alike."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from reuse_algos.compare.estimates.interval import MIN_RUNS, Interval, difference_interval, mean_interval

Verdict = Literal["same winner", "statistically equal", "another winner", "not enough runs", "no winner"]


class Tried(NamedTuple):
    """One run of a search.

    Attributes:
        point: The grid's values.
        final: Its final metric.
        rung: Round of a search by halving; 1 outside of such a search.
    """

    point: Mapping[str, Any]
    final: float
    rung: int = 1


@dataclass(frozen=True)
class Candidate:
    """One value that was tried.

    Attributes:
        value: As it stands in the grid.
        n: Runs with it, in its last rung.
        final: Their mean final metric with its t interval; NaN if one of them ended with NaN or an infinity.
        rung: The last round in which it was trained; 1 outside of a search by halving.
    """

    value: Any
    n: int
    final: Interval
    rung: int = 1


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
        arm: The arm.
        verdict: ``same winner``; ``statistically equal``: another one, but **in the baseline's own runs** the two
            differ by no more than chance; ``another winner``: they differ by more; ``not enough runs``: another one,
            with a single run each; ``no winner``: all runs of one side diverged.
        difference: The baseline's runs with its own winner minus its runs with the arm's winner, so what the arm's
            choice loses; None where the winner is the same, or where the baseline did not try it.
    """

    arm: str
    verdict: Verdict
    difference: Interval | None


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        key: What was searched over, a dotted recipe key.
        arms: In the order of the file.
        agreements: Of the other arms with the baseline; empty where nothing is compared or the arms try other values.
    """

    key: str
    arms: list[ArmSearch]
    agreements: list[Agreement]


def search_result(key: str, outcomes: Mapping[str, Sequence[Tried]], baseline: str | None, mode: str) -> SearchResult:
    """Find each arm's winner, the value whose runs have the best mean final metric.

    Args:
        key: Of the grid.
        outcomes: Arm -> its runs; each has ``key`` in its point.
        baseline: The arm that the others' choices are judged by, or None.
        mode: Whether more (``max``) or less of the metric is better.

    Returns:
        The winners. A value with a run that ended with NaN or an infinity cannot win. Of equals the first wins.
    """
    arms = [_search(key, arm, runs, mode) for arm, runs in outcomes.items()]
    by_name = {arm.arm: arm for arm in arms}
    agreements = []
    if baseline is not None:
        tried = [value_key(candidate.value) for candidate in by_name[baseline].candidates]
        for arm in arms:
            if arm.arm != baseline and [value_key(candidate.value) for candidate in arm.candidates] == tried:
                agreements.append(_agreement(key, arm, by_name[baseline], outcomes[baseline]))
    return SearchResult(key, arms, agreements)


def value_key(value: Any) -> str:
    """Return a text that tells values of a grid apart, lists and sections included."""
    return json.dumps(value, sort_keys=True)


def _runs_with(key: str, value: Any, runs: Sequence[Tried]) -> list[Tried]:
    """Return the runs with a value, of its last rung."""
    # Those of rungs before had smaller budgets, and would pull the mean down.
    found = [run for run in runs if value_key(run.point[key]) == value_key(value)]
    return [run for run in found if run.rung == max(one.rung for one in found)]


def _search(key: str, arm: str, runs: Sequence[Tried], mode: str) -> ArmSearch:
    values = {value_key(run.point[key]): run.point[key] for run in runs}
    candidates = []
    for value in values.values():
        own = _runs_with(key, value, runs)
        candidates.append(Candidate(value, len(own), mean_interval([run.final for run in own]), own[0].rung))
    sign, last = 1.0 if mode == "max" else -1.0, max(candidate.rung for candidate in candidates)
    # Who stayed behind in an earlier rung had a smaller budget, and cannot win.
    finite = [one for one in candidates if math.isfinite(one.final.estimate) and one.rung == last]
    winner = max(finite, key=lambda candidate: sign * candidate.final.estimate).value if finite else None
    return ArmSearch(arm, candidates, winner)


def _agreement(key: str, arm: ArmSearch, baseline: ArmSearch, runs: Sequence[Tried]) -> Agreement:
    if arm.winner is None or baseline.winner is None:
        return Agreement(arm.arm, "no winner", None)
    if value_key(arm.winner) == value_key(baseline.winner):
        return Agreement(arm.arm, "same winner", None)
    ours, theirs = (_runs_with(key, side.winner, runs) for side in (baseline, arm))
    # Runs pair where they differ in nothing but the value that is searched for.
    points = [[value_key({**run.point, key: None}) for run in side] for side in (ours, theirs)]
    paired = points[0] == points[1]
    # Both sides are the baseline's runs, so that the arms' own difference in accuracy does not count.
    difference = difference_interval([run.final for run in ours], [run.final for run in theirs], paired=paired)
    if min(len(ours), len(theirs)) < MIN_RUNS:
        return Agreement(arm.arm, "not enough runs", difference)
    # No estimate: the baseline's runs with the arm's winner diverged.
    equal = math.isfinite(difference.estimate) and difference.low <= 0.0 <= difference.high
    return Agreement(arm.arm, "statistically equal" if equal else "another winner", difference)
