"""Jobs as tasks of a Ray cluster."""

from __future__ import annotations

import os
import threading
from typing import Any

from reuse_algos.errors import SequenceError
from reuse_algos.sequence.launchers.base import Job
from reuse_algos.sequence.launchers.remote import Outcome, RemoteJob, one_node, remote_job


class RayLauncher:
    """Runs each job as a Ray task, whose worker runs the job's process.

    A task whose node dies is started again on another one, and goes on from the checkpoint where the step's folder is
    shared.

    Args:
        address: Of the cluster, such as ``ray://head:10001`` or ``auto``. Default: None, ``RAY_ADDRESS`` or ``auto``.
        retries: How often a task whose node or worker died is started again. Default: 3.

    Raises:
        SequenceError: Ray is not installed, or no cluster is running.
    """

    local = False

    def __init__(self, address: str | None = None, retries: int = 3) -> None:
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise SequenceError("--launcher ray needs Ray: pip install 'reuse-algos[ray]'") from error
        self._ray: Any = ray
        self._retries = retries
        place = address or os.environ.get("RAY_ADDRESS", "auto")
        try:
            # The caller's own program may have connected to the cluster already.
            if not ray.is_initialized():
                ray.init(address=place, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise SequenceError(
                f"no Ray cluster answers at {place}: {error}. Start one (ray start --head), or set RAY_ADDRESS"
            ) from error
        self._lock = threading.Lock()

    def submit(self, job: Job) -> tuple[Any, Job]:
        """Start the job's task.

        Raises:
            SequenceError: No node can ever have what the step asks for.
        """
        one_node(job)
        wanted = job.step.recipe.settings.resources
        # A task that no node can hold would wait without end.
        self._check_feasible(job)
        task = self._ray.remote(_call).options(
            num_cpus=wanted.cpus, num_gpus=wanted.gpus, max_retries=self._retries, name=job.step.title
        )
        return task.remote(remote_job(job)), job

    def wait(self, handle: tuple[Any, Job], timeout: float) -> int | None:
        """Return the exit status, or None if the task still runs after ``timeout`` seconds.

        Raises:
            SequenceError: The task was lost, or its node cannot do it.
        """
        reference, job = handle
        done, _ = self._ray.wait([reference], timeout=timeout)
        if not done:
            return None
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.TaskCancelledError:
            # As of a process that a signal has terminated.
            return 143
        except (self._ray.exceptions.RayError, ImportError) as error:
            raise SequenceError(
                f"{job.step.title} was lost on Ray: {type(error).__name__}: {error}. Nodes need this package, and a "
                "task whose node dies is started again only so often. The same command goes on from here"
            ) from error
        # Several threads may append to the log of one step.
        with self._lock, job.log.open("a") as log:
            log.write(outcome.log)
        if outcome.status is None:
            raise SequenceError(outcome.log)
        return outcome.status

    def cancel(self, handle: tuple[Any, Job]) -> None:
        """Kill the task's worker, and through its pipe the job's process; nothing where it has ended."""
        done, _ = self._ray.wait([handle[0]], timeout=0)
        if not done:
            self._ray.cancel(handle[0], force=True)

    def _check_feasible(self, job: Job) -> None:
        wanted = job.step.recipe.settings.resources
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= wanted.cpus and node.get("GPU", 0) >= wanted.gpus for node in nodes):
            there = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise SequenceError(
                f"{job.step.title} asks for {wanted.cpus} CPUs and {wanted.gpus} GPUs, and no node has them (there are "
                f"{there}). Change its resources"
            )


def _call(job: RemoteJob) -> Outcome:
    # A Trainer cannot run inside Ray's own workers, so this starts a process for it.
    return job()
