"""What a tracker such as W&B shows of a comparison: tables, line series, bars and headline values, as plain data.

Nothing here knows W&B; :mod:`reuse_algos.compare.show.wandb` sends it there. Numbers that do not exist or are not known
(NaN, infinite) are None, as in the comparison's JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reuse_algos.compare.estimates.interval import Interval, Speedup
from reuse_algos.compare.inside import size_maps
from reuse_algos.compare.outcomes import Outcomes
from reuse_algos.compare.question import AXES, Axis
from reuse_algos.compare.result import Comparison, Group, json_safe
from reuse_algos.compare.show.charts import charts_of, readings_charts
from reuse_algos.compare.show.drawing import Chart
from reuse_algos.compare.show.words import AXIS_WORDS, format_speedup

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
    speed-up of which nothing is known has the value None, so no bar, and its label says so.
    """

    title: str
    table: Table


@dataclass(frozen=True)
class Dashboard:
    """All that is shown of one comparison.

    Attributes:
        config: What was asked.
        summary: Headline values by name; of a group as ``<group>/<value>``.
        tables: By name.
        lines: By name.
        bars: By name.
        document: The comparison itself, as JSON can hold it.
    """

    config: dict[str, Any]
    summary: dict[str, Any]
    tables: dict[str, Table]
    lines: dict[str, Lines]
    bars: dict[str, Bars]
    document: dict[str, Any]


def dashboard_of(comparison: Comparison, outcomes: Outcomes) -> Dashboard:
    """Return the dashboard of a comparison of any kind.

    Args:
        comparison: What to show.
        outcomes: The runs that it was made from.
    """
    document = comparison.to_dict()
    # Over training only these are known at every evaluation.
    axes: list[Axis] = ["steps", "train_seconds", "cost_seconds"]
    if comparison.method == "budgets":
        axes = [axis for axis in AXES if any(p.costs.get(axis) is not None for p in comparison.points)]
    charts = charts_of(comparison, outcomes, axes)
    bars = {}
    for axis in axes:
        found = [(group.name, group.speedups[axis]) for group in comparison.groups if axis in group.speedups]
        if found:
            bars[f"speedup/{axis}"] = _bars(f"speed-up in {AXIS_WORDS[axis]}", found)
    points = [
        {
            "group": group.name, "budget": point.budget, "n": point.n, "used": point.used,
            **_interval("final", point.final), **{axis: point.costs.get(axis) for axis in axes},
            **{f"pareto_{axis}": point.on_pareto_front.get(axis) for axis in axes},
        }
        for group in comparison.groups for point in group.points
    ]  # fmt: skip
    runs = [{"group": group["name"], **_flat(run)} for group in document["groups"] for run in group["runs"]]
    asked = ("archive", "archive_id", "group_by", "baseline", "metric", "mode", "target", "target_source", "method",
             "confidence", "price_per_hour", "later_runs", "judged_by")  # fmt: skip
    return Dashboard(
        config={key: document[key] for key in asked},
        summary=json_safe(_summary(comparison)),
        tables={
            "groups": _table([_group(group) for group in comparison.groups]),
            "runs": _table(runs),
            **({"points": _table(points)} if points else {"curves": _table(_curves(comparison, charts))}),
            "notes": Table(["note"], [[note] for note in comparison.notes]),
            **({"gradient_sizes": _table(sizes)} if (sizes := _sizes(outcomes)) else {}),
        },
        lines={f"{'budgets' if points else 'curves'}/{chart.key}": _lines(chart) for chart in charts}
        | {f"readings/{chart.key}": _lines(chart) for chart in readings_charts(comparison, outcomes)},
        bars=bars,
        document=document,
    )


