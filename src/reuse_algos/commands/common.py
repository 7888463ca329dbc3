"""What the commands share: how an archive and runs are named on the command line, and how JSON is printed."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reuse_algos.errors import ArchiveNotFoundError, ReuseAlgosError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    from reuse_algos.archive import RunArchive

ARCHIVE_VARIABLE = "REUSE_ALGOS_ARCHIVE"

ARCHIVE_HELP = f"""\
ARCHIVE is the first argument of every command that reads an archive. It may be left out where
--archive DIR or the environment variable {ARCHIVE_VARIABLE} names the archive (--archive wins)."""

Subparsers = argparse._SubParsersAction  # argparse has no public name for it


class UsageError(ReuseAlgosError, ValueError):
    """The command line makes no sense; the message says what is missing."""


def add_command(
    subparsers: Subparsers, name: str, summary: str, details: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        subparsers: Of the main parser.
        name: Of the command.
        summary: One line for ``reuse-algos --help``.
        details: More of it for the command's own ``--help``.
        examples: Command lines, one a line.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{details}".rstrip(),
        epilog="examples:\n" + "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # SUPPRESS, so that the command's parser does not undo a --debug that stands before the command.
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    return parser


def add_archive(parser: argparse.ArgumentParser) -> None:
    """Add the positional ARCHIVE and the option --archive, and say in the help how the two go together."""
    parser.description = f"{parser.description}\n\n{ARCHIVE_HELP}"
    parser.add_argument("archive", metavar="ARCHIVE", nargs="?", help="folder or URL of the archive")
    parser.add_argument(
        "--archive",
        metavar="DIR",
        dest="archive_option",
        help=f"the archive, where ARCHIVE is left out (or set {ARCHIVE_VARIABLE})",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON value and nothing else on stdout; numbers that are not finite (NaN, no limit) are null",
    )


def add_tags(parser: argparse.ArgumentParser) -> None:
    """Add --tag."""
    parser.add_argument(
        "--tag",
        metavar="KEY=VALUE",
        action="append",
        nargs="+",
        default=[],
        help="only runs with these tags; a key given twice means either value",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add --data, for commands that load a run's data again."""
    parser.add_argument(
        "--data",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="another value in the recipe's data section, such as root=/datasets; may be given again",
    )
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add --trust-data."""
    parser.add_argument(
        "--trust-data",
        action="store_true",
        help="open the files, and download the data, that the archived recipe names (default: only what --data names)",
    )


def data_of(texts: list[str]) -> dict[str, Any]:
    """Return what --data says, such as ``root=/datasets``, with values read as YAML.

    Raises:
        UsageError: One is not ``key=value``, or its value is not YAML.
    """
    import yaml

    data = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"--data needs KEY=VALUE, got {text!r}")
        try:
            data[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--data {text}: the value is not YAML: {error}") from error
    return data


def tags_of(args: argparse.Namespace) -> dict[str, list[str]] | None:
    """Return the tags asked for, each with the values that are allowed; None if there are none.

    Raises:
        UsageError: One is not ``key=value``.
    """
    tags: dict[str, list[str]] = {}
    for text in (text for group in args.tag for text in group):
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"--tag needs KEY=VALUE, got {text!r} (arguments such as ARCHIVE come before --tag)")
        tags.setdefault(key, []).append(value)
    return tags or None


def seconds_of(text: str) -> float:
    """Return ``90``, ``90s``, ``9m`` or ``1.5h`` in seconds, for ``argparse``.

    Raises:
        argparse.ArgumentTypeError: The text is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write for example 90s, 9m or 1.5h")
    return float(found[1]) * {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}[found[2]]


