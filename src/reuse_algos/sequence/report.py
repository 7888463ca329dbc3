"""What a sequence cost with reuse and without, and what it got for that: pure numbers, read from the archive."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.compare.estimates.interval import Interval, difference_interval, mean_interval
from reuse_algos.compare.reading import choose_metric, read_outcome
from reuse_algos.compare.result import json_safe
from reuse_algos.errors import CompareError, ReuseAlgosError, SequenceError
from reuse_algos.sequence.plan import PlannedStep, fingerprint
from reuse_algos.sequence.progress import StepState
from reuse_algos.sequence.schema import SequenceConfig
from reuse_algos.sequence.search import SearchResult, search_result

__all__ = ["ArmResult", "Cost", "SequenceReport", "StepResult", "sequence_report"]


@dataclass(frozen=True)
class Cost:
    """What was spent.

    Attributes:
        steps: batches trained.
        epochs: whole epochs.
        samples: examples trained.
        train_seconds: training, evaluation excluded, and what an interrupted attempt trained behind its checkpoint.
        setup_seconds: loading prior runs before the first step.
        harvest_seconds: passes over the data that filled signals afterwards, each counted once in an arm: at its first
            use, or at the run where the arm's ``harvest`` made it and none of its steps used it.
        cost_seconds: the three together.
        flops: of training as archived, see :class:`~reuse_algos.archive.CostRecord`; what a frozen backbone spares is
            in the seconds only. None where that of a run is not known.
    """

    steps: int
    epochs: int
    samples: int
    train_seconds: float
    setup_seconds: float
    harvest_seconds: float
    cost_seconds: float
    flops: float | None


@dataclass(frozen=True)
class StepResult:
    """One finished step.

    Attributes:
        name: of the step.
        point: the grid's values, by recipe key.
        run_id: its run.
        seed: of the run.
        health: ``ok``, or ``diverged``.
        fingerprint: of its recipe.
        special: whether it was trained by the arm's ``first`` and not as the others.
        final: the metric at the end; NaN where there is none.
        best: its best value during the run; NaN where there is none.
        cost: what it took.
        prior_runs: what it reused.
    """

    name: str
    point: dict[str, Any]
    run_id: str
    seed: int | None
    health: str
    fingerprint: str
    special: bool
    final: float
    best: float
    cost: Cost
    prior_runs: list[str]


@dataclass(frozen=True)
class ArmResult:
    """One arm.

    Attributes:
        name: of the arm.
        is_baseline: whether the others are compared with it.
        steps: its steps, in order.
        total: what all of them took.
        final: mean final metric of the steps with its t interval, over whatever the steps differ in.
        best: the best final metric, and ``best_step`` whose it is.
        best_step: name of that step; None if no step has a metric.
        share: total cost over that of the baseline, by the name of the cost; None where the baseline has none of it,
            and empty for the baseline itself and where nothing is compared.
        final_difference: mean final metric minus the baseline's, with its interval; None likewise.
        paired: whether the steps were paired with the baseline's by name.
    """

    name: str
    is_baseline: bool
    steps: list[StepResult]
    total: Cost
    final: Interval
    best: float
    best_step: str | None
    share: dict[str, float | None]
    final_difference: Interval | None
    paired: bool


@dataclass(frozen=True)
class SequenceReport:
    """All arms of a finished sequence.

    Attributes:
        name: of the sequence.
        archive: where its runs are.
        metric: full name of the metric.
        mode: whether more (``max``) or less of it is better.
        baseline: the arm that the others are compared with, or None.
        arms: in the order of the file.
        search: the winners, where the sequence searches for something.
        notes: what a reader must know before believing the numbers.
    """

    name: str
    archive: str
    metric: str
    mode: str
    baseline: str | None
    arms: list[ArmResult]
    search: SearchResult | None
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; numbers that are not finite become None."""
        return json_safe(dataclasses.asdict(self))


