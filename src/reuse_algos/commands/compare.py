"""``reuse-algos compare``: what does it cost to be as good as the baseline?"""

from __future__ import annotations

import argparse
from pathlib import Path

from reuse_algos.commands.common import (
    ARCHIVE_HELP,
    Subparsers,
    add_archive,
    add_command,
    add_json,
    add_tags,
    console,
    open_archive,
    print_json,
    tags_of,
)

__all__ = ["add_parser", "run"]

_DETAILS = """\
Without --target, groups are compared by their mean curves at the baseline's mean final metric.
With it, by each run's own cost to the target, which must have been fixed before the runs were seen:
a run that never reaches it stays in at its total cost, and its group is then never called faster.
Cost in seconds is training + set-up + the used harvests. Intervals are at 95 %. With fewer than 2
runs in a group the verdict is "not enough runs"; a claim needs 3, better 5.

A budget of training is part of a method: group by it as well where one group has several
(--group-by tags.method,recipe.max_duration --baseline "baseline / 20ep")."""


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "compare",
        "compare groups of runs with a baseline: faster, slower, no difference, or not enough runs",
        f"{_DETAILS}\n\n{ARCHIVE_HELP}",
        """
        reuse-algos compare ./archive --group-by tags.method --baseline baseline
        reuse-algos compare ./archive --target 0.70 --metric MulticlassAccuracy --plot curves.png
        reuse-algos compare ./archive --tag study=cifar100 --json
        """,
    )
    add_archive(parser)
    parser.add_argument(
        "--group-by",
        default="tags.method",
        metavar="KEY",
        help="tags.<key>, run_name, model.name, dataset.name, seed, recipe.<dotted path>, or several joined by commas "
        "(default: tags.method)",
    )
    parser.add_argument(
        "--baseline", default="baseline", metavar="NAME", help="the group to compare with (default: baseline)"
    )
    parser.add_argument("--target", type=float, metavar="X", help="metric value that counts as reached")
    parser.add_argument("--metric", metavar="NAME", help="metric to compare by (default: the runs' monitor)")
    parser.add_argument("--mode", choices=("max", "min"), help="whether more or less is better (default: as recorded)")
    parser.add_argument(
        "--pairing",
        choices=("auto", "seed", "none"),
        default="auto",
        help="auto pairs by seed where both groups have the same seeds (default: auto)",
    )
    add_tags(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also write a plot: .png, .pdf or .svg")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare; 0, whatever the verdict."""
    from reuse_algos.compare import compare_runs, comparison_table, plot_comparison, select_outcomes
    from reuse_algos.compare.plot import check_plot_path

    if args.plot is not None:
        check_plot_path(args.plot)
    archive = open_archive(args)
    selection = select_outcomes(archive, group_by=args.group_by, metric=args.metric, mode=args.mode, tags=tags_of(args))
    comparison = compare_runs(
        archive, baseline=args.baseline, target=args.target, pairing=args.pairing, selection=selection
    )
    if args.plot is not None:
        plot_comparison(comparison, selection.groups, args.plot)
    if args.json:
        print_json(comparison.to_dict())
        return 0
    out = console()
    out.print(comparison_table(comparison))
    if args.plot is not None:
        out.print(f"plot: {args.plot}", soft_wrap=True)
    return 0
