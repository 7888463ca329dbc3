"""``reuse-algos copy``: runs from one archive to another."""

from __future__ import annotations

import argparse

from reuse_algos.commands.common import (
    Subparsers,
    add_command,
    add_json,
    add_tags,
    console,
    print_json,
    readable_bytes,
    report_json,
    tags_of,
)
from reuse_algos.commands.upkeep.progress import progress_bar


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "copy",
        "copy runs to another archive, which is made if there is none",
        "Each is a folder or a URL. Every file is hashed on its way, and a run becomes visible in DST when\n"
        "all of it is there. Interrupted, the same command goes on where it stopped. Nothing in DST is ever\n"
        "replaced. A run that is damaged, or is another one in DST, is reported and the others are copied:\n"
        "exit code 1.",
        """
        reuse-algos copy ./archive s3://bucket/archive
        reuse-algos copy ./archive /backup/archive resnet56-17-0123abcdef
        reuse-algos copy s3://bucket/archive ./archive --tag study=cifar100 --json
        """,
    )
    parser.add_argument("source", metavar="SRC", help="archive to copy from")
    parser.add_argument("target", metavar="DST", help="archive to copy to")
    parser.add_argument(
        "run_ids", metavar="RUN", nargs="*", help="ids or unique names of runs (default: all, unfinished ones too)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="believe by their size the files that an earlier copy has made visible in DST (default: hash them again)",
    )
    add_tags(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Copy, and return 0 if all runs are in the target, 1 if there are problems."""
    from reuse_algos.archive import RunArchive

    source = RunArchive(args.source, read_only=True)
    # Ids are taken as they are, since a damaged run cannot be looked up by name.
    there = set(source.run_ids()) if args.run_ids else set()
    run_ids = [name if name in there else source.run(name).id for name in args.run_ids] or None
    # Before the target is made, so that a mistyped --tag leaves no empty archive behind.
    tags = tags_of(args)
    target = RunArchive(args.target, create=True)
    with progress_bar(args, "copy") as progress:
        report = source.copy_to(target, run_ids, progress, recheck=not args.quick, tags=tags)
    if args.json:
        print_json(report_json(report, "runs", "files", "there", "bytes"))
        return 0 if report.ok else 1
    out = console()
    for problem in report.problems:
        out.print(f"not copied: {problem.run_id}: {problem.what}", soft_wrap=True)
    out.print(
        f"{report.runs} runs are in {args.target}: {report.files} files copied ({readable_bytes(report.bytes)}), "
        f"{report.there} were there",
        soft_wrap=True,
    )
    return 0 if report.ok else 1
