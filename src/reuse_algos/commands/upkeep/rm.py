"""``reuse-algos rm``: remove whole runs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from reuse_algos.commands.common import (
    Subparsers,
    UsageError,
    add_archive,
    add_command,
    add_json,
    console,
    open_archive,
    print_json,
    printable,
    readable_bytes,
    runs_named,
)
from reuse_algos.commands.upkeep.progress import progress_bar
from reuse_algos.errors import ArchiveError

if TYPE_CHECKING:
    from reuse_algos.archive import RunArchive


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "rm",
        "remove whole runs, with all of their files",
        "It asks before, and says which other runs used them as prior runs: those keep what they learned,\n"
        "but they cannot be repeated. A run that may still be written is refused without --force.\n"
        "Interrupted, the same command completes the removal.",
        """
        reuse-algos rm ./archive resnet56-17-0123abcdef
        reuse-algos rm ./archive resnet56-17-0123abcdef resnet56-18-4567abcdef --yes
        """,
    )
    add_archive(parser)
    parser.add_argument("run_ids", metavar="RUN", nargs="+", help="ids or unique names of runs")
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where there is no terminal to ask on")
    parser.add_argument("--force", action="store_true", help="also remove a run that may still be written")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Remove runs, and return 0, or 1 if the answer was no."""
    args.run_ids = runs_named(args, args.run_ids)
    archive = open_archive(args, read_only=False)
    there = set(archive.run_ids(uncommitted=True))  # by id, as a run may be too damaged to be opened
    run_ids = list(dict.fromkeys(name if name in there else archive.run(name).id for name in args.run_ids))
    # Asked before anything is deleted, as afterwards the records are gone.
    users = _users(archive, run_ids)
    for run_id in run_ids:
        if users[run_id]:
            names = ", ".join(users[run_id])
            print(f"reuse-algos: {printable(run_id)} is a prior run of: {printable(names)}", file=sys.stderr)
    if not args.yes and not _agreed(run_ids, archive.location):
        return 1
    reports = []
    for run_id in run_ids:
        with progress_bar(args, f"rm {run_id}", "items") as progress:
            reports.append(archive.remove_run(run_id, force=args.force, progress=progress))
    if args.json:
        print_json(
            [{"run_id": r.run_id, "files": r.files, "bytes": r.bytes, "prior_run_of": users[r.run_id]} for r in reports]
        )
        return 0
    out = console()
    for report in reports:
        out.print(f"removed {report.run_id}: {report.files} files, {readable_bytes(report.bytes)}", soft_wrap=True)
    return 0


def _users(archive: RunArchive, run_ids: list[str]) -> dict[str, list[str]]:
    """Return for each run the other runs that used it, as far as they can be read."""
    users: dict[str, list[str]] = {run_id: [] for run_id in run_ids}
    try:
        others = archive.runs(unfinished=True, unhealthy=True, order="first")
    except ArchiveError as error:  # perhaps of the very run that is to go
        print(f"reuse-algos: which runs used these cannot be told: {printable(str(error))}", file=sys.stderr)
        return users
    for other in others:
        if other.id not in users:
            for prior_id in dict.fromkeys(use.run_id for use in other.manifest.prior_runs):
                if prior_id in users:
                    users[prior_id].append(other.id)
    return users


def _agreed(run_ids: list[str], location: str) -> bool:
    # A script would wait for ever.
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on: say --yes to remove " + ", ".join(run_ids))
    names = "\n".join(f"  {printable(run_id)}" for run_id in run_ids)
    print(
        f"remove from {location}:\n{names}\nThis cannot be undone. Remove? [y/N] ", end="", file=sys.stderr, flush=True
    )
    # Not input(), which would print the question on stdout, beside the JSON.
    return sys.stdin.readline().strip().lower() in ("y", "yes")
