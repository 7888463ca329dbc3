"""The files that are written beside an answer: plots, pages and pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reuse_algos.errors import CompareError

PLOTS = ("png", "pdf", "svg")
PAGES = ("html", "htm")


def check_file(path: Path | None, kinds: tuple[str, ...] = PLOTS) -> None:
    """Refuse a file that cannot be written, before any work is done.

    Args:
        path: Of the file; None asks for none.
        kinds: What its name may end in. Default: :data:`PLOTS`.

    Raises:
        CompareError: The name ends in something else, or the folder does not exist.
    """
    if path is None:
        return
    what = "report" if kinds is PAGES else "plot"
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise CompareError(f"a {what} cannot be written as {path.name!r}: end the name in .{', .'.join(kinds)}")
    # No folder is made: a mistyped path would leave one behind.
    if not path.parent.is_dir():
        raise CompareError(f"the {what} cannot be written to {path}: there is no folder {path.parent}")


def write_file(path: Path, kinds: tuple[str, ...], write: Callable[[Path], object]) -> Path:
    """Check a file's name and write it.

    Args:
        path: Of the file.
        kinds: What its name may end in.
        write: Writes it.

    Returns:
        The path.

    Raises:
        CompareError: See :func:`check_file`; or the file cannot be written.
    """
    check_file(path, kinds)
    try:
        write(path)
    except OSError as error:
        what = "report" if kinds is PAGES else "plot"
        raise CompareError(f"the {what} cannot be written to {path}: {error.strerror or error}") from error
    return path
