"""A plot of a comparison: metric against cost, one colour per group."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reuse_algos.compare.groups import mean_curves, shared_steps
from reuse_algos.compare.outcomes import RunOutcome
from reuse_algos.compare.results import Comparison
from reuse_algos.errors import CompareError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FILE_TYPES", "check_plot_path", "comparison_figure", "plot_comparison"]

FILE_TYPES = ("png", "pdf", "svg")


def plot_comparison(
    comparison: Comparison, groups: Mapping[str, Sequence[RunOutcome]], path: str | os.PathLike[str]
) -> Path:
    """Write :func:`comparison_figure` to a file; its extension (png, pdf or svg) is the type.

    Raises:
        CompareError: another extension, or the file cannot be written.
    """
    target = Path(path)
    check_plot_path(target)
    figure = comparison_figure(comparison, groups)
    try:
        figure.savefig(target, dpi=150, bbox_inches="tight")
    except OSError as error:
        raise CompareError(f"the plot cannot be written to {target}: {error.strerror or error}") from error
    return target


def check_plot_path(path: Path) -> None:
    """Refuse a file type that cannot be written, before any work is done.

    Raises:
        CompareError: the extension is not one of :data:`FILE_TYPES`.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FILE_TYPES:
        raise CompareError(f"a plot cannot be written as {path.name!r}: end the name in .{', .'.join(FILE_TYPES)}")


def comparison_figure(comparison: Comparison, groups: Mapping[str, Sequence[RunOutcome]]) -> Figure:
    """Draw metric against cost: single runs thin, their mean thick, the target dashed, each group's cost to it a dot.

    Cost is in seconds (training, set-up, used harvests) where all runs have them, else in steps. A mean is drawn on the
    evaluations that all runs of the group share.

    Args:
        comparison: the result of :func:`~reuse_algos.compare.table.compare_runs`.
        groups: the outcomes it was made from (:attr:`Selection.groups <reuse_algos.compare.table.Selection.groups>`).

    Returns:
        A figure that belongs to no window and no pyplot state.
    """
    # matplotlib takes a third of a second to import, and this module is imported with the package.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.5))
    axes = figure.add_subplot()
    seconds = all(o.train_seconds[-1] > 0 for group in groups.values() for o in group)
    sign = 1.0 if comparison.mode == "max" else -1.0
    for number, row in enumerate(comparison.groups):
        outcomes = groups[row.name]
        colour = f"C{number % 10}"
        for outcome in outcomes:
            axes.plot(
                outcome.cost_seconds if seconds else outcome.steps, outcome.values, color=colour, lw=0.8, alpha=0.4
            )
        label = _plain(f"{row.name} (n={row.n})")
        if len(shared_steps(outcomes)):
            curves, _ = mean_curves(outcomes, comparison.mode, "cost" if seconds else "steps")
            mean_K = np.where(np.isfinite(curves.mean_K), sign * curves.mean_K, np.nan)
            axes.plot(curves.costs_RK.mean(axis=0), mean_K, color=colour, lw=2.2, label=label)
        else:
            axes.plot([], [], color=colour, lw=2.2, label=label)
        if row.to_target.reached:
            x = row.to_target.cost_seconds if seconds else row.to_target.steps
            axes.plot([x], [comparison.target], "o", color=colour, mec="black", zorder=5)
    axes.axhline(comparison.target, ls="--", lw=1.0, color="grey", label=f"target {comparison.target:.4g}")
    axes.set_xlabel("cost in seconds: training, set-up, used harvests" if seconds else "steps")
    axes.set_ylabel(_plain(comparison.metric.rsplit("/", 1)[-1]))
    axes.set_title(_plain(f"{comparison.metric} against cost, by {comparison.group_by}"), fontsize="medium")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.25)
    return figure


def _plain(text: str) -> str:
    """Text that matplotlib shows as it is: no formula between dollar signs, no label hidden by an underscore."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
