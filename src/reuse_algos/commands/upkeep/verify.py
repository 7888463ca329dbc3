"""``reuse-algos verify``: read every byte of an archive again."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from reuse_algos.commands.common import (
    Subparsers,
    add_archive,
    add_command,
    add_json,
    archive_path,
    console,
    open_archive,
    print_json,
    report_json,
    runs_named,
)
from reuse_algos.commands.upkeep.progress import progress_bar
from reuse_algos.errors import ArchiveError

if TYPE_CHECKING:
    from reuse_algos.archive import VerifyReport

    Progress = Callable[[int, int], None] | None


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "verify",
        "read every file of an archive again and check it",
        "Sizes, hashes and headers of all files that any manifest names are checked, without the cache that\n"
        "remembers earlier checks. Exit code 0: all is well; 1: there are problems, each listed\n"
        "with file and cause; 2: the archive could not be reached.\n\n"
        "A single argument that is neither a folder nor a URL is a RUN then.",
        """
        reuse-algos verify ./archive
        reuse-algos verify ./archive --quick
        reuse-algos verify ./archive resnet56-17-0123abcdef --json
        """,
    )
    add_archive(parser)
    parser.add_argument("run_id", metavar="RUN", nargs="?", help="id or unique name of one run (default: all runs)")
    parser.add_argument(
        "--quick", action="store_true", help="newest generations, sizes of files and the index only; nothing is hashed"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify, and return 0 if all is well, 1 if there are problems."""
    if args.run_id is None:
        args.run_id = next(iter(runs_named(args, [])), None)
    check = _opened(args)
    with _bars(args) as (progress, records):
        report = check(progress, records)
    if args.json:
        print_json(report_json(report, "runs", "files", "bytes"))
        return 0 if report.ok else 1
    out = console()
    for problem in report.problems:
        out.print(f"{problem.run_id or 'archive'}: {problem.path}: {problem.what}", soft_wrap=True)
    said = "all is well" if report.ok else f"{len(report.problems)} problems"
    out.print(f"{said}: {report.runs} runs, {report.files} files, {report.bytes} bytes read", soft_wrap=True)
    return 0 if report.ok else 1


@contextlib.contextmanager
def _bars(args: argparse.Namespace) -> Iterator[tuple[Progress, Progress]]:
    """Show a bar of the bytes hashed, and before it, in its place, one of the manifests that are read."""
    with contextlib.ExitStack() as shown:
        first = shown.enter_context(progress_bar(args, "verify: manifests", "items"))
        second: Progress = None

        def hashed(done: int, total: int) -> None:
            nonlocal second
            if second is None:
                shown.close()
                second = shown.enter_context(progress_bar(args, "verify"))
            if second is not None:
                second(done, total)

        yield (hashed if first else None), first


def _opened(args: argparse.Namespace) -> Callable[[Progress, Progress], VerifyReport]:
    """Return the check to be made, of an archive that may be too damaged to be opened."""
    from reuse_algos.archive import open_store
    from reuse_algos.archive.upkeep.verify import verify_archive

    try:
        archive = open_archive(args)
    except ArchiveError:
        # An archive whose own record is damaged cannot be opened, and is what this is for.
        store = open_store(archive_path(args), create=False, read_only=True)
        if not store.list("runs") and store.size("archive.json") is None:
            raise
        return lambda progress, records: verify_archive(store, args.run_id, progress, records, quick=args.quick)
    run_id = args.run_id
    # By id first: a run whose manifest is damaged cannot be opened by its name, and is what is asked about.
    if run_id is not None and run_id not in archive.run_ids(uncommitted=True):
        run_id = archive.run(run_id).id
    return lambda progress, records: archive.verify(run_id, progress, records, quick=args.quick)
