"""``reuse-algos compare``: what does it cost to be as good as the baseline?"""

from __future__ import annotations

import argparse
from pathlib import Path

from reuse_algos.commands.common import (
    Subparsers,
    add_archive,
    add_command,
    add_json,
    console,
    open_archive,
    print_json,
    tags_of,
)
from reuse_algos.commands.compare.options import add_costs, add_groups, question_of
from reuse_algos.commands.compare.wandb_options import add_wandb, send_to_wandb, wandb_target

_LATER_RUNS = 5

_DETAILS = """\
Without --target, groups are compared by their mean curves at the baseline's mean final metric.
With it, by each run's own cost to the target, which must have been fixed before the runs were seen:
a run that never reaches it stays in at its total cost, and its group is then never called faster.
Cost in seconds is training + set-up + the used harvests. Intervals are at 95 %. With fewer than 2
runs in a group the verdict is "not enough runs"; a claim needs 3, better 5. Runs with the tag
role=prior were trained to be reused, and are left out (--tag role=prior asks for them).

A budget of training is part of a method: group by it as well where one group has several
(--group-by tags.method,recipe.max_duration --baseline "baseline / 20ep"), or better, compare the
budget-accuracy curves: --budgets reads the last value of each run only, joins the budgets of each
group by lines, and reports how much less it costs to be as good as the baseline at its largest
budget. It also counts FLOPs, dollars and the harvest shared among later runs."""


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "compare",
        "compare groups of runs with a baseline: faster, slower, no difference, or not enough runs",
        _DETAILS,
        """
        reuse-algos compare ./archive --group-by tags.method --baseline baseline
        reuse-algos compare ./archive --target 0.70 --metric MulticlassAccuracy --plot curves.png
        reuse-algos compare ./archive --tag study=cifar100 --json
        reuse-algos compare ./archive --budgets --price-per-hour 2.5 --later-runs 5
        reuse-algos compare ./archive --html report.html
        """,
    )
    add_archive(parser)
    add_groups(parser)
    parser.add_argument("--target", type=float, metavar="X", help="metric value that counts as reached")
    parser.add_argument(
        "--pairing",
        choices=("auto", "seed", "none"),
        default="auto",
        help="auto pairs by seed where both groups have the same seeds (default: auto)",
    )
    budgets = parser.add_argument_group("budgets")
    budgets.add_argument(
        "--budgets",
        action="store_true",
        help="compare groups over several budgets each (recipe.max_duration, or the number of steps)",
    )
    add_costs(budgets, later_runs=_LATER_RUNS, axis="cost_seconds")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also write a plot: .png, .pdf or .svg")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a self-contained report for a browser: .html"
    )
    add_wandb(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, and return 0, whatever the verdict."""
    from reuse_algos.compare import compare, read_outcomes
    from reuse_algos.compare.show.figures import plot_comparison
    from reuse_algos.compare.show.files import PAGES, check_file
    from reuse_algos.compare.show.page import report_page, write_report
    from reuse_algos.compare.show.terminal import comparison_table

    # Files and W&B are checked first: an hour of reading must not end in a typo.
    tracked = wandb_target(args)
    check_file(args.plot)
    check_file(args.html, PAGES)
    question = question_of(args, "budgets" if args.budgets else "training", pairing=args.pairing)
    outcomes = read_outcomes(open_archive(args), question, tags_of(args))
    comparison = compare(outcomes, question)
    if args.plot is not None:
        plot_comparison(comparison, outcomes, args.plot)
    if args.html is not None:
        write_report(report_page(comparison, outcomes), args.html)
    if args.json:
        # The result first: what follows needs the network, and may fail.
        print_json(comparison.to_dict())
        send_to_wandb(tracked, comparison, outcomes)
        return 0
    out = console()
    out.print(comparison_table(comparison))
    for what, place in (("plot", args.plot), ("report", args.html)):
        if place is not None:
            out.print(f"{what}: {place}", soft_wrap=True)
    if (place := send_to_wandb(tracked, comparison, outcomes)) is not None:
        out.print(f"W&B: {place}", soft_wrap=True)
    return 0
