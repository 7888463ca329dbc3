"""What is drawn of a comparison, described once as plain data: for the HTML page, for image files and for W&B.

A chart has series of points with limits; the page and the figures draw them, W&B takes their means as line series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reuse_algos.compare.estimates.interval import Speedup, mean_interval
from reuse_algos.compare.kinds.training import shared_steps
from reuse_algos.compare.outcomes import Outcome, Outcomes
from reuse_algos.compare.question import Axis
from reuse_algos.compare.result import Comparison, Group
from reuse_algos.compare.show.words import AXIS_WORDS, format_amount, format_number, format_times, short

__all__ = [
    "Bars",
    "Chart",
    "Look",
    "Series",
    "amortisation",
    "bars_of",
    "charts_of",
    "drawn_axes",
    "looks_of",
    "pareto",
]

_AXIS_TITLES: dict[Axis, str] = {
    "train_seconds": "train time",
    "cost_seconds": "cost in seconds: training, set-up, used harvests",
    "amortised_seconds": "cost in seconds, harvests shared among {later_runs} later runs",
}
_SHOWN_FIRST: tuple[Axis, ...] = (
    "cost_seconds", "steps", "samples", "train_seconds", "amortised_seconds", "flops", "dollars",
)  # fmt: skip
_LATER_RUNS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100)


@dataclass(frozen=True)
class Look:
    """How a group is told apart.

    Attributes:
        index: Its position in the comparison's groups.
        name: Of the group.
        colour: 0 for the baseline; a control has its technique's.
        control: Whether it is a control, drawn hollow and dashed.
        technique: The group that it is a control of, if that is compared, too.
    """

    index: int
    name: str
    colour: int
    control: bool = False
    technique: str | None = None


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour.

    Attributes:
        name: For the legend; empty keeps it out of it.
        look: How it is told apart.
        x: Places of its points [K], in order.
        y: Their values [K].
        low: Lower limits [K]; infinite where there is none.
        high: Upper limits [K].
        labels: What each point says when pointed at [K].
        hollow: Whether each point is drawn as an outline [K]; empty for none.
        line: Whether straight lines join the points that count.
        counts: Whether each point counts in the line [K]; empty for all.
        band: Whether limits are drawn as a band along the line, and points only when pointed at, and not as whiskers.
        runs: Lines of single runs: ``run_id``, ``x`` and ``y``.
        front: It is the Pareto front of all groups, a line of steps.
    """

    name: str
    look: Look
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    hollow: list[bool] = field(default_factory=list)
    line: bool = False
    counts: list[bool] = field(default_factory=list)
    band: bool = False
    runs: list[dict[str, Any]] = field(default_factory=list)
    front: bool = False

    @property
    def joined(self) -> list[tuple[float, float]]:
        """The points of its line."""
        counts = self.counts or [True] * len(self.x)
        return [(x, y) for x, y, used in zip(self.x, self.y, counts, strict=True) if used and self.line]


@dataclass(frozen=True)
class Chart:
    """One plot.

    Attributes:
        key: The axis of cost; charts of one key are shown together.
        title: Of the plot.
        x_title: What runs across, with its unit.
        y_title: What runs upwards.
        series: What to draw; later ones lie on top.
        log: Whether equal ratios across take equal room.
        level: Value at which a horizontal line is drawn, or None.
        level_name: What that line is.
    """

    key: str
    title: str
    x_title: str
    y_title: str
    series: list[Series]
    log: bool
    level: float | None = None
    level_name: str = ""


@dataclass(frozen=True)
class Bars:
    """Speed-ups on one axis: looks and speed-ups of the groups whose speed-up is known there."""

    key: Axis
    title: str
    rows: list[tuple[Look, Speedup]]


def looks_of(comparison: Comparison) -> list[Look]:
    """Return the looks in the order in which groups are shown: the baseline, each technique with its controls."""
    names, of_group = [g.name for g in comparison.groups], {g.name: g.control_of for g in comparison.groups}
    baseline, *others = names
    controls = [name for name in others if of_group[name] is not None]
    techniques = [name for name in others if name not in controls]
    of = {name: _technique(name, str(of_group[name]), techniques) for name in controls}
    looks = [Look(0, baseline, 0)]
    for colour, name in enumerate([*techniques, *(name for name in controls if of[name] is None)], start=1):
        looks.append(Look(names.index(name), name, colour, control=name in controls))
        looks += [Look(names.index(c), c, colour, control=True, technique=name) for c in controls if of[c] == name]
    return looks


