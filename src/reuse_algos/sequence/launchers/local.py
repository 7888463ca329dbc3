"""Jobs as processes on this machine."""

from __future__ import annotations

import os
import subprocess

from reuse_algos.sequence.launchers.base import Work


class LocalLauncher:
    """Runs each job as a process of its own that ends when this one does.

    Args:
        threads: Threads of torch for each job, where ``OMP_NUM_THREADS`` does not say it. Default: None, as torch
            chooses.
    """

    local = True

    def __init__(self, threads: int | None = None) -> None:
        self._environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}

    def submit(self, job: Work) -> subprocess.Popen[bytes]:
        """Start the job's process."""
        with job.log.open("ab") as log:
            # The job reads its standard input until its end, which comes when this process is gone, however it ends.
            # Popen closes the pipe's other end in the other jobs.
            return subprocess.Popen(
                job.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # What the user has set wins.
                env={**self._environment, **os.environ},
            )

    def wait(self, handle: subprocess.Popen[bytes], timeout: float) -> int | None:
        """Return the exit status, or None if the process still runs after ``timeout`` seconds."""
        try:
            return handle.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def cancel(self, handle: subprocess.Popen[bytes]) -> None:
        """Kill the process, and with it (through the pipe) those that it started."""
        if handle.stdin is not None:
            # Closed first: the ranks that the process has started end by it, as no kill reaches them.
            handle.stdin.close()
        if handle.poll() is None:
            handle.kill()
            handle.wait()
