"""``reuse-algos gc``: delete what crashed and abandoned runs left behind."""

from __future__ import annotations

import argparse
import re

from reuse_algos.commands.common import (
    Subparsers,
    add_archive,
    add_command,
    add_json,
    console,
    open_archive,
    print_json,
    readable_bytes,
    report_json,
)
from reuse_algos.commands.upkeep.progress import progress_bar

_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "gc",
        "list, and with --delete remove, files that no run needs",
        "Those are files that no generation of any run lists, left by writers that crashed or were resumed\n"
        "elsewhere. A run in which anything is younger than --min-age is left alone, as its writer may be\n"
        "alive; training may go on meanwhile. A run with damage is left alone and reported: exit code 1.",
        """
        reuse-algos gc ./archive
        reuse-algos gc ./archive --delete
        reuse-algos gc ./archive --delete --min-age 12h --json
        reuse-algos gc ./archive --delete --thin
        """,
    )
    add_archive(parser)
    parser.add_argument("--delete", action="store_true", help="really delete (default: only say what would go)")
    parser.add_argument(
        "--min-age",
        type=age,
        default=86400.0,
        metavar="AGE",
        help="such as 90m, 12h, 1d or 2w; at least 1h (default: 1d)",
    )
    parser.add_argument(
        "--thin",
        action="store_true",
        help="also the superseded generations of runs that ended, which nobody can go back to",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def age(text: str) -> float:
    """Return a time of at least an hour in seconds, for ``argparse``."""
    # ASCII, as \d would take digits of other scripts.
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([mhdw])", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age such as 90m, 12h, 1d or 2w")
    seconds = float(found[1]) * _SECONDS[found[2]]
    # A writer puts files before it commits them.
    if seconds < 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 1h: a file may be about to be committed")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Collect garbage, and return 0 if every run could be judged, 1 if not."""
    # A listing works with the right to read alone.
    archive = open_archive(args, read_only=not args.delete)
    with progress_bar(args, "gc", "items") as progress:
        report = archive.collect_garbage(
            delete=args.delete, min_age_seconds=args.min_age, thin=args.thin, progress=progress
        )
    if args.json:
        collected = [{"path": path, "bytes": size} for path, size in report.collected]
        found = report_json(report, "runs", "kept", "bytes", "busy", "unknown")
        print_json({**found, "deleted": args.delete, "collected": collected})
        return 0 if report.ok else 1
    out = console()
    for path, size in report.collected:
        out.print(f"{'deleted' if args.delete else 'garbage'}: {path} ({readable_bytes(size)})", soft_wrap=True)
    for path in report.unknown:
        out.print(f"unknown, left alone: {path}", soft_wrap=True)
    for problem in report.problems:
        out.print(f"left alone: {problem.run_id}: {problem.what}", soft_wrap=True)
    said = "deleted" if args.delete else "would be deleted (with --delete)"
    out.print(f"{len(report.collected)} files, {readable_bytes(report.bytes)}, {said}", soft_wrap=True)
    busy = f"; {len(report.busy)} are too young to judge" if report.busy else ""
    out.print(f"{report.runs} runs looked at, {report.kept} files kept{busy}", soft_wrap=True)
    return 0 if report.ok else 1
