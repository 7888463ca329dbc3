"""What a tracker such as W&B shows of a comparison: tables, line series, bars and headline values, as plain data.

Nothing here knows W&B; :mod:`reuse_algos.compare.wandb_report` sends it there. Numbers that do not exist or are not
known (NaN, infinite) are None, as in the comparison's JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from reuse_algos.compare.budgets import AXES, AXIS_WORDS, Axis, BudgetComparison
from reuse_algos.compare.groups import shared_steps
from reuse_algos.compare.outcomes import RunOutcome
from reuse_algos.compare.render import format_speedup
from reuse_algos.compare.results import BreakEven, Comparison, json_safe
from reuse_algos.compare.statistics import Interval, Speedup, mean_interval

__all__ = ["Bars", "Dashboard", "Lines", "Table", "budget_dashboard", "comparison_dashboard"]

MAX_ROWS = 10_000
"""Rows that W&B keeps of a table; curves that would have more are thinned out evenly, their ends kept."""


@dataclass(frozen=True)
class Table:
    """Named columns and rows of text, numbers, truth values and None."""

    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Lines:
    """Line series in one chart: by name, points (x, y) in order of x."""

    title: str
    x_name: str
    series: dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Bars:
    """Horizontal bars: a table whose column ``label`` names each and whose column ``value`` is its length.

    Limits of the confidence interval stand in the label and in the columns ``low`` and ``high`` (None: not known). A
    speed-up of which nothing is known has the value None, so no bar, and says so in its label.
    """

    title: str
    table: Table


@dataclass(frozen=True)
class Dashboard:
    """All that is shown of one comparison.

    Attributes:
        config: what was asked.
        summary: headline values by name; of a group as ``<group>/<value>``.
        tables: by name.
        lines: by name.
        bars: by name.
        document: the comparison itself, as JSON can hold it.
    """

    config: dict[str, Any]
    summary: dict[str, Any]
    tables: dict[str, Table]
    lines: dict[str, Lines]
    bars: dict[str, Bars]
    document: dict[str, Any]


def comparison_dashboard(comparison: Comparison, outcomes: Mapping[str, Sequence[RunOutcome]]) -> Dashboard:
    """The dashboard of a plain comparison.

    Args:
        comparison: the result of :func:`~reuse_algos.compare.table.compare_runs`.
        outcomes: the runs it was made from, by group
            (:attr:`Selection.groups <reuse_algos.compare.table.Selection.groups>`).
    """
    summary: dict[str, Any] = {"target": comparison.target}
    groups: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for group in comparison.groups:
        summary |= {f"{group.name}/verdict": group.verdict, f"{group.name}/n": group.n}
        summary[f"{group.name}/final"] = group.final.estimate
        for axis, speedup in (("steps", group.speedup_steps), ("cost", group.speedup_cost)):
            if speedup is not None:
                summary |= _speedup_values(f"{group.name}/speedup_{axis}", speedup)
        groups.append(
            {
                "group": group.name,
                "verdict": group.verdict,
                "n": group.n,
                **_interval_values("final", group.final),
                **_interval_values("difference", group.final_difference),
                "paired": group.paired,
                "reached": group.reached,
                "target_reached": group.to_target.reached,
                "steps_to_target": group.to_target.steps,
                "train_seconds_to_target": group.to_target.train_seconds,
                "cost_seconds_to_target": group.to_target.cost_seconds,
                **_speedup_values("speedup_steps", group.speedup_steps),
                **_speedup_values("speedup_cost", group.speedup_cost),
                "setup_seconds": group.setup_seconds,
                "harvest_seconds": group.harvest_seconds,
                **_payback_values(group.break_even),
            }
        )
        runs += [
            {
                "group": group.name,
                "run_id": run.run_id,
                "seed": run.seed,
                "health": run.health,
                "budget_steps": run.budget_steps,
                "final": run.final,
                "target_reached": run.to_target.reached,
                "steps_to_target": run.to_target.steps,
                "train_seconds_to_target": run.to_target.train_seconds,
                "cost_seconds_to_target": run.to_target.cost_seconds,
                "setup_seconds": run.setup_seconds,
                "harvest_seconds": run.harvest_seconds,
            }
            for run in group.runs
        ]
    curves = _curves(comparison, outcomes)
    speedups = {
        axis: [(g.name, getattr(g, f"speedup_{axis}")) for g in comparison.groups if getattr(g, f"speedup_{axis}")]
        for axis in ("cost", "steps")
    }
    document = comparison.to_dict()
    return Dashboard(
        config={"kind": "runs", **_question(document), "method": comparison.method},
        summary=json_safe(summary),
        tables={
            "groups": _table(groups),
            "runs": _table(runs),
            "curves": _table(curves),
            "notes": Table(["note"], [[note] for note in comparison.notes]),
        },
        lines={
            "curves/steps": _lines(comparison, curves, "steps"),
            "curves/train_seconds": _lines(comparison, curves, "train_seconds"),
            "curves/cost_seconds": _lines(comparison, curves, "cost_seconds"),
        },
        bars={f"speedup/{axis}": _bars(f"speed-up in {axis}", found) for axis, found in speedups.items() if found},
        document=document,
    )


def budget_dashboard(comparison: BudgetComparison) -> Dashboard:
    """The dashboard of a comparison over budgets (:mod:`reuse_algos.compare.budgets`): final values against cost."""
    summary: dict[str, Any] = {"target": comparison.target}
    groups: list[dict[str, Any]] = []
    for group in comparison.groups:
        summary |= {f"{group.name}/verdict": group.verdict, f"{group.name}/sentence": group.sentence}
        summary[f"{group.name}/n"] = max((point.n for point in group.points), default=0)
        row: dict[str, Any] = {
            "group": group.name,
            "verdict": group.verdict,
            "sentence": group.sentence,
            "control_of": group.control_of,
            "paired": group.paired,
            "target_bound": group.target_bound,
            "n": summary[f"{group.name}/n"],
            "budgets": ", ".join(point.budget for point in group.points),
        }
        for axis, cost in group.cost_to_target.items():
            row |= _interval_values(f"{axis}_to_target", cost)
        for axis, speedup in group.speedups.items():
            row |= _speedup_values(f"speedup_{axis}", speedup)
            summary |= _speedup_values(f"{group.name}/speedup_{axis}", speedup)
        row |= _payback_values(group.break_even)
        groups.append(row)
    axes: list[Axis] = [
        axis for axis in AXES if any(p.costs.get(axis) is not None for g in comparison.groups for p in g.points)
    ]
    bars: dict[str, Bars] = {}
    for axis in axes:
        speedups = [(group.name, group.speedups[axis]) for group in comparison.groups if axis in group.speedups]
        if speedups:
            bars[f"speedup/{axis}"] = _bars(f"speed-up in {AXIS_WORDS[axis]}", speedups)
    document = comparison.to_dict()
    return Dashboard(
        config={
            "kind": "budgets",
            **_question(document),
            "price_per_hour": comparison.price_per_hour,
            "later_runs": comparison.later_runs,
        },
        summary=json_safe(summary),
        tables={
            "groups": _table(groups),
            "points": _table(_points(comparison, axes)),
            "runs": _table(_budget_runs(comparison)),
            "notes": Table(["note"], [[note] for note in comparison.notes]),
        },
        lines={f"budgets/{axis}": _budget_lines(comparison, axis) for axis in axes},
        bars=bars,
        document=document,
    )


def _question(document: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("archive", "archive_id", "group_by", "baseline", "metric", "mode", "target", "target_source", "confidence")
    return {key: document[key] for key in keys}


def _interval_values(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _payback_values(found: BreakEven | None) -> dict[str, float | bool | None]:
    return {
        **_interval_values("pays_back_harvest_after_runs", found and found.harvest_runs),
        **_interval_values("pays_back_prior_runs_after_runs", found and found.prior_training_runs),
        "saving_shown": found and found.saving_shown,
    }


def _speedup_values(name: str, speedup: Speedup | None) -> dict[str, float | str | None]:
    if speedup is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_bound"))
    return {
        name: speedup.estimate if speedup.known else None,
        f"{name}_low": speedup.low,
        f"{name}_high": speedup.high,
        f"{name}_bound": speedup.bound,
    }


def _bar_label(name: str, speedup: Speedup) -> str:
    """``name: at most 0.80x [0, 0.95]``, or ``name: not known``."""
    words = "not known"
    if speedup.known:
        words = format_speedup(speedup).replace("<=", "at most").replace(">=", "at least")
    return f"{name}: {words}".replace("\n", " ")


def _table(records: Sequence[Mapping[str, Any]]) -> Table:
    """One row per record; a column for every key that any of them has."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    return Table(columns, [[json_safe(record.get(column)) for column in columns] for record in records])


