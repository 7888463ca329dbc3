"""Plots of a comparison whose groups have one budget each: speed-ups, and mean curves over training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reuse_algos.compare.groups import shared_steps
from reuse_algos.compare.html.bars import HOW_TO_READ, bar_plot, speedup_bar
from reuse_algos.compare.html.document import Section
from reuse_algos.compare.html.markup import el, join, scroll_table
from reuse_algos.compare.html.plots import Mark, Series, curve_plot
from reuse_algos.compare.html.sections import Look, panels
from reuse_algos.compare.html.values import Numbers, format_count, format_number
from reuse_algos.compare.outcomes import RunOutcome
from reuse_algos.compare.render import format_seconds
from reuse_algos.compare.results import Comparison
from reuse_algos.compare.statistics import mean_interval

__all__ = ["curve_data", "curves_section", "speedup_section"]

_MOST_MARKS = 40  # evaluations per curve that can be pointed at
_AXES = {
    "cost_seconds": ("speedup_cost", "in cost", "cost in seconds: training, set-up, used harvests"),
    "steps": ("speedup_steps", "in steps", "steps"),
}


def speedup_section(
    looks: Sequence[Look], comparison: Comparison, axes: Sequence[str], numbers: Numbers
) -> Section | None:
    """Bars of the speed-ups, one panel per axis; None where there is nothing to compare."""
    if len(looks) < 2:
        return None
    parts = []
    for axis in axes:
        field, words, _ = _AXES[axis]
        bars = [
            speedup_bar(look, words.removeprefix("in "), numbers, "comparison", "groups", look.index, field)
            for look in looks[1:]
            if getattr(comparison.groups[look.index], field) is not None
        ]
        plot = bar_plot(f"Speed-ups {words}", bars, f"times less {words[3:]} than {comparison.baseline}")
        parts.append((axis, words.capitalize(), plot))
    return Section("speedup", "Speed-up", join([el("p", HOW_TO_READ), panels("Speed-up", parts)]))


def curve_data(name: str, group: Sequence[RunOutcome], axis: str, confidence: float) -> dict[str, Any]:
    """The mean curve of a group on the evaluations that its runs share, with intervals, and each run's own curve."""
    steps = shared_steps(group)
    rows = [np.searchsorted(outcome.steps, steps) for outcome in group]
    values_RK = np.stack([o.values[row] for o, row in zip(group, rows, strict=True)])
    xs = [o.steps.astype(np.float64) if axis == "steps" else o.cost_seconds for o in group]
    x_K = np.stack([x[row] for x, row in zip(xs, rows, strict=True)]).mean(axis=0)
    intervals = [mean_interval(values_R, confidence) for values_R in values_RK.T]
    return {
        "group": name,
        "x": x_K.tolist(),
        "mean": [interval.estimate for interval in intervals],
        "low": [interval.low for interval in intervals],
        "high": [interval.high for interval in intervals],
        "runs": [{"run_id": o.run_id, "x": x.tolist(), "y": o.values.tolist()} for o, x in zip(group, xs, strict=True)],
    }


def _picked(length: int) -> list[int]:
    """Positions that can be pointed at: all, or evenly spread ones with the last."""
    if length <= _MOST_MARKS:
        return list(range(length))
    return sorted({round(k * (length - 1) / (_MOST_MARKS - 1)) for k in range(_MOST_MARKS)})


def curves_section(looks: Sequence[Look], comparison: Comparison, axes: Sequence[str], numbers: Numbers) -> Section:
    """Mean curves with intervals over single runs, one panel per axis, each with a table of its numbers."""
    parts = []
    metric = comparison.metric.rsplit("/", 1)[-1]
    for axis in axes:
        text = format_count if axis == "steps" else format_seconds
        series, rows = [], []
        for position, look in enumerate(looks):
            path = ("curves", axis, position)
            curve: Mapping[str, Any] = numbers.record(*path)
            marks = []
            for k in _picked(len(curve["x"])):
                x, y = numbers.at(*path, "x", k), numbers.at(*path, "mean", k)
                low, high = numbers.at(*path, "low", k), numbers.at(*path, "high", k)
                label = f"{look.name}, {text(x.number)}\n{format_number(y.number)}"
                if math.isfinite(low.number):
                    label += f" [{format_number(low.number)}, {format_number(high.number)}]"
                marks.append(Mark(x, y, math.nan, math.nan, label, quiet=True))
                limits = [v.show(format_number(v.number) if math.isfinite(v.number) else "-") for v in (low, high)]
                rows.append([look.name, x.show(text(x.number)), y.show(format_number(y.number)), *limits])
            band = list(zip(curve["x"], curve["low"], curve["high"], strict=True))
            line = list(zip(curve["x"], curve["mean"], strict=True))
            thin = [list(zip(run["x"], run["y"], strict=True)) for run in curve["runs"]]
            group = comparison.groups[look.index]
            name = f"{look.name} (n={group.n})"
            series.append(Series(name, look.colour, look.control, marks, line=line, band=band, thin=thin))
            if group.to_target.reached:
                x = numbers.at("comparison", "groups", look.index, "to_target", axis)
                label = f"{look.name} reaches the target\n{text(x.number)}"
                reached = Mark(x, numbers.at("comparison", "target"), math.nan, math.nan, label, hollow=look.control)
                series.append(Series(name, look.colour, look.control, [reached], in_legend=False))
        plot = curve_plot(
            f"{metric} against {_AXES[axis][2]}",
            series,
            x_title=_AXES[axis][2],
            y_title=metric,
            x_text=text,
            y_text=lambda y: f"{y:.4g}",
            log=False,
            seconds=axis != "steps",
            level=comparison.target,
            level_name=f"target {format_number(comparison.target)}",
        )
        head = ["group", "steps" if axis == "steps" else "cost", "mean", "low", "high"]
        table = scroll_table(f"Mean curves against {_AXES[axis][2]}", head, rows)
        numbers_of = el("details", el("summary", "The numbers of this plot"), table)
        parts.append((axis, _AXES[axis][1].replace("in ", "by ").capitalize(), join([plot, numbers_of])))
    lead = el("p", "Thick: mean with its interval. Thin: single runs. A sign on the dashed line: target reached.")
    return Section("curves", "Curves", join([lead, panels("Curves", parts)]))
