"""What is drawn of a comparison, described once as plain data: for the HTML page, for image files and for W&B.

A chart has series of points with limits; the page and the figures draw them, W&B takes their means as line series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from reuse_algos.compare.estimates.interval import Speedup
from reuse_algos.compare.question import Axis
from reuse_algos.compare.result import Comparison
from reuse_algos.compare.show.words import AXIS_WORDS

_AXIS_TITLES: dict[Axis, str] = {
    "train_seconds": "train time",
    "cost_seconds": "cost in seconds: training, set-up, used harvests",
    "amortised_seconds": "cost in seconds, harvests shared among {later_runs} later runs",
}
_SHOWN_FIRST: tuple[Axis, ...] = (
    "cost_seconds", "steps", "samples", "train_seconds", "amortised_seconds", "flops", "dollars",
)  # fmt: skip


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
        # Points that do not count are drawn beside the line, so that nothing is hidden.
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
        log_y: Whether equal ratios upwards take equal room. Default: False.
    """

    key: str
    title: str
    x_title: str
    y_title: str
    series: list[Series]
    log: bool
    level: float | None = None
    level_name: str = ""
    log_y: bool = False


def y_values(chart: Chart) -> list[float]:
    """Return the values that the y axis must hold, so that it shows where the groups differ.

    Curves over training share a steep beginning: an axis that holds all of it leaves a few pixels to what tells the
    groups apart. So of each curve only what follows its first quarter of evaluations counts.
    """
    values = [] if chart.level is None else [chart.level]
    for series in chart.series:
        if series.band:
            # A band of two runs is many times as high as its curve, so its limits do not widen the axis.
            for line in (series.y, *(run["y"] for run in series.runs)):
                values += line[len(line) // 4 :]
        else:
            values += [*series.y, *series.low, *series.high, *(y for run in series.runs for y in run["y"])]
    return values


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
    # Controls without their technique come last, in colours of their own.
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
        # Recorded without a clock, all runs cost 0 seconds, and that is not a cost.
        timed = all(run.to_target and run.to_target.train_seconds > 0 for g in comparison.groups for run in g.runs)
        return ["cost_seconds", "steps"] if timed else ["steps"]
    points = comparison.points
    shown: list[Axis] = [axis for axis in _SHOWN_FIRST if axis in comparison.shown_axes]
    # An axis on which every cost is 0 would be one vertical line, and has no logarithm.
    known: list[Axis] = [axis for axis in shown if any((point.costs.get(axis) or 0.0) > 0.0 for point in points)]
    # Without harvests both costs are the same line.
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
