"""``reuse-algos harvest``: let an archived model fill signals that its run did not capture."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys

from reuse_algos.commands.common import (
    ARCHIVE_HELP,
    Subparsers,
    UsageError,
    add_archive,
    add_command,
    add_data,
    add_json,
    console,
    data_of,
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
        "Signals: logits (of the views that the run was trained on), and the scores el2n, grand and\n"
        "grand_last_layer (of the examples without augmentation, unless --views is given). Those of other\n"
        "weights than the last are kept beside them, such as el2n.ep0005; the logits of several weights are\n"
        "the members of an ensemble (reuse-algos scores --score mutual_information).\n\n"
        "The seconds it takes are recorded with the run, and count in every comparison of runs that use\n"
        "the signals.\n\n"
        f"{ARCHIVE_HELP}",
        """
        reuse-algos harvest ./archive resnet56-17-0123abcdef --signals logits --views 32
        reuse-algos harvest ./archive resnet56-17-0123abcdef --signals logits --weights best --json
        reuse-algos harvest ./archive resnet56-17-0123abcdef --signals el2n,grand --weights ep0005,ep0010
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
        help="signals to fill, with commas between: logits, el2n, grand, grand_last_layer (default: logits)",
    )
    parser.add_argument(
        "--views",
        type=positive,
        metavar="N",
        help="views 0 to N-1 of each example (default: for logits those of the run, for scores the plain one)",
    )
    parser.add_argument(
        "--weights", default="last", metavar="NAMES", help="which weights, with commas between (default: last)"
    )
    parser.add_argument("--top-k", type=positive, metavar="K", help="keep the K largest logits (default: all)")
    parser.add_argument(
        "--memory", type=positive, metavar="MIB", help="bound on the gradients that grand holds at once (default: 256)"
    )
    parser.add_argument("--batch-size", type=positive, metavar="B", help="examples per forward pass")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--precision", metavar="NAME", help="such as amp_bf16 (default: that of the run's recipe)")
    add_data(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Harvest; 0."""
    signals = _names("--signals", args.signals) or ["logits"]
    weights = _names("--weights", [args.weights])
    data = data_of(args.data)
    from reuse_algos.harvest import harvest

    archive = open_archive(args, read_only=False)
    run_id = archive.run(args.run_id).id
    bound = {} if args.memory is None else {"memory_bytes": args.memory << 20}
    results = []
    for name in weights:
        results += harvest(
            archive,
            run_id,
            signals=signals,
            views=args.views,
            weights=name,
            top_k=args.top_k,
            batch_size=args.batch_size,
            device=args.device,
            precision=args.precision,
            data=data or None,
            progress=sys.stderr.isatty() and not args.json,
            **bound,
        )
    if args.json:
        print_json([dataclasses.asdict(result) for result in results])
        return 0
    for result in results:
        done = f"{result.rows} rows of {len(result.computed)} views" if result.computed else "nothing was missing"
        console().print(
            f"{result.signal} of {result.run_id}: {done}; {len(result.views)} views are complete; "
            f"{result.seconds:.1f} s",
            soft_wrap=True,
        )
    return 0


def _names(option: str, texts: list[str]) -> list[str]:
    """Names with commas or spaces between, each once."""
    names = [name for text in texts for name in re.split(r"\s*,\s*|\s+", text.strip())]
    if "" in names:
        raise UsageError(f"{option} has an empty name")
    return list(dict.fromkeys(names))
