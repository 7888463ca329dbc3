"""The tables of the page: rows of texts and numbers, each number with its place in the embedded JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from reuse_algos.compare.question import Axis
from reuse_algos.compare.result import Comparison
from reuse_algos.compare.show.drawing import Look, Series
from reuse_algos.compare.show.page.values import Numbers, visible
from reuse_algos.compare.show.words import AXIS_WORDS, short


@dataclass(frozen=True)
class Table:
    """A table: what it shows, one title per column, rows of cells, and how many columns from the left hold words.

    A cell is a text, a :class:`~reuse_algos.compare.show.drawing.Look`, or a :class:`Labelled`.
    """

    caption: str
    head: Sequence[str]
    rows: list[list[Any]]
    words: int = 1


@dataclass(frozen=True)
class Labelled:
    """A look with words after its name."""

    look: Look
    words: str


def figures_table(looks: Sequence[Look], comparison: Comparison, numbers: Numbers) -> Table:
    """Return the figures of every group, at every budget where it has several."""
    return (_points if comparison.method == "budgets" else _groups)(looks, comparison, numbers)


def _groups(looks: Sequence[Look], comparison: Comparison, numbers: Numbers) -> Table:
    rows = []
    counted: tuple[Axis, ...] = ("steps", "cost_seconds")
    for look in looks:
        group, path = comparison.groups[look.index], ("comparison", "groups", look.index)
        # As on the terminal: a group that is not there in time costs more than this.
        mark = "" if group.target_bound == "" else "> "
        rows.append(
            [
                look, group.verdict, str(group.n), numbers.interval(*path, "final"),
                numbers.interval(*path, "final_difference", signed=True), f"{group.reached}/{group.n}",
                Markup(mark) + numbers.count(*path, "to_target", "steps"),
                Markup(mark) + numbers.seconds(*path, "to_target", "cost_seconds"),
                *(numbers.speedup(*path, "speedups", axis) if axis in group.speedups else "" for axis in counted),
            ]
        )  # fmt: skip
    head = [
        comparison.group_by, "verdict", "n", "final value", "differs by", "runs at target",
        "steps to target", "cost to target", "speed-up in steps", "speed-up in cost",
    ]  # fmt: skip
    caption = "Each group: how good it ends, and what it needs to reach the target (>: not reached, total cost)"
    return Table(caption, head, rows, words=2)


# More would not fit beside each other on a screen of 1,200 pixels; the plots below have all.
_AXES_IN_A_ROW: tuple[Axis, ...] = ("steps", "samples", "cost_seconds", "flops", "dollars")


def _known(comparison: Comparison, axis: Axis) -> bool:
    return any(point.costs.get(axis) is not None for point in comparison.points)


def _points(looks: Sequence[Look], comparison: Comparison, numbers: Numbers) -> Table:
    shown = comparison.shown_axes
    axes: list[Axis] = [axis for axis in _AXES_IN_A_ROW if axis in shown and _known(comparison, axis)]
    rows = []
    for look in looks:
        for k, point in enumerate(comparison.groups[look.index].points):
            path = ("comparison", "groups", look.index, "points", k)
            fronts = ", ".join(AXIS_WORDS[axis] for axis in axes if point.on_pareto_front.get(axis))
            budget = point.budget if point.used else f"{point.budget} (too few runs, not used)"
            costs = [numbers.amount(axis, *path, "costs", axis) for axis in axes]
            rows.append(
                [look, budget, numbers.count(*path, "n"), numbers.interval(*path, "final"), *costs, fronts or "no"]
            )
    head = [comparison.group_by, "budget", "n", f"final {short(comparison.metric)}",
            *(AXIS_WORDS[axis] for axis in axes), "on the Pareto front in"]  # fmt: skip
    return Table("Every group at every budget: mean final value, and cost of a run (geometric mean)", head, rows, 2)


def target_table(looks: Sequence[Look], comparison: Comparison, axis: Axis, numbers: Numbers) -> Table:
    """Return what each group needs to reach the target on one axis, with limits."""
    rows = []
    for look in looks:
        group, path = comparison.groups[look.index], ("comparison", "groups", look.index)
        if group.cost_to_target.get(axis) is None:
            continue
        cost = numbers.cost(axis, *path, "cost_to_target", axis, bound=group.target_bound)
        speedup = group.speedups.get(axis)
        shown = "" if speedup is None else numbers.speedup(*path, "speedups", axis)
        rows.append([look, group.verdict if speedup is None else speedup.verdict, cost, shown])
    head = [comparison.group_by, "verdict", "cost to target", "speed-up"]
    return Table(f"Cost to reach the target, in {AXIS_WORDS[axis]}", head, rows, words=2)


def curve_table(series: Sequence[Series], axis: Axis, numbers: Numbers, *path: str | int) -> Table:
    """Return the numbers of a chart of mean curves.

    Args:
        series: Of the chart.
        axis: Of the chart.
        numbers: They hold the chart.
        path: Of its series in them.
    """
    rows = []
    for place, one in enumerate(series):
        for k in range(len(one.x)) if one.band else ():
            at = [numbers.number(*path, place, field, k) for field in ("y", "low", "high")]
            rows.append([one.look.name, numbers.amount(axis, *path, place, "x", k), *at])
    return Table(f"Mean curves against {AXIS_WORDS[axis]}", ["group", AXIS_WORDS[axis], "mean", "low", "high"], rows)


def payback_table(looks: Sequence[Look], comparison: Comparison, numbers: Numbers) -> Table | None:
    """Return after how many later runs the work done beforehand is paid back; None where no group used any."""
    rows = []
    for look in looks:
        known = comparison.groups[look.index].break_even
        if known is None:
            continue
        path = ("comparison", "groups", look.index, "break_even")
        rows.append(
            [
                look if known.saving_shown else Labelled(look, " (its saving is not shown)"),
                numbers.seconds(*path, "harvest_seconds"), numbers.until_paid(*path, "harvest_runs"),
                numbers.seconds(*path, "prior_training_seconds"), numbers.until_paid(*path, "prior_training_runs"),
            ]
        )  # fmt: skip
    head = ["group", "harvest", "paid back after", "training of the prior runs", "paid back, if trained only for this"]
    caption = "Work done beforehand, in mean seconds per run, and when it is paid back"
    return Table(caption, head, rows) if rows else None


def runs_table(looks: Sequence[Look], comparison: Comparison, numbers: Numbers) -> Table:
    """Return all runs, each with a link to its details."""
    rows: list[list[Any]] = []
    for look in looks:
        for k, run in enumerate(comparison.groups[look.index].runs):
            path = ("comparison", "groups", look.index, "runs", k)
            row: list[Any] = [_link(run.run_id, f"run-{look.index}-{k}"), look.name, run.budget]
            row += [run.health, numbers.seed(*path, "seed"), numbers.number(*path, "final")]
            if run.to_target is not None:
                # Where the target was not reached, the total cost is a lower limit.
                mark = Markup("" if run.to_target.reached else "> ")
                row.append(mark + numbers.count(*path, "to_target", "steps"))
                row.append(mark + numbers.seconds(*path, "to_target", "cost_seconds"))
            row += [numbers.seconds(*path, name) for name in ("setup_seconds", "harvest_seconds")]
            rows.append(row)
    to_target = ["steps to target", "cost to target"] if comparison.method in ("curves", "runs") else []
    head = ["run", "group", "budget", "health", "seed", "final", *to_target, "set-up", "harvest"]
    return Table("All runs", head, rows, words=4)


def _link(run_id: str, anchor: str) -> Markup:
    return Markup('<a href="#{}">{}</a>').format(anchor, visible(run_id))
