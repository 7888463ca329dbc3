"""A job on another machine: what travels there, and what runs it.

The job's process is the same as on this machine. It ends when whoever started it is gone, through its pipe, and when
the sequence's lease is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reuse_algos.archive import RunArchive
from reuse_algos.errors import ReuseAlgosError, SequenceError
from reuse_algos.sequence.launchers.base import Job
from reuse_algos.sequence.progress import RECIPE

_LOG_BYTES = 1 << 20  # of a job's output, the end of it


class Outcome(NamedTuple):
    """How a job ended.

    Attributes:
        status: Exit status of its process; None where it was not started.
        log: The end of its output, or why it was not started.
    """

    status: int | None
    log: str


@dataclass(frozen=True)
class RemoteJob:
    """Everything that another machine needs to do a job; calling it there does it.

    Attributes:
        title: Name of the step, for messages.
        arguments: Arguments of the interpreter there.
        folder: Working folder; relative paths of the recipe are relative to it. It is made where it is missing.
        recipe: Path of the recipe, relative to the folder or absolute.
        text: The recipe.
        archive: Folder or URL of the archive.
        archive_id: The archive's identity.
    """

    title: str
    arguments: tuple[str, ...]
    folder: str
    recipe: str
    text: str
    archive: str
    archive_id: str

    def __call__(self) -> Outcome:
        """Run the job's process to its end, on this machine."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        if fault := self._fault(folder):
            return Outcome(None, f"{self.title} was not started on {os.uname().nodename}: {fault}")
        recipe = folder / self.recipe
        # On a shared folder it is there already, and must not be written while another node reads it.
        if not recipe.exists() or recipe.read_text() != self.text:
            recipe.parent.mkdir(parents=True, exist_ok=True)
            recipe.write_text(self.text)
        with tempfile.TemporaryFile() as log:
            # A session of its own, so that a job of several ranks can be ended whole.
            process = subprocess.Popen(
                [sys.executable, *self.arguments], cwd=folder, stdin=subprocess.PIPE, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait()
            finally:
                _end_group(process)
            # Hours of output would burden the driver; an error stands at the end.
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
            return Outcome(status, log.read().decode(errors="replace"))

    def _fault(self, folder: Path) -> str | None:
        """Return why the job cannot be done on this machine."""
        place = self.archive if "://" in self.archive else str(folder / self.archive)
        try:
            found = RunArchive(place, read_only=True).archive_id
        except ReuseAlgosError as error:
            return f"the archive {place} cannot be seen there ({error}). Use a shared folder or an object store"
        # A folder of the same path on the node's own disk would take the runs, and nobody would miss them.
        if found != self.archive_id:
            return f"{place} is another archive there. Use a shared folder or an object store"
        return None


def remote_job(job: Job) -> RemoteJob:
    """Return what another machine needs to do a job."""
    archive = job.step.recipe.settings.archive
    assert archive is not None  # the sequence sets it
    recipe = job.step.folder / RECIPE
    return RemoteJob(
        title=job.step.title,
        # Without the interpreter, whose path is the node's own.
        arguments=tuple(job.command[1:]),
        folder=str(Path.cwd()),
        recipe=str(recipe),
        text=recipe.read_text(),
        archive=archive,
        archive_id=RunArchive(archive, read_only=True).archive_id,
    )


def one_node(job: Job) -> None:
    """Refuse a step over several nodes, which these launchers do not start.

    Raises:
        SequenceError: It asks for more than one.
    """
    if job.step.recipe.settings.resources.nodes > 1:
        raise SequenceError(
            f"{job.step.title} asks for {job.step.recipe.settings.resources.nodes} nodes, and a step runs on "
            "one node. Set nodes: 1, or train it with composer's own launcher on each node"
        )


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
