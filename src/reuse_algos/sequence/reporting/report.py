"""What a sequence cost with reuse and without, and what it got for that: pure numbers, read from the archive.

The arms are groups and the steps are their runs in a question to :func:`reuse_algos.compare.compare` over the ends of
training; steps of one name are a pair.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.compare import Group, Outcome, Outcomes, Question, compare
from reuse_algos.compare.estimates.interval import Interval
from reuse_algos.compare.reading import choose_metric, read_outcome
from reuse_algos.compare.run_notes import machines
from reuse_algos.errors import CompareError, SequenceError
from reuse_algos.sequence.planning.order import fingerprint
from reuse_algos.sequence.planning.plan import PlannedStep
from reuse_algos.sequence.planning.schema import SequenceConfig
from reuse_algos.sequence.progress import StepState
from reuse_algos.sequence.reporting.costs import Cost, costs_of, shares_of, total_of
from reuse_algos.sequence.reporting.result import ArmResult, SequenceReport, StepResult
from reuse_algos.sequence.reporting.search import Tried, search_result


def sequence_report(config: SequenceConfig, states: Sequence[StepState], archive: RunArchive) -> SequenceReport:
    """Count and compare a finished sequence.

    Args:
        config: The sequence file.
        states: Every step, finished or dropped by a search.
        archive: Where the runs are; it is only read.

    Raises:
        SequenceError: A step is not finished.
        CompareError: The runs have no metric in common, or not the one that the file names.
    """
    missing = [found.step.title for found in states if found.state not in ("finished", "stopped")]
    if missing:
        raise SequenceError(f"{len(missing)} steps are not finished yet: {', '.join(missing)}")
    trained = [found for found in states if found.run is not None]
    pairs = [(found.step, found.run) for found in trained if found.run is not None]
    runs = [run for step, run in pairs if step.judged]
    metric = choose_metric(runs, config.metric)
    mode = runs[0].metric_mode(metric)
    # In a search by halving only the last rung says how good an arm ends: those before had smaller budgets.
    last = {name: max(found.step.rung or 0 for found in trained if found.step.arm == name) for name in config.arms}
    deciding = [found for found in trained if found.step.judged and (found.step.rung or 0) == last[found.step.arm]]
    outcomes = [_outcome(found, metric) for found in deciding]
    # Steps of the same name are the same work with and without reuse. Without a baseline nothing is compared, and the
    # first arm stands in for it, so that the question can be asked.
    question = Question(group_by="arm", baseline=config.baseline or next(iter(config.arms)), over="ends", metric=metric)
    ends = compare(Outcomes(outcomes, metric, mode), question)
    arms: dict[str, ArmResult] = {}
    # The baseline first: the shares of the others need its total.
    for name in sorted(config.arms, key=lambda arm: arm != config.baseline):
        own = [found for found in trained if found.step.arm == name]
        baseline = arms.get(config.baseline) if config.baseline else None
        arms[name] = _arm(ends.group(name), own, archive, metric, mode, config.baseline, baseline)
    ordered = [arms[name] for name in config.arms]
    search = None
    if config.search is not None:
        key = config.search.key
        values = {arm.name: searched_steps(arm, key) for arm in ordered}
        search = search_result(key, values, config.baseline, mode)
    return SequenceReport(
        name=config.name,
        archive=archive.location,
        metric=metric,
        mode=mode,
        baseline=config.baseline,
        arms=ordered,
        search=search,
        notes=_notes(ordered, pairs, config.search.key if config.search else None),
    )


def _outcome(state: StepState, metric: str) -> Outcome:
    step, run = state.step, state.run
    found = None if run is None else read_outcome(run, metric, step.arm)
    if run is None or found is None:
        raise CompareError(f"{step.title} has no value of {metric}: name a metric that all steps have")
    name = step.name.removeprefix(f"rung-{step.rung}_")  # so that it pairs with the same work without rungs
    return dataclasses.replace(found, pair=name, final=state.final(metric))


def searched_steps(arm: ArmResult, key: str) -> list[Tried]:
    """Return point and final metric of the steps that decide a search: those that were trained alike.

    A first step that was trained differently has a budget of its own. It only counts where no other step has its value.

    Args:
        arm: The arm.
        key: Of the grid, what is searched for.
    """
    alike = [step for step in arm.steps if step.judged and not step.special]
    first = [step for step in arm.steps if step.judged and step.special]
    alone = [step for step in first if all(step.point[key] != other.point[key] for other in alike)]
    values = [step.point[key] for step in arm.steps]
    counted = [step for step in arm.steps if step in alike or step in alone]
    counted.sort(key=lambda step: values.index(step.point[key]))  # as in the grid, whichever step is left out
    return [Tried(step.point, step.final, step.rung or 1) for step in counted]


def _arm(
    ends: Group,
    states: Sequence[StepState],
    archive: RunArchive,
    metric: str,
    mode: str,
    baseline_name: str | None,
    baseline: ArmResult | None,
) -> ArmResult:
    costs = costs_of([(found.step, found.run) for found in states if found.run is not None], archive)
    steps = [_step(found, metric, cost) for found, cost in zip(states, costs, strict=True)]
    total = total_of(costs)
    finite = [step for step in steps if step.judged and math.isfinite(step.final)]
    sign = 1.0 if mode == "max" else -1.0
    best = max(finite, key=lambda step: sign * step.final) if finite else None
    compared = baseline is not None
    return ArmResult(
        name=ends.name,
        is_baseline=ends.name == baseline_name,
        steps=steps,
        total=total,
        final=ends.final or Interval(math.nan, -math.inf, math.inf),
        best=math.nan if best is None else best.final,
        best_step=None if best is None else best.name,
        share={} if baseline is None else shares_of(total, baseline.total),
        final_difference=ends.final_difference if compared else None,
        paired=compared and bool(ends.paired),
    )


def _step(state: StepState, metric: str, cost: Cost) -> StepResult:
    step, run = state.step, state.run
    if run is None:
        raise SequenceError(f"{step.title} is not trained")
    measured = metric in run.metric_names  # a step that labels a pool has no metric
    return StepResult(
        name=step.name,
        point=step.point,
        run_id=run.id,
        seed=run.manifest.seed,
        health=run.manifest.health,
        fingerprint=fingerprint(step.recipe.record),
        special=step.special,
        judged=step.judged,
        rung=step.rung,
        held=state.held,
        final=state.final(metric) if measured else math.nan,
        best=run.best_metric(metric)[0] if measured else math.nan,
        cost=cost,
        prior_runs=sorted({use.run_id for use in run.manifest.prior_runs}),
    )


def _notes(arms: Sequence[ArmResult], pairs: Sequence[tuple[PlannedStep, PriorRun]], search: str | None) -> list[str]:
    notes = []
    if any(arm.share for arm in arms):
        notes.append(
            "Totals are those of one sequence and have no interval: seconds vary from run to run, and a claim needs "
            "the sequence several times. Intervals of the metric are over the steps."
        )
    baseline = next((arm for arm in arms if arm.is_baseline), None)
    own = {arm.name: {step.run_id for step in arm.steps} for arm in arms}
    for arm in arms:
        by_rungs = any(step.rung for step in (*arm.steps, *(baseline.steps if baseline else ())))
        aside = [step.name for step in arm.steps if not step.judged]
        if aside:
            notes.append(f"{arm.name} is not judged by {', '.join(aside)}: only their cost counts.")
        if baseline is not None and len(arm.steps) != len(baseline.steps) and not by_rungs:
            notes.append(
                f"{arm.name} has {len(arm.steps)} steps and {baseline.name} has {len(baseline.steps)}: totals of "
                "unlike amounts of work, so their share is not a saving."
            )
        notes += _uncounted(arm, [pair for pair in pairs if pair[0].arm == arm.name])
        held = [step.name for step in arm.steps if step.held]
        if held:
            notes.append(
                f"{arm.name}: the archive held {len(held)} of its steps ({', '.join(held[:5])}"
                f"{', ...' if len(held) > 5 else ''}). Their cost is that of the earlier training, in full."
            )
        diverged = [step.name for step in arm.steps if step.health == "diverged"]
        if diverged:
            notes.append(f"{arm.name}: {', '.join(diverged)} diverged; their cost counts.")
        borrowed = sorted({run for step in arm.steps for run in step.prior_runs} - own[arm.name])
        if borrowed:
            notes.append(
                f"{arm.name} reused {len(borrowed)} runs that are not its own ({', '.join(borrowed[:5])}"
                f"{', ...' if len(borrowed) > 5 else ''}): their training is not in its total."
            )
        idle = not arm.is_baseline and bool(arm.share) and not any(step.prior_runs for step in arm.steps)
        if idle:
            notes.append(f"{arm.name} reused nothing: no step of it names a prior run.")
        if search is not None and any(step.special for step in arm.steps):
            counted = len(searched_steps(arm, search)) == len(arm.steps)
            notes.append(
                f"{arm.name}: the first step was trained differently from the others, and "
                + ("nothing else has its value, so it decides for it." if counted else "does not count in the search.")
            )
        # Only of the baseline: with reuse, equal recipes meet different prior runs.
        if len({step.fingerprint for step in arm.steps}) < len(arm.steps) and arm.is_baseline:
            notes.append(f"{arm.name}: some steps have the same recipe; repeating a seed tells nothing new.")
    if len({*machines([run.manifest.environment for _, run in pairs])} - {None}) > 1:
        notes.append("The steps ran on different hardware: their seconds are not comparable.")
    return notes


def _uncounted(arm: ArmResult, pairs: Sequence[tuple[PlannedStep, PriorRun]]) -> list[str]:
    """Return a note where the count of three forward passes per example is not what was computed."""
    if arm.total.flops is None:
        return []
    notes = []
    settings = [options for step, _ in pairs for options in step.recipe.settings.algorithms.values()]
    # With cached features the count is the head's, all of which trains.
    frozen = [
        options for options in settings if options.get("freeze") or (options.get("trainable") or {}).get("freeze")
    ]
    if any(options.get("source") != "cached" for options in frozen):
        notes.append(
            f"{arm.name}: FLOPs count backward passes through what is frozen, too, which were not made; seconds do not."
        )
    return notes
