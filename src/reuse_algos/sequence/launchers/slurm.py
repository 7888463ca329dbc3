"""Jobs on a Slurm site, through submitit."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import Future
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from reuse_algos.errors import SequenceError
from reuse_algos.remote_job import RequeuedJob
from reuse_algos.sequence.launchers.base import Work, note_outcome

_LOOK_SECONDS = 0.2
# In which steps that become ready together are gathered: the threads of a sequence submit them within milliseconds of
# each other. It is nothing beside the seconds that Slurm itself takes to look at its queue.
_GATHER_SECONDS = 0.5


class SlurmLauncher:
    """Submits jobs to Slurm; a job that is preempted or runs out of time is put into the queue again.

    It then goes on from its checkpoint, by the recipe's ``autoresume``. The folder must be shared with the nodes.
    Jobs that are submitted at the same time, and ask for the same resources, are one array of Slurm. Each of its tasks
    is waited for, cancelled and put into the queue again by itself.

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
        self._executor: Any = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
        self._settings = {"timeout_min": max(1, round(60 * hours)), **(parameters or {})}
        self._lock = threading.Lock()
        # What waits to be submitted: a job, what its node does, and submitit's job to be.
        self._gathered: list[tuple[Work, RequeuedJob, Future[Any]]] = []

    def submit(self, job: Work) -> tuple[Any, Work]:
        """Put the job into the queue, as a task of an array where others are submitted at the same time.

        Raises:
            SequenceError: The step asks for several nodes, or Slurm does not take the job.
        """
        sent = job.remote()
        if sent.nodes > 1:
            raise SequenceError(
                f"{job.title} asks for {sent.nodes} nodes, and a step runs on one node of a Slurm site. Set "
                "nodes: 1, or use --launcher ray on nodes that Slurm has given you"
            )
        submitted: Future[Any] = Future()
        with self._lock:
            self._gathered.append((job, RequeuedJob(sent), submitted))
            is_first = len(self._gathered) == 1
        if is_first:
            sleep(_GATHER_SECONDS)
            # Locked: an executor's parameters are those of its next job.
            with self._lock:
                gathered, self._gathered = self._gathered, []
                # All tasks of an array are given the same resources.
                for wanted in dict.fromkeys(one.resources for one, *_ in gathered):
                    self._submit_array([entry for entry in gathered if entry[0].resources == wanted])
        try:
            return submitted.result(), job
        except Exception as error:  # submitit has several, and so has Slurm
            raise SequenceError(
                f"{job.title} could not be submitted to Slurm: {type(error).__name__}: {error}"
            ) from error

    def _submit_array(self, gathered: list[tuple[Work, RequeuedJob, Future[Any]]]) -> None:
        """Submit jobs that ask for the same resources; submitit makes an array of several."""
        wanted, title = gathered[0][0].resources, gathered[0][0].title
        name = title.replace("/", "-") + (f"+{len(gathered) - 1}" if len(gathered) > 1 else "")
        try:
            self._executor.update_parameters(
                name=name, nodes=1, tasks_per_node=1, cpus_per_task=wanted.cpus, gpus_per_node=wanted.gpus,
                **self._settings,
            )  # fmt: skip
            with self._executor.batch():
                tasks = [self._executor.submit(sent) for _, sent, _ in gathered]
            for (*_, submitted), task in zip(gathered, tasks, strict=True):
                submitted.set_result(task)
        except Exception as error:  # whatever it is, no thread may wait for a job that is not there
            for *_, submitted in gathered:
                submitted.set_exception(error)

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
            sleep(_LOOK_SECONDS)
        try:
            outcome = submitted.result()
        except Exception as error:  # submitit hands on whatever happened there
            raise SequenceError(
                f"{job.title} was lost on Slurm (job {submitted.job_id}): {type(error).__name__}: {error}. The "
                "same command goes on from here"
            ) from error
        return note_outcome(job, outcome)

    def cancel(self, handle: tuple[Any, Work]) -> None:
        """Take the job out of the queue, or end it; nothing where it has ended."""
        if not handle[0].done():
            handle[0].cancel()
