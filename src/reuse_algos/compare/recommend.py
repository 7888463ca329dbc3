"""What the measured history recommends for the next run: which technique, at what budget, and how sure that is.

Every group was trained at several budgets; where its mean curve reaches the target is what the next run is predicted to
cost (:mod:`reuse_algos.compare.budget_curves`). A technique is only recommended if

* there are runs of at least three different seeds (:data:`~reuse_algos.compare.candidates.SEEDS_NEEDED`) at each budget
  that the prediction rests on, and of the baseline as well, which need not reach the target itself;
* the target was measured: the mean curve reaches it within the group's budgets, and is surely at or beyond it at the
  largest. Nothing is extrapolated;
* it is surely cheaper than the baseline: the lower limit of the speed-up is above 1. As the best of K techniques is
  picked, each limit is taken at a confidence of 1 - (1 - confidence) / K (Bonferroni), so that with no technique being
  of any use, one is recommended with a probability of at most (1 - confidence) / 2.

Otherwise the answer is "not enough evidence", with the reason. Controls (tag ``control_of``) are never recommended.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reuse_algos.compare.budget_groups import Member
from reuse_algos.compare.budget_runs import BudgetRun, Terms, budget_runs, by_group, prior_seconds_of
from reuse_algos.compare.budgets import AXES, AXIS_WORDS, Axis, less_of
from reuse_algos.compare.candidates import SEEDS_NEEDED, Candidate, Case, Evidence
from reuse_algos.compare.notes import differences, left_out
from reuse_algos.compare.outcomes import Mode
from reuse_algos.compare.results import json_safe
from reuse_algos.compare.statistics import CONFIDENCE
from reuse_algos.compare.table import Selection, select_outcomes
from reuse_algos.errors import CompareError

if TYPE_CHECKING:
    from reuse_algos.archive import RunArchive

__all__ = ["SEEDS_NEEDED", "Candidate", "Evidence", "Recommendation", "recommend_from_archive", "recommend_runs"]


@dataclass(frozen=True)
class Recommendation:
    """What to run next.

    Attributes:
        archive: where the runs are.
        group_by: the grouping key.
        baseline: the group that the others are compared with.
        metric: full name of the metric.
        mode: whether more or less of it is better.
        target: value to reach.
        axis: how cost is counted: as was asked for, else by ``amortised_seconds``, or by ``steps`` where seconds are
            not known for all runs.
        confidence: of the intervals shown, two-sided.
        decision_confidence: of the intervals that decide.
        later_runs: among how many runs the harvests are shared.
        price_per_hour: dollars for an hour, or None.
        choice: name of the recommended technique; None if there is not enough evidence for one.
        sentence: the answer in words.
        candidates: what is cheaper than the baseline first, by cost, then the baseline, then the others by cost.
        notes: what a reader must know.
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
    sentence: str
    candidates: list[Candidate]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; numbers that are not finite become None."""
        return json_safe(dataclasses.asdict(self))


def recommend_from_archive(
    archive: RunArchive,
    *,
    target: float,
    group_by: str = "tags.method",
    baseline: str = "baseline",
    metric: str | None = None,
    mode: Mode | None = None,
    tags: Mapping[str, Any] | None = None,
    confidence: float = CONFIDENCE,
    price_per_hour: float | None = None,
    later_runs: int = 1,
    count_prior_training: bool = False,
    judge_by: Axis | None = None,
    selection: Selection | None = None,
) -> Recommendation:
    """:func:`recommend_runs` from an archive's finished runs, selected by the other arguments as in a comparison."""
    chosen = selection or select_outcomes(archive, group_by=group_by, metric=metric, mode=mode, tags=tags)
    runs = budget_runs(chosen.groups)
    notes = left_out(chosen.unfinished, chosen.without_key, chosen.reused)
    if baseline in chosen.groups:
        notes += differences(baseline, chosen.groups)
    return recommend_runs(
        runs,
        target=target,
        baseline=baseline,
        metric=chosen.metric,
        mode=chosen.mode,
        group_by=chosen.group_by,
        archive=archive.location,
        confidence=confidence,
        price_per_hour=price_per_hour,
        later_runs=later_runs,
        count_prior_training=count_prior_training,
        judge_by=judge_by,
        prior_seconds=prior_seconds_of(archive, runs),
        notes=notes,
    )


