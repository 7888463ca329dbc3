"""``reuse-algos harvest``: let an archived model fill signals that its run did not capture."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

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
        reuse-algos harvest ./archive resnet56-17-0123abcdef --signals logits --weights best --json
        reuse-algos harvest resnet56-17-0123abcdef --archive ./archive --views 32
        """,
    )
    add_archive(parser)
    parser.add_argument("run_id", metavar="RUN", help="id or unique name of the run")
    parser.add_argument(
        "--signals",
        metavar="NAMES",
        action="append",
        default=[],
        help="signals to fill, with commas between (default: logits)",
    )
    parser.add_argument(
        "--views", type=positive, metavar="N", help="views 0 to N-1 of each example (default: those of the run)"
    )
    parser.add_argument("--weights", default="last", metavar="NAME", help="which weights of the run (default: last)")
    parser.add_argument("--top-k", type=positive, metavar="K", help="keep the K largest logits (default: all)")
    parser.add_argument("--batch-size", type=positive, metavar="B", help="examples per forward pass")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--precision", metavar="NAME", help="such as amp_bf16 (default: that of the run's recipe)")
    parser.add_argument(
        "--data",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="another value in the recipe's data section, such as root=/datasets; may be given again",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Harvest; 0."""
    signals = tuple(dict.fromkeys(name for text in args.signals for name in text.split(",")))
    if "" in signals:
        raise UsageError("--signals has an empty name")
    data = _data_of(args.data)
    from reuse_algos.harvest import harvest

    archive = open_archive(args, read_only=False)
    result = harvest(
        archive,
        archive.run(args.run_id).id,
        signals=signals or ("logits",),
        views=args.views,
        weights=args.weights,
        top_k=args.top_k,
        batch_size=args.batch_size,
        device=args.device,
        precision=args.precision,
        data=data or None,
        progress=sys.stderr.isatty() and not args.json,
    )
    if args.json:
        print_json(dataclasses.asdict(result))
        return 0
    done = f"{result.rows} rows of {len(result.computed)} views" if result.computed else "nothing was missing"
    console().print(
        f"{result.signal} of {result.run_id}: {done}; {len(result.views)} views are complete; {result.seconds:.1f} s",
        soft_wrap=True,
    )
    return 0


def _data_of(texts: list[str]) -> dict[str, Any]:
    """``root=/datasets`` and the like, the values read as YAML as they are in a recipe."""
    import yaml

    data = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"--data needs KEY=VALUE, got {text!r}")
        try:
            data[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--data {text}: the value is no YAML: {error}") from error
    return data
