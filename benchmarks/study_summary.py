"""From the lines of a study's results file to the comparison of its methods: raw values are all that it takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from reuse_algos.compare import BudgetComparison, BudgetRun, compare_budgets
from reuse_algos.errors import CompareError

PASSES = 3  # a backward pass costs about two forward passes


def compare_records(
    records: Sequence[dict[str, Any]], baseline: str, arms: Collection[str] | None = None, **options: Any
) -> BudgetComparison:
    """Compare the methods of a study.

    Args:
        records: lines of the results file, all of one study.
        baseline: the method to compare with.
        arms: compare these methods only; None: all but those that are only there to be reused.
        options: further arguments of :func:`reuse_algos.compare.compare_budgets`.

    Raises:
        CompareError: nothing to compare, or the lines have several metrics.
    """
    chosen = [one for one in records if (one["method"] in arms if arms is not None else one["role"] != "prior")]
    if not chosen:
        raise CompareError("the results file has no run of these methods yet: train them first")
    metrics = {(one["metric"], one["mode"]) for one in chosen}
    if len(metrics) > 1:
        raise CompareError(f"the runs have several metrics: {', '.join(sorted(name for name, _ in metrics))}")
    ((metric, mode),) = metrics
    spent = {one["run_id"]: one["train_seconds"] + one["setup_seconds"] for one in records}
    return compare_budgets(
        [_run(one) for one in chosen],
        baseline=baseline,
        metric=metric,
        mode=mode,
        group_by="method",
        prior_seconds=spent,
        **options,
    )


def _run(one: dict[str, Any]) -> BudgetRun:
    flops = one["flops_per_example"]
    return BudgetRun(
        group=one["method"],
        seed=one["seed"],
        budget=one["budget"],
        steps=one["steps"],
        samples=one["samples"],
        final=one["final"],
        train_seconds=one["train_seconds"],
        setup_seconds=one["setup_seconds"],
        harvest_seconds=one["harvest_seconds"],
        flops=None if flops is None else float(PASSES * flops * one["samples"]),
        prior_run_ids=tuple(one["prior_runs"]),
        run_id=one["run_id"],
        control_of=one["control_of"],
        health=one["health"],
    )