def _sizes(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Return one row for each step and size of the gradients that the page draws, as shares of their elements."""
    return [
        {"group": one.group, "run_id": one.run_id, "step": step, "size": size, "share": json_safe(share)}
        for one in size_maps(outcomes.groups)
        for size, row in zip(one.sizes, one.shares, strict=True)
        for step, share in zip(one.steps, row, strict=True)
    ]


def _flat(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's record with its cost to the target beside its other values."""
    to_target = run["to_target"] or {}
    rest = {key: value for key, value in run.items() if key not in ("to_target", "group")}
    return rest | {f"{key}_to_target" if key != "reached" else "target_reached": v for key, v in to_target.items()}


def _summary(comparison: Comparison) -> dict[str, Any]:
    summary: dict[str, Any] = {"target": comparison.target}
    for group in comparison.groups:
        values = {"verdict": group.verdict, "sentence": group.sentence, "n": _n(group)}
        if group.final is not None:
            values["final"] = group.final.estimate
        for axis, speedup in group.speedups.items():
            values |= _speedup(f"speedup_{axis}", speedup)
        summary |= {f"{group.name}/{name}": value for name, value in values.items()}
    return summary


def _n(group: Group) -> int:
    # Over budgets the runs of one budget say how much an interval rests on.
    return max((point.n for point in group.points), default=group.n)


def _group(group: Group) -> dict[str, Any]:
    row: dict[str, Any] = {
        "group": group.name, "verdict": group.verdict, "sentence": group.sentence, "control_of": group.control_of,
        "n": _n(group), "paired": group.paired, "target_bound": group.target_bound,
    }  # fmt: skip
    if group.points:
        row["budgets"] = ", ".join(point.budget for point in group.points)
    else:
        row |= {**_interval("final", group.final), **_interval("difference", group.final_difference)}
        row["reached"] = group.reached
    if group.to_target is not None:
        axes = ("steps", "train_seconds", "cost_seconds")
        row["target_reached"] = group.to_target.reached
        row |= {f"{axis}_to_target": getattr(group.to_target, axis) for axis in axes}
    for axis, cost in group.cost_to_target.items():
        row |= _interval(f"{axis}_to_target", cost)
    for axis, speedup in group.speedups.items():
        row |= _speedup(f"speedup_{axis}", speedup)
    known = group.break_even
    return row | {
        "setup_seconds": group.setup_seconds,
        "harvest_seconds": group.harvest_seconds,
        **_interval("pays_back_harvest_after_runs", known and known.harvest_runs),
        **_interval("pays_back_prior_runs_after_runs", known and known.prior_training_runs),
        "saving_shown": known and known.saving_shown,
    }


def _interval(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _speedup(name: str, speedup: Speedup) -> dict[str, Any]:
    return {
        name: speedup.estimate if speedup.known else None,
        f"{name}_low": speedup.low,
        f"{name}_high": speedup.high,
        f"{name}_bound": speedup.bound,
    }


def _table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row per record, with a column for every key that any of them has."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    return Table(columns, [[json_safe(record.get(column)) for column in columns] for record in records])


def _curves(comparison: Comparison, charts: Sequence[Chart]) -> list[dict[str, Any]]:
    """Return the mean curve of each group at the evaluations that all of its runs share, from the charts."""
    by_axis = {chart.key: [series for series in chart.series if series.name] for chart in charts}
    total = sum(len(series.x) for series in by_axis["steps"])
    # The ends stay, as they are what a group reached.
    every = max(1, math.ceil(total / (MAX_ROWS - len(comparison.groups))))
    rows = []
    for place, series in enumerate(by_axis["steps"]):
        group = comparison.group(series.look.name)
        for k in sorted({*range(0, len(series.x), every), len(series.x) - 1} - {-1}):
            rows.append(
                {
                    "group": group.name, "steps": int(series.x[k]),
                    **{axis: by_axis[axis][place].x[k] for axis in ("train_seconds", "cost_seconds")},
                    "n": group.n, **_interval("mean", Interval(series.y[k], series.low[k], series.high[k])),
                }
            )  # fmt: skip
    return rows


def _lines(chart: Chart) -> Lines:
    def finite(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
        return (point for point in points if math.isfinite(point[0]) and math.isfinite(point[1]))

    # On a page one name stands for all runs of a group; W&B needs one for each line.
    named = {
        series.name or f"{series.look.name} ({number})": sorted(finite(series.joined))
        for number, series in enumerate(chart.series)
    }
    found = {name: points for name, points in named.items() if points}
    xs = [x for points in found.values() for x, _ in points]
    if xs and chart.level is not None and math.isfinite(chart.level):
        found[chart.level_name] = [(min(xs), chart.level), (max(xs), chart.level)]
    return Lines(chart.title, chart.x_title, found)


def _bars(title: str, speedups: Sequence[tuple[str, Speedup]]) -> Bars:
    rows = [
        {
            "label": f"{name}: {format_speedup(speedup)}",
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
