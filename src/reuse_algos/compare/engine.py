"""The engine: a question and the runs go in, a comparison comes out, whatever the kind.

question = Question(group_by="tags.method", baseline="baseline")
comparison = compare(read_outcomes(archive, question), question)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from reuse_algos.compare.estimates.interval import Interval, Speedup, difference_interval, mean_interval
from reuse_algos.compare.kinds.budgets import OverBudgets
from reuse_algos.compare.kinds.reader import Reading
from reuse_algos.compare.kinds.training import Ends, WithinRuns
from reuse_algos.compare.notes import notes_of
from reuse_algos.compare.outcomes import Outcome, Outcomes
from reuse_algos.compare.payback import BreakEven
from reuse_algos.compare.question import AXES, Axis, Question
from reuse_algos.compare.result import Comparison, Group, OverControl, Run
from reuse_algos.compare.settled import settled
from reuse_algos.compare.show.words import Sentence, format_interval, format_number

_LATER_RUNS = 5
Runs = Sequence[Outcome]


def _reader(outcomes: Outcomes, question: Question, baseline: Runs) -> OverBudgets | WithinRuns | Ends:
    if question.over == "budgets":
        return OverBudgets(outcomes, question, baseline, question.costs.later_runs or _LATER_RUNS)
    return WithinRuns(outcomes, question, baseline) if question.over == "training" else Ends(question, baseline)


def compare(outcomes: Outcomes, question: Question) -> Comparison:
    """Compare groups of runs with the baseline.

    Diverged runs take part: they are runs that did not reach the target. Each run counts its harvests in full;
    :class:`~reuse_algos.compare.payback.BreakEven` says what becomes of them over many runs.

    Args:
        outcomes: The runs; their metric, mode and grouping are taken as they are.
        question: What is asked of them.

    Raises:
        CompareError: The runs cannot answer the question, see :meth:`Question.check`.
    """
    groups = outcomes.groups
    # Before the checks, which need to know the baseline.
    question = settled(question, outcomes)
    question.check(groups)
    baseline = groups[question.baseline]
    reader = _reader(outcomes, question, baseline)
    # The baseline comes first: every other group is read against it, and shown after it.
    order = [question.baseline, *_by_technique({name: g for name, g in groups.items() if name != question.baseline})]
    words = Sentence(
        question.baseline, outcomes.metric, reader.target, question.target is not None, question.confidence
    )
    readings = {name: reader.read(groups[name]) for name in order}
    found = [_group(groups[name], baseline, readings, question, words) for name in order]
    # Only at several budgets can a control be read at the technique's own budgets.
    if isinstance(reader, OverBudgets):
        found = _over_controls(found, groups, reader, question, words)
    # A front runs through the points of all groups, so it is drawn when all of them are read.
    found = _with_fronts(found, 1.0 if outcomes.mode == "max" else -1.0)
    judged: Axis = question.costs.judge_by or "cost_seconds"
    comparison = Comparison(
        archive=outcomes.archive,
        archive_id=outcomes.archive_id,
        group_by=outcomes.group_by,
        baseline=question.baseline,
        metric=outcomes.metric,
        mode=outcomes.mode,
        target=reader.target,
        target_source="baseline mean final" if question.target is None else "given",
        method=reader.method,
        confidence=question.confidence,
        price_per_hour=question.costs.price_per_hour,
        later_runs=question.costs.later_runs or _LATER_RUNS,
        count_prior_training=question.costs.count_prior_training,
        judged_by=judged,
        groups=found,
        notes=[],
    )
    budgets = reader if isinstance(reader, OverBudgets) else None
    return dataclasses.replace(comparison, notes=notes_of(comparison, outcomes, budgets))


def control_of(group: Runs) -> str | None:
    """Return what all runs of a group say they are a control of, or None."""
    # A group whose runs disagree counts as a technique, and a note says so.
    found = {run.control_of for run in group}
    return found.pop() if len(found) == 1 else None


def _group(runs: Runs, baseline: Runs, readings: Mapping[str, Reading], question: Question, words: Sentence) -> Group:
    name, is_baseline = runs[0].group, runs is baseline
    reading, first = readings[name], readings[question.baseline]
    wanted: Axis = question.costs.judge_by or "cost_seconds"
    # Where seconds are not known of every run, steps decide, and a note says so.
    axis: Axis = wanted if wanted in reading.speedups else "steps"
    speedup = reading.speedups.get(axis)
    finals, confidence = [run.final for run in runs], question.confidence
    over_budgets, difference = question.over == "budgets", None
    if not over_budgets and not is_baseline:
        theirs = [run.final for run in baseline]
        difference = difference_interval(finals, theirs, paired=bool(reading.paired), confidence=confidence)
    if is_baseline or speedup is None:
        verdict, sentence = "baseline" if is_baseline else "not compared", ""
        if is_baseline and question.over != "ends":
            sentence = words.of_baseline(name, reading.basis, reading.bound, reading.where)
    else:
        verdict = speedup.verdict
        both_there = reading.bound == "<="
        why = (
            "both are there with their smallest budget already"
            if both_there
            else "neither reaches it within its budget"
        )
        pairing = "paired by seed" if reading.paired else "not paired"
        why += "s" * (over_budgets and not both_there)
        basis = f"{reading.basis}, {pairing}"
        sentence = words.of_group(name, speedup, axis, basis, why)
        if over_budgets and reading.bound == ">=" and verdict == "no difference" and speedup.known:
            # "No difference" would read as "as good": the group's end is what a reader must see.
            end = next(point.final for point in reversed(reading.points) if point.used)
            sentence = words.not_reached(name, end, reading.where, basis)
        if not over_budgets:
            sentence += _ends(runs, difference, confidence)
            sentence += "" if reading.bound == "" else " It did not reach the target within its budget."
    return Group(
        name=name,
        is_baseline=is_baseline,
        control_of=control_of(runs),
        runs=_runs(reading),
        points=reading.points,
        final=None if over_budgets else mean_interval(finals, confidence),
        final_difference=difference,
        paired=reading.paired,
        to_target=reading.to_target,
        cost_to_target=reading.cost_to_target,
        target_bound=reading.bound,
        speedups=reading.speedups,
        verdict=verdict,
        sentence=sentence,
        break_even=None if is_baseline or question.over == "ends" else _break_even(runs, reading, first),
    )


def _over_controls(
    found: Sequence[Group], groups: Mapping[str, Runs], reader: OverBudgets, question: Question, words: Sentence
) -> list[Group]:
    """Return the groups, each technique with what it is over its controls."""
    compared: dict[str, list[OverControl]] = {}
    for control in found:
        technique = control.control_of
        if (
            technique is not None
            and technique in groups
            and technique not in (control.name, question.baseline)
            and not control.is_baseline
        ):
            compared.setdefault(technique, []).append(
                _over_control(technique, control.name, groups, reader, question, words)
            )
    return [dataclasses.replace(group, over_controls=compared.get(group.name, [])) for group in found]


def _over_control(
    technique: str, control: str, groups: Mapping[str, Runs], reader: OverBudgets, question: Question, words: Sentence
) -> OverControl:
    speedups = reader.over(groups[technique], groups[control])
    wanted: Axis = question.costs.judge_by or "cost_seconds"
    axis: Axis = wanted if wanted in speedups else "steps"
    why = "both costs are only limits of one kind"
    sentence = words.of_group(technique, speedups[axis], axis, "not paired", why, than=control)
    return OverControl(control, speedups, f"Over its control: {sentence}")


def _ends(group: Runs, difference: Interval | None, confidence: float) -> str:
    final = mean_interval([run.final for run in group], confidence)
    if not math.isfinite(final.estimate):
        return " It has no mean final value, because a run of it ended with none."
    return f" Final value: {format_number(final.estimate)}, which differs by {format_interval(difference, '+', ' ')}."


def _runs(reading: Reading) -> list[Run]:
    costs = reading.to_runs or [None] * len(reading.runs)
    return [
        Run(
            run_id=run.run_id,
            seed=run.seed,
            health=run.health,
            budget=run.budget,
            budget_steps=int(run.steps),
            final=float(run.final),
            to_target=cost,
            setup_seconds=run.setup_seconds,
            harvest_seconds=run.harvest_seconds,
        )
        for run, cost in zip(reading.runs, costs, strict=True)
    ]


def _break_even(group: Runs, reading: Reading, baseline: Reading) -> BreakEven | None:
    # What reused nothing has nothing to pay back.
    if not any(run.prior_run_ids for run in group):
        return None
    in_seconds: Speedup | None = reading.speedups.get("cost_seconds")
    whole = math.nan
    if baseline.to_target is not None:
        whole = baseline.to_target.cost_seconds
    elif in_seconds is not None and (cost := baseline.cost_to_target.get("cost_seconds")) is not None:
        whole = cost.estimate
    harvest = sum(run.harvest_seconds for run in group) / len(group)
    return BreakEven.of(harvest, reading.prior_seconds, whole, in_seconds)


def _by_technique(groups: Mapping[str, Runs]) -> list[str]:
    """Return the names in order, each control right after its technique."""
    controls: dict[str, list[str]] = {}
    for name in sorted(groups):
        # Some tag a run as a control of itself; that is a technique.
        technique = control_of(groups[name])
        if technique in groups and technique != name:
            controls.setdefault(str(technique), []).append(name)
    placed = {name for names in controls.values() for name in names}
    order: list[str] = []

    def place(name: str) -> None:
        if name not in order:
            order.append(name)
            for control in controls.get(name, []):
                place(control)

    # Controls of each other have no technique to follow, so they come last.
    for name in [*sorted(groups.keys() - placed), *sorted(placed)]:
        place(name)
    return order


def _with_fronts(groups: Sequence[Group], sign: float) -> list[Group]:
    """Return the groups with each point's place on the Pareto fronts; ``sign`` is -1 where less is better."""
    # A budget with too few runs would be on the front by luck.
    points = [point for group in groups for point in group.points if point.used]
    fronts: dict[Axis, set[int]] = {}
    for axis in AXES:
        known: list[tuple[float, float, int]] = []
        for point in points:
            cost, mean = point.costs[axis], sign * point.final.estimate
            if cost is not None and math.isfinite(mean):
                known.append((cost, mean, id(point)))
        front, least, best = set(), math.nan, -math.inf
        # Cheapest first, and of equal cost the best first: what comes later is beaten unless it is better.
        for cost, mean, own in sorted(known, key=lambda one: (one[0], -one[1])):
            if mean > best or (mean == best and cost == least):
                front.add(own)
                least, best = cost, mean
        fronts[axis] = front

    def placed(group: Group) -> list[Any]:
        return [
            dataclasses.replace(point, on_pareto_front={axis: id(point) in fronts[axis] for axis in AXES})
            for point in group.points
        ]

    return [dataclasses.replace(group, points=placed(group)) for group in groups]
