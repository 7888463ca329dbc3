"""Where everything in a plot of the page stands: charts and bars become places, which the template writes as SVG.

Places across and upwards are shares of the box, so that texts keep their size at any width. Lines and bands stand in a
picture of 1000 by 1000 that is stretched, with strokes that are not, and that cuts off what leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reuse_algos.compare.inside import SizeMap
from reuse_algos.compare.show.drawing import Bars, Chart, Look, Series, y_values
from reuse_algos.compare.show.page.scales import Scale, linear_scale, log_scale
from reuse_algos.compare.show.page.values import Numbers, Value
from reuse_algos.compare.show.words import AXIS_WORDS, format_amount, format_speedup

_SIZE = 1000.0  # of the stretched picture
_MOST_MARKS = 40  # points of a curve that can be pointed at
_COLOURS = 8  # of the style sheet; the first is the baseline's
_SHAPES = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-6l6,6l-6,6l-6,-6z",
    "M0,-6l5.6,10h-11.2z",
    "M0,6l5.6,-10h-11.2z",
    "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
)


@dataclass(frozen=True)
class Sign:
    """Colour and shape of a group, so that neither is needed alone: a class of the style sheet and an outline."""

    kind: str
    shape: str


def sign_of(look: Look) -> Sign:
    """Return the sign of a group; 0 is the baseline's colour, the others repeat, each time with another shape."""
    number = look.colour and 1 + (look.colour - 1) % (_COLOURS - 1)
    return Sign(f"s{number}{' control' if look.control else ''}", _SHAPES[look.colour % len(_SHAPES)])


def percent(share: float) -> str:
    """Return a share of the width or height as SVG writes it."""
    return f"{100 * share:.3f}%"


@dataclass(frozen=True)
class Tick:
    """A place on an axis, its text, and whether it is left out on a narrow page."""

    at: str
    text: str
    other: bool = False


@dataclass(frozen=True)
class Mark:
    """A point that can be pointed at: its place, its number, what it says, and its whisker's ends (or None)."""

    x: str
    y: str
    value: Value
    label: str
    kind: str
    whisker: tuple[str, str] | None = None


@dataclass(frozen=True)
class SeriesView:
    """One series: name for the legend, sign, polylines with their classes, outline of the band, marks."""

    name: str
    sign: Sign
    front: bool
    lines: list[tuple[str, str]]
    band: str
    marks: list[Mark]


@dataclass(frozen=True)
class Plot:
    """A chart in places."""

    chart: Chart
    series: list[SeriesView]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    level: str | None


@dataclass(frozen=True)
class BarView:
    """One speed-up as a bar from 1: its sign, words, places of bar and whisker, ends of the whisker, and mark."""

    look: Look
    sign: Sign
    path: tuple[str | int, ...]
    fill: tuple[str, str] | None
    whisker: tuple[str, str]
    ends: list[tuple[str, str]]
    mark: Mark | None


def plot_of(chart: Chart, numbers: Numbers, *path: str | int) -> Plot:
    """Return the places of a chart.

    Args:
        chart: What to draw.
        numbers: They hold the chart.
        path: Of the chart in them.
    """
    # An empty series still has its place in the legend, but no scale.
    shown = [s for s in chart.series if s.x]
    points = [p for s in shown for p in (*s.joined, *_thin(s)) if math.isfinite(p[1])]
    points += [(x, y) for s in shown if not s.band for x, y in zip(s.x, s.y, strict=True) if math.isfinite(y)]
    ys = y_values(chart)
    y_scale = log_scale(ys, room=0.05) if chart.log_y else linear_scale(ys)
    xs, seconds = [x for x, _ in points], chart.key.endswith("seconds")
    if chart.log:
        x_scale = log_scale(xs, room=0.05, seconds=seconds)
    else:
        x_scale = linear_scale(xs, from_zero=True, room=0.03, seconds=seconds)
    views = [_series(s, x_scale, y_scale, numbers, (*path, "series", k)) for k, s in enumerate(chart.series)]

    def x_text(x: float) -> str:
        return format_amount(chart.key, x) if chart.key in AXIS_WORDS else f"{x:g}"

    # On a phone every other tick is left out.
    many = len(x_scale.ticks) > 4
    return Plot(
        chart,
        views,
        [Tick(percent(x_scale.place(x)), x_text(x), bool(many and k % 2)) for k, x in enumerate(x_scale.ticks)],
        [Tick(percent(1 - y_scale.place(y)), f"{y:.4g}") for y in y_scale.ticks],
        None if chart.level is None else percent(1 - y_scale.place(chart.level)),
    )


