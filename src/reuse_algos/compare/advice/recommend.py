"""What the measured history recommends for the next run: which technique, at what budget, and how sure that is.

Every group was trained at several budgets; where its mean curve reaches the target is what the next run is predicted to
cost (:mod:`reuse_algos.compare.estimates.over_budgets`). A technique is only recommended if

* there are runs of at least three different seeds at each budget
  that the prediction rests on, and of the baseline as well, which need not reach the target itself;
* the target was measured: the mean curve reaches it within the group's budgets, and is surely at or beyond it at the
  largest. Nothing is extrapolated;
* it is surely cheaper than the baseline: the lower limit of the speed-up is above 1. As the best of K techniques is
  picked, each limit is taken at a confidence of 1 - (1 - confidence) / K (Bonferroni). Where no technique is of any
  use, one is then recommended with a probability of at most (1 - confidence) / 2.

Otherwise the answer is "not enough evidence", with the reason. Controls (tag ``control_of``) are never recommended.

Where nothing that was trained reaches the target, a law over the budgets predicts which one would
(:mod:`reuse_algos.compare.advice.forecast`). That is what to train next, with its cost and how sure it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reuse_algos.compare.advice.candidates import Candidate, Case
from reuse_algos.compare.engine import control_of
from reuse_algos.compare.inside import diagnosis_notes, forecast_notes
from reuse_algos.compare.kinds.budgets import Member
from reuse_algos.compare.outcomes import Outcomes
from reuse_algos.compare.question import Axis, Mode, Question
from reuse_algos.compare.result import json_safe
from reuse_algos.compare.run_notes import differences, left_out
from reuse_algos.compare.settled import settled
from reuse_algos.compare.show.words import AXIS_WORDS, format_amount, less_of, limits_words, short
from reuse_algos.presets import PRESETS, presets_of

_LATER_RUNS = 1  # the next run counts all of its own harvest


@dataclass(frozen=True)
class Recommendation:
    """What to run next.

    Attributes:
        archive: Where the runs are.
        group_by: The grouping key.
        baseline: The group that the others are compared with.
        metric: Full name of the metric.
        mode: Whether more or less of it is better.
        target: Value to reach.
        axis: How cost is counted: as was asked for, else by ``amortised_seconds``, or by ``steps`` where seconds are
            not known for all runs.
        confidence: Of the intervals shown, two-sided.
        decision_confidence: Of the intervals that decide.
        later_runs: Among how many runs the harvests are shared.
        price_per_hour: Dollars for an hour, or None.
        choice: Name of the recommended technique; None if there is not enough evidence for one.
        preset: Of :data:`~reuse_algos.presets.PRESETS`, the one whose settings all of its runs have; None without one.
        sentence: The answer in words.
        candidates: What is cheaper than the baseline first, by cost, then the baseline, then the others by cost.
        notes: What a reader must know.
    """

    archive: str
    group_by: str
    baseline: str
    metric: str
    mode: Mode
    target: float
    axis: Axis
    confidence: float
    decision_confidence: float
    later_runs: int
    price_per_hour: float | None
    choice: str | None
    preset: str | None
    sentence: str
    candidates: list[Candidate]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it; numbers that are not finite become None."""
        return json_safe(dataclasses.asdict(self))


def recommend(outcomes: Outcomes, question: Question) -> Recommendation:
    """Predict which technique, at what budget, reaches the target at the least cost.

    Args:
        outcomes: Runs of all groups.
        question: Its ``target`` is the value that the next run is to reach. It is asked over budgets, whatever
            ``over`` says, and nothing is paired.

    Raises:
        CompareError: No target, no such baseline, or an axis on which the cost of the baseline is not known.
    """
    question = settled(question.of_next_run(), outcomes)
    target, baseline, confidence = float(question.target or 0.0), question.baseline, question.confidence
    groups = outcomes.groups
    question.check(groups)
    later_runs = question.costs.later_runs or _LATER_RUNS
    members = {name: Member.of(groups[name], outcomes, question.costs, later_runs) for name in sorted(groups)}
    # A control shows why a technique works; training it is of no use.
    controls = [name for name in members if control_of(groups[name]) is not None and name != baseline]
    techniques = [name for name in members if name != baseline and name not in controls]
    seconds = all("amortised_seconds" in members[name].costs for name in (baseline, *techniques))
    axis = question.costs.judge_by or ("amortised_seconds" if seconds else "steps")
    question.check_axis(axis, members[baseline].costs)
    case = Case(
        baseline=members[baseline],
        level=target if outcomes.mode == "max" else -target,
        axis=axis,
        confidence=confidence,
        # Bonferroni: the best of K is picked, so each has to pass a K times stricter test.
        decision=1.0 - (1.0 - confidence) / max(len(techniques), 1),
        price_per_hour=question.costs.price_per_hour,
        mode=outcomes.mode,
    )
    found = [case.candidate(members[name]) for name in techniques]

    def rank(candidate: Candidate) -> tuple[bool, float, float, str]:
        # By cost; of what costs the same, the better first.
        cost = candidate.cost.estimate if candidate.cost is not None else math.inf
        reached = candidate.evidence[0].mean if outcomes.mode == "min" else -candidate.evidence[0].mean
        return candidate.bound == ">=", cost, reached, candidate.name

    good = sorted((c for c in found if not c.lacking), key=rank)
    if good:
        good[0] = dataclasses.replace(good[0], standing="recommended")
    first = case.candidate(members[baseline])
    rest = sorted((c for c in found if c.lacking), key=rank)
    chosen = _preset([run.manifest for run in groups[good[0].name]]) if good else None
    # Those behind the first are not necessarily dearer, and a reader may prefer one.
    alike = [c.name for c in good[1:] if not case.cheaper(members[c.name], members[good[0].name])]
    extra = []
    if question.costs.judge_by is None and not seconds:
        extra.append("Train seconds are not known for all runs: cost is counted in steps.")
    if controls:
        extra.append(f"Controls are never recommended: {', '.join(controls)}.")
    return Recommendation(
        archive=outcomes.archive,
        group_by=outcomes.group_by,
        baseline=baseline,
        metric=outcomes.metric,
        mode=outcomes.mode,
        target=float(target),
        axis=axis,
        confidence=confidence,
        decision_confidence=case.decision,
        later_runs=later_runs,
        price_per_hour=question.costs.price_per_hour,
        choice=good[0].name if good else None,
        preset=chosen,
        sentence=_sentence(good[0] if good else None, first, axis, f"{short(outcomes.metric)} {target:.6g}")
        + (f" In a recipe: preset: {chosen}." if chosen else "")
        + (f" Not clearly dearer: {', '.join(alike)}." if alike else "")
        + _next_run([*good, first, *rest], axis, question.costs.price_per_hour),
        candidates=[*good, first, *rest],
        notes=[
            *extra,
            *left_out(outcomes.left_out),
            *differences(baseline, groups),
            *diagnosis_notes(groups),
            *forecast_notes(groups),
        ],
    )