def sequence_report(config: SequenceConfig, states: Sequence[StepState], archive: RunArchive) -> SequenceReport:
    """Count and compare a finished sequence.

    Args:
        config: the sequence file.
        states: every step, finished.
        archive: where the runs are; it is only read.

    Raises:
        SequenceError: a step is not finished.
        CompareError: the runs share no metric, or not the one that the file names.
    """
    missing = [found.step.title for found in states if found.state != "finished"]
    if missing:
        raise SequenceError(f"{len(missing)} steps are not finished yet: {', '.join(missing)}")
    pairs = [(found.step, found.run) for found in states if found.run is not None]
    runs = [run for _, run in pairs]
    metric = choose_metric(runs, config.metric)
    mode = runs[0].metric_mode(metric)
    arms: list[ArmResult] = []
    order = [config.baseline] if config.baseline else []
    order += [name for name in config.arms if name != config.baseline]
    baseline: ArmResult | None = None
    for name in order:
        arm = _arm(name, [pair for pair in pairs if pair[0].arm == name], archive, metric, mode, baseline)
        if name == config.baseline:
            arm = baseline = dataclasses.replace(arm, is_baseline=True)
        arms.append(arm)
    arms.sort(key=lambda arm: list(config.arms).index(arm.name))
    search = None
    if config.search is not None:
        values = {arm.name: _searched(arm, config.search) for arm in arms}
        search = search_result(config.search, values, config.baseline, mode)
    return SequenceReport(
        name=config.name,
        archive=archive.location,
        metric=metric,
        mode=mode,
        baseline=config.baseline,
        arms=arms,
        search=search,
        notes=_notes(arms, pairs, config.search),
    )


def _searched(arm: ArmResult, key: str) -> list[tuple[dict[str, Any], float]]:
    """The steps that a search is decided by: those trained alike.

    A first step that was trained otherwise would speak for its value by its own budget. It only counts where nothing
    else has this value.
    """
    alike = [step for step in arm.steps if not step.special]
    alone = [step for step in arm.steps if step.special and all(step.point[key] != other.point[key] for other in alike)]
    values = [step.point[key] for step in arm.steps]
    counted = [step for step in arm.steps if step in alike or step in alone]
    counted.sort(key=lambda step: values.index(step.point[key]))  # as in the grid, whichever step is left out
    return [(step.point, step.final) for step in counted]


def _arm(
    name: str,
    pairs: Sequence[tuple[PlannedStep, PriorRun]],
    archive: RunArchive,
    metric: str,
    mode: str,
    baseline: ArmResult | None,
) -> ArmResult:
    charged: dict[str, float] = {}
    steps = [_step(step, run, archive, metric, charged) for step, run in pairs]
    steps = [_with_harvest(result, planned, run, charged) for result, (planned, run) in zip(steps, pairs, strict=True)]
    total = _sum([step.cost for step in steps])
    finals = [step.final for step in steps]
    finite = [step for step in steps if math.isfinite(step.final)]
    sign = 1.0 if mode == "max" else -1.0
    best = max(finite, key=lambda step: sign * step.final) if finite else None
    share: dict[str, float | None] = {}
    difference, paired = None, False
    if baseline is not None:
        share = {key: _ratio(getattr(total, key), getattr(baseline.total, key)) for key in _cost_names()}
        paired = [step.name for step in steps] == [step.name for step in baseline.steps]
        difference = difference_interval(finals, [step.final for step in baseline.steps], paired=paired)
    return ArmResult(
        name=name,
        is_baseline=False,
        steps=steps,
        total=total,
        final=mean_interval(finals),
        best=math.nan if best is None else best.final,
        best_step=None if best is None else best.name,
        share=share,
        final_difference=difference,
        paired=paired,
    )


