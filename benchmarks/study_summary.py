"""From the lines of a study's results file to the comparison of its methods: raw values are all that it takes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from reuse_algos.archive import infer_mode
from reuse_algos.compare import Comparison, Costs, Outcome, Outcomes, Question, compare, recommend
from reuse_algos.compare.question import Axis
from reuse_algos.errors import CompareError
from reuse_algos.training.flops import PASSES_PER_STEP

LATER_RUNS = 5


def compare_records(
    records: Sequence[dict[str, Any]],
    baseline: str,
    arms: Collection[str] | None = None,
    *,
    judge_by: Axis = "cost_seconds",
) -> Comparison:
    """Compare the methods of a study over their budgets.

    Args:
        records: Lines of the results file, all of one study.
        baseline: The method to compare with.
        arms: Compare these methods only. Default: None, all but those that are only there to be reused.
        judge_by: How cost is counted. Default: ``cost_seconds``.

    Raises:
        CompareError: Nothing to compare, or the lines have several metrics.
    """
    question = Question(baseline=baseline, over="budgets", costs=Costs(judge_by))
    return compare(_outcomes(records, arms), question)


def by_metric(records: Sequence[dict[str, Any]], name: str | None) -> list[dict[str, Any]]:
    """Return the lines with the end values of another evaluation metric, or as they are where none is named.

    Raises:
        CompareError: A line does not have it.
    """
    if name is None:
        return list(records)
    if lacking := [one["run_id"] for one in records if name not in one.get("finals", {})]:
        raise CompareError(f"{len(lacking)} runs have no end value of {name}, among them {lacking[0]}")
    return [{**one, "metric": name, "mode": infer_mode(name), "final": one["finals"][name]} for one in records]


def advice(
    records: Sequence[dict[str, Any]], baseline: str, arms: Collection[str] | None = None, *, judge_by: Axis = "steps"
) -> list[str]:
    """Return what the runs recommend for each level that the baseline reached, one sentence each.

    Args:
        records: Lines of the results file, all of one study.
        baseline: The method that a technique must beat.
        arms: Consider these methods only. Default: None, all but those that are only there to be reused.
        judge_by: How cost is counted. Default: ``steps``.
    """
    outcomes = _outcomes(records, arms)
    levels: dict[str, list[float]] = {}
    for run in sorted(outcomes.runs, key=lambda run: run.steps):
        if run.group == baseline:
            levels.setdefault(run.budget, []).append(run.final)
    lines = []
    for budget, finals in levels.items():
        level = math.fsum(finals) / len(finals)
        costs = Costs(judge_by, later_runs=LATER_RUNS)
        found = recommend(outcomes, Question(baseline=baseline, over="budgets", target=level, costs=costs))
        lines.append(f"To be as good as {baseline} after {budget} ({level:.4f}): {found.sentence}")
    return lines


def _outcomes(records: Sequence[dict[str, Any]], arms: Collection[str] | None) -> Outcomes:
    chosen = _chosen(records, arms)
    metrics = {(one["metric"], one["mode"]) for one in chosen}
    if len(metrics) > 1:
        raise CompareError(f"the runs have several metrics: {', '.join(sorted(name for name, _ in metrics))}")
    ((metric, mode),) = metrics
    prior_seconds = {one["run_id"]: one["train_seconds"] + one["setup_seconds"] for one in records}
    return Outcomes([_run(one) for one in chosen], metric, mode, group_by="method", prior_seconds=prior_seconds)


def _chosen(records: Sequence[dict[str, Any]], arms: Collection[str] | None) -> list[dict[str, Any]]:
    chosen = [one for one in records if (one["method"] in arms if arms is not None else one["role"] != "prior")]
    if not chosen:
        raise CompareError("the results file has no run of these methods yet: train them first")
    return chosen


def _run(one: dict[str, Any]) -> Outcome:
    return Outcome(
        group=one["method"],
        seed=one["seed"],
        budget=one["budget"],
        steps=one["steps"],
        samples=one["samples"],
        final=one["final"],
        train_seconds=one["train_seconds"],
        setup_seconds=one["setup_seconds"],
        harvest_seconds=one["harvest_seconds"],
        flops=_flops(one),
        prior_run_ids=tuple(one["prior_runs"]),
        run_id=one["run_id"],
        control_of=one["control_of"],
        health=one["health"],
    )


def _flops(one: dict[str, Any]) -> float | None:
    """Of training; lines of runs that did not record them have only those of a forward pass."""
    if (recorded := one.get("train_flops")) is not None:
        return recorded
    each = one["flops_per_example"]
    return None if each is None or _has_other_passes(one["recipe"]) else float(PASSES_PER_STEP * each * one["samples"])


def _has_other_passes(recipe: dict[str, Any]) -> bool:
    """Return whether live teachers or replayed rows took passes that the line does not count."""
    distilled = any(key.startswith("algorithms.prior_run_distillation.") for key in recipe)
    live = distilled and recipe.get("algorithms.prior_run_distillation.source") != "cached"
    return live or any(key.startswith("algorithms.adversarial_replay.") for key in recipe)
