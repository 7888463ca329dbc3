"""What the launchers of other machines share: the job as it travels, and what became of it."""

from __future__ import annotations

from pathlib import Path

from reuse_algos.archive import RunArchive
from reuse_algos.errors import SequenceError
from reuse_algos.remote_job import Outcome, RemoteJob
from reuse_algos.sequence.launchers.base import Job
from reuse_algos.sequence.progress import RECIPE


def remote_job(job: Job) -> RemoteJob:
    """Return what another machine needs to do a job.

    Raises:
        SequenceError: The step's ranks cannot be shared out evenly over its nodes.
    """
    settings = job.step.recipe.settings
    archive = settings.archive
    assert archive is not None  # the sequence sets it
    nodes = settings.resources.nodes if job.harvest is None else 1
    if job.ranks % nodes:
        raise SequenceError(
            f"{job.step.title} asks for {nodes} nodes, and the sequence has ranks: {job.ranks}, which these nodes "
            f"cannot share evenly. Set ranks to a multiple of {nodes}, the processes on all nodes together"
        )
    recipe = job.step.folder / RECIPE
    return RemoteJob(
        title=job.step.title,
        arguments=tuple(job.arguments(RunArchive(archive, read_only=True).archive_id)),
        folder=str(Path.cwd()),
        recipe=str(recipe),
        text=recipe.read_text(),
        ranks=job.ranks,
        nodes=nodes,
    )


def note_outcome(job: Job, outcome: Outcome) -> int:
    """Append the output of a job to its log, and return its exit status.

    Raises:
        SequenceError: The job was not started.
    """
    with job.log.open("a") as log:
        log.write(outcome.log)
    if outcome.status is None:
        raise SequenceError(outcome.log)
    return outcome.status