def _step(step: PlannedStep, run: PriorRun, archive: RunArchive, metric: str, charged: dict[str, float]) -> StepResult:
    manifest = run.manifest
    if read_outcome(run, metric) is None:
        raise CompareError(f"{step.title} (run {run.id}) has no value of {metric}: name a metric that all steps have")
    harvest = 0.0
    for use in manifest.prior_runs:
        # Later steps that use the same harvest get it for nothing, so in all it is never more than was spent.
        spent = charged.get(use.run_id, 0.0)
        share = min(use.harvest_seconds, max(0.0, _harvested(archive, use.run_id, use.harvest_seconds) - spent))
        charged[use.run_id] = spent + share
        harvest += share
    trained, cost = manifest.progress, manifest.cost
    return StepResult(
        name=step.name,
        point=step.point,
        run_id=run.id,
        seed=manifest.seed,
        health=manifest.health,
        fingerprint=fingerprint(step.recipe.record),
        special=step.special,
        final=run.final_metric(metric),
        best=run.best_metric(metric)[0],
        cost=Cost(
            steps=trained.batch,
            epochs=trained.epoch,
            samples=trained.sample,
            train_seconds=cost.train_seconds,
            setup_seconds=cost.setup_seconds,
            harvest_seconds=harvest,
            cost_seconds=cost.train_seconds + cost.setup_seconds + harvest,
            flops=cost.train_flops,
        ),
        prior_runs=sorted({use.run_id for use in manifest.prior_runs}),
    )


def _with_harvest(result: StepResult, step: PlannedStep, run: PriorRun, charged: Mapping[str, float]) -> StepResult:
    """With the seconds of what the arm harvests of the run and none of its steps used."""
    names = {harvest.name for harvest in step.harvests}
    made = sum(harvest.seconds for harvest in run.manifest.harvests if harvest.signal in names)
    unused = max(0.0, made - charged.get(run.id, 0.0))
    cost = result.cost
    cost = dataclasses.replace(
        cost, harvest_seconds=cost.harvest_seconds + unused, cost_seconds=cost.cost_seconds + unused
    )
    return dataclasses.replace(result, cost=cost)


def _harvested(archive: RunArchive, run_id: str, otherwise: float) -> float:
    """Seconds that all harvests of a run took; ``otherwise`` where the run cannot be read any more."""
    if otherwise == 0.0:
        return 0.0
    try:
        return max(otherwise, sum(harvest.seconds for harvest in archive.run(run_id).manifest.harvests))
    except ReuseAlgosError:
        return otherwise


def _cost_names() -> list[str]:
    return [field.name for field in dataclasses.fields(Cost)]


def _sum(costs: Sequence[Cost]) -> Cost:
    totals: dict[str, Any] = {}
    for name in _cost_names():
        values = [getattr(cost, name) for cost in costs]
        totals[name] = None if None in values else sum(values)
    return Cost(**totals)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


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
        if baseline is not None and len(arm.steps) != len(baseline.steps):
            notes.append(
                f"{arm.name} has {len(arm.steps)} steps and {baseline.name} has {len(baseline.steps)}: totals of "
                "unlike amounts of work, so their share is no saving."
            )
        notes += _uncounted(arm, [pair for pair in pairs if pair[0].arm == arm.name])
        diverged = [step.name for step in arm.steps if step.health != "ok"]
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
            counted = len(_searched(arm, search)) == len(arm.steps)
            notes.append(
                f"{arm.name}: the first step was trained otherwise than the others, and "
                + ("nothing else has its value, so it decides for it." if counted else "does not count in the search.")
            )
        if len({step.fingerprint for step in arm.steps}) < len(arm.steps) and arm.is_baseline:
            notes.append(f"{arm.name}: some steps have the same recipe; repeating a seed tells nothing new.")
    machines = {_machine(run.manifest.environment) for _, run in pairs}
    if len(machines - {None}) > 1:
        notes.append("The steps ran on different hardware: their seconds are not comparable.")
    return notes


def _uncounted(arm: ArmResult, pairs: Sequence[tuple[PlannedStep, PriorRun]]) -> list[str]:
    """Where three forward passes per example are not what was computed."""
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


def _machine(environment: Any) -> str | None:
    if environment is None:
        return None
    hardware: Mapping[str, Any] = environment.hardware
    return str(sorted((key, str(value)) for key, value in hardware.items()))