def _thin(series: Series) -> list[tuple[float, float]]:
    return [point for run in series.runs for point in zip(run["x"], run["y"], strict=True)]


def _series(s: Series, x_scale: Scale, y_scale: Scale, numbers: Numbers, path: tuple[str | int, ...]) -> SeriesView:
    def place(x: float, y: float) -> str:
        return f"{_SIZE * x_scale.place(x):.1f},{_SIZE * (1 - y_scale.share(y)):.1f}"

    lines = [(list(zip(run["x"], run["y"], strict=True)), "line thin") for run in s.runs]
    lines.append((s.joined, "front" if s.front else "line"))
    limits = [
        one for one in zip(s.x, s.low, s.high, strict=True) if all(math.isfinite(v) for v in one)
    ] if s.band else []  # fmt: skip
    outline = [place(x, high) for x, _, high in limits] + [place(x, low) for x, low, _ in reversed(limits)]
    marks = []
    inside = [
        k for k, (x, y) in enumerate(zip(s.x, s.y, strict=True))
        if math.isfinite(x) and math.isfinite(y) and 0.0 <= y_scale.share(y) <= 1.0
    ]  # fmt: skip
    for k in () if s.front else (inside[i] for i in _picked(len(inside), all_of_them=not s.band)):
        x, y = s.x[k], s.y[k]
        whisker = None
        if not s.band and s.low and math.isfinite(s.low[k]) and math.isfinite(s.high[k]):
            whisker = (percent(1 - y_scale.place(s.low[k])), percent(1 - y_scale.place(s.high[k])))
        kind = "quiet" if s.band else "hollow" if s.hollow and s.hollow[k] else ""
        at = percent(x_scale.place(x)), percent(1 - y_scale.place(y))
        marks.append(Mark(*at, numbers.at(*path, "y", k), s.labels[k], kind, whisker))
    return SeriesView(
        name=s.name,
        sign=sign_of(s.look),
        front=s.front,
        lines=[(" ".join(place(*p) for p in piece), kind) for line, kind in lines for piece in _pieces(line)],
        band=" ".join(outline) if len(limits) > 1 else "",
        marks=marks,
    )


def _picked(length: int, *, all_of_them: bool) -> list[int]:
    """Return the positions that can be pointed at."""
    # All of them, or evenly spread ones with the last: each is an element of the page.
    if all_of_them or length <= _MOST_MARKS:
        return list(range(length))
    # Hundreds of marks would slow the page down and could not be told apart.
    return sorted({round(k * (length - 1) / (_MOST_MARKS - 1)) for k in range(_MOST_MARKS)})