def _curves(comparison: Comparison, outcomes: Mapping[str, Sequence[RunOutcome]]) -> list[dict[str, Any]]:
    """Mean curve of each group with its t interval, at the evaluations that all of its runs share."""
    shared = {group.name: shared_steps(outcomes[group.name]) for group in comparison.groups}
    every = math.ceil(sum(len(steps) for steps in shared.values()) / (MAX_ROWS - len(shared)))
    rows = []
    for name, steps_K in shared.items():
        group = outcomes[name]
        kept = sorted({*range(0, len(steps_K), max(every, 1)), len(steps_K) - 1} - {-1})
        for step in steps_K[kept]:
            at = [(run, int(np.searchsorted(run.steps, step))) for run in group]
            rows.append(
                {
                    "group": name,
                    "steps": int(step),
                    "train_seconds": float(np.mean([run.train_seconds[k] for run, k in at])),
                    "cost_seconds": float(np.mean([run.cost_seconds[k] for run, k in at])),
                    "n": len(group),
                    **_interval_values("mean", mean_interval([run.values[k] for run, k in at], comparison.confidence)),
                }
            )
    return rows


def _lines(
    comparison: Comparison,
    curves: Sequence[Mapping[str, Any]],
    axis: Literal["steps", "train_seconds", "cost_seconds"],
) -> Lines:
    series = {
        f"{group.name} (n={group.n})": [
            (row[axis], row["mean"])
            for row in curves
            if row["group"] == group.name and math.isfinite(row[axis]) and math.isfinite(row["mean"])
        ]
        for group in comparison.groups
    }
    title = f"{comparison.metric}: mean curves"
    return Lines(title, AXIS_WORDS[axis], _with_target(series, comparison.target))


