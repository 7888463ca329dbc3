"""Charts as image files, by matplotlib."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reuse_algos.compare.outcomes import Outcomes
from reuse_algos.compare.result import Comparison
from reuse_algos.compare.show.charts import charts_of
from reuse_algos.compare.show.drawing import Chart, Series, y_values
from reuse_algos.compare.show.files import PLOTS, write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_comparison(comparison: Comparison, outcomes: Outcomes, path: str | os.PathLike[str]) -> Path:
    """Write :func:`comparison_figure` to a file; its extension (png, pdf or svg) is the type.

    Raises:
        CompareError: Another extension, or the file cannot be written.
    """
    return _write(comparison_figure(comparison, outcomes), Path(path))


def plot_chart(chart: Chart, path: Path) -> Path:
    """Write :func:`chart_figure` to a file; its extension (png, pdf or svg) is the type.

    Raises:
        CompareError: Another extension, or the file cannot be written.
    """
    return _write(chart_figure(chart), path)


def _write(figure: Figure, path: Path) -> Path:
    return write_file(path, PLOTS, lambda where: figure.savefig(where, dpi=150, bbox_inches="tight"))


def comparison_figure(comparison: Comparison, outcomes: Outcomes) -> Figure:
    """Draw metric against cost: single runs thin, means thick, the target dashed, each group's cost to it a dot.

    Args:
        comparison: What to draw.
        outcomes: The runs that it was made from.

    Returns:
        A figure that belongs to no window and no pyplot state.
    """
    title = f"{comparison.metric} against cost, by {comparison.group_by}"
    return chart_figure(charts_of(comparison, outcomes)[0], title)


def chart_figure(chart: Chart, title: str = "") -> Figure:
    """Draw one chart.

    Args:
        chart: What to draw.
        title: Above it. Default: the chart's own.

    Returns:
        A figure that belongs to no window and no pyplot state.
    """
    # matplotlib takes a third of a second to import, and this module is imported with the package.
    from matplotlib.figure import Figure

    # A figure by itself, not pyplot: that keeps figures alive, and may open a window.
    figure = Figure(figsize=(7.0, 4.5))
    axes = figure.add_subplot()
    for series in chart.series:
        _draw(axes, series)
    if chart.level is not None:
        axes.axhline(chart.level, ls="--", lw=1.0, color="grey", label=chart.level_name)
    axes.set_xscale("log" if chart.log else "linear")
    axes.set_yscale("log" if chart.log_y else "linear")
    seen = [y for y in y_values(chart) if np.isfinite(y)]
    if seen and not chart.log_y and max(seen) > min(seen):
        room = 0.06 * (max(seen) - min(seen))
        axes.set_ylim(min(seen) - room, max(seen) + room)
    axes.set_xlabel(plain_text(chart.x_title))
    axes.set_ylabel(plain_text(chart.y_title))
    axes.set_title(plain_text(title or chart.title), fontsize="medium")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    axes.grid(alpha=0.25)
    return figure


def _draw(axes: Axes, series: Series) -> None:
    colour, dash = f"C{series.look.colour % 10}", "--" if series.look.control else "-"
    for run in series.runs:
        axes.plot(run["x"], run["y"], color=colour, lw=0.8, alpha=0.4)
    label = plain_text(series.name) if series.name else None
    if not series.line:
        axes.plot(series.x, series.y, "o", color=colour, mec="black", label=label, zorder=5)
    else:
        points = np.array(series.joined, dtype=np.float64).reshape(-1, 2)
        marker = "" if series.band or not series.labels else "o"
        axes.plot(points[:, 0], points[:, 1], dash, marker=marker, color=colour, lw=2.2, label=label)
    if series.low and not series.band:
        x, y, low, high = np.array([series.x, series.y, series.low, series.high], dtype=np.float64)
        known = np.isfinite(y) & np.isfinite(low) & np.isfinite(high)
        gaps = np.stack([y - low, high - y])[:, known]
        axes.errorbar(x[known], y[known], yerr=gaps, fmt="none", ecolor=colour, capsize=3, lw=1.0)


def plain_text(text: str) -> str:
    """Return text that matplotlib shows as it is."""
    # It takes what stands between dollar signs for a formula, and hides labels that begin with an underscore.
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
