"""What both demos share: a folder to work in, one run of a shipped recipe, and how far all of them are."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.errors import ArchiveConflictError, DataError
from reuse_algos.recipe import build_trainer, load_recipe
from reuse_algos.recipe.shipped import shipped_recipe


def console() -> Console:
    """Return a console on stdout, 100 columns wide where it is not a terminal."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=100)


def make_room(folder: Path, archive: Path, keep: bool) -> None:
    """Check what the demo needs, and remove the archive of an earlier one.

    Args:
        folder: The folder of the demo.
        archive: Its archive.
        keep: Leave an earlier archive as it is.

    Raises:
        DataError: scikit-learn is not installed.
        ArchiveConflictError: The folder holds something that is not an earlier demo. Nothing is deleted then.
    """
    if find_spec("sklearn") is None:
        raise DataError(
            "the demo trains on scikit-learn's digits, and scikit-learn is not installed. Install it with "
            "pip install 'reuse-algos[demo]'"
        )
    if not folder.exists() or keep:
        return
    # A folder is deleted only if it is known to be a demo's.
    if not (archive / "archive.json").is_file() and any(folder.iterdir()):
        raise ArchiveConflictError(f"{folder} is not empty and holds no earlier demo; name another folder (--folder)")
    shutil.rmtree(archive, ignore_errors=True)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: with more, networks this small take several times as long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quiet_run(recipe: str, archive: Path, *overrides: str) -> PriorRun:
    """Train a shipped recipe without progress bars, and return the archived run.

    Args:
        recipe: Its name, such as ``digits/baseline``.
        archive: Folder of the archive.
        *overrides: Changes to the recipe, ``key=value``.
    """
    trainer = build_trainer(
        load_recipe(shipped_recipe(recipe), [f"archive={archive}", "progress_bar=false", *overrides])
    )
    try:
        # One line per run on stderr is right for a training of hours, and would bury the demo's own lines.
        with contextlib.redirect_stderr(io.StringIO()):
            trainer.fit()
    finally:
        trainer.close()
    return RunArchive(archive).runs(run_name=trainer.state.run_name, order="latest", limit=1)[0]


class Ahead:
    """How much of the work is done, and an estimate of the time that is left.

    Args:
        out: Where to print.
        runs: Number of runs.
        epochs: Epochs of all of them together, by which the time is estimated.
    """

    def __init__(self, out: Console, runs: int, epochs: int) -> None:
        self._out, self._runs, self._epochs = out, runs, epochs
        self._done, self._epochs_done = 0, 0
        self._began = time.perf_counter()
        # In a file or a pipe a moving line would be thousands of them.
        self._status = out.status("") if out.is_terminal else None
        if self._status is not None:
            self._status.start()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    def begin(self, what: str) -> None:
        """Say which run comes now; on a terminal only, where the line is replaced by the next one."""
        if self._status is not None:
            self._status.update(f"run {self._done + 1} of {self._runs}: {what}{self.left()}")

    def end(self, epochs: int) -> None:
        """Count a run of so many epochs as done."""
        self._done += 1
        self._epochs_done += epochs

    def left(self) -> str:
        """Return the estimate, such as ``; about 40 s left``; empty before the first run has ended."""
        if self._epochs_done == 0 or self._epochs_done >= self._epochs:
            return ""
        seconds = self.seconds / self._epochs_done * (self._epochs - self._epochs_done)
        return f"; about {max(1, round(seconds))} s left"

    def close(self) -> None:
        """Take the line away."""
        if self._status is not None:
            self._status.stop()
