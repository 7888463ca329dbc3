"""A comparison as an image file: the first of its charts, by matplotlib."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reuse_algos.compare.outcomes import Outcomes
from reuse_algos.compare.result import Comparison
from reuse_algos.compare.show.charts import charts_of
from reuse_algos.errors import CompareError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FILE_TYPES", "check_plot_path", "comparison_figure", "plot_comparison"]

FILE_TYPES = ("png", "pdf", "svg")


def plot_comparison(comparison: Comparison, outcomes: Outcomes, path: str | os.PathLike[str]) -> Path:
    """Write :func:`comparison_figure` to a file; its extension (png, pdf or svg) is the type.

    Raises:
        CompareError: Another extension, or the file cannot be written.
    """
    target = Path(path)
    check_plot_path(target)
    try:
        comparison_figure(comparison, outcomes).savefig(target, dpi=150, bbox_inches="tight")
    except OSError as error:
        raise CompareError(f"the plot cannot be written to {target}: {error.strerror or error}") from error
    return target


def check_plot_path(path: Path) -> None:
    """Refuse a file type that cannot be written, before any work is done.

    Raises:
        CompareError: The extension is not one of :data:`FILE_TYPES`.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FILE_TYPES:
        raise CompareError(f"a plot cannot be written as {path.name!r}: end the name in .{', .'.join(FILE_TYPES)}")


def comparison_figure(comparison: Comparison, outcomes: Outcomes) -> Figure:
    """Draw metric against cost: single runs thin, means thick, the target dashed, each group's cost to it a dot.

    Args:
        comparison: What to draw.
        outcomes: The runs that it was made from.

    Returns:
        A figure that belongs to no window and no pyplot state.
    """
    # matplotlib takes a third of a second to import, and this module is imported with the package.
    from matplotlib.figure import Figure

    chart = charts_of(comparison, outcomes)[0]
    figure = Figure(figsize=(7.0, 4.5))
    axes = figure.add_subplot()
    for series in chart.series:
        colour, dash = f"C{series.look.colour % 10}", "--" if series.look.control else "-"
        for run in series.runs:
            axes.plot(run["x"], run["y"], color=colour, lw=0.8, alpha=0.4)
        if not series.name:
            axes.plot(series.x, series.y, "o", color=colour, mec="black", zorder=5)
            continue
        points = np.array(series.joined, dtype=np.float64).reshape(-1, 2)
        marker = "" if series.band else "o"
        axes.plot(points[:, 0], points[:, 1], dash, marker=marker, color=colour, lw=2.2, label=_plain(series.name))
    if chart.level is not None:
        axes.axhline(chart.level, ls="--", lw=1.0, color="grey", label=chart.level_name)
    if chart.log:
        axes.set_xscale("log")
    axes.set_xlabel(_plain(chart.x_title))
    axes.set_ylabel(_plain(chart.y_title))
    axes.set_title(_plain(f"{comparison.metric} against cost, by {comparison.group_by}"), fontsize="medium")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.25)
    return figure


def _plain(text: str) -> str:
    """Return text that matplotlib shows as it is: no formula, no label hidden by an underscore."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
