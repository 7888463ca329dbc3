"""What is drawn of the answers of ``predict`` and ``sweep``: charts for ``--plot`` and ``--html``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reuse_algos.compare.show.drawing import Chart, Series

Row = Mapping[str, Any]


def line(name: str, x: Iterable[float], y: Iterable[float], colour: int = 0, *, dashed: bool = False) -> Series:
    """Return a line without marks.

    Args:
        name: For the legend.
        x: Places.
        y: Values.
        colour: Number of the colour. Default: 0.
        dashed: Whether it is predicted. Default: False.
    """
    from reuse_algos.compare.show.drawing import Look, Series

    xs, ys = [float(one) for one in x], [float(one) for one in y]
    unknown = [math.nan] * len(xs)
    look = Look(0, name, colour, control=dashed)
    labels = [f"{name}\n{a:g}: {b:.4g}" for a, b in zip(xs, ys, strict=True)]
    return Series(name, look, xs, ys, unknown, unknown, labels=labels, line=True, band=True)


def points(
    name: str, rows: Sequence[Row], x: str, y: str, colour: int = 1, *, limits: tuple[str, str] | None = None
) -> Series:
    """Return marks with whiskers.

    Args:
        name: For the legend.
        rows: Records; those without a value are left out.
        x: Key of the places.
        y: Key of the values.
        colour: Number of the colour. Default: 1.
        limits: Keys of the lower and upper limits. Default: None, no whiskers.
    """
    from reuse_algos.compare.show.drawing import Look, Series

    known = [row for row in rows if row[y] is not None and math.isfinite(row[y])]
    low, high = ([float(row[key]) for row in known] for key in limits) if limits else ([], [])
    labels = [f"{name}\n{row[x]:g}: {row[y]:.4g}" for row in known]
    return Series(
        name,
        Look(0, name, colour),
        [float(row[x]) for row in known],
        [float(row[y]) for row in known],
        low,
        high,
        labels,
    )


def chart(title: str, x_title: str, y_title: str, series: Sequence[Series], *, log: bool = False) -> Chart:
    """Return a chart.

    Args:
        title: Above it.
        x_title: What runs across.
        y_title: What runs upwards.
        series: What is drawn; empty ones are left out.
        log: Whether both axes are logarithmic. Default: False.
    """
    from reuse_algos.compare.show.drawing import Chart

    return Chart(title, title, x_title, y_title, [one for one in series if one.x], log, log_y=log)


def curve_chart(made: Row, rows: Sequence[Row]) -> Chart:
    """Return a run so far, and the forecast of its end with its interval.

    Args:
        made: The forecast, fields of :class:`~reuse_algos.predict.EndForecast`.
        rows: ``step`` and ``loss`` so far.
    """
    last = rows[-1]
    way = line("predicted", [last["step"], made["end_step"]], [last["loss"], made["value"]], 1, dashed=True)
    so_far = line("so far", [row["step"] for row in rows], [row["loss"] for row in rows])
    end = points("end", [made], "end_step", "value", limits=("low", "high"))
    return chart("Loss so far, and its predicted end", "steps", "loss", [so_far, way, end])


def backtest_chart(found: Mapping[str, Any]) -> Chart:
    """Return measured against predicted ends, a colour for each share of the run."""
    tests = found["forecasts"]
    series = []
    for colour, fraction in enumerate(sorted({row["fraction"] for row in found["errors_of_forecasts"]}), start=1):
        some = [row for row in tests if abs(row["fraction"] - fraction) < 0.1]
        series.append(points(f"after {fraction:.0%}", some, "measured", "value", colour))
    ends = [min(row["measured"] for row in tests), max(row["measured"] for row in tests)]
    return chart(
        "Predicted ends against measured ends",
        "measured end value",
        "predicted end value",
        [line("as measured", ends, ends), *series],
    )


def speed_chart(rows: Sequence[Row], name: str, title: str) -> Chart:
    """Return a column over workers: measured, fitted within what was measured, and predicted beyond it.

    Args:
        rows: One for each number of workers, ascending.
        name: Of the column, such as ``steps_per_second``.
        title: Of the chart.
    """
    measured = [{**row, "measured": row.get(f"measured_{name}")} for row in rows]
    series = []
    # Without parameter servers there is one column.
    for colour, servers in enumerate(dict.fromkeys(row.get("servers") for row in rows), start=1):
        words = "" if servers is None else f", {servers} server{'s' * (servers != 1)}"
        own = sorted((row for row in rows if row.get("servers") == servers), key=lambda row: row["workers"])
        inside = [row for row in own if row["kind"] != "predicted"]
        for what, some, dashed in (("predicted", own, True), ("within what was measured", inside, False)):
            x, y = [row["workers"] for row in some], [row[name] for row in some]
            series.append(line(what + words, x, y, colour, dashed=dashed))
    marks = points("measured", measured, "workers", "measured", len(series))
    return chart(title, "workers", name.replace("_", " "), [*series, marks])
