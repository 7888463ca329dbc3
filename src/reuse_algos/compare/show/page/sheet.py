"""A page of any answer in the look of the comparison page: sections with charts and tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reuse_algos.compare.show.drawing import Chart
from reuse_algos.compare.show.page.document import render
from reuse_algos.compare.show.page.svg import plot_of
from reuse_algos.compare.show.page.tables import Table
from reuse_algos.compare.show.page.values import Numbers


@dataclass(frozen=True)
class Part:
    """One section of a page.

    Attributes:
        title: Of the section.
        lines: Paragraphs. Default: none.
        charts: What is drawn; several are shown one at a time. Default: none.
        tables: What is listed: a caption and rows with the same keys. Default: none.
    """

    title: str
    lines: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


def sheet_page(headline: str, lead: str, parts: Sequence[Part], source: str) -> str:
    """Return one self-contained page.

    Args:
        headline: The answer in a few words.
        lead: What was asked.
        parts: The sections, in order.
        source: Where the runs are.

    Returns:
        HTML. Its element ``report-data`` holds ``charts`` and ``tables`` as JSON; each number on the page names its
        place there.
    """
    charts = [chart for part in parts for chart in part.charts]
    rows = [list(table) for part in parts for table in part.tables.values()]
    numbers = Numbers({"charts": charts, "tables": rows})
    # Counted over all parts, as the embedded JSON lists them.
    at_chart, at_table, views = 0, 0, []
    for place, part in enumerate(parts):
        panels, tables = [], []
        for chart in part.charts:
            panels.append(
                {"key": str(at_chart), "tab": chart.title, "plot": plot_of(chart, numbers, "charts", at_chart)}
            )
            at_chart += 1
        for caption in part.tables:
            tables.append(_table(caption, rows[at_table], numbers, at_table))
            at_table += 1
        views.append({"anchor": f"part-{place}", "lines": part.lines, "panels": panels, "tables": tables})
    return render(
        "sheet",
        {"charts": [dataclasses.asdict(chart) for chart in charts], "tables": rows},
        kind="Prediction",
        headline=headline,
        lead=lead,
        parts=views,
        sections={f"part-{place}": part.title for place, part in enumerate(parts)},
        first="answer",
        source_of_runs=source,
        archive_id="",
        numbers=numbers,
    )


def _table(caption: str, rows: Sequence[Mapping[str, Any]], numbers: Numbers, table: int) -> Table:
    """Return rows as a table: numbers with their places, everything else as words."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    # Words stand on the left, and wrap; numbers line up on the right.
    words = [name for name in names if not all(_is_number(row.get(name)) for row in rows)]
    ordered = [*words, *(name for name in names if name not in words)]
    cells = [
        [
            numbers.figure("tables", table, k, name) if _is_number(row.get(name)) else text_of(row.get(name))
            for name in ordered
        ]
        for k, row in enumerate(rows)
    ]
    return Table(caption, [name.replace("_", " ") for name in ordered], cells, max(1, len(words)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def text_of(value: Any) -> str:
    """Return a value of any kind as a short text: four significant digits, ``-`` for None."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text_of(one)}" for name, one in value.items()) or "-"
    if isinstance(value, list | tuple):
        return " ".join(map(text_of, value)) or "-"
    return "-" if value is None else str(value)
