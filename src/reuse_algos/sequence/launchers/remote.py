"""What became of a job on another machine."""

from __future__ import annotations

from reuse_algos.errors import SequenceError
from reuse_algos.remote_job import Outcome
from reuse_algos.sequence.launchers.base import Work


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
