"""What is asked of whatever runs jobs, and the job of a sequence's step."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from reuse_algos.archive import RunArchive
from reuse_algos.errors import SequenceError
from reuse_algos.recipe.building.resources import Resources
from reuse_algos.remote_job import Outcome, RemoteJob, launch_arguments
from reuse_algos.sequence.planning.harvests import Harvest
from reuse_algos.sequence.planning.plan import PlannedStep
from reuse_algos.sequence.progress import LOG, RECIPE
from reuse_algos.sequence.running.lease import LeaseKey


class Work(Protocol):
    """What a launcher runs: a process on this machine, or its like on others."""

    @property
    def title(self) -> str:
        """A name for messages."""
        ...

    @property
    def log(self) -> Path:
        """The file to which the output is appended."""
        ...

    @property
    def resources(self) -> Resources:
        """What a cluster sets aside for it."""
        ...

    @property
    def command(self) -> list[str]:
        """What does the work on this machine."""
        ...

    def remote(self) -> RemoteJob:
        """Return what another machine needs to do it."""
        ...


@dataclass(frozen=True)
class Job:
    """One piece of work of a sequence: train a step, or harvest one signal of its run.

    Attributes:
        step: The step. Its recipe is in its folder.
        ranks: Processes that train together.
        lease: The sequence's lease. The job ends itself once it is not held any more.
        run_id: The run to harvest; None trains the step.
        harvest: What to harvest; None trains the step.
    """

    step: PlannedStep
    ranks: int
    lease: LeaseKey
    run_id: str | None = None
    harvest: Harvest | None = None

    @property
    def title(self) -> str:
        """Arm and name of the step."""
        return self.step.title

    @property
    def resources(self) -> Resources:
        """What the step's recipe asks for."""
        return self.step.recipe.settings.resources

    @property
    def log(self) -> Path:
        """The file to which the job's output is appended."""
        return self.step.folder / LOG

    @property
    def command(self) -> list[str]:
        """The command that does the work on this machine, with this interpreter."""
        return [sys.executable, *launch_arguments(self.ranks), *self.arguments()]

    def arguments(self, archive_id: str | None = None) -> list[str]:
        """Return the interpreter's arguments for one rank.

        Args:
            archive_id: What the archive's identity has to be where the job runs. Default: None, it is not checked.
        """
        asked: dict[str, Any] = {"lease": dataclasses.asdict(self.lease), "recipe": str(self.step.folder / RECIPE)}
        if self.harvest is not None:
            asked |= {
                "run_id": self.run_id,
                "signal": self.harvest.signal,
                "config": dataclasses.asdict(self.harvest.config),
            }
        if archive_id is not None:
            asked["archive_id"] = archive_id
        return ["-m", "reuse_algos.sequence.running.job", json.dumps(asked)]

    def remote(self) -> RemoteJob:
        """Return what another machine needs to do the job.

        Raises:
            SequenceError: The step's ranks cannot be shared out evenly over its nodes.
        """
        archive = self.step.recipe.settings.archive
        assert archive is not None  # the sequence sets it
        nodes = self.resources.nodes if self.harvest is None else 1
        if self.ranks % nodes:
            raise SequenceError(
                f"{self.title} asks for {nodes} nodes, and the sequence has ranks: {self.ranks}, which these nodes "
                f"cannot share evenly. Set ranks to a multiple of {nodes}, the processes on all nodes together"
            )
        recipe = self.step.folder / RECIPE
        return RemoteJob(
            title=self.title,
            arguments=tuple(self.arguments(RunArchive(archive, read_only=True).archive_id)),
            folder=str(Path.cwd()),
            files={str(recipe): recipe.read_text()},
            ranks=self.ranks,
            nodes=nodes,
        )


class Launcher(Protocol):
    """Runs jobs. Its methods are called from several threads at once.

    Attributes:
        local: Whether every job ends with the process that submitted it, even where that one is killed. Where this
            is False, a sequence that was killed can be taken over only once its lease has run out.
    """

    local: bool

    def submit(self, job: Work) -> Any:
        """Start a job and return its handle."""
        ...

    def wait(self, handle: Any, timeout: float) -> int | None:
        """Return the job's exit status, or None if it still runs after ``timeout`` seconds."""
        ...

    def cancel(self, handle: Any) -> None:
        """End a job at once. Do nothing where it has ended."""
        ...


def note_outcome(job: Work, outcome: Outcome) -> int:
    """Append the output of a job to its log, and return its exit status.

    Raises:
        SequenceError: The job was not started.
    """
    with job.log.open("a") as log:
        log.write(outcome.log)
    if outcome.status is None:
        raise SequenceError(outcome.log)
    return outcome.status
