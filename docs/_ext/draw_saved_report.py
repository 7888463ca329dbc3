"""Draw the layout of the saved W&B report from an archive, for the page on W&B.

    python docs/_ext/draw_saved_report.py demo/archive docs/saved_report.png

It is a drawing by matplotlib of the same panels with the same values, not a picture of W&B's own page.
"""

from __future__ import annotations

import sys
import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from reuse_algos.archive import RunArchive
from reuse_algos.compare import Question, compare, read_outcomes
from reuse_algos.compare.reading import group_of
from reuse_algos.compare.show.dashboard import Dashboard, dashboard_of
from reuse_algos.compare.show.saved_report import Panel, saved_report_of
from reuse_algos.errors import SignalNotFoundError


def main(location: str, picture: str) -> None:
    """Draw the report of an archive's comparison over budgets into a file."""
    archive, question = RunArchive(location), Question(over="budgets")
    outcomes = read_outcomes(archive, question)
    comparison = compare(outcomes, question)
    dashboard = dashboard_of(comparison, outcomes)
    plan = saved_report_of(dashboard, page=True)
    groups: dict[str, list[Any]] = {group.name: [] for group in comparison.groups}
    for run in archive.runs(order="first"):
        if (name := group_of(run, question.group_by)) in groups:
            groups[name].append(run)

    # The table and the page are shown in the other picture of the page.
    sections = [(s.title, [p for p in s.panels if p.kind not in ("table", "page")]) for s in plan.sections]
    rows = sum((len(panels) + 1) // 2 for _, panels in sections)
    figure = Figure(figsize=(10.0, 1.4 + 2.6 * rows + 0.5 * len(sections)), layout="constrained")
    heights = [1.2 + 0.25 * len(plan.sentences), *[0.3 + 2.6 * ((len(panels) + 1) // 2) for _, panels in sections]]
    head, *parts = figure.subfigures(1 + len(sections), 1, height_ratios=heights)
    head.suptitle(plan.title, x=0.01, ha="left", fontsize="x-large")
    lines = [textwrap.fill(f"- {sentence}", 115, subsequent_indent="  ") for sentence in plan.sentences]
    head.text(0.01, 0.66, "\n".join(lines), va="top", fontsize="medium")
    for part, (title, panels) in zip(parts, sections, strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize="large")
        axes = part.subplots((len(panels) + 1) // 2, 2, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes, panels, strict=False):
            axis.set_title(textwrap.fill(panel.title, 50), fontsize="small")
            axis.tick_params(labelsize="x-small")
            if panel.kind in ("line", "bar"):
                _of_the_runs(axis, panel, groups)
            else:
                _of_the_comparison(axis, panel, dashboard)
    figure.savefig(picture, dpi=90)


def _of_the_comparison(axis: Any, panel: Panel, dashboard: Dashboard) -> None:
    if panel.kind == "lines":
        for name, points in dashboard.lines[panel.key].series.items():
            axis.plot(*zip(*points, strict=True), marker=".", label=name)
        axis.set_xlabel(textwrap.fill(panel.x, 50), fontsize="x-small")
        axis.legend(fontsize="xx-small")
        return
    table = dashboard.bars[panel.key].table
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    axis.barh([row["label"] for row in rows], [row["value"] or 0.0 for row in rows])
    axis.invert_yaxis()


def _of_the_runs(axis: Any, panel: Panel, groups: dict[str, list[Any]]) -> None:
    costs = {}
    for name, runs in groups.items():
        if panel.kind == "bar":
            found = [
                run.manifest.cost.train_seconds
                + run.manifest.cost.setup_seconds
                + sum(use.harvest_seconds for use in run.manifest.prior_runs)
                for run in runs
            ]
            costs[name] = float(np.mean(found))
            continue
        curves = []
        for run in runs:
            try:
                history = run.metric(panel.key)
            except SignalNotFoundError:
                continue
            x = history.train_seconds if panel.x == "time/train_seconds" else history.step
            curves.append((np.asarray(x, dtype=float), np.asarray(history.value, dtype=float)))
        if not curves:
            continue
        if all(len(x) == 1 for x, _ in curves):  # evaluated at their ends only
            axis.plot([x[0] for x, _ in curves], [y[0] for _, y in curves], "o", ms=4, label=name)
            continue
        at = np.linspace(0.0, max(x[-1] for x, _ in curves), 60)
        values = np.stack([np.interp(at, x, y, left=np.nan, right=np.nan) for x, y in curves])
        known = np.isfinite(values).sum(axis=0) > 1
        mean, spread = np.nanmean(values[:, known], axis=0), np.nanstd(values[:, known], axis=0)
        axis.plot(at[known], mean, label=name)
        axis.fill_between(at[known], mean - spread, mean + spread, alpha=0.2)
    if costs:
        axis.barh(list(costs), list(costs.values()))
        axis.invert_yaxis()
        return
    axis.set_xlabel({"time/train_seconds": "seconds of training", "Step": "step"}[panel.x], fontsize="x-small")
    axis.legend(fontsize="xx-small")


if __name__ == "__main__":
    main(*sys.argv[1:])
