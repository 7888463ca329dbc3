"""What a reader must know before believing a comparison: caveats found in the data, as sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from reuse_algos.compare.groups import Question
from reuse_algos.compare.outcomes import RunOutcome
from reuse_algos.compare.results import GroupResult
from reuse_algos.compare.statistics import MIN_RUNS, RUNS_FOR_A_CLAIM

__all__ = ["comparison_notes", "differences", "ids", "left_out"]

Outcomes = Mapping[str, Sequence[RunOutcome]]


def comparison_notes(
    groups: Sequence[GroupResult],
    outcomes: Outcomes,
    question: Question,
    first: Sequence[str] = (),
) -> list[str]:
    """All notes on a comparison.

    Args:
        groups: the baseline first.
        outcomes: the runs of each group.
        question: the target and the method.
        first: notes to put before those that are found here.
    """
    notes = [*first, *_too_few(groups), *_diverged(groups), *_repeated_seeds(groups)]
    notes += _baseline_reading(groups[0], question)
    notes += _not_reached(groups[1:], question)
    for group in groups[1:]:
        notes += _group_reading(group, groups[0], question)
    if len(groups) > 3:
        notes.append(f"{len(groups) - 1} groups are compared: each interval holds by itself, not all of them at once.")
    notes += differences(groups[0].name, outcomes)
    return notes


def ids(run_ids: Sequence[str]) -> str:
    """The first five, and how many more."""
    return ", ".join(run_ids[:5]) + (f" and {len(run_ids) - 5} more" if len(run_ids) > 5 else "")


def left_out(unfinished: Sequence[str], without_key: Sequence[str], reused: Sequence[str]) -> list[str]:
    """Which runs take no part, and why: they are not finished, lack the grouping key, or are there to be reused."""
    notes = []
    if unfinished:
        notes.append(
            f"Left out, because unfinished: {ids(unfinished)}. If they died of what is compared here, the comparison "
            "flatters their group."
        )
    if without_key:
        notes.append(f"Left out, because the grouping key is missing: {ids(without_key)}.")
    if reused:
        notes.append(f"Left out, because they were trained to be reused (role: prior): {ids(reused)}.")
    return notes


def _too_few(groups: Sequence[GroupResult]) -> list[str]:
    few = [f"{group.name} (n={group.n})" for group in groups if group.n < RUNS_FOR_A_CLAIM]
    if not few:
        return []
    return [
        f"Too few runs for a claim: {', '.join(few)}. {MIN_RUNS} give an interval, {RUNS_FOR_A_CLAIM} are needed "
        "for a claim, 5 for a headline."
    ]


def _diverged(groups: Sequence[GroupResult]) -> list[str]:
    notes = []
    for group in groups:
        bad = [run.run_id for run in group.runs if run.health == "diverged"]
        if bad:
            notes.append(f"{group.name}: {len(bad)} of {group.n} diverged ({ids(bad)}); they stay in the comparison.")
    return notes


def _repeated_seeds(groups: Sequence[GroupResult]) -> list[str]:
    notes = []
    for group in groups:
        seeds = [seed for seed in group.seeds if seed is not None]
        if len(set(seeds)) < len(seeds):
            notes.append(
                f"{group.name}: {len(seeds)} runs have only {len(set(seeds))} different seeds. Runs of one seed are "
                "not independent, and the intervals do not hold for them."
            )
    return notes


def _baseline_reading(baseline: GroupResult, question: Question) -> list[str]:
    budget = max(run.budget_steps for run in baseline.runs)
    steps = baseline.to_target.steps
    if question.method == "curves":
        if steps >= budget:
            return []
        return [
            f"The mean curve of {baseline.name} first reached its own final level at step {steps:.0f} of {budget}; "
            "only the cost up to there counts as its cost."
        ]
    notes = []
    if baseline.censored:
        notes.append(
            f"{baseline.censored} of {baseline.n} runs of {baseline.name} never reached the target: speed-ups are at "
            "least what is shown."
        )
    early = [r.to_target.steps / r.budget_steps for r in baseline.runs if r.to_target.reached and r.budget_steps]
    if early and np.mean(early) < 1.0:
        notes.append(
            f"{baseline.name} reached the target after {100 * float(np.mean(early)):.0f} % of its budget, before its "
            "schedule ended. Plain training with a schedule as short as that may reach it sooner: this reading is "
            "unfair to it."
        )
    return notes


def _not_reached(groups: Sequence[GroupResult], question: Question) -> list[str]:
    if question.method == "curves":
        short = [f"{g.name} ({g.to_target.steps:.0f} steps)" for g in groups if not g.to_target.reached]
        what = "mean curves did not reach the target within their budgets"
    else:
        short = [f"{g.name} ({g.censored} of {g.n} runs)" for g in groups if g.censored]
        what = "runs never reached the target and count at their total cost"
    if not short:
        return []
    return [
        f"These {what}: {', '.join(short)}. Their speed-ups are at most what is shown, and they are not called faster."
    ]


def _group_reading(group: GroupResult, baseline: GroupResult, question: Question) -> list[str]:
    notes = []
    undecided = group.verdict == "no difference" and group.speedup_steps is not None and group.speedup_steps.low == 0.0
    if question.method == "curves" and group.to_target.reached and undecided:
        notes.append(
            f"The mean curve of {group.name} reached the target, but its end is not clearly at or above it: the "
            "speed-up has no lower limit. More runs, or a lower target declared in advance, would tell."
        )
    budgets = sorted({run.budget_steps for run in group.runs})
    theirs = sorted({run.budget_steps for run in baseline.runs})
    if len(budgets) > 1:
        notes.append(f"{group.name} mixes runs of different budgets ({', '.join(map(str, budgets))} steps).")
    elif budgets[0] < theirs[0] and group.verdict == "faster":
        notes.append(
            f"{group.name} was trained for {budgets[0]} steps and {baseline.name} for {', '.join(map(str, theirs))}. "
            f"Compare it with plain training whose schedule ends after {budgets[0]} steps, too."
        )
    if group.speedup_cost is None:
        notes.append(f"{group.name}: train seconds are not recorded for all runs, so the verdict is about steps only.")
    return notes


_FACTS: dict[str, Callable[[Any], object]] = {
    "model": lambda m: None if m.model is None else (m.model.name, m.model.num_parameters),
    "data": lambda m: None if m.dataset is None else (m.dataset.name, m.dataset.fingerprint),
    "hardware": lambda m: None if m.environment is None else sorted(m.environment.hardware.items(), key=str),
    "software versions": lambda m: None if m.environment is None else sorted(m.environment.versions.items()),
    "code commit": lambda m: None if m.environment is None else m.environment.git_commit,
}

_MEANING = {
    "model": "so this is no comparison of methods alone",
    "data": "so this is no comparison of methods alone",
    "hardware": "so seconds are not comparable",
    "software versions": "so seconds may not be comparable",
    "code commit": "so more than the method may differ",
}


def differences(baseline: str, outcomes: Outcomes) -> list[str]:
    """Facts that are not the same in all runs, though a fair comparison wants them to be."""
    notes = []
    for fact, get in _FACTS.items():
        sets = {name: {repr(get(o.manifest)) for o in group} for name, group in outcomes.items()}
        if len(set().union(*sets.values())) > 1:
            odd = sorted(name for name, values in sets.items() if values != sets[baseline] or len(values) > 1)
            notes.append(f"The {fact} is not the same in all runs (look at {', '.join(odd)}), {_MEANING[fact]}.")
    rates = {name: {round(float(o.samples[-1]) / max(o.budget, 1)) for o in group} for name, group in outcomes.items()}
    if len(set().union(*rates.values())) > 1:
        shown = "; ".join(f"{name}: {', '.join(map(str, sorted(rate)))}" for name, rate in sorted(rates.items()))
        notes.append(f"Examples per step differ ({shown}), so steps are not comparable: look at samples and seconds.")
    return notes
