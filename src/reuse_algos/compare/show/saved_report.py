"""What the saved report of a W&B project shows of a comparison: sentences and panels, as plain data.

Nothing here knows W&B; :mod:`reuse_algos.compare.show.wandb_report` saves it there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from reuse_algos.compare.show.dashboard import Dashboard
from reuse_algos.compare.show.words import short

__all__ = ["Panel", "SavedReport", "Section", "saved_report_of"]

TITLE_LENGTH = 128  # W&B refuses longer titles

_CONFIG_OF = {"seed": "config.seed", "model.name": "config.model.name", "dataset.name": "config.data.name",
              "run_name": "run.displayName"}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        kind: ``line`` draws a metric of the training runs over ``x``, with the mean and the standard deviation of each
            group. ``bar`` draws a summary value of them. ``lines``, ``bars``, ``table`` and ``page`` show what the
            comparison's own run holds.
        title: Above the panel.
        key: Name of the metric, chart, table or page in W&B.
        x: Metric of the x axis of a ``line``; of ``lines`` its title. Default: empty.
        smoothing: Weight of the time-weighted moving average, from 0 (none) to 1. Default: 0.
    """

    kind: Literal["line", "bar", "lines", "bars", "table", "page"]
    title: str
    key: str
    x: str = ""
    smoothing: float = 0.0


@dataclass(frozen=True)
class Section:
    """Panels that show the same runs.

    Attributes:
        title: Above the panels.
        runs: ``training``: all runs of the archive in this W&B project; ``comparison``: the run of the comparison.
        group_by: W&B's names of what the runs are grouped by.
        panels: In reading order.
    """

    title: str
    runs: Literal["training", "comparison"]
    group_by: list[str]
    panels: list[Panel]


@dataclass(frozen=True)
class SavedReport:
    """The whole report.

    Attributes:
        title: It names the report: a report of the same title is replaced.
        sentences: One for each group, then the target and the archive.
        sections: In reading order.
        archive_id: The archive whose runs are shown.
    """

    title: str
    sentences: list[str]
    sections: list[Section]
    archive_id: str

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values that JSON can hold."""
        return asdict(self)


def saved_report_of(dashboard: Dashboard, *, page: bool) -> SavedReport:
    """Return the saved report of a dashboard.

    Args:
        dashboard: From :func:`~reuse_algos.compare.show.dashboard.dashboard_of`.
        page: Whether the comparison's run holds the HTML report, as ``report``.
    """
    config = dashboard.config
    metric = config["metric"]
    training = [
        Panel("line", f"{short(metric)} over seconds of training", metric, x="time/train_seconds"),
        Panel("line", f"{short(metric)} over steps", metric, x="Step"),
        Panel("line", "training loss over steps", "loss/train/total", x="Step", smoothing=0.9),
        Panel("bar", "seconds that a run cost, with set-up and harvests", "reuse/cost/total_seconds"),
    ]
    said = [str(value) for name, value in dashboard.summary.items() if name.endswith("/sentence") and value]
    return SavedReport(
        title=f"reuse_algos: {short(metric)} by {config['group_by']}"[:TITLE_LENGTH],
        sentences=[*said, f"Target: {config['target']:.6g}, {config['target_source']}."],
        sections=[
            Section("What the comparison found", "comparison", [], list(_of_the_comparison(dashboard, page))),
            Section("The training runs", "training", _groups(config["group_by"]), training),
        ],
        archive_id=config["archive_id"],
    )


def _of_the_comparison(dashboard: Dashboard, page: bool) -> Iterator[Panel]:
    # The same curves over all six axes would hide what counts; the run itself holds them all.
    axes = ("steps", dashboard.config["judged_by"])
    for name, lines in dashboard.lines.items():
        if lines.series and (name.startswith("readings/") or name.rpartition("/")[2] in axes):
            yield Panel("lines", lines.title, name, x=lines.x_name)
    for name, bars in dashboard.bars.items():
        if name.rpartition("/")[2] in axes:
            yield Panel("bars", bars.title, name)
    yield Panel("table", "groups", "tables/groups")
    if page:
        yield Panel("page", "report", "report")


def _groups(group_by: str) -> list[str]:
    """Return W&B's names of the grouping keys."""
    # The recorder logs a run's tags below "reuse", and the launcher logs the recipe's sections at the top.
    names = []
    for key in group_by.split(","):
        head, _, rest = key.strip().partition(".")
        if head == "tags":
            names.append(f"config.reuse.tags.{rest}")
        elif head == "recipe":
            names.append(f"config.{rest}")
        else:
            names.append(_CONFIG_OF[key.strip()])
    return names