def positive(text: str) -> int:
    """Return a whole number of at least 1, for ``argparse``."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def above_zero(text: str) -> float:
    """Return a finite number above 0, for ``argparse``."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def archive_path(args: argparse.Namespace) -> str:
    """Return where the archive is: the positional argument, else --archive, else the environment.

    Raises:
        UsageError: It is named nowhere, or both as an argument and as an option.
    """
    if args.archive is not None and args.archive_option is not None:
        raise UsageError(f"the archive is named twice: {args.archive} and --archive {args.archive_option}")
    # What stands on the command line wins over the environment.
    path = args.archive or args.archive_option or os.environ.get(ARCHIVE_VARIABLE)
    if not path:
        raise UsageError(
            f"which archive? Give ARCHIVE as the first argument, or --archive DIR, or set {ARCHIVE_VARIABLE}"
        )
    return path


def names_archive(text: str) -> bool:
    """Return whether an argument is the place of an archive (a URL or a folder) rather than a run."""
    # dbfs:/ is a URL with one slash.
    return "://" in text or text.startswith("dbfs:/") or Path(text).is_dir()


def runs_named(args: argparse.Namespace, names: list[str]) -> list[str]:
    """Return the runs that a command names, where ARCHIVE may be left out and its place holds the first of them.

    Args:
        args: Of the command; its ``archive`` becomes None where it holds a run.
        names: What stands behind ARCHIVE.
    """
    # argparse fills ARCHIVE first, so that a run's name lands there when the archive is named elsewhere.
    elsewhere = args.archive_option or (os.environ.get(ARCHIVE_VARIABLE) and not names_archive(args.archive or ""))
    if args.archive is not None and elsewhere:
        args.archive, names = None, [args.archive, *names]
    return names


def open_archive(args: argparse.Namespace, *, read_only: bool = True) -> RunArchive:
    """Open the archive that the arguments name. It must exist: no command makes an empty one by mistake."""
    from reuse_algos.archive import RunArchive

    path = archive_path(args)
    try:
        # Reading never creates: a typo is an error and not an empty archive.
        archive = RunArchive(path, read_only=read_only)
    except ArchiveNotFoundError as error:
        raise ArchiveNotFoundError(
            f"there is no archive at {path}: check the path, or record a first run, such as `reuse-algos train "
            f"digits/baseline archive={path}`"
        ) from error
    if read_only:  # for the exit code, which says whether all of it could be read
        args.read_archive = archive
    return archive


def report_json(report: Any, *names: str) -> dict[str, Any]:
    """Return an archive's report as JSON can hold it: ``ok``, some of its fields, and its problems.

    Args:
        report: Of a check, a copy or a collection.
        names: Fields to take over.
    """
    problems = [{"run_id": one.run_id, "path": one.path, "what": one.what} for one in report.problems]
    return {name: getattr(report, name) for name in ("ok", *names)} | {"problems": problems}


def print_json(value: Any) -> None:
    """Print one JSON value; floats that are not finite become null."""
    from reuse_algos.compare.result import json_safe

    # Strict JSON has neither NaN nor infinity, and not every reader takes them.
    text = json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False)
    # json writes most of these as they are, and a terminal would obey them.
    print(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


# Without tab and newline; with the marks that change the direction of a text, which can hide what it says.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return a text with its control characters as codes: others may have written it, and a terminal obeys them."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def printable_lines(text: str) -> str:
    """Return a text of several lines with the other control characters as codes."""
    return "\n".join(map(printable, text.splitlines()))


def readable_bytes(size: float) -> str:
    """Return a number of bytes for people, such as ``3.1 MiB``."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} GiB"


def console() -> Console:
    """Return a console on stdout: as wide as the terminal, 100 columns where there is none."""
    from rich.console import Console

    class PipeConsole(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            """Render as always, with control characters in texts made visible."""
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=printable(segment.text))

        def on_broken_pipe(self) -> None:
            """Leave it to the command line's own handling; rich would end the process with exit code 1."""
            raise BrokenPipeError

    # Without a terminal rich would wrap at 80 columns.
    found = PipeConsole(highlight=False, markup=False)
    return found if found.is_terminal else PipeConsole(highlight=False, markup=False, width=100)
