"""Jobs on a Slurm site, through submitit."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from reuse_algos.errors import SequenceError
from reuse_algos.remote_job import RequeuedJob
from reuse_algos.sequence.launchers.base import Work
from reuse_algos.sequence.launchers.remote import note_outcome

_LOOK_SECONDS = 0.2


class SlurmLauncher:
    """Submits each job to Slurm; a job that is preempted or runs out of time is put into the queue again.

    It then goes on from its checkpoint, by the recipe's ``autoresume``. The folder must be shared with the nodes.

    Args:
        folder: Where submitit keeps its files.
        hours: Time limit of a job, above 0. Default: 24.
        cluster: ``slurm``, or ``local`` for processes on this machine, to try things out. Default: ``slurm``.
        parameters: Further parameters of submitit's executor, such as ``{"slurm_partition": "gpu"}``. Default: none.

    Raises:
        SequenceError: submitit is not installed, or this machine cannot submit to Slurm.
    """

    local = False

    def __init__(
        self,
        folder: str | Path,
        hours: float = 24.0,
        cluster: str = "slurm",
        parameters: dict[str, Any] | None = None,
    ) -> None:
        try:
            import submitit  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise SequenceError("--launcher slurm needs submitit: pip install 'reuse-algos[slurm]'") from error
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise SequenceError("this machine has no sbatch, so it cannot submit to Slurm. Run this on a login node")
        self._submitit: Any = submitit
        self._executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
        self._settings = {"timeout_min": max(1, round(60 * hours)), **(parameters or {})}
        self._lock = threading.Lock()  # an executor's parameters are those of its next job

    def submit(self, job: Work) -> tuple[Any, Work]:
        """Put the job into the queue.

        Raises:
            SequenceError: The step asks for several nodes.
        """
        sent = job.remote()
        if sent.nodes > 1:
            raise SequenceError(
                f"{job.title} asks for {sent.nodes} nodes, and a step runs on one node of a Slurm site. Set "
                "nodes: 1, or use --launcher ray on nodes that Slurm has given you"
            )
        wanted = job.resources
        with self._lock:
            self._executor.update_parameters(
                name=job.title.replace("/", "-"), nodes=1, tasks_per_node=1, cpus_per_task=wanted.cpus,
                gpus_per_node=wanted.gpus, **self._settings,
            )  # fmt: skip
            return self._executor.submit(RequeuedJob(sent)), job

    def wait(self, handle: tuple[Any, Work], timeout: float) -> int | None:
        """Return the exit status, or None if the job still runs, or waits, after ``timeout`` seconds.

        Raises:
            SequenceError: The job was lost, or its node cannot do it.
        """
        submitted, job = handle
        until = monotonic() + timeout
        # submitit cannot wait for a limited time.
        while not submitted.done():
            if monotonic() >= until:
                return None
            sleep(min(_LOOK_SECONDS, max(0.0, until - monotonic())))
        try:
            outcome = submitted.result()
        except Exception as error:  # submitit hands on whatever happened there
            raise SequenceError(
                f"{job.title} was lost on Slurm (job {submitted.job_id}): {type(error).__name__}: {error}. The "
                "same command goes on from here"
            ) from error
        with self._lock:
            return note_outcome(job, outcome)

    def cancel(self, handle: tuple[Any, Work]) -> None:
        """Take the job out of the queue, or end it; nothing where it has ended."""
        if not handle[0].done():
            handle[0].cancel()
