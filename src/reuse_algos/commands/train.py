"""``reuse-algos train``: train by a recipe in this process."""

from __future__ import annotations

import argparse

from reuse_algos.commands.common import Subparsers, add_command


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "train",
        "train by a recipe in this process",
        "RECIPE is a YAML file, or the name of one that comes with the library, such as digits/baseline.\n"
        "Its settings are overridden by key=value, before or after the options. On several GPUs use\n"
        "Composer's launcher instead: composer -n 8 -m reuse_algos.train RECIPE key=value ...",
        """
        reuse-algos train digits/baseline
        reuse-algos train yamls/digits/baseline.yaml --check
        reuse-algos train yamls/digits/baseline.yaml seed=18 max_duration=10ep tags.method=baseline
        """,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="file or name of the recipe")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that replace those of the recipe")
    parser.add_argument(
        "--check", action="store_true", help="print the recipe, check it and load its data; train nothing"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, and return the exit code of the trainer."""
    from reuse_algos.train import main

    # The trainer has a parser of its own, as the launcher starts it without this command.
    return main([args.recipe, *args.overrides, *(["--check"] if args.check else [])])
