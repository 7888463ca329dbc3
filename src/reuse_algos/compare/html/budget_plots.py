"""Plots of a budget comparison: speed-ups, budget-accuracy curves and the Pareto front, on each axis of cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reuse_algos.compare.budgets import AXIS_WORDS, Axis, BudgetComparison, BudgetGroup, BudgetPoint
from reuse_algos.compare.html.bars import HOW_TO_READ, bar_plot, speedup_bar
from reuse_algos.compare.html.document import Section
from reuse_algos.compare.html.markup import Html, el, join, scroll_table
from reuse_algos.compare.html.plots import Mark, Series, curve_plot
from reuse_algos.compare.html.sections import Look, panels
from reuse_algos.compare.html.values import Numbers, format_amount, format_number

__all__ = ["curves_section", "drawn_axes", "pareto_section", "points_of", "speedup_section"]

_TITLES: dict[Axis, str] = {
    "steps": "steps",
    "samples": "examples",
    "train_seconds": "train time",
    "cost_seconds": "cost in seconds: training, set-up, used harvests",
    "amortised_seconds": "cost in seconds, harvests shared among {later_runs} later runs",
    "flops": "FLOPs",
    "dollars": "dollars",
}
_SHOWN_FIRST: tuple[Axis, ...] = (
    "cost_seconds",
    "steps",
    "samples",
    "train_seconds",
    "amortised_seconds",
    "flops",
    "dollars",
)


def points_of(groups: Sequence[BudgetGroup]) -> list[BudgetPoint]:
    """All points of all groups."""
    return [point for group in groups for point in group.points]


def drawn_axes(comparison: BudgetComparison) -> list[Axis]:
    """Axes to draw, that of the verdicts first; the shared cost only where it says something else than the whole."""
    points = points_of(comparison.groups)
    shown: list[Axis] = [axis for axis in _SHOWN_FIRST if axis in comparison.shown_axes]
    known: list[Axis] = [axis for axis in shown if any((point.costs.get(axis) or 0.0) > 0.0 for point in points)]
    if all(point.costs.get("amortised_seconds") == point.costs.get("cost_seconds") for point in points):
        known: list[Axis] = [axis for axis in known if axis != "amortised_seconds"]
    return sorted(known, key=lambda axis: axis != comparison.judged_by)


def _title(axis: Axis, comparison: BudgetComparison) -> str:
    return _TITLES[axis].format(later_runs=comparison.later_runs)


def speedup_section(
    looks: Sequence[Look], comparison: BudgetComparison, axes: Sequence[Axis], numbers: Numbers
) -> Section | None:
    """Bars of the speed-ups, one panel per axis; None where there is nothing to compare."""
    parts = []
    for axis in axes:
        bars = []
        for look in looks:
            if axis not in comparison.groups[look.index].speedups:
                continue
            path = ("comparison", "groups", look.index, "speedups", axis)
            bars.append(speedup_bar(look, AXIS_WORDS[axis], numbers, *path))
        if bars:
            words = AXIS_WORDS[axis]
            plot = bar_plot(f"Speed-ups in {words}", bars, f"times less than {comparison.baseline} ({words})")
            parts.append((axis, _tab(axis), join([plot, _to_target(looks, comparison, axis, numbers)])))
    if not parts:
        return None
    return Section("speedup", "Speed-up", join([el("p", HOW_TO_READ), panels("Speed-up counted in", parts)]))


def _to_target(looks: Sequence[Look], comparison: BudgetComparison, axis: Axis, numbers: Numbers) -> Html:
    rows = []
    for look in looks:
        group, path = comparison.groups[look.index], ("comparison", "groups", look.index)
        if group.cost_to_target.get(axis) is None:
            continue
        known = axis in group.speedups
        cost = numbers.cost(axis, *path, "cost_to_target", axis, bound=group.target_bound)
        word = group.speedups[axis].verdict if known else group.verdict
        rows.append([look.sign, word, cost, numbers.speedup(*path, "speedups", axis) if known else None])
    head = [comparison.group_by, "verdict", "cost to target", "speed-up"]
    return scroll_table(f"Cost to reach the target, in {AXIS_WORDS[axis]}", head, rows, words=2)


def _marks(look: Look, group: BudgetGroup, axis: Axis, numbers: Numbers, *, front: bool) -> list[Mark]:
    marks = []
    for k, point in enumerate(group.points):
        cost = point.costs.get(axis)
        if cost is None or cost <= 0:
            continue
        path = ("comparison", "groups", look.index, "points", k)
        final = point.final
        label = (
            f"{look.name}, {point.budget} (n={point.n})\n{format_amount(axis, cost)}: {format_number(final.estimate)}"
        )
        if math.isfinite(final.low):
            label += f" [{format_number(final.low)}, {format_number(final.high)}]"
        hollow = look.control
        if front:
            hollow = not point.on_pareto_front.get(axis, False)
            label += "" if hollow else "\non the Pareto front"
        x, y = numbers.at(*path, "costs", axis), numbers.at(*path, "final", "estimate")
        marks.append(Mark(x, y, final.low, final.high, label, hollow=hollow))
    return marks


def curves_section(
    looks: Sequence[Look], comparison: BudgetComparison, axes: Sequence[Axis], numbers: Numbers
) -> Section:
    """Final values with intervals against cost, one panel per axis."""
    metric = comparison.metric.rsplit("/", 1)[-1]
    parts = []
    for axis in axes:
        series = []
        for look in looks:
            marks = _marks(look, comparison.groups[look.index], axis, numbers, front=False)
            line = _line(comparison.groups[look.index], axis)
            series.append(Series(look.name, look.colour, look.control, marks, line=line, whiskers=True))
        plot = curve_plot(
            f"{metric} against {_title(axis, comparison)}",
            series,
            x_title=f"{_title(axis, comparison)} (logarithmic)",
            y_title=f"final {metric}",
            x_text=lambda x, axis=axis: format_amount(axis, x),
            y_text=lambda y: f"{y:.4g}",
            log=True,
            seconds=axis.endswith("seconds"),
            level=comparison.target,
            level_name=f"target {format_number(comparison.target)}",
        )
        parts.append((axis, _tab(axis), plot))
    lead = el(
        "p",
        "Mean final value of the runs of each budget, with its interval. The speed-up is how far a curve lies to the "
        "left of the baseline's end. The numbers are in the table of all budgets.",
    )
    return Section("curves", "Budget and result", join([lead, panels("Cost counted in", parts)]))


def _line(group: BudgetGroup, axis: Axis) -> list[tuple[float, float]]:
    """Through the budgets that count, of those that have a cost."""
    costs = [(point.costs.get(axis), point.final.estimate) for point in group.points if point.used]
    return [(cost, mean) for cost, mean in costs if cost is not None and math.isfinite(mean)]


def _tab(axis: Axis) -> str:
    words = AXIS_WORDS[axis]
    return words[0].upper() + words[1:]


def pareto_section(
    looks: Sequence[Look], comparison: BudgetComparison, axes: Sequence[Axis], numbers: Numbers
) -> Section:
    """All points with the Pareto front of their means, one panel per axis."""
    metric = comparison.metric.rsplit("/", 1)[-1]
    parts = []
    for axis in axes:
        front = sorted(
            (cost, point.final.estimate)
            for point in points_of(comparison.groups)
            if point.on_pareto_front.get(axis) and (cost := point.costs.get(axis)) is not None and cost > 0
        )
        stairs: list[tuple[float, float]] = []
        for cost, value in front:
            stairs += [(cost, stairs[-1][1])] if stairs else []
            stairs.append((cost, value))
        series = [Series("Pareto front", 0, False, (), line=stairs, front=True)]
        for look in looks:
            marks = _marks(look, comparison.groups[look.index], axis, numbers, front=True)
            series.append(Series(look.name, look.colour, look.control, marks))
        plot = curve_plot(
            f"Pareto front of {metric} against {_title(axis, comparison)}",
            series,
            x_title=f"{_title(axis, comparison)} (logarithmic)",
            y_title=f"final {metric}",
            x_text=lambda x, axis=axis: format_amount(axis, x),
            y_text=lambda y: f"{y:.4g}",
            log=True,
            seconds=axis.endswith("seconds"),
        )
        parts.append((axis, _tab(axis), plot))
    lead = el("p", "Filled: nothing else is both as cheap and as good, by the means. Hollow: something is.")
    return Section("pareto", "Pareto front", join([lead, panels("Cost counted in", parts)]))
