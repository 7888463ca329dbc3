"""Jobs as tasks of a Ray cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from reuse_algos.errors import SequenceError
from reuse_algos.remote_job import Outcome, RemoteJob, do_job, meet_on_ray
from reuse_algos.sequence.launchers.base import Work, note_outcome

_END_SECONDS = 30.0  # for a worker that was told to end
_NEWS_SECONDS = 60.0  # in which Ray's health checks notice that a node is gone


@dataclass
class _Started:
    """The tasks of a job: one for each of its nodes.

    Attributes:
        job: The job.
        sent: What its tasks do.
        tasks: References to their outcomes, in order of the nodes.
        group: The placement group that holds the nodes of a job of several; else None.
        lost: How often tasks were lost with their node, and all of them were started again.
        failed_at: When the first process of these tasks was found to have failed; None before.
    """

    job: Work
    sent: RemoteJob
    tasks: list[Any] = field(default_factory=list)
    group: Any = None
    lost: int = 0
    failed_at: float | None = None


class RayLauncher:
    """Runs each job as a Ray task, or one task on each of its nodes, whose workers run the job's processes.

    A Trainer cannot run inside Ray's own workers, so a step is a process here as well. A task whose node dies is
    started again on another one, and goes on from the checkpoint where the step's folder is shared. Where a step has
    several nodes, all of its tasks are started again.

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
            if not ray.is_initialized():
                ray.init(address=place, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            # The first sentence only: the others name flags of Ray's own commands.
            raise SequenceError(
                f"no Ray cluster answers at {place}: {str(error).split('. ')[0]}. Start one (ray start --head), or set "
                "RAY_ADDRESS"
            ) from error

    def submit(self, job: Work) -> _Started:
        """Start the job's tasks.

        Raises:
            SequenceError: The cluster lacks what the step asks for, or its ranks cannot be shared out over its nodes.
        """
        started = _Started(job, job.remote())
        self._check_feasible(started)
        self._start(started)
        return started

    def wait(self, handle: _Started, timeout: float) -> int | None:
        """Return the exit status, or None if a task still runs after ``timeout`` seconds.

        The status is that of the first node, or of any node that failed.

        Raises:
            SequenceError: A task was lost too often, or its node cannot do it.
        """
        done, going = self._ray.wait(handle.tasks, num_returns=len(handle.tasks), timeout=timeout)
        lost = self._ray.exceptions
        try:
            outcomes: list[Outcome] = self._ray.get([task for task in handle.tasks if task in done])
        except lost.TaskCancelledError:
            return 143
        except (lost.RayTaskError, ImportError) as error:
            raise SequenceError(
                f"{handle.job.title} could not be started on a node: {_last_line(error)}. Every node needs "
                "this package, of this version: pip install reuse-algos there"
            ) from error
        except lost.RayError as error:
            if handle.lost >= self._retries:
                raise SequenceError(
                    f"{handle.job.title} was lost on Ray: {type(error).__name__}: {_last_line(error)}. A task "
                    f"whose node dies is started again {self._retries} times. The same command goes on from here"
                ) from error
            # All together: the ranks on the other nodes wait for those that are gone.
            handle.lost, handle.failed_at = handle.lost + 1, None
            self.cancel(handle)
            self._start(handle)
            return None
        failed = [outcome for outcome in outcomes if outcome.status != 0]
        if failed and handle.failed_at is None:
            handle.failed_at = monotonic()
        # The ranks of a node that died break the connections of the others, which fail before Ray tells of the node.
        if going and (handle.failed_at is None or monotonic() - handle.failed_at < _NEWS_SECONDS):
            return None
        if failed:
            return note_outcome(handle.job, Outcome(failed[0].status, "\n".join(one.log for one in failed)))
        return note_outcome(handle.job, outcomes[0])

    def cancel(self, handle: _Started) -> None:
        """Kill the tasks' workers, and through their pipes the job's processes; nothing where they have ended."""
        _, going = self._ray.wait(handle.tasks, num_returns=len(handle.tasks), timeout=0)
        for task in going:
            self._ray.cancel(task, force=True)
        if going:
            # Whoever takes the sequence over must not meet a process that still writes.
            self._ray.wait(going, num_returns=len(going), timeout=_END_SECONDS)
        if handle.group is not None:
            self._ray.util.remove_placement_group(handle.group)
            handle.group = None

    def _start(self, handle: _Started) -> None:
        """Start a task on each node of a job."""
        wanted, nodes = handle.job.resources, handle.sent.nodes
        # Ray's own retries would begin one node's task again, and never tell of it.
        options = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus, "name": handle.job.title, "max_retries": 0}
        task = self._ray.remote(do_job)
        if nodes == 1:
            handle.tasks = [task.options(**options).remote(handle.sent)]
            return
        bundle = {"CPU": wanted.cpus, "GPU": wanted.gpus} if wanted.gpus else {"CPU": wanted.cpus}
        handle.group = self._ray.util.placement_group([bundle] * nodes, strategy="STRICT_SPREAD")
        on = self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        places = [on(handle.group, number) for number in range(nodes)]
        meet = self._ray.remote(meet_on_ray).options(num_cpus=0, max_retries=0, scheduling_strategy=places[0])
        # A reference as argument: Ray starts the tasks once the first node has said where to meet.
        meeting = meet.remote()
        handle.tasks = [
            task.options(**options, scheduling_strategy=place).remote(handle.sent, number, meeting)
            for number, place in enumerate(places)
        ]

    def _check_feasible(self, started: _Started) -> None:
        wanted, count = started.job.resources, started.sent.nodes
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        fit = [node for node in nodes if node.get("CPU", 0) >= wanted.cpus and node.get("GPU", 0) >= wanted.gpus]
        if len(fit) >= count:
            return
        there = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        many = "no node has" if count == 1 else f"{len(fit)} of {count} nodes have"
        raise SequenceError(
            f"{started.job.title} asks for {wanted.cpus} CPUs and {wanted.gpus} GPUs, and {many} them (there are "
            f"{there}). Change its resources"
        )


def _last_line(error: BaseException) -> str:
    """Return the last line that says something: Ray puts the traceback of the worker before it."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
