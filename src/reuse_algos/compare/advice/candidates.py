"""One technique as a candidate for the next run: what it is predicted to cost, and whether the evidence is enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reuse_algos.compare.advice.forecast import BudgetForecast, forecast_budget
from reuse_algos.compare.estimates.cost import cost_interval, speedup_of_budgets
from reuse_algos.compare.estimates.interval import RUNS_FOR_A_CLAIM, Bound, Interval, Speedup
from reuse_algos.compare.estimates.over_budgets import BudgetCrossing, crossing
from reuse_algos.compare.kinds.budgets import Member, label_of
from reuse_algos.compare.question import Axis, Mode
from reuse_algos.compare.show.words import AXIS_WORDS

Standing = Literal["recommended", "cheaper than the baseline", "baseline", "not enough evidence"]


@dataclass(frozen=True)
class Evidence:
    """One budget that a prediction rests on: its label, mean steps, seeds and ids of its runs, and their mean."""

    budget: str
    steps: float
    n: int
    seeds: list[int | None]
    run_ids: list[str]
    mean: float


@dataclass(frozen=True)
class Candidate:
    """One technique (or the baseline).

    Attributes:
        name: Of the group.
        standing: ``"recommended"``; ``"cheaper than the baseline"``, but not the cheapest; ``"baseline"``; or ``"not
            enough evidence"``.
        lacking: Why there is not enough evidence, as sentences; empty otherwise.
        steps: How long to train, with limits; with a ``bound`` the estimate is only a limit.
        cost: Predicted cost of the next run on the axis of the recommendation, with limits; None if not known.
        dollars: The same in dollars; None without a price, or where seconds are not known.
        bound: ``"<="`` the target is reached with the smallest measured budget already, ``">="`` not with the largest.
        sure_budget: The smallest measured budget from which on the mean is surely at or beyond the target, or None.
        speedup: Against the baseline; None for the baseline and where a cost is not known.
        evidence: The budgets around the crossing.
        forecast: Where no budget reaches the target, a larger one that is predicted to; None elsewhere.
    """

    name: str
    standing: Standing
    lacking: list[str]
    steps: Interval
    cost: Interval | None
    dollars: Interval | None
    bound: Bound
    sure_budget: str | None
    speedup: Speedup | None
    evidence: list[Evidence]
    forecast: BudgetForecast | None = None


@dataclass(frozen=True)
class Case:
    """What is asked of every group.

    Attributes:
        baseline: The group that a technique must beat.
        level: The target, larger being better.
        axis: How cost is counted.
        confidence: Of the intervals shown.
        decision: Confidence of the intervals that decide.
        price_per_hour: Dollars for an hour, or None.
        mode: Whether more or less of the metric is better.
    """

    baseline: Member
    level: float
    axis: Axis
    confidence: float
    decision: float
    price_per_hour: float | None
    mode: Mode

    def candidate(self, member: Member) -> Candidate:
        """Return the group with its prediction; at best ``"cheaper than the baseline"``."""
        found = crossing(member.curve, self.level, confidence=self.confidence)
        cost = cost_interval(found, member.costs[self.axis], self.confidence) if self.axis in member.costs else None
        price = self.price_per_hour
        dollars = None
        if self.axis == "dollars":
            dollars = cost
        elif price is not None and cost is not None and self.axis == "amortised_seconds":
            dollars = Interval(*(value / 3600.0 * price for value in (cost.estimate, cost.low, cost.high)))
        sure = self._sure_budget(member)
        is_baseline = member is self.baseline
        lacking = self._lacking(member, found)
        # A technique whose cost is unknown cannot be cheaper.
        if self.axis not in member.costs:
            lacking.append(f"What {member.name} costs in {AXIS_WORDS[self.axis]} is not known.")
        if not is_baseline:
            # A lower limit of its cost is enough to be cheaper than it, so only the number of seeds counts.
            reached = crossing(self.baseline.curve, self.level, confidence=self.confidence)
            lacking += [f"Of the baseline: {reason}" for reason in _too_few_seeds(self.baseline, reached)]
            if not lacking and not self.cheaper(self.baseline, member):
                lacking.append(self._not_cheaper(member, found))
        return Candidate(
            name=member.name,
            standing="baseline" if is_baseline else "not enough evidence" if lacking else "cheaper than the baseline",
            lacking=lacking,
            steps=cost_interval(found, member.costs["steps"], self.confidence),
            cost=cost,
            dollars=dollars,
            bound=found.bound,
            sure_budget=sure,
            speedup=None if is_baseline else self._speedup(self.baseline, member, self.confidence),
            evidence=[_evidence(member, m) for m in _around(member, found)],
            forecast=forecast_budget(member, self.level, self.mode, self.axis, self.confidence)
            if found.bound == ">="
            else None,
        )

    def _not_cheaper(self, member: Member, found: BudgetCrossing) -> str:
        """Return why a group is not clearly cheaper than the baseline, in the words of a comparison of the two."""
        name, base = member.name, self.baseline.name
        theirs = crossing(self.baseline.curve, self.level, confidence=self.confidence)
        if found.bound == theirs.bound == "<=":
            return (
                f"{name} and {base} are both at the target with their smallest budgets already ({member.labels[0]}, "
                f"{self.baseline.labels[0]}), so how much cheaper {name} is was not measured. Smaller budgets would "
                "tell."
            )
        speedup = self._speedup(self.baseline, member, self.confidence)
        if speedup is not None and speedup.verdict == "faster":
            return (
                f"{name} is faster than {base} at a confidence of {100 * self.confidence:.3g} %, as a comparison says, "
                f"but not at {100 * self.decision:.3g} %, which is needed where the best of several is picked."
            )
        return f"{name} is not clearly cheaper than {base} (at a confidence of {100 * self.decision:.3g} %)."

    def cheaper(self, other: Member, member: Member) -> bool:
        """Return whether ``member`` surely reaches the target at less cost than ``other``."""
        speedup = self._speedup(other, member, self.decision)
        return speedup is not None and speedup.verdict == "faster"

    def _speedup(self, other: Member, member: Member, confidence: float) -> Speedup | None:
        if self.axis not in other.costs or self.axis not in member.costs:
            return None
        return speedup_of_budgets(
            crossing(other.curve, self.level, confidence=confidence),
            other.costs[self.axis],
            crossing(member.curve, self.level, confidence=confidence),
            member.costs[self.axis],
            own_level=False,
            confidence=confidence,
        )

    def _sure_budget(self, member: Member) -> str | None:
        high = crossing(member.curve, self.level, confidence=self.confidence).high
        # Budgets are not interpolated here: the next one that was trained is sure.
        return None if high is None else member.labels[math.ceil(high - 1e-9)]

    def _lacking(self, member: Member, found: BudgetCrossing) -> list[str]:
        reasons = _too_few_seeds(member, found)
        if found.bound == ">=":
            best = float(np.max(member.curve.mean_M))
            reasons.append(
                f"{member.name} does not reach the target at any of its budgets"
                + (f" (its best mean misses it by {self.level - best:.4g})" if math.isfinite(best) else "")
                + ", and nothing is extrapolated."
            )
        elif found.high is None:
            reasons.append(
                f"{member.name} reaches the target in the mean, but not clearly so at its largest budget "
                f"({member.labels[-1]})."
            )
        return reasons


def _around(member: Member, found: BudgetCrossing) -> list[int]:
    """Return the budgets that a crossing lies between, or the only one that it is at."""
    # Only the budgets on both sides of a crossing decide where it is.
    low, high = math.floor(found.estimate), math.ceil(found.estimate)
    return sorted({low, min(high, member.curve.last)})


def _too_few_seeds(member: Member, found: BudgetCrossing) -> list[str]:
    short = []
    for m in _around(member, found):
        seeds = {seed for seed in member.curve.samples[m].seeds if seed is not None}
        if len(seeds) < RUNS_FOR_A_CLAIM:
            short.append(f"{len(seeds)} at {member.labels[m]}")
    if not short:
        return []
    return [f"{member.name} has too few different seeds ({', '.join(short)}; {RUNS_FOR_A_CLAIM} are needed)."]


def _evidence(member: Member, m: int) -> Evidence:
    runs = next(point for point in member.points if label_of(point) == member.labels[m])
    finals = [run.final for run in runs]
    return Evidence(
        budget=member.labels[m],
        steps=float(member.curve.steps_M[m]),
        n=len(runs),
        seeds=[run.seed for run in runs],
        run_ids=[run.run_id for run in runs],
        mean=float(np.mean(finals)) if np.isfinite(finals).all() else math.nan,
    )
