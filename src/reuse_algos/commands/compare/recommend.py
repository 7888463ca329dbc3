"""``reuse-algos recommend``: what should the next run be?"""

from __future__ import annotations

import argparse

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

_LATER_RUNS = 1  # the next run counts all of its own harvest

_DETAILS = """\
From the runs in the archive, each trained to the end of its own schedule at one of several budgets
(recipe.max_duration, or the number of steps): where each technique's mean curve reaches the target,
what that costs, and how sure it is. A technique is recommended if the target was measured (nothing
is extrapolated), with at least 3 seeds at each budget that counts, and if it is surely cheaper than
the baseline, with a stricter limit the more techniques there are. Otherwise the answer is "not
enough evidence", which is not an error. Where nothing that was trained reaches the target, a law
over the budgets says what to train next, what it would cost, and how sure that is. Diagnoses of
instruments are quoted. Controls (tag control_of) are never recommended. Runs with the tag
role=prior were trained to be reused, and take no part."""


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "recommend",
        "which technique, at what budget, is predicted to reach a target at the least cost",
        _DETAILS,
        """
        reuse-algos recommend ./archive --target 0.70
        reuse-algos recommend ./archive --target 0.70 --later-runs 5 --price-per-hour 2.5
        reuse-algos recommend ./archive --target 0.70 --tag study=cifar100 --json
        """,
    )
    add_archive(parser)
    parser.add_argument("--target", type=float, required=True, metavar="X", help="metric value to reach")
    add_groups(parser)
    add_costs(parser, later_runs=_LATER_RUNS, axis="amortised_seconds")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Recommend, and return 0, whatever the answer."""
    from reuse_algos.compare import read_outcomes, recommend
    from reuse_algos.compare.show.terminal import recommendation_table

    question = question_of(args, "budgets")
    found = recommend(read_outcomes(open_archive(args), question, tags_of(args)), question)
    if args.json:
        print_json(found.to_dict())
    else:
        console().print(recommendation_table(found))
    return 0