def _pieces(line: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Return the line where it is finite, in pieces of at least two points; a point alone is there twice, as a dot."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in line:
        if math.isfinite(point[0]) and math.isfinite(point[1]):
            pieces[-1].append(point)
        else:
            pieces.append([])
    return [piece * 2 if len(piece) == 1 else piece for piece in pieces if piece]


@dataclass(frozen=True)
class Cell:
    """One step and size of a map: its box, how strong its colour is (0 to 1), its number, and what it says."""

    x: str
    y: str
    width: str
    height: str
    shade: str
    value: Value
    label: str


@dataclass(frozen=True)
class MapView:
    """The sizes of a run's gradients in places: sign and names, rows from the top with their size, ticks, cells."""

    sign: Sign
    group: str
    run_id: str
    rows: list[Tick]
    x_ticks: list[Tick]
    cells: list[Cell]


def map_views(maps: Sequence[SizeMap], looks: Sequence[Look], numbers: Numbers) -> list[MapView]:
    """Return the places of maps; all have one scale of colour, whose strongest is the largest share of all.

    Args:
        maps: What to draw.
        looks: Of the groups.
        numbers: They hold the maps as ``sizes``.
    """
    largest = max((share for one in maps for row in one.shares for share in row if share > 0), default=1.0)
    of = {look.name: look for look in looks}
    return [_map_view(one, of[one.group], largest, numbers, k) for k, one in enumerate(maps)]


def _map_view(one: SizeMap, look: Look, largest: float, numbers: Numbers, k: int) -> MapView:
    height, width = 1 / len(one.sizes), 1 / len(one.steps)
    cells = [
        # Large sizes stand on top. Nothing is drawn where the share is 0 or not a number.
        Cell(
            percent(column * width), percent(1 - (row + 1) * height), percent(width), percent(height),
            f"{share / largest:.3f}", numbers.at("sizes", k, "shares", row, column),
            f"step {one.steps[column]}, {_size_words(one.sizes, row)}: {share:.1%} of the elements",
        )
        for row, shares in enumerate(one.shares) for column, share in enumerate(shares) if share > 0
    ]  # fmt: skip
    rows = [Tick(percent(1 - (row + 0.5) * height), size) for row, size in enumerate(one.sizes)]
    # Steps are read at even distances, but for the first and the last one.
    shown = sorted({0, len(one.steps) // 2, len(one.steps) - 1})
    x_ticks = [Tick(percent((column + 0.5) * width), str(one.steps[column])) for column in shown]
    return MapView(sign_of(look), one.group, one.run_id, rows, x_ticks, cells)


def _size_words(sizes: Sequence[str], row: int) -> str:
    if sizes[row] == "below":
        return "smaller"
    above = sizes[row + 1 : row + 2]
    return f"{sizes[row]} to {above[0]}" if above else f"{sizes[row]} or more"


def bar_views(bars: Bars, numbers: Numbers) -> tuple[list[BarView], list[Tick], str]:
    """Return speed-ups as bars on a logarithmic axis, its ticks, and the place of 1.

    Args:
        bars: What to draw.
        numbers: They hold the comparison.
    """
    limits = [limit for _, speedup in bars.rows for limit in (speedup.low, speedup.high)]
    limits += [speedup.estimate for _, speedup in bars.rows if speedup.known]
    scale = log_scale(limits, around=1.0, most=32.0)
    one = scale.place(1.0)
    views = []
    for look, speedup in bars.rows:
        path = ("comparison", "groups", look.index, "speedups", bars.key)
        low, high = scale.place(speedup.low), scale.place(speedup.high)
        # A limit on the axis ends in a stroke; one beyond it, or unknown, in an arrow.
        ends = [
            (percent(at), "M0,-6V6" if inside else "M-7,-5L0,0L-7,5" if limit > 1.0 else "M7,-5L0,0L7,5")
            for limit, at, inside in (
                (speedup.low, low, speedup.low > scale.low),
                (speedup.high, high, speedup.high < scale.high),
            )
        ]
        fill, mark = None, None
        if speedup.known:
            at = scale.place(speedup.estimate)
            words = f"{look.name}\nspeed-up in {AXIS_WORDS[bars.key]}: {format_speedup(speedup)}"
            mark = Mark(percent(at), percent(0.5), numbers.at(*path, "estimate"), words, "")
            fill = (percent(min(one, at)), percent(abs(at - one))) if speedup.drawn else None
        views.append(BarView(look, sign_of(look), path, fill, (percent(low), percent(high)), ends, mark))
    many = len(scale.ticks) > 4
    ticks = [
        Tick(percent(scale.place(t)), f"{t:g}\u00d7", bool(many and k % 2 and t != 1.0))
        for k, t in enumerate(scale.ticks)
    ]
    return views, ticks, percent(one)
