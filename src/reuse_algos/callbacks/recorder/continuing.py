"""Whether a checkpoint goes on with a run of the archive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks.recorder.spool import Spool
from reuse_algos.errors import RunNotFoundError
from reuse_algos.training.ranks import on_rank_zero

__all__ = ["goes_on"]


def goes_on(resume: Mapping[str, Any], run_name: str, archive: RunArchive, spool: Spool | None) -> bool:
    """Return whether the run of a loaded checkpoint is the one that this Trainer trains.

    It is where it has the same name and has not ended. A run that another one starts from stays as it is, and so does
    a run that has ended.

    Args:
        resume: What the recorder's ``state_dict`` gave to the checkpoint.
        run_name: Name of the run of this Trainer.
        archive: Where the recorder writes.
        spool: The spool, where the recorder has one: it fetches the run first.

    Raises:
        RunNotFoundError: The run has the same name and is not in the archive.
    """
    run_id = resume["run_id"]
    if resume.get("run_name", run_name) != run_name:
        return False
    if spool is not None:
        spool.fetch(run_id)

    def find() -> tuple[bool, bool]:
        try:
            run = archive.run(run_id)
        except RunNotFoundError as error:
            raise RunNotFoundError(
                f"the checkpoint goes on with run {run_id}, which is not in {archive.location}. Name the "
                "archive that it was recorded in, copy it from there (`reuse-algos copy`), or give another "
                "run_name to start a new run"
            ) from error
        return run.run_name == run_name, run.finished

    named, finished = on_rank_zero(find)
    if named and finished and spool is not None:
        spool.push(run_id, last=True)  # its process may have died before it came to that
    return named and not finished
