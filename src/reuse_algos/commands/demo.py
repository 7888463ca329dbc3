"""``reuse-algos demo``: the whole loop in a minute or two, on a dataset that needs no download."""

from __future__ import annotations

import argparse
from pathlib import Path

from reuse_algos.commands.common import Subparsers, add_command, positive


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "demo",
        "train, archive, reuse and compare on the bundled handwritten digits",
        "Plain runs are archived, later runs reuse them, and the comparison says whether it paid. It takes\n"
        "about a minute, with one thread. --all trains every technique and measures robustness; it takes\n"
        "about ten minutes.",
        """
        reuse-algos demo
        reuse-algos demo --folder /tmp/demo --seeds 3
        reuse-algos demo --all
        """,
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("demo"), metavar="DIR", help="where to work (default: demo)"
    )
    parser.add_argument("--seeds", type=positive, metavar="N", help="runs per group (default: 4; 8 with --all)")
    parser.add_argument("--keep", action="store_true", help="keep the runs of an earlier demo in the same folder")
    parser.add_argument(
        "--all", action="store_true", dest="everything", help="every technique, and robustness: about ten minutes"
    )
    parser.set_defaults(
        run=run,
        kept="runs that were finished stay in the folder until the next demo; --keep keeps them",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo, and return its exit code."""
    from reuse_algos.demo import run_demo

    # The number of seeds depends on --all, so the default is the demo's and not the parser's.
    return run_demo(args.folder, seeds=args.seeds, keep=args.keep, everything=args.everything)