def recommend_runs(
    runs: Sequence[BudgetRun],
    *,
    target: float,
    baseline: str = "baseline",
    metric: str,
    mode: Mode,
    group_by: str = "group",
    archive: str = "",
    confidence: float = CONFIDENCE,
    price_per_hour: float | None = None,
    later_runs: int = 1,
    count_prior_training: bool = False,
    judge_by: Axis | None = None,
    prior_seconds: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> Recommendation:
    """Predict which technique, at what budget, reaches the target at the least cost. The rules are in the docstring.

    Args:
        runs: of all groups.
        target: metric value that the next run is to reach.
        baseline: the group that a technique must beat.
        metric: what :attr:`~reuse_algos.compare.budget_runs.BudgetRun.final` is.
        mode: whether more or less of it is better.
        group_by: what the groups are, for the heading.
        archive: where the runs are, for the heading.
        confidence: two-sided, for the decision as a whole.
        price_per_hour: dollars for an hour of the hardware.
        later_runs: among how many runs harvests are shared; with 1 the next run bears all of its own.
        count_prior_training: share the training of prior runs as well.
        judge_by: how cost is counted; None: by ``amortised_seconds`` where they are known for all runs, else by
            ``steps``. On a machine that is shared with other work, seconds tell less than ``steps`` or ``flops``.
        prior_seconds: what each prior run took, by run id.
        notes: to put behind those that are found here.

    Raises:
        CompareError: no such baseline, a target that is no number, a price or number of runs that makes no sense, an
            axis on which the cost of the baseline is not known.
    """
    if not math.isfinite(target):
        raise CompareError(f"the target must be a number, got {target}")
    if not 0.0 < confidence < 1.0:
        raise CompareError(f"the confidence must be between 0 and 1, got {confidence}")
    terms = Terms(price_per_hour, later_runs, count_prior_training, prior_seconds or {})
    by_name = by_group(runs, baseline, group_by)
    members = {name: Member.of(name, by_name[name], terms, mode) for name in sorted(by_name)}
    controls = [name for name, member in members.items() if member.control_of is not None and name != baseline]
    techniques = [name for name in members if name != baseline and name not in controls]
    seconds = all("amortised_seconds" in members[name].costs for name in (baseline, *techniques))
    axis = judge_by or ("amortised_seconds" if seconds else "steps")
    _check_axis(axis, members[baseline])
    case = Case(
        baseline=members[baseline],
        level=target if mode == "max" else -target,
        axis=axis,
        confidence=confidence,
        decision=1.0 - (1.0 - confidence) / max(len(techniques), 1),
        price_per_hour=price_per_hour,
    )
    found = [case.candidate(members[name]) for name in techniques]

    def rank(candidate: Candidate) -> tuple[bool, float, float, str]:
        """By cost; of what costs the same, the better first."""
        cost = candidate.cost.estimate if candidate.cost is not None else math.inf
        reached = candidate.evidence[0].mean if mode == "min" else -candidate.evidence[0].mean
        return candidate.bound == ">=", cost, reached, candidate.name

    good = sorted((c for c in found if not c.lacking), key=rank)
    if good:
        good[0] = dataclasses.replace(good[0], standing="recommended")
    first = case.candidate(members[baseline])
    rest = sorted((c for c in found if c.lacking), key=rank)
    alike = [c.name for c in good[1:] if not case.cheaper(members[c.name], members[good[0].name])]
    extra = []
    if judge_by is None and not seconds:
        extra.append("Train seconds are not known for all runs: cost is counted in steps.")
    if controls:
        extra.append(f"Controls are never recommended: {', '.join(controls)}.")
    return Recommendation(
        archive=archive,
        group_by=group_by,
        baseline=baseline,
        metric=metric,
        mode=mode,
        target=float(target),
        axis=axis,
        confidence=confidence,
        decision_confidence=case.decision,
        later_runs=later_runs,
        price_per_hour=price_per_hour,
        choice=good[0].name if good else None,
        sentence=_sentence(good[0] if good else None, first, axis, f"{metric.rsplit('/', 1)[-1]} {target:.6g}")
        + (f" Not clearly dearer: {', '.join(alike)}." if alike else ""),
        candidates=[*good, first, *rest],
        notes=[*extra, *notes],
    )


def _check_axis(axis: Axis, baseline: Member) -> None:
    if axis not in AXES:
        raise CompareError(f"runs cannot be judged by {axis!r}. Choose one of {', '.join(AXES)}")
    if axis not in baseline.costs:
        why = "say the price of an hour" if axis == "dollars" else "judge by steps"
        raise CompareError(f"what the runs of {baseline.name} cost in {AXIS_WORDS[axis]} is not known: {why}")


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
    high = "no upper limit" if math.isinf(speedup.high) else f"{speedup.high:.2f}"
    limits = f"from {speedup.low:.2f} to {high}" if math.isfinite(speedup.high) else f"from {speedup.low:.2f}, {high}"
    n = min(point.n for point in choice.evidence)
    return (
        f"Train {choice.name} for {_steps(choice)}: it is predicted to reach {goal} with {about}"
        f"{speedup.estimate:.2f} times {less} than {baseline.name} ({limits}; n = {n})."
    )


def _steps(candidate: Candidate) -> str:
    budgets = [point.budget for point in candidate.evidence]
    if candidate.bound == "<=":
        return f"{candidate.steps.estimate:.0f} steps ({budgets[0]}) or fewer"
    if len(budgets) == 1:
        return f"{candidate.steps.estimate:.0f} steps ({budgets[0]})"
    return f"about {candidate.steps.estimate:.0f} steps (between {budgets[0]} and {budgets[-1]})"
