"""The progress bar of the commands: on stderr, and only where stderr is a terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Literal


@contextlib.contextmanager
def progress_bar(
    args: argparse.Namespace, what: str, unit: Literal["bytes", "items"] = "bytes"
) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar that is gone when the work is done.

    Args:
        args: Of the command; with ``--json`` no bar is shown.
        what: What is going on, such as ``verify``.
        unit: Of the numbers. Default: bytes.

    Yields:
        What to call with the amount done so far and the amount in all; None where no bar is shown.
    """
    if getattr(args, "json", False) or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *amounts, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
