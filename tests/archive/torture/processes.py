"""Rows 10 and 11: many processes write, read and race in one archive."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

from reuse_algos.archive import RunArchive
from reuse_algos.errors import ArchiveConflictError

from ..small_runs import manifest_of, put_files, use_everything
from .outcome import Outcome, Tally

WRITERS, READERS, RACERS = 8, 2, 8


def start_process(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a forked process, which has everything imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking beside torch's idle threads; the children use none of them
        process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
        process.start()
    return process


def crowd(folder: Path, count: int | None = None, seed: int = 0, writers: int = WRITERS) -> Outcome:
    """Processes write runs of two generations at once, while others read them all.

    Args:
        folder: Where to work.
        count: Runs of each writer; 50 for None.
        seed: Not used: the processes are not in step anyway.
        writers: Processes that write.
    """
    del seed
    runs_each = 50 if count is None else count
    root, tally = folder / "archive", Tally()
    stop = multiprocessing.get_context("fork").Event()
    write = [start_process(_write_runs, root, runs_each, folder / f"writer-{index}") for index in range(writers)]
    read = [start_process(_read_runs, root, stop, folder / f"reader-{index}") for index in range(READERS)]
    for process in write:
        process.join()
    stop.set()
    for process in read:
        process.join()
    for index, process in enumerate(write):
        tally.check(process.exitcode == 0, f"writer {index} ended with {process.exitcode}")
    for index, process in enumerate(read):
        tally.check(process.exitcode == 0, f"reader {index} ended with {process.exitcode}")
        for line in (folder / f"reader-{index}").read_text().splitlines():
            kind, _, what = line.partition(" ")
            if kind == "reads":
                tally.notes["reads"] = int(tally.notes.get("reads", 0)) + int(what)
            elif kind == "back":
                tally.lose(what)
            else:
                tally.tear(what)
    archive = RunArchive(root, create=True)
    present = {run.id for run in archive.runs()}
    for index in range(writers):
        for run_id in (folder / f"writer-{index}").read_text().split():
            tally.tries += 1
            if run_id not in present:
                tally.lose(f"{run_id} is gone")
    if len(present) != tally.tries:
        tally.tear(f"{len(present)} runs are there, {tally.tries} were acknowledged")
    for problem in archive.verify().problems:
        tally.tear(str(problem))
    return tally.outcome()


def _write_runs(root: Path, runs: int, log: Path) -> None:
    archive = RunArchive(root, create=True)
    with log.open("w", buffering=1) as acknowledged:
        for _ in range(runs):
            writer = archive.start_run("busy")
            for epoch in range(2):
                writer.commit(manifest_of(put_files(writer, epoch=epoch), seed=epoch))
            writer.finish()
            print(writer.run_id, file=acknowledged)


def _read_runs(root: Path, stop: Event, log: Path) -> None:
    """Notes every error, every run of wrong content and every step back of a generation."""
    newest: dict[str, tuple[int, bool]] = {}
    reads = 0
    with log.open("w", buffering=1) as notes, warnings.catch_warnings():
        warnings.simplefilter("error")  # a run that is left out is an error, too
        archive, last = RunArchive(root), False
        while not last:
            last = stop.is_set()
            try:
                for run in archive.runs(unfinished=True):
                    state = (run.manifest.generation, run.finished)
                    if state < newest.get(run.id, (0, False)):
                        print(f"back {run.id} from {newest[run.id]} to {state}", file=notes)
                    if run.manifest.seed != run.manifest.generation - 1:
                        print(f"error {run.id} holds another generation's data", file=notes)
                    if state != newest.get(run.id):
                        use_everything(archive, run.id)
                        reads += 1
                    newest[run.id] = state
                if gone := newest.keys() - set(archive.run_ids()):
                    print(f"back {sorted(gone)} disappeared", file=notes)
            except Exception as error:
                print(f"error {error!r}", file=notes)
            time.sleep(0.01)
        print(f"reads {reads}", file=notes)


def race(folder: Path, count: int | None = None, seed: int = 0, racers: int = RACERS) -> Outcome:
    """Attempts that all want to write the same next generation; exactly one must win each.

    Args:
        folder: Where to work.
        count: Rounds; 200 for None.
        seed: Not used.
        racers: Processes.
    """
    del seed
    rounds, tally = 200 if count is None else count, Tally()
    archive = RunArchive(folder / "archive", create=True)
    gate = multiprocessing.get_context("fork").Barrier(racers)
    processes = [
        start_process(_commit_each, archive, rounds, gate, index, folder / f"racer-{index}") for index in range(racers)
    ]
    for process in processes:
        process.join()
        tally.check(process.exitcode == 0, f"a racer ended with {process.exitcode}")
    winners: dict[int, list[int]] = {generation: [] for generation in range(1, rounds + 1)}
    for index in range(racers):
        for line in (folder / f"racer-{index}").read_text().split():
            winners[int(line)].append(index)
    run = archive.run("race")
    for generation, won in winners.items():
        tally.tries += 1
        if len(won) > 1:
            tally.lose(f"{len(won)} attempts were told that generation {generation} is theirs")
        elif not won:
            tally.lose(f"nobody won generation {generation}")
        elif archive.open_run(run.id, generation).manifest.seed != won[0]:
            tally.tear(
                f"generation {generation} is of {archive.open_run(run.id, generation).manifest.seed}, {won[0]} won"
            )
    if run.manifest.generation != rounds:
        tally.lose(f"the newest generation is {run.manifest.generation} of {rounds}")
    tally.notes["different winners"] = len({won[0] for won in winners.values() if won})
    return tally.outcome()


def _commit_each(archive: RunArchive, rounds: int, gate: Barrier, index: int, log: Path) -> None:
    with log.open("w", buffering=1) as won:
        for generation in range(1, rounds + 1):
            writer = archive.join_run("race", 1)
            writer._generation = generation - 1  # as if all had resumed at the same moment
            gate.wait(60)
            try:
                writer.commit(manifest_of([], seed=index))
            except ArchiveConflictError:
                continue
            print(generation, file=won)
