"""``reuse-algos verify``: read every byte of an archive again."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from reuse_algos.commands.common import (
    ARCHIVE_HELP,
    ARCHIVE_VARIABLE,
    Subparsers,
    add_archive,
    add_command,
    add_json,
    console,
    open_archive,
    print_json,
)

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "verify",
        "read every file of an archive again and check it",
        "Sizes, hashes and headers of all files that the newest manifests name are checked, without the\n"
        "cache that remembers earlier checks. Exit code 0: all is well; 1: there are problems, each listed\n"
        "with file and cause.\n\n"
        f"{ARCHIVE_HELP}\nA single argument that is no folder is a RUN then.",
        """
        reuse-algos verify ./archive
        reuse-algos verify ./archive resnet56-17-0123abcdef --json
        """,
    )
    add_archive(parser)
    parser.add_argument("run_id", metavar="RUN", nargs="?", help="id or unique name of one run (default: all runs)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify; 0 if all is well, 1 if there are problems."""
    named_elsewhere = args.archive_option or (
        os.environ.get(ARCHIVE_VARIABLE) and not Path(args.archive or "").is_dir()
    )
    if args.run_id is None and args.archive is not None and named_elsewhere:
        args.archive, args.run_id = None, args.archive
    archive = open_archive(args)
    if args.json or not sys.stderr.isatty():
        report = archive.verify(args.run_id)
    else:
        from rich.console import Console

        with Console(stderr=True).status("verifying"):
            report = archive.verify(args.run_id)
    if args.json:
        print_json(
            {
                "ok": report.ok,
                "runs": report.runs,
                "files": report.files,
                "bytes": report.bytes,
                "problems": [{"run_id": p.run_id, "path": p.path, "what": p.what} for p in report.problems],
            }
        )
        return 0 if report.ok else 1
    out = console()
    for problem in report.problems:
        out.print(f"{problem.run_id or 'archive'}: {problem.path}: {problem.what}", soft_wrap=True)
    said = "all is well" if report.ok else f"{len(report.problems)} problems"
    out.print(f"{said}: {report.runs} runs, {report.files} files, {report.bytes} bytes read", soft_wrap=True)
    return 0 if report.ok else 1
