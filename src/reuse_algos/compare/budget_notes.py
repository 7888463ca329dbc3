"""What a reader must know before believing a budget comparison: caveats found in the data, as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from reuse_algos.compare.budget_curves import Sample
from reuse_algos.compare.budget_groups import BudgetQuestion, Member
from reuse_algos.compare.budgets import AXIS_WORDS, BudgetGroup, alike
from reuse_algos.compare.notes import ids
from reuse_algos.compare.statistics import MIN_RUNS, RUNS_FOR_A_CLAIM

__all__ = ["budget_notes"]

_ALIKE_FLOPS = 0.01
"""FLOPs of an example that differ by less are alike."""


def budget_notes(groups: Sequence[BudgetGroup], question: BudgetQuestion, members: Mapping[str, Member]) -> list[str]:
    """All notes on a budget comparison.

    Args:
        groups: the baseline first.
        question: what was asked of them.
        members: their runs, by name.
    """
    notes = [*_too_few(groups), *_thin(groups)]
    for group in groups:
        notes += _runs(group, members[group.name])
    notes += [*_batches(groups), *_other_passes(groups, question)]
    notes += _baseline(groups[0], question)
    for group in groups[1:]:
        notes += _reading(group, question, members[group.name])
    if len(groups) > 3:
        notes.append(f"{len(groups) - 1} groups are compared: each interval holds by itself, not all of them at once.")
    return notes


def _too_few(groups: Sequence[BudgetGroup]) -> list[str]:
    few = [
        f"{group.name} at {point.budget} (n={point.n})"
        for group in groups
        for point in group.points
        if point.n < RUNS_FOR_A_CLAIM
    ]
    if not few:
        return []
    return [
        f"Too few runs for a claim: {ids(few)}. {MIN_RUNS} give an interval, {RUNS_FOR_A_CLAIM} are needed for a "
        "claim, 5 for a headline."
    ]


def _batches(groups: Sequence[BudgetGroup]) -> list[str]:
    first, ours = groups[0], groups[0].batch_sizes
    other = [f"{group.name} ({_sizes(group)})" for group in groups[1:] if not alike([*ours, *group.batch_sizes])]
    if not other and alike(ours):
        return []
    known = ", ".join([f"{first.name} ({_sizes(first)} examples)", *other])
    return [
        f"Batches are not all of one size: {known}. A step is not worth a step there; examples and seconds compare."
    ]


def _sizes(group: BudgetGroup) -> str:
    """Such as ``128``, or ``32 to 128``."""
    low, high = (f"{size:.0f}" for size in (min(group.batch_sizes), max(group.batch_sizes)))
    return low if alike(group.batch_sizes) else f"{low} to {high}"


def _other_passes(groups: Sequence[BudgetGroup], question: BudgetQuestion) -> list[str]:
    """Steps and examples count what is drawn from the data, whatever is computed of it."""
    usual = groups[0].flops_per_example
    if question.judge_by not in ("steps", "samples") or usual is None:
        return []
    notes = []
    unknown = [group.name for group in groups if group.flops_per_example is None]
    if unknown:
        notes.append(
            f"{', '.join(unknown)}: FLOPs are not known, as of live teachers or appended rows that were not counted. A "
            f"count of {AXIS_WORDS[question.judge_by]} has none of these; only the seconds have them."
        )
    for group in groups[1:]:
        if group.flops_per_example is None or math.isclose(group.flops_per_example, usual, rel_tol=_ALIKE_FLOPS):
            continue
        notes.append(
            f"{group.name}: an example takes {group.flops_per_example / usual:.3g} times the FLOPs that it takes in "
            f"{groups[0].name}, which a count of {AXIS_WORDS[question.judge_by]} does not tell; FLOPs and seconds do."
        )
    return notes


def _thin(groups: Sequence[BudgetGroup]) -> list[str]:
    notes = []
    for group in groups:
        thin = [f"{point.budget} (n={point.n})" for point in group.points if not point.used]
        if thin:
            notes.append(
                f"{group.name}: too few runs at {', '.join(thin)}, beside those at its other budgets. They are shown, "
                "and left out of curves, intervals and fronts."
            )
    return notes


def _runs(group: BudgetGroup, member: Member) -> list[str]:
    notes = []
    runs = member.runs
    bad = [run.run_id or f"seed {run.seed}" for run in runs if run.health == "diverged" or not math.isfinite(run.final)]
    if bad:
        notes.append(
            f"{group.name}: {len(bad)} of {len(runs)} runs diverged ({ids(bad)}); they stay in, and a budget with one "
            "of them has not reached the target."
        )
    for point in group.points:
        seeds = [seed for seed in point.seeds if seed is not None]
        if len(set(seeds)) < len(seeds):
            notes.append(
                f"{group.name} at {point.budget}: {len(seeds)} runs have only {len(set(seeds))} different seeds. Runs "
                "of one seed are not independent, and the intervals do not hold for them."
            )
    known = {point.budget: frozenset(seed for seed in point.seeds if seed is not None) for point in group.points}
    if len(set(known.values())) > 1:
        everyone = frozenset().union(*known.values())
        missing = [
            f"{', '.join(map(str, sorted(everyone - seeds)))} at {budget}"
            for budget, seeds in known.items()
            if everyone - seeds
        ]
        notes.append(
            f"{group.name} does not have every seed at every budget (missing: {'; '.join(missing)}). Between two "
            "budgets only the seeds that both have count, where there are at least two."
        )
    tags = {run.control_of for run in runs}
    if len(tags) > 1:
        notes.append(f"{group.name}: its runs do not agree on what they are a control of, so it counts as a technique.")
    return notes


def _baseline(baseline: BudgetGroup, question: BudgetQuestion) -> list[str]:
    member = question.baseline
    last = member.curve.last
    notes = []
    if last == 0:
        notes.append(
            f"{baseline.name} was trained at one budget only. Whether a shorter plain run is just as good was not "
            "measured, so speed-ups may be too large: train it at smaller budgets as well."
        )
    if not isinstance(question.target, Sample):
        return notes
    found = question.crossing(member, paired=False)
    if found.estimate < last:
        notes.append(
            f"The mean of {baseline.name} was at the level of its largest budget before that budget; only the cost up "
            "to there counts as its cost."
        )
    if found.low is not None and found.low < found.estimate:
        flat = member.labels[math.ceil(found.low)]
        notes.append(
            f"{baseline.name} is not clearly below its last level at {flat}: it may have been flat by then. Lower "
            "limits of speed-ups count only the cost up to there. More seeds would tell."
        )
    return notes


def _reading(group: BudgetGroup, question: BudgetQuestion, member: Member) -> list[str]:
    notes = []
    largest, smallest = member.labels[-1], member.labels[0]
    if group.target_bound == ">=":
        notes.append(
            f"{group.name} does not reach the target within its budgets (the largest is {largest}): its speed-up is at "
            "most what is shown, and it is not called faster."
        )
    elif group.target_bound == "<=":
        notes.append(
            f"{group.name} is at the target with its smallest budget ({smallest}) already: its speed-up is at least "
            "what is shown. Smaller budgets would tell."
        )
    elif group.verdict == "no difference" and all(s.low == 0.0 for s in group.speedups.values()):
        notes.append(
            f"{group.name} reaches the target in the mean, but is not clearly at or above it at its largest budget "
            f"({largest}): the speed-up has no lower limit. More seeds, or a larger budget, would tell."
        )
    if group.paired and isinstance(question.target, Sample):
        alone = sorted(
            {seed for sample in member.curve.samples for seed in sample.by_seed} - set(question.target.by_seed)
        )
        if alone:
            notes.append(
                f"{group.name}: the seeds {', '.join(map(str, alone))} have no partner in the baseline at its largest "
                "budget. They count in means, and not in intervals."
            )
    if "cost_seconds" not in group.speedups:
        notes.append(f"{group.name}: train seconds are not recorded for all runs, so the verdict is about steps only.")
    if question.terms.count_prior_training and math.isnan(sum(member.terms.prior_training(run) for run in member.runs)):
        notes.append(
            f"{group.name}: a prior run of it cannot be read, so the cost with its share of prior training is unknown."
        )
    return notes