def _preset(manifests: Sequence[Any]) -> str | None:
    """Return the first preset that all of these runs were trained with."""
    recipes = [getattr(manifest, "recipe", None) or {} for manifest in manifests]
    common = [presets_of(recipe.get("algorithms") or {}) for recipe in recipes]
    return next((one for one in PRESETS if all(one in found for found in common)), None)


def _sentence(choice: Candidate | None, baseline: Candidate, axis: Axis, goal: str) -> str:
    less = less_of(axis)
    if choice is None:
        fallback = (
            f" {baseline.name} itself is predicted to need {_steps(baseline)}."
            if not baseline.lacking
            else f" {' '.join(baseline.lacking)}"
        )
        return f"Not enough evidence that anything reaches {goal} with {less} than {baseline.name}.{fallback}"
    speedup = choice.speedup
    if speedup is None:
        raise ValueError(f"{choice.name} was chosen without a speed-up")
    about = "at least " if speedup.bound == ">=" else ""
    limits = limits_words(speedup.low, speedup.high)
    # The smallest group limits what the answer rests on.
    n = min(point.n for point in choice.evidence)
    return (
        f"Train {choice.name} for {_steps(choice)}: it is predicted to reach {goal} with {about}"
        f"{speedup.estimate:.2f} times {less} than {baseline.name} ({limits}; n = {n})."
    )


def _next_run(candidates: Sequence[Candidate], axis: Axis, price_per_hour: float | None) -> str:
    """Return which budget to train next, where nothing that was trained reaches the target."""
    known = [(one.forecast.steps.estimate, one.name, one.forecast) for one in candidates if one.forecast is not None]
    if not known or any(one.bound != ">=" for one in candidates):
        return ""
    _, name, found = min(known, key=lambda one: one[:2])
    steps, cost = found.steps, found.cost
    limits = f"from {steps.low:.0f}" + (f" to {steps.high:.0f}" if math.isfinite(steps.high) else ", no upper limit")
    dear = ""
    if cost is not None and axis != "steps":
        amounts = [format_amount(axis, one) for one in (cost.estimate, cost.low, cost.high) if math.isfinite(one)]
        dear = f" at a cost of {amounts[0]}" + (f" (from {' to '.join(amounts[1:])})" if len(amounts) == 3 else "")
        # Samples and FLOPs have no price, and dollars are one already.
        if price_per_hour is not None and axis.endswith("seconds"):
            dear += f", {format_amount('dollars', cost.estimate / 3600 * price_per_hour)}"
        if not axis.endswith("seconds") and axis != "dollars":
            dear += f" {AXIS_WORDS[axis]}"
    return (
        f" Next, train {name} for about {steps.estimate:.0f} steps{dear}: it is predicted to get there, which no run "
        f"has shown ({limits}; its smaller budgets predict the loss at its largest one with an error of "
        f"{abs(found.error):.1%})."
    )


def _steps(candidate: Candidate) -> str:
    budgets = [point.budget for point in candidate.evidence]
    if candidate.bound == "<=":
        return f"{candidate.steps.estimate:.0f} steps ({budgets[0]}) or fewer"
    if len(budgets) == 1:
        return f"{candidate.steps.estimate:.0f} steps ({budgets[0]})"
    return f"about {candidate.steps.estimate:.0f} steps (between {budgets[0]} and {budgets[-1]})"
