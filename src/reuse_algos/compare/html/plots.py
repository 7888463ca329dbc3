"""Plots as inline SVG that is as wide as its box: places across are percentages, so that texts keep their size.

Marks are elements with a name (a title, which a script turns into a label that hover, focus and tap show). Lines and
bands stand in a picture of their own that is stretched, with strokes that are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reuse_algos.compare.html.markup import Html, el, join
from reuse_algos.compare.html.scales import Scale, linear_scale, log_scale
from reuse_algos.compare.html.signs import FRONT_SIGN, colour_class, mark_element, percent, shape_of, swatch
from reuse_algos.compare.html.values import Value

__all__ = ["Mark", "Series", "curve_plot"]

_HEIGHT = 300  # pixels
_SIZE = 1000.0  # of the stretched picture

Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A point with a name.

    Attributes:
        x: its place across.
        y: its place upwards, with its place in the JSON.
        low: lower limit of ``y``; infinite where there is none.
        high: upper limit.
        label: what it says when pointed at; lines are separated by newlines.
        quiet: drawn only when pointed at.
        hollow: drawn as an outline.
    """

    x: Value
    y: Value
    low: float
    high: float
    label: str
    quiet: bool = False
    hollow: bool = False


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour.

    Attributes:
        name: for the legend.
        colour: number of its colour, 0 for the baseline.
        control: dashed lines and hollow marks, in the colour of its technique.
        marks: in order of x.
        line: points of its line, in order; not finite ones break it.
        band: (x, low, high) along the line.
        thin: lines of single runs.
        whiskers: draw the limits of each mark as a vertical line.
        in_legend: whether the legend names it.
        front: it is no group but the Pareto front of all, a line only.
    """

    name: str
    colour: int
    control: bool
    marks: Sequence[Mark]
    line: Sequence[Point] = ()
    band: Sequence[tuple[float, float, float]] = ()
    thin: Sequence[Sequence[Point]] = ()
    whiskers: bool = False
    in_legend: bool = True
    front: bool = False


def curve_plot(
    name: str,
    series: Sequence[Series],
    *,
    x_title: str,
    y_title: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
    log: bool,
    seconds: bool = False,
    level: float | None = None,
    level_name: str = "",
) -> Html:
    """Lines, bands and marks on two axes, with a legend.

    Args:
        name: of the plot, for those who do not see it.
        series: what to draw; later ones lie on top.
        x_title: what runs across, with its unit.
        y_title: what runs upwards.
        x_text: writes a number of the x axis.
        y_text: writes a number of the y axis.
        log: whether equal ratios across take equal room.
        seconds: whether the x axis is in seconds.
        level: value at which to draw a horizontal line.
        level_name: what that line is.
    """
    points = [p for s in series for line in (s.line, *s.thin) for p in line if math.isfinite(p[1])]
    marks = [mark for s in series for mark in s.marks if math.isfinite(mark.y.number)]
    x_values = [x for x, _ in points] + [mark.x.number for mark in marks]
    y_values = [y for _, y in points] + [y for mark in marks for y in (mark.y.number, mark.low, mark.high)]
    y_scale = linear_scale(y_values + ([] if level is None else [level]))
    if log:
        x_scale = log_scale(x_values, room=0.05, seconds=seconds)
    else:
        x_scale = linear_scale(x_values, from_zero=True, room=0.03, seconds=seconds)
    area = [*_grid(x_scale, y_scale, x_text)]
    if level is not None:
        at = percent(1 - y_scale.place(level))
        area += [el("line", x1="0", x2="100%", y1=at, y2=at, class_="level")]
    drawn = join(_lines(s, x_scale, y_scale) for s in series)
    area += [
        el("svg", drawn, viewBox=f"0 0 {_SIZE:g} {_SIZE:g}", preserveAspectRatio="none", width="100%", height="100%")
    ]
    area += [_marks(s, x_scale, y_scale) for s in series]
    y_labels = [
        el("text", y_text(tick), x="100%", dx=-6, y=percent(1 - y_scale.place(tick)), dy="0.32em", text_anchor="end")
        for tick in y_scale.ticks
    ]
    legend = [
        el("li", FRONT_SIGN if s.front else swatch(s.colour, s.control), el("span", s.name))
        for s in series
        if s.in_legend
    ]
    if level is not None:
        legend.append(el("li", el("span", class_="dashes", aria_hidden="true"), el("span", level_name)))
    return el(
        "div",
        el("ul", *legend, class_="legend"),
        el("div", y_title, class_="y-title"),
        el(
            "div",
            el("svg", *y_labels, class_="y-axis", height=_HEIGHT, aria_hidden="true"),
            el("svg", *area, class_="area", height=_HEIGHT, role="group", aria_label=name),
            class_="plot",
        ),
        el("div", x_title, class_="x-title"),
        class_="chart",
    )


def _grid(x_scale: Scale, y_scale: Scale, x_text: Callable[[float], str]) -> list[Html]:
    parts = []
    for tick in y_scale.ticks:
        at = percent(1 - y_scale.place(tick))
        parts.append(el("line", x1="0", x2="100%", y1=at, y2=at, class_="grid"))
    for number, tick in enumerate(x_scale.ticks):
        at = percent(x_scale.place(tick))
        # Every second number is left out where the page is narrow, if they are many.
        kind = "tick other" if number % 2 and len(x_scale.ticks) > 4 else "tick"
        parts.append(el("line", x1=at, x2=at, y1="100%", y2=_HEIGHT + 4, class_="axis"))
        parts.append(el("text", x_text(tick), x=at, y=_HEIGHT + 18, text_anchor="middle", class_=kind))
    parts.append(el("line", x1="0", x2="100%", y1="100%", y2="100%", class_="axis"))
    return parts


def _lines(series: Series, x_scale: Scale, y_scale: Scale) -> Html:
    def place(x: float, y: float) -> str:
        return f"{_SIZE * x_scale.place(x):.1f},{_SIZE * (1 - y_scale.place(y)):.1f}"

    parts = []
    band = [(x, low, high) for x, low, high in series.band if math.isfinite(low) and math.isfinite(high)]
    if len(band) > 1:
        outline = [place(x, high) for x, _, high in band] + [place(x, low) for x, low, _ in reversed(band)]
        parts.append(el("polygon", points=" ".join(outline), class_="band"))
    for line, kind in [
        *((thin, "line thin") for thin in series.thin),
        (series.line, "front" if series.front else "line"),
    ]:
        for piece in _pieces(line):
            parts.append(el("polyline", points=" ".join(place(x, y) for x, y in piece), class_=kind))
    return el("g", *parts, class_=colour_class(series.colour, series.control))


def _pieces(line: Sequence[Point]) -> list[list[Point]]:
    """The line where it is finite, in pieces of at least two points."""
    pieces: list[list[Point]] = [[]]
    for point in line:
        if math.isfinite(point[0]) and math.isfinite(point[1]):
            pieces[-1].append(point)
        else:
            pieces.append([])
    return [piece for piece in pieces if len(piece) > 1]


def _marks(series: Series, x_scale: Scale, y_scale: Scale) -> Html:
    parts = []
    for mark in series.marks:
        if not math.isfinite(mark.y.number) or not math.isfinite(mark.x.number):
            continue
        x, y = x_scale.place(mark.x.number), 1 - y_scale.place(mark.y.number)
        if series.whiskers and math.isfinite(mark.low) and math.isfinite(mark.high):
            ends = (percent(1 - y_scale.place(limit)) for limit in (mark.low, mark.high))
            parts.append(el("line", x1=percent(x), x2=percent(x), y1=next(ends), y2=next(ends), class_="whisker"))
        kind = " ".join(word for word in (mark.quiet and "quiet", mark.hollow and "hollow") if word)
        parts.append(mark_element(mark.label, x, y, mark.y, shape_of(series.colour), kind))
    return el("g", *parts, class_=colour_class(series.colour, series.control))