def _with_target(series: dict[str, list[tuple[float, float]]], target: float) -> dict[str, list[tuple[float, float]]]:
    """The series that have points, and a level line at the target."""
    found = {name: points for name, points in series.items() if points}
    xs = [x for points in found.values() for x, _ in points]
    if xs and math.isfinite(target):
        found[f"target {target:.6g}"] = [(min(xs), target), (max(xs), target)]
    return found


def _bars(title: str, speedups: Iterable[tuple[str, Speedup]]) -> Bars:
    rows = [
        {
            "label": _bar_label(name, speedup),
            "value": speedup.estimate if speedup.drawn else None,
            "low": speedup.low,
            "high": speedup.high,
            "group": name,
            "bound": speedup.bound,
            "verdict": speedup.verdict,
        }
        for name, speedup in speedups
    ]
    return Bars(title, _table(rows))


def _points(comparison: BudgetComparison, axes: Sequence[Axis]) -> list[dict[str, Any]]:
    rows = []
    for group in comparison.groups:
        for point in group.points:
            rows.append(
                {
                    "group": group.name,
                    "budget": point.budget,
                    "n": point.n,
                    "used": point.used,
                    **_interval_values("final", point.final),
                    **{axis: point.costs.get(axis) for axis in axes},
                    **{f"pareto_{axis}": point.on_pareto_front.get(axis) for axis in axes},
                }
            )
    return rows


def _budget_runs(comparison: BudgetComparison) -> list[dict[str, Any]]:
    return [
        {"group": group.name, "budget": point.budget, "seed": seed, "run_id": run_id, "final": value}
        for group in comparison.groups
        for point in group.points
        for seed, run_id, value in zip(point.seeds, point.run_ids, point.values, strict=True)
    ]


def _budget_lines(comparison: BudgetComparison, axis: Axis) -> Lines:
    series: dict[str, list[tuple[float, float]]] = {}
    for group in comparison.groups:
        points: list[tuple[float, float]] = []
        for point in group.points:
            cost = point.costs.get(axis) if point.used else None
            if cost is not None and math.isfinite(cost) and math.isfinite(point.final.estimate):
                points.append((cost, point.final.estimate))
        series[group.name] = sorted(points)
    title = f"{comparison.metric} at the end of each budget"
    return Lines(title, AXIS_WORDS[axis], _with_target(series, comparison.target))
