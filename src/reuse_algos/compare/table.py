"""Compare groups of archived runs: what each spends to be as good as the baseline."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from reuse_algos.archive.format.metrics import infer_mode
from reuse_algos.compare.groups import Question, baseline_result, group_result
from reuse_algos.compare.notes import comparison_notes, left_out
from reuse_algos.compare.outcomes import Mode, RunOutcome, choose_metric, group_of, read_outcome
from reuse_algos.compare.results import Comparison
from reuse_algos.compare.statistics import CONFIDENCE
from reuse_algos.errors import CompareError, nearest

if TYPE_CHECKING:
    from reuse_algos.archive import PriorRun, RunArchive

__all__ = ["Pairing", "Selection", "compare_runs", "no_baseline", "select_outcomes"]

Pairing = Literal["auto", "seed", "none"]


@dataclass(frozen=True)
class Selection:
    """The runs of a comparison, read and grouped.

    Attributes:
        group_by: the grouping key.
        metric: full name of the metric.
        mode: whether more or less of it is better.
        groups: outcomes by group, each sorted by seed and run id.
        unfinished: ids of runs left out because they are still going or died.
        without_key: ids of runs left out because they lack the grouping key.
        reused: ids of runs left out because of their tag ``role: prior``.
    """

    group_by: str
    metric: str
    mode: Mode
    groups: dict[str, list[RunOutcome]]
    unfinished: list[str]
    without_key: list[str]
    reused: list[str]


def select_outcomes(
    archive: RunArchive,
    *,
    group_by: str = "tags.method",
    metric: str | None = None,
    mode: Mode | None = None,
    tags: Mapping[str, Any] | None = None,
) -> Selection:
    """Read all finished runs of an archive in groups; diverged ones take part. Arguments as for :func:`compare_runs`.

    Runs with the tag ``role: prior`` were trained to be reused, and are no method to compare: they are left out, unless
    ``tags`` or the grouping key ask for the role.

    Raises:
        CompareError: no runs; an unknown metric or grouping key; a run without the metric.
    """
    found = archive.runs(tags=tags, order="first", unfinished=True, unhealthy=True)
    unfinished = [run.id for run in found if not run.finished]
    groups: dict[str, list[PriorRun]] = {}
    without_key, reused = [], []
    by_role = "role" in (tags or {}) or "tags.role" in group_by
    for run in (run for run in found if run.finished):
        name = group_of(run, group_by)
        if run.tags.get("role") == "prior" and not by_role:
            reused.append(run.id)
        elif name is None:
            without_key.append(run.id)
        else:
            groups.setdefault(name, []).append(run)
    if not groups:
        raise CompareError(_nothing(archive, group_by, tags, unfinished, without_key, reused))
    members = [run for group in groups.values() for run in group]
    metric = choose_metric(members, metric)
    return Selection(
        group_by,
        metric,
        mode or _recorded_mode(members, metric),
        _read(groups, metric),
        unfinished,
        without_key,
        reused,
    )


def _recorded_mode(runs: Sequence[PriorRun], metric: str) -> Mode:
    modes: set[Mode] = {run.manifest.monitor_mode for run in runs if run.manifest.monitor == metric}
    return modes.pop() if len(modes) == 1 else infer_mode(metric)


def compare_runs(
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
    selection: Selection | None = None,
) -> Comparison:
    """Compare all finished runs of an archive, in groups, with one group as the baseline.

    Diverged runs take part: they are runs that did not reach the target. Runs that are still going or died are left
    out, and named in the notes. Cost in seconds is training + set-up + the used share of harvests, which each run bears
    in full (:class:`~reuse_algos.compare.results.BreakEven` says what becomes of it over many runs).

    Args:
        archive: where the runs are; it is only read.
        group_by: ``tags.<key>``, ``run_name``, ``model.name``, ``dataset.name``, ``seed`` or ``recipe.<dotted path>``;
            several joined by commas group by all of them (``tags.method,recipe.max_duration``: "distilled / 10ep").
        baseline: name of the group to compare with.
        target: metric value that counts as reached, **fixed before the runs were seen**. Each run then has its own cost
            to the target (method "runs"). By default the target is the baseline's mean final metric, and mean curves
            are compared (method "curves").
        metric: full name or unique last part; by default the monitor of the runs.
        mode: whether more ("max") or less ("min") is better; by default as the runs' monitor says, else by the name.
        tags: compare only runs with these tags (a list of values means any of them).
        pairing: "auto" pairs runs by seed where a group has exactly the baseline's seeds, once each; "seed" insists on
            that, "none" never pairs.
        confidence: of the intervals, two-sided.
        selection: the runs if they were read before with :func:`select_outcomes`; then ``group_by``, ``metric``,
            ``mode`` and ``tags`` are taken from it.

    Raises:
        CompareError: no runs; an unknown baseline, metric or grouping key; a run without the metric; runs of different
            budgets in one group without a ``target``; a baseline that ended with NaN; seeds that do not pair.
    """
    chosen = selection or select_outcomes(archive, group_by=group_by, metric=metric, mode=mode, tags=tags)
    outcomes, group_by = chosen.groups, chosen.group_by
    if baseline not in outcomes:
        raise no_baseline(baseline, outcomes, group_by)
    if not 0.0 < confidence < 1.0:
        raise CompareError(f"the confidence must be between 0 and 1, got {confidence}")
    if target is None:
        _check_budgets(outcomes, group_by)
        question = Question(_own_target(outcomes[baseline], chosen.metric), chosen.mode, "curves", confidence)
    elif math.isfinite(target):
        question = Question(float(target), chosen.mode, "runs", confidence)
    else:
        raise CompareError(f"the target must be a number, got {target}")

    first = baseline_result(baseline, outcomes[baseline], question)
    others = [
        group_result(
            archive, name, outcomes[name], outcomes[baseline], first, question,
            paired=_pairs(outcomes[baseline], outcomes[name], pairing, name),
        )
        for name in sorted(outcomes)
        if name != baseline
    ]  # fmt: skip
    return Comparison(
        archive=archive.location,
        archive_id=archive.archive_id,
        group_by=group_by,
        baseline=baseline,
        metric=chosen.metric,
        mode=chosen.mode,
        target=question.target,
        target_source="baseline mean final" if target is None else "given",
        method=question.method,
        confidence=confidence,
        groups=[first, *others],
        notes=comparison_notes(
            [first, *others], outcomes, question, [*left_out(chosen.unfinished, chosen.without_key, chosen.reused)]
        ),
    )


def no_baseline(baseline: str, groups: Collection[str], group_by: str) -> CompareError:
    """The error where no run is in the baseline group."""
    known = "" if len(groups) > 1 else f" The only group is {next(iter(groups))}." if groups else " There is no group."
    return CompareError(
        f"no run is in the baseline group {baseline!r}, with groups by {group_by}.{known or nearest(baseline, groups)}"
    )


def _nothing(
    archive: RunArchive, group_by: str, tags: Any, unfinished: list[str], without_key: list[str], reused: list[str]
) -> str:
    which = f" with the tags {dict(tags)}" if tags else ""
    if without_key:
        runs = f"{len(without_key)} finished runs{which}"
        return f"none of the {runs} in {archive.location} has {group_by}: group by another key"
    hint = f" ({len(unfinished)} are not finished)" if unfinished else ""
    hint += f" ({len(reused)} with the tag role: prior are left out)" if reused else ""
    return f"there are no finished runs{which} in {archive.location}{hint}; `reuse-algos runs --all` lists every run"


def _read(groups: Mapping[str, Sequence[PriorRun]], metric: str) -> dict[str, list[RunOutcome]]:
    outcomes: dict[str, list[RunOutcome]] = {}
    missing = []
    for name, runs in groups.items():
        for run in runs:
            outcome = read_outcome(run, metric)
            if outcome is None:
                missing.append(f"{run.id} ({name})")
            else:
                outcomes.setdefault(name, []).append(outcome)
    if missing:
        raise CompareError(
            f"metric {metric} is missing in {len(missing)} of the runs: {', '.join(missing[:10])}"
            f"{', ...' if len(missing) > 10 else ''}. Compare by a metric that all have, or select runs by tags."
        )
    for outcomes_of_group in outcomes.values():
        outcomes_of_group.sort(key=lambda o: (o.seed is None, o.seed or 0, o.run_id))
    return outcomes


def _check_budgets(outcomes: Mapping[str, Sequence[RunOutcome]], group_by: str) -> None:
    for name, group in outcomes.items():
        budgets = sorted({outcome.budget for outcome in group})
        if len(budgets) > 1:
            raise CompareError(
                f"the runs of group {name!r} ended after different numbers of steps ({', '.join(map(str, budgets))}), "
                f"so the group has no one budget. Group by the budget as well, such as by "
                f"{group_by},recipe.max_duration, or declare a target."
            )


def _own_target(baseline: Sequence[RunOutcome], metric: str) -> float:
    bad = [outcome.run_id for outcome in baseline if not math.isfinite(outcome.final)]
    if bad:
        raise CompareError(
            f"the baseline has no mean final {metric}: {', '.join(bad)} ended with a value that is not finite. Declare "
            "a target."
        )
    return float(np.mean([outcome.final for outcome in baseline]))


def _pairs(baseline: Sequence[RunOutcome], group: Sequence[RunOutcome], pairing: Pairing, name: str) -> bool:
    """Whether the runs pair by seed: both sides have the same seeds, each once. (Both are sorted by seed.)"""
    if pairing == "none":
        return False
    ours, theirs = [o.seed for o in baseline], [o.seed for o in group]
    fits = ours == theirs and None not in ours and len(set(ours)) == len(ours)
    if not fits and pairing == "seed":
        raise CompareError(f"runs do not pair by seed: the baseline has the seeds {ours}, group {name!r} has {theirs}")
    return fits
