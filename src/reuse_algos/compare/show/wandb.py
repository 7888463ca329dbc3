"""Send a comparison to Weights & Biases, as one run of the job type "comparison".

    url = log_to_wandb(dashboard_of(comparison, outcomes), WandbTarget("my-project"))

The run holds tables (groups, runs, curves or points, notes), the curves and the speed-up bars as charts, the headline
values in its summary, the report as a panel, and an artifact with ``comparison.json``, ``report.html`` and
``saved_report.json``. Nothing else of the machine is sent: no console output, no code. Online, a saved report of the
project is made from the last of these, or replaced.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_algos.compare.show.dashboard import Dashboard, Lines, Table
from reuse_algos.compare.show.saved_report import SavedReport, saved_report_of
from reuse_algos.compare.show.wandb_report import save_report
from reuse_algos.errors import CompareError

JOB_TYPE = "comparison"

_SETTINGS = {
    "console": "off",
    "disable_git": True,
    "save_code": False,
    # Offline, wandb 0.18 asks the server again and again whether a table may refer to an artifact that is yet to come.
    "allow_offline_artifacts": False,
}


@dataclass(frozen=True)
class WandbTarget:
    """Where a comparison goes.

    Attributes:
        project: W&B project.
        entity: User or team; None is the default of the login.
        name: Of the run; None lets it be ``comparison of <metric>``.
    """

    project: str
    entity: str | None = None
    name: str | None = None


def check_wandb() -> Any:
    """Return the module ``wandb``, or say why it cannot be used, before any work is done.

    Raises:
        CompareError: It is not installed, or a run of it is under way in this process.
    """
    try:
        import wandb
    except ImportError as error:
        raise CompareError(
            f"the comparison cannot be sent to W&B: its package cannot be imported ({error}). "
            "Install it: pip install 'wandb>=0.18,<0.19'"
        ) from error
    # wandb.init would return the run that is under way, and the comparison would be logged into it.
    if wandb.run is not None:
        raise CompareError(
            f"the W&B run {wandb.run.name!r} is under way in this process: end it with wandb.finish() before a "
            "comparison is sent as a run of its own"
        )
    return wandb


def log_to_wandb(dashboard: Dashboard, target: WandbTarget, *, html: str | None = None) -> str:
    """Log a dashboard as a run and end that run.

    Args:
        dashboard: What to show.
        target: Project, entity and name.
        html: The self-contained HTML report; it becomes a panel and a file of the artifact. Default: None, no report.

    Returns:
        Where it is, in words: the addresses of the run and of the saved report, or why none was saved; the run's
        folder where W&B is offline (``WANDB_MODE=offline``).

    Raises:
        CompareError: W&B is not installed, a run of it is under way, no user is logged in, or it cannot be reached.
    """
    wandb = check_wandb()
    try:
        run = wandb.init(
            project=target.project,
            entity=target.entity,
            name=target.name or f"comparison of {dashboard.config['metric']}",
            job_type=JOB_TYPE,
            config=dashboard.config,
            settings=_SETTINGS,
        )
    except wandb.errors.Error as error:
        raise CompareError(
            f"W&B did not open a run in project {target.project!r}: {' '.join(str(error).split())}. Log in with "
            "`wandb login` or set WANDB_API_KEY; WANDB_MODE=offline keeps the run in a folder for `wandb sync`"
        ) from error
    saved = saved_report_of(dashboard, page=html is not None)
    # A run that broke off must not look finished.
    failed = True
    try:
        run.log(_panels(wandb, dashboard, html))
        run.summary.update(dashboard.summary)
        run.log_artifact(_artifact(wandb, run.id, dashboard, html, saved))
        place = _place(run)
        failed = False
    finally:
        run.finish(exit_code=int(failed))
    if run.disabled or run.offline:
        return place
    try:
        # Only now: the report shows what the run holds.
        report = save_report(saved, entity=run.entity, project=run.project, run_id=run.id)
    except CompareError as error:
        return f"{place} ({error})"  # the comparison itself has arrived
    return f"{place}, report {report}"


def _place(run: Any) -> str:
    if run.disabled:
        return "nothing was sent, W&B is switched off (WANDB_MODE=disabled)"
    if run.offline:
        folder = Path(run.dir).parent
        return f"{folder} (offline; `wandb sync {folder}` sends it)"
    return str(run.url)


def _panels(wandb: Any, dashboard: Dashboard, html: str | None) -> dict[str, Any]:
    panels: dict[str, Any] = {f"tables/{name}": _table(wandb, table) for name, table in dashboard.tables.items()}
    panels |= {name: _lines(wandb, lines) for name, lines in dashboard.lines.items() if lines.series}
    for name, bars in dashboard.bars.items():
        panels[name] = wandb.plot.bar(_table(wandb, bars.table), "label", "value", title=bars.title)
    if html is not None:
        panels["report"] = wandb.Html(html, inject=False)  # W&B would add style sheets from the network
    return panels


def _table(wandb: Any, table: Table) -> Any:
    return wandb.Table(columns=table.columns, data=table.rows)


def _lines(wandb: Any, lines: Lines) -> Any:
    xs = [[x for x, _ in points] for points in lines.series.values()]
    ys = [[y for _, y in points] for points in lines.series.values()]
    return wandb.plot.line_series(xs, ys, keys=list(lines.series), title=lines.title, xname=lines.x_name)


def _artifact(wandb: Any, run_id: str, dashboard: Dashboard, html: str | None, saved: SavedReport) -> Any:
    artifact = wandb.Artifact(f"comparison-{run_id}", type=JOB_TYPE, metadata=dashboard.config)
    with artifact.new_file("comparison.json", encoding="utf-8") as file:
        file.write(json.dumps(dashboard.document, indent=2, ensure_ascii=False, allow_nan=False))
    with artifact.new_file("saved_report.json", encoding="utf-8") as file:
        file.write(json.dumps(saved.to_dict(), indent=2, ensure_ascii=False))
    if html is not None:
        with artifact.new_file("report.html", encoding="utf-8") as file:
            file.write(html)
    return artifact
