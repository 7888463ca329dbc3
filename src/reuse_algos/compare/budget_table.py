"""Compare groups of runs over several budgets each: how much less does a group spend to be as good as the baseline?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reuse_algos.compare.budget_groups import BudgetQuestion, Member, group_over_budgets
from reuse_algos.compare.budget_notes import budget_notes
from reuse_algos.compare.budget_runs import BudgetRun, Terms, budget_runs, by_group, prior_seconds_of
from reuse_algos.compare.budgets import AXES, Axis, BudgetComparison, BudgetGroup
from reuse_algos.compare.notes import differences, left_out
from reuse_algos.compare.outcomes import Mode
from reuse_algos.compare.statistics import CONFIDENCE
from reuse_algos.compare.table import Pairing, Selection, select_outcomes
from reuse_algos.errors import CompareError

if TYPE_CHECKING:
    from reuse_algos.archive import RunArchive

__all__ = ["BudgetRun", "compare_archive_budgets", "compare_budgets"]


def compare_archive_budgets(
    archive: RunArchive,
    *,
    group_by: str = "tags.method",
    baseline: str = "baseline",
    target: float | None = None,
    metric: str | None = None,
    mode: Mode | None = None,
    tags: Mapping[str, Any] | None = None,
    pairing: Pairing = "auto",
    confidence: float = CONFIDENCE,
    price_per_hour: float | None = None,
    later_runs: int = 5,
    count_prior_training: bool = False,
    judge_by: Axis = "cost_seconds",
    selection: Selection | None = None,
) -> BudgetComparison:
    """Compare all finished runs of an archive over their budgets.

    Arguments as for :func:`~reuse_algos.compare.table.compare_runs` and :func:`compare_budgets`. A run's budget is its
    recipe's ``max_duration``, or its number of steps where there is none, so the grouping key should not hold it.

    Raises:
        CompareError: as both of them.
    """
    chosen = selection or select_outcomes(archive, group_by=group_by, metric=metric, mode=mode, tags=tags)
    runs = budget_runs(chosen.groups)
    return compare_budgets(
        runs,
        baseline=baseline,
        target=target,
        metric=chosen.metric,
        mode=chosen.mode,
        group_by=chosen.group_by,
        archive=archive.location,
        archive_id=archive.archive_id,
        pairing=pairing,
        confidence=confidence,
        price_per_hour=price_per_hour,
        later_runs=later_runs,
        count_prior_training=count_prior_training,
        judge_by=judge_by,
        prior_seconds=prior_seconds_of(archive, runs),
        notes=[
            *left_out(chosen.unfinished, chosen.without_key, chosen.reused),
            *(differences(baseline, chosen.groups) if baseline in chosen.groups else ()),
        ],
    )


def compare_budgets(
    runs: Sequence[BudgetRun],
    *,
    baseline: str = "baseline",
    target: float | None = None,
    metric: str,
    mode: Mode,
    group_by: str = "group",
    archive: str = "",
    archive_id: str = "",
    pairing: Pairing = "auto",
    confidence: float = CONFIDENCE,
    price_per_hour: float | None = None,
    later_runs: int = 5,
    count_prior_training: bool = False,
    judge_by: Axis = "cost_seconds",
    prior_seconds: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> BudgetComparison:
    """Compare groups of runs over their budgets. The method is in :mod:`reuse_algos.compare.budget_curves`.

    Args:
        runs: of all groups. Diverged ones stay in.
        baseline: name of the group to compare with.
        target: metric value that counts as reached, fixed before the runs were seen; by default the baseline's mean at
            its largest budget.
        metric: what :attr:`BudgetRun.final` is.
        mode: whether more or less of it is better.
        group_by: what the groups are, for the heading.
        archive: where the runs are, for the heading.
        archive_id: likewise.
        pairing: "auto" pairs by seed where each gap between two budgets of a group has at least three seeds in common
            with the baseline's largest budget (two, where that is all of them); "seed" insists, "none" never pairs.
            With a given target nothing is paired.
        confidence: of every interval, two-sided.
        price_per_hour: dollars for an hour of the hardware.
        later_runs: among how many runs ``amortised_seconds`` shares harvests.
        count_prior_training: share the training of prior runs among them as well.
        judge_by: the axis of the verdict and the sentence; ``steps`` where it is not known. On a machine that is shared
            with other work, seconds tell less than ``steps`` or ``flops``.
        prior_seconds: what each prior run took, by run id.
        notes: to put behind those that are found here.

    Raises:
        CompareError: no runs, an unknown baseline, a target that is no number, a baseline that ended with NaN, seeds
            that do not pair, a price or a number of later runs that makes no sense.
    """
    if not 0.0 < confidence < 1.0:
        raise CompareError(f"the confidence must be between 0 and 1, got {confidence}")
    if judge_by not in AXES:
        raise CompareError(f"runs cannot be judged by {judge_by!r}. Choose one of {', '.join(AXES)}")
    if judge_by == "dollars" and price_per_hour is None:
        raise CompareError("runs cannot be judged by dollars without the price of an hour")
    if target is not None and not math.isfinite(target):
        raise CompareError(f"the target must be a number, got {target}")
    terms = Terms(price_per_hour, later_runs, count_prior_training, prior_seconds or {})
    by_name = by_group(runs, baseline, group_by)
    members = {name: Member.of(name, by_name[name], terms, mode) for name in by_name}
    first = members[baseline]
    if target is None and not math.isfinite(first.curve.samples[-1].mean):
        raise CompareError(
            f"the baseline has no mean final {metric} at {first.largest}: a run of it ended with a value that is "
            "not finite. Declare a target."
        )
    sign = 1.0 if mode == "max" else -1.0
    given = target is not None
    question = BudgetQuestion(
        baseline=first,
        target=sign * target if given else first.curve.samples[-1],
        pairing=pairing,
        confidence=confidence,
        metric=metric,
        mode=mode,
        terms=terms,
        judge_by=judge_by,
    )
    order = [baseline, *_by_technique({name: m for name, m in members.items() if name != baseline})]
    groups = _with_fronts([group_over_budgets(members[name], question) for name in order], sign)
    return BudgetComparison(
        archive=archive,
        archive_id=archive_id,
        group_by=group_by,
        baseline=baseline,
        metric=metric,
        mode=mode,
        target=question.level,
        target_source="given" if given else "baseline mean final",
        confidence=confidence,
        price_per_hour=price_per_hour,
        later_runs=later_runs,
        count_prior_training=count_prior_training,
        judged_by=judge_by,
        groups=groups,
        notes=[*budget_notes(groups, question, members), *notes],
    )


def _by_technique(members: Mapping[str, Member]) -> list[str]:
    """Names in order, each control right after its technique."""
    controls: dict[str, list[str]] = {}
    for name in sorted(members):
        technique = members[name].control_of
        if technique in members and technique != name:
            controls.setdefault(str(technique), []).append(name)
    placed = {name for names in controls.values() for name in names}
    order: list[str] = []

    def place(name: str) -> None:
        if name not in order:
            order.append(name)
            for control in controls.get(name, []):
                place(control)

    for name in [*sorted(members.keys() - placed), *sorted(placed)]:
        place(name)
    return order


def _with_fronts(groups: Sequence[BudgetGroup], sign: float) -> list[BudgetGroup]:
    """The groups with each point's place on the Pareto fronts; ``sign`` is -1 where less of the metric is better."""
    points = [point for group in groups for point in group.points if point.used]
    fronts: dict[Axis, set[int]] = {}
    for axis in AXES:
        known: list[tuple[float, float, int]] = []
        for point in points:
            cost, mean = point.costs[axis], sign * point.final.estimate
            if cost is not None and math.isfinite(mean):
                known.append((cost, mean, id(point)))
        fronts[axis] = {
            own
            for cost, mean, own in known
            if not any(c <= cost and m >= mean and (c < cost or m > mean) for c, m, _ in known)
        }
    return [
        dataclasses.replace(
            group,
            points=[
                dataclasses.replace(point, on_pareto_front={axis: id(point) in fronts[axis] for axis in AXES})
                for point in group.points
            ],
        )
        for group in groups
    ]
