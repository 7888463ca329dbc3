"""What a reader must know before believing a comparison: caveats found in the data, as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from reuse_algos.compare.estimates.interval import MIN_RUNS, RUNS_FOR_A_CLAIM, difference_interval
from reuse_algos.compare.estimates.over_budgets import Sample
from reuse_algos.compare.outcomes import Outcome, Outcomes
from reuse_algos.compare.result import Comparison, Group, alike
from reuse_algos.compare.run_notes import differences, left_out, some
from reuse_algos.compare.show.words import AXIS_WORDS, format_interval

if TYPE_CHECKING:
    from reuse_algos.compare.kinds.budgets import Member, OverBudgets

_ALIKE_FLOPS = 0.01  # FLOPs of an example that differ by a smaller share are alike


def notes_of(comparison: Comparison, outcomes: Outcomes, budgets: OverBudgets | None) -> list[str]:
    """Return all notes on a comparison.

    Args:
        comparison: Without its notes.
        outcomes: The runs it was made from.
        budgets: The estimator, where it was made over budgets; None elsewhere.
    """
    groups, runs = comparison.groups, outcomes.groups
    notes = [*_too_few(groups), *_thin(groups)]
    for group in groups:
        notes += [*_diverged(group), *_repeated_seeds(group), *_unlike_seeds(group), *_unlike_tags(group, runs)]
    if budgets is not None:
        notes += [*_batches(groups), *_other_passes(comparison), *_baseline_budgets(groups[0], budgets)]
        for group in groups[1:]:
            notes += _budget_reading(group, budgets, budgets.member(runs[group.name]))
            notes += _below(group, groups[0], comparison)
            notes += _no_seconds(group)
            if comparison.count_prior_training:
                notes += _unknown_prior(group, outcomes)
    elif comparison.method != "ends":
        notes += [*_baseline_training(groups[0], comparison.method), *_not_reached(groups[1:], comparison.method)]
        for group in groups[1:]:
            notes += [*_training_reading(group, groups[0], comparison.method), *_no_seconds(group)]
    notes += _best_control(comparison)
    # Up to two techniques the intervals are read one by one; beyond, chance finds a winner.
    if len(groups) > 3:
        notes.append(f"{len(groups) - 1} groups are compared: each interval holds by itself, not all of them at once.")
    return [*notes, *left_out(outcomes.left_out), *differences(comparison.baseline, runs)]


def _too_few(groups: Sequence[Group]) -> list[str]:
    few = []
    for group in groups:
        points = [(f"{group.name} at {point.budget}", point.n) for point in group.points]
        few += [f"{name} (n={n})" for name, n in points or [(group.name, group.n)] if n < RUNS_FOR_A_CLAIM]
    if not few:
        return []
    return [
        f"Too few runs for a claim: {some(few)}. {MIN_RUNS} give an interval, {RUNS_FOR_A_CLAIM} are needed for a "
        "claim, 5 for a headline."
    ]


def _thin(groups: Sequence[Group]) -> list[str]:
    notes = []
    for group in groups:
        thin = [f"{point.budget} (n={point.n})" for point in group.points if not point.used]
        if thin:
            notes.append(
                f"{group.name}: too few runs at {', '.join(thin)}, beside those at its other budgets. They are shown, "
                "and left out of curves, intervals and fronts."
            )
    return notes


def _diverged(group: Group) -> list[str]:
    bad = [run for run in group.runs if run.health == "diverged" or (group.points and not math.isfinite(run.final))]
    if not bad:
        return []
    more = ", and a budget with one of them has not reached the target" if group.points else ""
    ids = some([run.run_id or f"seed {run.seed}" for run in bad])
    return [f"{group.name}: {len(bad)} of {group.n} runs diverged ({ids}); they stay in the comparison{more}."]


def _repeated_seeds(group: Group) -> list[str]:
    notes = []
    points = [(f"{group.name} at {point.budget}", point.seeds) for point in group.points]
    for name, seeds in points or [(group.name, group.seeds)]:
        known = [seed for seed in seeds if seed is not None]
        if len(set(known)) < len(known):
            notes.append(
                f"{name}: {len(known)} runs have only {len(set(known))} different seeds. Runs of one seed are not "
                "independent, and the intervals do not hold for them."
            )
    return notes


def _unlike_seeds(group: Group) -> list[str]:
    known = {point.budget: frozenset(seed for seed in point.seeds if seed is not None) for point in group.points}
    if len(set(known.values())) < 2:
        return []
    everyone = frozenset().union(*known.values())
    missing = [
        f"{', '.join(map(str, sorted(everyone - seeds)))} at {budget}"
        for budget, seeds in known.items()
        if everyone - seeds
    ]
    return [
        f"{group.name} does not have every seed at every budget (missing: {'; '.join(missing)}). Between two budgets "
        "only the seeds that both have count, where there are at least two."
    ]


def _unlike_tags(group: Group, runs: Mapping[str, Sequence[Outcome]]) -> list[str]:
    if len({run.control_of for run in runs[group.name]}) < 2:
        return []
    return [f"{group.name}: its runs do not agree on what they are a control of, so it counts as a technique."]


def _best_control(comparison: Comparison) -> list[str]:
    """Return that a control is at the target at less cost than all that is not a control."""
    costs: dict[str, float] = {}
    for group in comparison.groups:
        if group.points:
            known = group.cost_to_target.get(comparison.judged_by) or group.cost_to_target.get("steps")
            # Who does not reach the target has no cost of reaching it.
            cost = None if known is None or group.target_bound == ">=" else known.estimate
        else:
            cost = group.to_target.cost_seconds if group.to_target and group.to_target.reached else None
        if cost is not None and math.isfinite(cost):
            costs[group.name] = cost
    if not costs:
        return []
    best = comparison.group(min(costs, key=costs.__getitem__))
    technique = best.control_of
    if technique is None or best.is_baseline or technique == best.name:
        return []
    return [
        f"The best of all is {best.name}, a control of {technique}: it is at the target at the least cost. What "
        f"{technique} adds to it was not shown to help."
    ]


def _no_seconds(group: Group) -> list[str]:
    if "cost_seconds" in group.speedups:
        return []
    return [f"{group.name}: train seconds are not recorded for all runs, so the verdict is about steps only."]


# Over training.


def _baseline_training(baseline: Group, method: str) -> list[str]:
    if baseline.to_target is None:
        return []
    budget, steps = max(run.budget_steps for run in baseline.runs), baseline.to_target.steps
    if method == "curves":
        if steps >= budget:
            return []
        return [
            f"The mean curve of {baseline.name} first reached its own final level at step {steps:.0f} of {budget}; "
            "only the cost up to there counts as its cost."
        ]
    notes = []
    if baseline.reached < baseline.n:
        notes.append(
            f"{baseline.n - baseline.reached} of {baseline.n} runs of {baseline.name} never reached the target: "
            "speed-ups are at least what is shown."
        )
    # A schedule that would have ended earlier decays earlier, and may be there sooner.
    early = [run.to_target.steps / run.budget_steps for run in baseline.runs if run.to_target and run.to_target.reached]
    if early and (mean := sum(early) / len(early)) < 1.0:
        notes.append(
            f"{baseline.name} reached the target after {100 * mean:.0f} % of its budget, before its schedule ended. "
            "Plain training with a schedule as short as that may reach it sooner: this reading is unfair to it."
        )
    return notes


def _not_reached(groups: Sequence[Group], method: str) -> list[str]:
    if method == "curves":
        short = [f"{g.name} ({g.to_target.steps:.0f} steps)" for g in groups if g.to_target and not g.to_target.reached]
        what = "mean curves did not reach the target within their budgets"
    else:
        short = [f"{g.name} ({g.n - g.reached} of {g.n} runs)" for g in groups if g.reached < g.n]
        what = "runs never reached the target and count at their total cost"
    if not short:
        return []
    return [
        f"These {what}: {', '.join(short)}. Their speed-ups are at most what is shown, and they are not called faster."
    ]


def _training_reading(group: Group, baseline: Group, method: str) -> list[str]:
    notes = []
    undecided = group.verdict == "no difference" and group.speedups["steps"].low == 0.0
    if method == "curves" and group.target_bound == "" and undecided:
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
    return notes


# Over budgets.


def _batches(groups: Sequence[Group]) -> list[str]:
    first, ours = groups[0], groups[0].batch_sizes
    other = [f"{group.name} ({_sizes(group)})" for group in groups[1:] if not alike([*ours, *group.batch_sizes])]
    if not other and alike(ours):
        return []
    known = ", ".join([f"{first.name} ({_sizes(first)} examples)", *other])
    return [
        f"Batches are not all of one size: {known}. A step is not worth a step there; examples and seconds compare."
    ]


def _sizes(group: Group) -> str:
    """Return such as ``128``, or ``32 to 128``."""
    low, high = (f"{size:.0f}" for size in (min(group.batch_sizes), max(group.batch_sizes)))
    return low if alike(group.batch_sizes) else f"{low} to {high}"


def _other_passes(comparison: Comparison) -> list[str]:
    """Return where a count of what is drawn from the data hides what is computed of it."""
    groups, judged = comparison.groups, comparison.judged_by
    usual = groups[0].flops_per_example
    if judged not in ("steps", "samples") or usual is None:
        return []
    notes = []
    unknown = [group.name for group in groups if group.flops_per_example is None]
    if unknown:
        notes.append(
            f"{', '.join(unknown)}: FLOPs are not known, as of live teachers or appended rows that were not counted. A "
            f"count of {AXIS_WORDS[judged]} has none of these; only the seconds have them."
        )
    for group in groups[1:]:
        # Live teachers and appended rows cost passes that a count of examples does not see.
        if group.flops_per_example is None or math.isclose(group.flops_per_example, usual, rel_tol=_ALIKE_FLOPS):
            continue
        notes.append(
            f"{group.name}: an example takes {group.flops_per_example / usual:.3g} times the FLOPs that it takes in "
            f"{groups[0].name}, which a count of {AXIS_WORDS[judged]} does not tell; FLOPs and seconds do."
        )
    return notes


def _baseline_budgets(baseline: Group, budgets: OverBudgets) -> list[str]:
    member, notes = budgets.baseline, []
    last = member.curve.last
    if last == 0:
        notes.append(
            f"{baseline.name} was trained at one budget only. Whether a shorter plain run is just as good was not "
            "measured, so speed-ups may be too large: train it at smaller budgets as well."
        )
    if not isinstance(budgets.level, Sample):
        return notes
    found = budgets.crossing(member, paired=False)
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


def _budget_reading(group: Group, budgets: OverBudgets, member: Member) -> list[str]:
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
    if group.paired and isinstance(budgets.level, Sample):
        ours = {seed for sample in member.curve.samples for seed in sample.by_seed}
        alone = sorted(ours - set(budgets.level.by_seed))
        if alone:
            notes.append(
                f"{group.name}: the seeds {', '.join(map(str, alone))} have no partner in the baseline at its largest "
                "budget. They count in means, and not in intervals."
            )
    return notes


def _below(group: Group, baseline: Group, comparison: Comparison) -> list[str]:
    """Return the budgets at which a technique is worse than plain training for as long."""
    if group.control_of is not None:
        return []
    sign, said = 1.0 if comparison.mode == "max" else -1.0, []
    for point in group.points:
        plain = next((p for p in baseline.points if p.budget == point.budget or p.steps == point.steps), None)
        if plain is None or not (point.used and plain.used):
            continue
        paired = point.seeds == plain.seeds and None not in point.seeds and len(set(point.seeds)) == len(point.seeds)
        by = difference_interval(point.values, plain.values, paired=paired, confidence=comparison.confidence)
        if sign * by.estimate < 0:
            clear = max(sign * by.low, sign * by.high) < 0
            said.append(f"{point.budget} ({format_interval(by, '+', ' ')}{'' if clear else ', not clearly'})")
    if not said:
        return []
    return [f"{group.name} is worse than {baseline.name} at the same budget: {', '.join(said)}."]


def _unknown_prior(group: Group, outcomes: Outcomes) -> list[str]:
    if not any(math.isnan(outcomes.prior_training(run.prior_run_ids)) for run in outcomes.groups[group.name]):
        return []
    return [f"{group.name}: a prior run of it cannot be read, so the cost with its share of prior training is unknown."]