def _technique(name: str, control: str, techniques: Sequence[str]) -> str | None:
    # Where names join several keys ("distilled / 10ep"), the first of them is meant, at equal others.
    _, *rest = name.split(" / ")
    return next((found for found in (control, " / ".join([control, *rest])) if found in techniques), None)


def drawn_axes(comparison: Comparison) -> list[Axis]:
    """Return the axes to draw, that of the verdicts first; the shared cost only where it says something of its own."""
    if comparison.method != "budgets":
        timed = all(run.to_target and run.to_target.train_seconds > 0 for g in comparison.groups for run in g.runs)
        return ["cost_seconds", "steps"] if timed else ["steps"]
    points = comparison.points
    shown: list[Axis] = [axis for axis in _SHOWN_FIRST if axis in comparison.shown_axes]
    known: list[Axis] = [axis for axis in shown if any((point.costs.get(axis) or 0.0) > 0.0 for point in points)]
    if all(point.costs.get("amortised_seconds") == point.costs.get("cost_seconds") for point in points):
        known = [axis for axis in known if axis != "amortised_seconds"]
    return sorted(known, key=lambda axis: axis != comparison.judged_by)


def axis_title(axis: Axis, comparison: Comparison) -> str:
    """Return an axis for the foot of a plot."""
    return _AXIS_TITLES.get(axis, AXIS_WORDS[axis]).format(later_runs=comparison.later_runs)


def bars_of(comparison: Comparison) -> list[Bars]:
    """Return the speed-ups to draw, one record per axis."""
    looks = looks_of(comparison)
    found = []
    for axis in drawn_axes(comparison):
        rows = [(look, comparison.groups[look.index].speedups.get(axis)) for look in looks]
        known = [(look, speedup) for look, speedup in rows if speedup is not None]
        if known:
            found.append(Bars(axis, f"speed-up in {AXIS_WORDS[axis]}", known))
    return found


def charts_of(comparison: Comparison, outcomes: Outcomes, axes: Sequence[Axis] | None = None) -> list[Chart]:
    """Return metric against cost, one chart per axis.

    Args:
        comparison: What to draw.
        outcomes: The runs that it was made from.
        axes: Axes to draw. Default: None, :func:`drawn_axes`.
    """
    groups, metric = outcomes.groups, short(comparison.metric)
    charts = []
    for axis in drawn_axes(comparison) if axes is None else axes:
        series: list[Series] = []
        for look in looks_of(comparison):
            group = comparison.groups[look.index]
            if comparison.method == "budgets":
                series.append(_budget_series(look, group, axis))
            else:
                series += _training_series(look, group, groups[look.name], axis, comparison)
        over = comparison.method == "budgets"
        title = axis_title(axis, comparison)
        charts.append(
            Chart(
                key=axis,
                title=f"{metric} against {title}",
                x_title=f"{title} (logarithmic)" if over else title,
                y_title=f"final {metric}" if over else metric,
                series=series,
                log=over,
                level=comparison.target,
                level_name=f"target {format_number(comparison.target)}",
            )
        )
    return charts


def _limits(low: float, high: float) -> str:
    return f" [{format_number(low)}, {format_number(high)}]" if math.isfinite(low) else ""


def _budget_series(look: Look, group: Group, axis: Axis) -> Series:
    points = [(p, cost) for p in group.points if (cost := p.costs.get(axis)) is not None and cost > 0]
    return Series(
        name=look.name,
        look=look,
        x=[cost for _, cost in points],
        y=[p.final.estimate for p, _ in points],
        low=[p.final.low for p, _ in points],
        high=[p.final.high for p, _ in points],
        labels=[
            f"{look.name}, {p.budget} (n={p.n})\n{format_amount(axis, cost)}: {format_number(p.final.estimate)}"
            + _limits(p.final.low, p.final.high)
            for p, cost in points
        ],
        hollow=[look.control] * len(points),
        line=True,
        counts=[p.used and math.isfinite(p.final.estimate) for p, _ in points],
    )


