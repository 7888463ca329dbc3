"""Budget comparisons as rich tables that fit a terminal of 100 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from reuse_algos.compare.budgets import AXIS_WORDS, Axis, BudgetComparison, BudgetGroup
from reuse_algos.compare.render import format_number, format_seconds, format_speedup, payback_line, verdict_text

__all__ = ["budget_comparison_table", "format_cost", "new_table"]

_SECONDS: tuple[Axis, ...] = ("train_seconds", "cost_seconds", "amortised_seconds")
_FRONTS: tuple[tuple[Axis, str], ...] = (
    ("steps", "steps"),
    ("samples", "examples"),
    ("cost_seconds", "cost"),
    ("flops", "FLOPs"),
)


def format_cost(value: float | None, axis: Axis) -> str:
    """A cost with its unit, short: ``12.3 s``, ``$0.45``, ``1.2e+15``, ``4000``; ``?`` where it is not known."""
    if value is None or not math.isfinite(value):
        return "?"
    if axis in _SECONDS:
        return format_seconds(value)
    if axis == "dollars":
        return f"${value:.2f}" if value >= 0.1 else f"${value:.2g}"
    return f"{value:.0f}" if value < 1e6 else f"{value:.3g}"


def _cost_to_target(group: BudgetGroup, axis: Axis) -> str:
    cost = group.cost_to_target[axis]
    if cost is None:
        return "?"
    sign = {"": "", "<=": "<= ", ">=": "> ", "?": ""}[group.target_bound]
    low = "0" if cost.low == 0.0 else format_cost(cost.low, axis)
    high = "inf" if math.isinf(cost.high) else format_cost(cost.high, axis)
    return f"{sign}{format_cost(cost.estimate, axis)} [{low}, {high}]"


def new_table(*columns: tuple[str, bool]) -> Table:
    """An empty table of columns given by title and whether they hold numbers."""
    table = Table(pad_edge=False, box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title, right in columns:
        table.add_column(title, justify="right" if right else "left", no_wrap=right)
    return table


def _points_table(comparison: BudgetComparison) -> Table:
    money = comparison.price_per_hour is not None
    heads = [(escape(comparison.group_by), False), ("budget", True), ("n", True), ("final", True), ("steps", True)]
    heads += [("all costs", True), *([("dollars", True)] if money else []), ("best at its\ncost, by", False)]
    table = new_table(*heads)
    table.columns[0].overflow = "fold"
    table.columns[0].max_width = 22
    fronts: list[tuple[Axis, str]] = [(axis, word) for axis, word in _FRONTS if axis in comparison.shown_axes]
    for group in comparison.groups:
        for number, point in enumerate(group.points):
            final = point.final
            values = format_number(final.estimate)
            if math.isfinite(final.low):
                values += f" [{format_number(final.low)}, {format_number(final.high)}]"
            cells: list[RenderableType] = [
                Text(group.name if number == 0 else ""),
                Text(point.budget),
                str(point.n),
                values,
                f"{point.steps:.0f}",
                format_cost(point.costs["cost_seconds"], "cost_seconds"),
            ]
            if money:
                cells.append(format_cost(point.costs["dollars"], "dollars"))
            cells.append(", ".join(word for axis, word in fronts if point.on_pareto_front[axis]))
            table.add_row(*cells)
        table.add_row()
    return table


def _name(group: BudgetGroup) -> str:
    return group.name if group.control_of is None else f"{group.name}\n(control of {group.control_of})"


def _speedups_table(comparison: BudgetComparison) -> Table:
    table = new_table(
        (escape(comparison.group_by), False), ("counted in", False), ("cost to target", True), ("speed-up", True)
    )
    table.columns[0].overflow = "fold"
    table.columns[0].max_width = 30
    for group in comparison.groups:
        label = Text(_name(group))
        if not group.is_baseline:
            label.append("\n").append(verdict_text(group.verdict))
        rows = []
        for axis in comparison.shown_axes:
            if group.cost_to_target[axis] is not None:
                speedup = format_speedup(group.speedups.get(axis)).replace("\n", " ")
                rows.append((AXIS_WORDS[axis], _cost_to_target(group, axis), speedup))
        table.add_row(label, *("\n".join(column) for column in zip(*rows, strict=True)))
        table.add_row()
    return table


def budget_comparison_table(comparison: BudgetComparison) -> RenderableType:
    """The comparison: verdicts in words, speed-ups, every budget of every group, and what to beware of."""
    word = "at least" if comparison.mode == "max" else "at most"
    given = comparison.target_source == "given"
    source = "given" if given else f"mean of {comparison.baseline} at {comparison.groups[0].largest_budget}"
    percent = f"{100 * comparison.confidence:g} %"
    head = f"Target: {comparison.metric} {word} {comparison.target:.6g} ({source}). In brackets: {percent} intervals."
    shared = f"Shared: the harvest{' and the prior runs' if comparison.count_prior_training else ''}"
    how = (
        "Costs where the mean curve over the budgets reaches the target; each run counts with its last value only. All "
        f"costs: training + set-up + used harvests, in seconds. {shared} divided by {comparison.later_runs} later runs."
    )
    parts: list[RenderableType] = [Text(head), Text(""), *(_lines(comparison.groups)), Text("")]
    if len(comparison.groups) > 1:
        parts += [_speedups_table(comparison)]
    parts += [_points_table(comparison), Text(how, style="dim")]
    for group in comparison.groups:
        line = payback_line(group.name, group.break_even)
        parts += [Text(line)] if line else []
    parts += [Text(f"Note: {note}") for note in comparison.notes]
    return Group(*parts)


def _lines(groups: Sequence[BudgetGroup]) -> list[Text]:
    return [Text(f"- {group.sentence}") for group in groups]
