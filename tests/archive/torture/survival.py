"""A run of three generations to be interrupted, and what must hold of an archive after any crash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from reuse_algos.archive import RunArchive
from reuse_algos.archive.stores import local

from ..small_runs import MONITOR, manifest_of, put_files, use_everything
from ..traced_os import TracedOS
from .outcome import Tally

GENERATIONS = 3
Commit = tuple[str, int]
"""Id of a run and its acknowledged generation; one more than the last is the mark that the run has ended."""


@contextmanager
def traced(before: Callable[[int, str], None] = lambda index, kind: None) -> Iterator[TracedOS]:
    """Put a traced ``os`` in the local store's place for it, in this process."""
    real, mine = local.os, TracedOS(before)
    cast(Any, local).os = mine
    try:
        yield mine
    finally:
        cast(Any, local).os = real


def write_run(root: Path, acknowledge: Callable[[str, int], None]) -> None:
    """Commit a run of three generations, reporting each commit once it has returned."""
    archive = RunArchive(root, create=True)
    writer = archive.start_run("toy")
    for epoch in range(GENERATIONS):
        files = put_files(writer, values=[0.1 * (epoch + 1)] * (epoch + 1), epoch=epoch)
        acknowledge(writer.run_id, writer.commit(manifest_of(files, seed=epoch)).generation)
    writer.finish()
    acknowledge(writer.run_id, GENERATIONS + 1)


def count_operations(root: Path) -> int:
    """Changes of the disk in the whole of :func:`write_run`."""
    with traced() as operations:
        write_run(root, lambda *_: None)
    return operations.count


def check_survivors(root: Path, acknowledged: list[Commit], tally: Tally, when: str) -> None:
    """Count what a crash broke: all that was acknowledged must be there and sound, and nothing half there."""
    with traced():  # not to wait for the disk
        try:
            archive = RunArchive(root, create=True)
            problems = archive.verify().problems
            run_ids = archive.run_ids()
        except Exception as error:
            tally.lose(f"{when}: the archive cannot be opened: {error!r}")
            return
        for problem in problems:
            tally.tear(f"{when}: {problem}")
        for run_id in run_ids:
            try:
                _check_run(archive, run_id, tally, when)
            except Exception as error:
                tally.tear(f"{when}: {run_id}: {error!r}")
        if acknowledged:
            try:
                _check_acknowledged(archive, run_ids, *acknowledged[-1], tally, when)
            except Exception as error:
                tally.lose(f"{when}: {acknowledged[-1]}: {error!r}")
        try:
            writer = archive.start_run("next")  # and the archive can be used
            writer.commit(manifest_of(put_files(writer)))
            use_everything(archive, writer.run_id)
        except Exception as error:
            tally.lose(f"{when}: no new run can be written: {error!r}")


def _check_run(archive: RunArchive, run_id: str, tally: Tally, when: str) -> None:
    use_everything(archive, run_id)
    run = archive.run(run_id)
    generation = run.manifest.generation
    if run.manifest.seed != generation - 1 or len(run.metric(MONITOR).value) != generation:
        tally.tear(f"{when}: generation {generation} of {run_id} holds another one's data")


def _check_acknowledged(
    archive: RunArchive, run_ids: list[str], run_id: str, generation: int, tally: Tally, when: str
) -> None:
    if run_id not in run_ids:
        tally.lose(f"{when}: {run_id} is not listed")
    run = archive.run(run_id)
    if run.manifest.generation < min(generation, GENERATIONS):
        tally.lose(f"{when}: generation {generation} is gone")
    if generation > GENERATIONS and not run.finished:
        tally.lose(f"{when}: that the run ended is gone")