def _training_series(
    look: Look, group: Group, runs: Sequence[Outcome], axis: Axis, comparison: Comparison
) -> list[Series]:
    steps = shared_steps(runs)
    rows = [np.searchsorted(o.curve.steps, steps) for o in runs]
    values_RK = np.stack([o.curve.values[row] for o, row in zip(runs, rows, strict=True)])
    xs = [getattr(o.curve, axis).astype(np.float64) for o in runs]
    x_K = np.stack([x[row] for x, row in zip(xs, rows, strict=True)]).mean(axis=0)
    found = [mean_interval(values_R, comparison.confidence) for values_R in values_RK.T]
    series = [
        Series(
            name=f"{look.name} (n={group.n})",
            look=look,
            x=x_K.tolist(),
            y=[one.estimate for one in found],
            low=[one.low for one in found],
            high=[one.high for one in found],
            labels=[
                f"{look.name}, {format_amount(axis, x)}\n{format_number(one.estimate)}" + _limits(one.low, one.high)
                for x, one in zip(x_K.tolist(), found, strict=True)
            ],
            line=True,
            band=True,
            runs=[
                {"run_id": o.run_id, "x": x.tolist(), "y": o.curve.values.tolist()}
                for o, x in zip(runs, xs, strict=True)
            ],
        )
    ]
    if group.to_target is not None and group.to_target.reached:
        x = float(getattr(group.to_target, axis))
        label = f"{look.name} reaches the target\n{format_amount(axis, x)}"
        series.append(Series("", look, [x], [comparison.target], labels=[label], hollow=[look.control]))
    return series


def pareto(comparison: Comparison) -> list[Chart]:
    """Return all points with the Pareto front of their means, one chart per axis; none but over budgets."""
    if comparison.method != "budgets":
        return []
    metric, charts = short(comparison.metric), []
    for axis in drawn_axes(comparison):
        front = sorted(
            (cost, point.final.estimate)
            for point in comparison.points
            if point.on_pareto_front.get(axis) and (cost := point.costs.get(axis)) is not None and cost > 0
        )
        stairs: list[tuple[float, float]] = []
        for cost, value in front:
            stairs += [(cost, stairs[-1][1])] if stairs else []
            stairs.append((cost, value))
        first = Look(0, "Pareto front", 0)
        series = [Series(first.name, first, [x for x, _ in stairs], [y for _, y in stairs], line=True, front=True)]
        for look in looks_of(comparison):
            plain = _budget_series(look, comparison.groups[look.index], axis)
            on = [p.on_pareto_front[axis] for p in comparison.groups[look.index].points if (p.costs.get(axis) or 0) > 0]
            labels = [
                f"{text}\non the Pareto front" * here or text for text, here in zip(plain.labels, on, strict=True)
            ]
            hollow = [not here for here in on]
            series.append(Series(look.name, look, plain.x, plain.y, labels=labels, hollow=hollow))
        title = axis_title(axis, comparison)
        charts.append(
            Chart(
                axis,
                f"Pareto front of {metric} against {title}",
                f"{title} (logarithmic)",
                f"final {metric}",
                series,
                True,
            )
        )
    return charts


def amortisation(comparison: Comparison) -> Chart | None:
    """Return the cost of K later runs with reuse, work done once included, as a share of K baseline runs; or None."""
    whole = _cost_of(comparison.groups[0])
    series = []
    for look in looks_of(comparison):
        group = comparison.groups[look.index]
        known = group.break_even
        # The cost of a side that is only a limit says nothing about what is paid back.
        if known is None or group.target_bound or comparison.groups[0].target_bound:
            continue
        each = _cost_of(group) - known.harvest_seconds
        once = {"harvest": known.harvest_seconds}
        if known.prior_training_seconds > 0:
            once["harvest and prior runs"] = known.harvest_seconds + known.prior_training_seconds
        for counted, seconds in once.items():
            if seconds <= 0 or not math.isfinite(each + seconds + whole) or whole <= 0:
                continue
            share = [(k * each + seconds) / (k * whole) for k in _LATER_RUNS]
            labels = [
                f"{look.name}, {counted} counted\n{k} later runs: {format_times(s)} of the cost"
                for k, s in zip(_LATER_RUNS, share, strict=True)
            ]
            shown = Look(look.index, look.name, look.colour, control=counted != "harvest")
            hollow = [shown.control] * len(share)
            series.append(
                Series(f"{look.name}: {counted}", shown, [float(k) for k in _LATER_RUNS], share, labels=labels,
                       hollow=hollow, line=True)
            )  # fmt: skip
    if not series:
        return None
    return Chart(
        key="amortisation",
        title="Cost of later runs with reuse, as a share of plain runs",
        x_title="later runs that share it",
        y_title="cost, as a share of as many baseline runs",
        series=series,
        log=True,
        level=1.0,
        level_name="break-even",
    )


def _cost_of(group: Group) -> float:
    if group.to_target is not None:
        return group.to_target.cost_seconds
    cost = group.cost_to_target.get("cost_seconds")
    return math.nan if cost is None else cost.estimate
