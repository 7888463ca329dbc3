"""What the commands ``predict`` and ``sweep`` share: their options, and how an answer is printed, drawn and written."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reuse_algos.commands.common import (
    UsageError,
    add_archive,
    add_json,
    add_tags,
    console,
    open_archive,
    print_json,
    tags_of,
)

if TYPE_CHECKING:
    from reuse_algos.compare.show.drawing import Chart
    from reuse_algos.predict import History


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        headline: It in a few words.
        lead: What was asked.
        found: Title -> one record, or rows with the same keys; as ``--json`` prints them.
        charts: What is drawn. The first one is that of ``--plot``.
        only_json: Titles of what is too long for a terminal.
    """

    headline: str
    lead: str
    found: dict[str, Any]
    charts: Sequence[Chart]
    only_json: Sequence[str] = ()


def add_options(parser: argparse.ArgumentParser, whats: Sequence[str], metric: str, default: str | None) -> None:
    """Add WHAT, ARCHIVE, --tag, --metric, --plot, --html and --json.

    Args:
        parser: Of the command.
        whats: The questions.
        metric: What the default metric is, for the help.
        default: That metric.
    """
    parser.add_argument("what", choices=tuple(whats), metavar="WHAT", help=", ".join(whats))
    add_archive(parser)
    add_tags(parser)
    parser.add_argument("--metric", metavar="NAME", default=default, help=f"metric (default: {metric})")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also write a plot: .png, .pdf or .svg")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a self-contained page: .html")
    add_json(parser)


def histories_of(args: argparse.Namespace) -> list[History]:
    """Return the runs that the arguments name.

    Raises:
        NotEnoughEvidenceError: No run has the metric.
    """
    from reuse_algos.predict import histories

    return histories(open_archive(args), args.metric, tags=tags_of(args))


def check_read(args: argparse.Namespace, reads: Mapping[str, Sequence[str]]) -> None:
    """Check that the question reads each option that was given.

    Args:
        args: Of the command. An option that was not given is None, or False.
        reads: Question -> names of the options that it reads.

    Raises:
        UsageError: It does not, and the option would change nothing.
    """
    others = {name for names in reads.values() for name in names} - set(reads[args.what])
    if given := sorted(name for name in others if getattr(args, name) not in (None, False)):
        # The id of a run has another name in the code than on the command line.
        option = "--" + given[0].removesuffix("_id").replace("_", "-")
        meant = ", ".join(what for what, names in reads.items() if given[0] in names)
        raise UsageError(f"{args.what} does not read {option}, which is for {meant}")


def show_answer(args: argparse.Namespace, questions: dict[str, Any]) -> int:
    """Answer the question that the arguments ask, print the answer, and return 0.

    Args:
        args: Of the command.
        questions: What -> a function from the arguments to an :class:`Answer`.

    Raises:
        CompareError: A file cannot be written; it is checked before any work is done.
    """
    from reuse_algos.compare.show.figures import plot_chart
    from reuse_algos.compare.show.files import PAGES, check_file
    from reuse_algos.compare.show.page import Part, sheet_page, write_report

    check_file(args.plot)
    check_file(args.html, PAGES)
    # Everything that the options get wrong was said before this, which may take a while.
    answer: Answer = questions[args.what](args)
    if args.plot is not None:
        plot_chart(answer.charts[0], args.plot)
    shown = {
        title.replace("_", " "): [rows] if isinstance(rows, dict) else rows
        for title, rows in answer.found.items()
        if rows
    }
    if args.html is not None:
        drawn = Part("Drawn", charts=answer.charts)
        parts = [drawn, *(Part(title.capitalize(), tables={title: rows}) for title, rows in shown.items())]
        # predict layers also works without one.
        source = args.archive or args.archive_option or "no archive"
        write_report(sheet_page(answer.headline, answer.lead, parts, source), args.html)
    if args.json:
        print_json(answer.found)
        return 0
    out = console()
    out.print(answer.headline)
    for title, rows in shown.items():
        if title.replace(" ", "_") not in answer.only_json:
            out.print(_table(title, rows))
    for what, path in (("plot", args.plot), ("report", args.html)):
        if path is not None:
            out.print(f"{what}: {path}", soft_wrap=True)
    return 0


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Any:
    from reuse_algos.compare.show.page.sheet import text_of
    from reuse_algos.compare.show.terminal import new_table

    # One word a line: columns stay narrow, and many fit.
    heads = [("\n".join(name.split("_")), not isinstance(value, str)) for name, value in rows[0].items()]
    table = new_table(*heads, padding=1)
    for row in rows:
        table.add_row(*(text_of(value) for value in row.values()))
    table.title, table.title_justify = title, "left"
    return table
