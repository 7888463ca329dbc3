"""The ``reuse-algos`` command: everything around training."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from reuse_algos.commands import demo, drift, harvest, label, sequence, train, zero_shot
from reuse_algos.commands.common import ARCHIVE_HELP, printable
from reuse_algos.commands.compare import compare, recommend
from reuse_algos.commands.predict import predict, sweep
from reuse_algos.commands.show import runs, scores, show
from reuse_algos.commands.upkeep import copy, gc, rm, verify
from reuse_algos.errors import ReuseAlgosError

# In the order in which --help lists them.
_COMMANDS = (
    *(train, sequence, runs, show, compare, recommend, predict, sweep),
    *(harvest, label, drift, zero_shot, scores, verify, copy, gc, rm, demo),
)

_EPILOG = f"""\
{ARCHIVE_HELP}

examples:
  reuse-algos train digits/baseline tags.method=baseline
  reuse-algos runs ./archive --order best
  reuse-algos compare ./archive --group-by tags.method --baseline baseline

exit codes: 0 done; 1 damage, which is named; 2 wrong usage, or an error that is named on stderr; 130 interrupted."""


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib import metadata

        try:
            version = metadata.version("reuse-algos")
        except metadata.PackageNotFoundError:
            version = "not installed"
        print(f"reuse-algos {version}")
        parser.exit(0)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. Building it imports neither torch nor Composer."""
    parser = argparse.ArgumentParser(
        prog="reuse-algos",
        description="Keep what training runs compute, and reuse it in the next run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name; by default those of the process.

    Returns:
        The exit code: 0 done, 1 damage (a run was left out), 2 wrong usage or an error (one message on stderr; --debug
        shows the traceback), 130 interrupted, 141 if the reader of stdout went away.
    """
    try:
        args = _parsed(argv)
    except SystemExit as stop:  # argparse has printed what is wrong
        return stop.code if isinstance(stop.code, int) else 2
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = args.run(args)
            sys.stdout.flush()
            archive = getattr(args, "read_archive", None)
            # A run that was left out, or read from an earlier generation, was named on stderr.
            return 1 if code == 0 and archive is not None and archive.faults else code
        except BrokenPipeError:
            # As in `reuse-algos runs ... | head`: the reader has gone. Python would complain again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except KeyboardInterrupt:
            # Commands that only read have nothing to say of what they keep.
            kept = getattr(args, "kept", None)
            print(f"reuse-algos: interrupted{f'; {kept}' if kept else ''}", file=sys.stderr)
            return 130
        except (ReuseAlgosError, OSError) as error:
            if args.debug:
                traceback.print_exc()
            print(f"reuse-algos: error: {printable(str(error))}", file=sys.stderr)
            return 2


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; key=value may also follow the options of a command that takes overrides."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    # Commands that start themselves in other processes pass their own words on.
    args.words = list(sys.argv[1:] if argv is None else argv)
    # The parser of a command stops to collect overrides at its first option, and sub-parsers cannot intermix them.
    if unknown := [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(args, "overrides")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print a warning as one line, without the place in our code, which does not help the user of a command."""
    print(f"reuse-algos: {category.__name__}: {printable(str(message))}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
