"""Save a comparison as a report of a W&B project; a report of the same title is replaced.

It needs ``wandb-workspaces``, W&B's own library for reports, and a server that can be reached.
"""

from __future__ import annotations

import importlib
from typing import Any

from reuse_algos.compare.show.saved_report import Panel, SavedReport, Section
from reuse_algos.errors import CompareError

__all__ = ["save_report"]

_INSTALL = "pip install 'reuse-algos[wandb-report]'"
_COLUMNS, _ROWS = 12, 8  # of a panel; W&B's grid has 24 columns
_CHARTS = {
    "lines": ("wandb/lineseries/v0", {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"}),
    "bars": ("wandb/bar/v0", {"label": "label", "value": "value"}),
}


def save_report(report: SavedReport, *, entity: str, project: str, run_id: str) -> str:
    """Save a report, and return its address.

    Args:
        report: What it shows.
        entity: User or team.
        project: W&B project.
        run_id: W&B id of the comparison's run.

    Raises:
        CompareError: ``wandb-workspaces`` is not installed, or W&B did not take the report.
    """
    try:
        reports: Any = importlib.import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise CompareError(f"no report was saved, wandb-workspaces cannot be imported ({error}): {_INSTALL}") from error
    import wandb

    try:
        made = reports.Report(project, entity, report.title, "", _blocks(reports, report, entity, project, run_id))
        # W&B knows reports by id, and would keep a second one of the same title.
        for known in wandb.Api().reports(f"{entity}/{project}"):
            if known.display_name == report.title:
                made.id = known.id
                break
        made.save()
        return made.url
    except Exception as error:  # requests, GraphQL, pydantic and W&B raise errors of their own
        said = " ".join(str(error).split())[:300]
        raise CompareError(f"no report was saved in {entity}/{project}, W&B said: {said}") from error


def _blocks(reports: Any, report: SavedReport, entity: str, project: str, run_id: str) -> list[Any]:
    # Paragraphs, not Markdown: names of groups are shown as they are.
    blocks = [reports.UnorderedList(report.sentences)]
    for section in report.sections:
        blocks += [reports.H2(section.title), _grid(reports, section, report.archive_id, entity, project, run_id)]
    return blocks


def _grid(reports: Any, section: Section, archive_id: str, entity: str, project: str, run_id: str) -> Any:
    # W&B keeps config values below "value": a filter names the place, as grouping does by itself.
    shown = f"Config('reuse.value.archive_id') = {archive_id!r}"
    if section.runs == "comparison":
        shown = f"Metric('ID') = {run_id!r}"
    runs = reports.Runset(entity, project, f"{section.runs} runs", filters=shown, groupby=section.group_by)
    return reports.PanelGrid(
        runsets=[runs],
        panels=[_panel(reports, panel, place) for place, panel in enumerate(section.panels)],
    )


def _panel(reports: Any, panel: Panel, place: int) -> Any:
    where = reports.Layout(_COLUMNS * (place % 2), _ROWS * (place // 2), _COLUMNS, _ROWS)
    if panel.kind == "line":
        smooth = {"smoothing_type": "exponentialTimeWeighted", "smoothing_factor": panel.smoothing}
        return reports.LinePlot(
            title=panel.title, x=panel.x, y=[panel.key], groupby_aggfunc="mean", groupby_rangefunc="stddev",
            layout=where, **(smooth if panel.smoothing else {}),
        )  # fmt: skip
    if panel.kind == "bar":
        return reports.BarPlot(title=panel.title, metrics=[panel.key], groupby_aggfunc="mean", layout=where)
    if panel.kind == "table":
        return reports.WeavePanelSummaryTable(table_name=panel.key, layout=where)
    if panel.kind == "page":
        return reports.MediaBrowser(title=panel.title, media_keys=[panel.key], layout=where)
    chart, fields = _CHARTS[panel.kind]
    texts = {"title": panel.title, **({"xname": panel.x} if panel.x else {})}
    return reports.CustomChart(
        query={"summaryTable": {"tableKey": f"{panel.key}_table"}},
        chart_name=chart, chart_fields=fields, chart_strings=texts, layout=where,
    )  # fmt: skip
