"""A job on another machine: what travels there, and what starts and ends its process there.

This module needs the standard library only, and stands outside the rooms. So the worker of Ray or Slurm that waits for
the job's process has it at hand in milliseconds: the rest of the package takes seconds to import, and the process
itself imports it anyway.

The job's process is the same as on the driver's machine. It ends when whoever started it is gone, through its pipe, and
when the sequence's lease is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

LEFT_BEHIND = 143  # exit status of a job whose starter is gone
_LOG_BYTES = 1 << 20  # of a job's output, the end of it


class Outcome(NamedTuple):
    """How a job ended on one node.

    Attributes:
        status: Exit status of its process; None where it was not started.
        log: The end of its output, or why it was not started.
    """

    status: int | None
    log: str


class Meeting(NamedTuple):
    """Where the ranks of several nodes find each other.

    Attributes:
        address: Of the first node, as the others reach it.
        port: A free one there.
    """

    address: str
    port: int


def meet_on_ray() -> Meeting:
    """Return a meeting place on the Ray node where this runs."""
    import ray  # pyright: ignore[reportMissingImports]

    with socket.socket() as free:
        free.bind(("", 0))
        return Meeting(ray.util.get_node_ip_address(), free.getsockname()[1])


def do_job(job: RemoteJob, node: int = 0, meeting: Meeting | None = None) -> Outcome:
    """Do a node's share of a job; see :meth:`RemoteJob.__call__`. Ray sends functions by their names."""
    return job(node, meeting)


def launch_arguments(ranks: int, nodes: int = 1, node: int = 0, meeting: Meeting | None = None) -> list[str]:
    """Return what starts a module on several ranks: arguments of the interpreter, to be followed by ``-m module``.

    Args:
        ranks: Processes that train together, on all nodes; a multiple of ``nodes``.
        nodes: Machines that share them. Default: 1.
        node: Which of the machines this is, from 0. Default: 0.
        meeting: Where the ranks find each other; needed for more than one node. Default: None.
    """
    if ranks == 1:
        return []
    several = ["-m", "composer.cli.launcher", "-n", str(ranks // nodes)]
    if nodes > 1:
        assert meeting is not None
        several += ["--world_size", str(ranks), "--node_rank", str(node)]
        several += ["--master_addr", meeting.address, "--master_port", str(meeting.port)]
    return several


@dataclass(frozen=True)
class RemoteJob:
    """Everything that another machine needs to do a job; calling it there does it.

    Attributes:
        title: Name of the step, for messages.
        arguments: Arguments of the interpreter there, for one rank.
        folder: Working folder; relative paths of the recipe are relative to it. It is made where it is missing.
        files: Texts that are written there first, by their path, relative to the folder or absolute. Default: none.
        ranks: Processes that train together, on all nodes. Default: 1.
        nodes: Machines that share them. Default: 1.
    """

    title: str
    arguments: tuple[str, ...]
    folder: str
    files: Mapping[str, str] = field(default_factory=dict)
    ranks: int = 1
    nodes: int = 1

    def __call__(self, node: int = 0, meeting: Meeting | None = None) -> Outcome:
        """Run this node's share of the job to its end.

        Args:
            node: Which of the job's machines this is, from 0. Default: 0.
            meeting: Where the ranks of several nodes find each other. Default: None, there is one node.
        """
        folder = Path(self.folder)
        try:
            self._write_files(folder)
        except OSError as error:
            # As an answer, not an exception: Ray and submitit wrap those, and the reason would be lost in their
            # traces.
            return Outcome(None, f"{self.title} was not started on {os.uname().nodename}: {error}")
        command = [sys.executable, *launch_arguments(self.ranks, self.nodes, node, meeting), *self.arguments]
        with tempfile.TemporaryFile() as log:
            # A session of its own, so that a job of several ranks can be ended whole.
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                status = process.wait()
            finally:
                # Also after a normal end: loader workers and other ranks may be left over.
                _end_group(process)
            # The end of it says why a job failed, and all of it would go through the driver's memory.
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
            return Outcome(status, log.read().decode(errors="replace"))

    def _write_files(self, folder: Path) -> None:
        """Write what the job needs on this machine, unless a shared folder has it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text() != text:
                # Two nodes may write it at once: neither may read half of it.
                partly = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}")
                partly.write_text(text)
                partly.replace(path)


class RequeuedJob:
    """A job that submitit submits again, as it is, when Slurm takes its node away.

    Args:
        job: The job.
    """

    def __init__(self, job: RemoteJob) -> None:
        self.job = job

    def __call__(self) -> Outcome:
        """Do the job."""
        return self.job()

    def checkpoint(self) -> Any:
        """Return the job for the queue, as submitit asks for it."""
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports]

        return DelayedSubmission(RequeuedJob(self.job))


def end_with_pipe(ends: Callable[[int], object] = os._exit) -> None:
    """End this process, in the background, once the pipe that is its standard input has no writer any more.

    The writer is whoever started the job, so a job outlives neither a driver nor a worker that was killed. Where
    standard input is not a pipe, this does nothing.

    Args:
        ends: Called with an exit status. Default: ends the process at once, without finishing anything.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        ends(LEFT_BEHIND)

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=watch, name="follow-starter", daemon=True).start()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
