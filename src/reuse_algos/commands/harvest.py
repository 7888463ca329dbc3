"""``reuse-algos harvest``: let an archived model fill signals that its run did not capture."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from reuse_algos.commands.common import (
    ARCHIVE_HELP,
    Subparsers,
    UsageError,
    add_archive,
    add_command,
    add_json,
    console,
    open_archive,
    positive,
    print_json,
)

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "harvest",
        "pass a run's training data through its archived model and keep the signals",
        "The seconds it takes are recorded with the run, and count in every comparison of runs that use\n"
        "the signals.\n\n"
        f"{ARCHIVE_HELP}",
        """
        reuse-algos harvest ./archive resnet56-17-0123abcdef --signals logits --views 32
        reuse-algos harvest ./archive resnet56-17-0123abcdef --signals logits --weights best --device cuda --json
        REUSE_ALGOS_ARCHIVE=./archive reuse-algos harvest resnet56-17-0123abcdef --signals logits --views 32
        """,
    )
    add_archive(parser)
    parser.add_argument("run_id", metavar="RUN", help="id or unique name of the run")
    parser.add_argument(
        "--signals", metavar="NAME", action="append", nargs="+", default=[], help="signals to fill (default: logits)"
    )
    parser.add_argument(
        "--views", type=positive, metavar="N", help="views 0 to N-1 of each example (default: the run's own)"
    )
    parser.add_argument("--weights", default="last", metavar="NAME", help="which weights of the run (default: last)")
    parser.add_argument("--batch-size", type=positive, metavar="B", help="examples per forward pass")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Harvest; 0."""
    signals = tuple(dict.fromkeys(name for group in args.signals for text in group for name in text.split(",")))
    if "" in signals:
        raise UsageError("--signals has an empty name")
    from reuse_algos.harvest import harvest

    archive = open_archive(args, read_only=False)
    result = harvest(
        archive,
        archive.run(args.run_id).id,
        signals=signals or ("logits",),
        views=args.views,
        weights=args.weights,
        batch_size=args.batch_size,
        device=args.device,
        progress=sys.stderr.isatty() and not args.json,
    )
    if args.json:
        print_json(dataclasses.asdict(result))
    else:
        views = result.views if isinstance(result.views, int) else len(result.views)
        console().print(
            f"harvested {', '.join(signals or ('logits',))} of {args.run_id}: {result.rows} rows, {views} views, "
            f"{result.seconds:.1f} s",
            soft_wrap=True,
        )
    return 0
