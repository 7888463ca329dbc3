"""Options of the commands that compare groups of runs: which runs, in which groups, and how cost is counted."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from reuse_algos.commands.common import add_tags, positive

if TYPE_CHECKING:
    from reuse_algos.compare import Question


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Add --group-by, --baseline, --metric, --mode and --tag."""
    parser.add_argument(
        "--group-by",
        default="tags.method",
        metavar="KEY",
        help="tags.<key>, run_name, model.name, dataset.name, seed, recipe.<dotted path>, or several joined by commas "
        "(default: tags.method)",
    )
    parser.add_argument(
        "--baseline",
        default="",
        metavar="NAME",
        help="the group to compare with (default: the one whose runs have the tag role=baseline, else baseline)",
    )
    parser.add_argument("--metric", metavar="NAME", help="metric to compare by (default: the runs' monitor)")
    parser.add_argument("--mode", choices=("max", "min"), help="whether more or less is better (default: as recorded)")
    add_tags(parser)


def add_costs(parser: argparse._ActionsContainer, *, later_runs: int, axis: str) -> None:
    """Add --judge-by, --price-per-hour, --later-runs and --count-prior-training; None where not given.

    Args:
        parser: Of the command, or a group of its options.
        later_runs: Among how many runs harvests are shared where nothing is said, for the help.
        axis: What counts as cost where nothing is said, for the help.
    """
    parser.add_argument(
        "--judge-by",
        metavar="AXIS",
        help="what counts as cost: steps, samples, train_seconds, cost_seconds, amortised_seconds, flops or dollars "
        f"(default: {axis}; on a machine that is shared with other work, steps tell more)",
    )
    parser.add_argument("--price-per-hour", type=float, metavar="X", help="dollars for an hour of the hardware")
    parser.add_argument(
        "--later-runs",
        type=positive,
        metavar="K",
        help=f"among how many later runs harvests are shared, in amortised_seconds (default: {later_runs})",
    )
    parser.add_argument(
        "--count-prior-training",
        action="store_true",
        help="share the training of the prior runs as well: it was done only for this",
    )


def question_of(args: argparse.Namespace, over: Any, **more: Any) -> Question:
    """Return the question that the arguments ask.

    Args:
        args: Of the command, with the options of :func:`add_groups` and :func:`add_costs`.
        over: What is read of each run, see :class:`~reuse_algos.compare.Question`.
        more: Further fields of the question.

    Raises:
        CompareError: The arguments make no sense together.
    """
    from reuse_algos.compare import Costs, Question

    return Question(
        group_by=args.group_by,
        baseline=args.baseline,
        over=over,
        target=args.target,
        metric=args.metric,
        mode=args.mode,
        costs=Costs(args.judge_by, args.price_per_hour, args.later_runs, args.count_prior_training),
        **more,
    )
