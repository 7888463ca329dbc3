"""Rows 16 and 17: ranks that fail while they record, and trainings that are killed and resumed."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.harvest import harvest
from toy import mlp, record_run, viewed

from .outcome import Outcome, Tally
from .training import BATCHES_PER_EPOCH, EPOCHS, ask

SECONDS = 60.0
TIMED = "reuse/distillation/teacher_seconds"


def failing_ranks(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """One of two or three ranks gets no more space, or is killed, at some point of its recording.

    Args:
        folder: Where to work.
        count: How many times; 12 for None.
        seed: Of the places.
    """
    draw, tries = random.Random(seed), []
    for number in range(12 if count is None else count):
        ranks = 2 + number % 3 // 2
        tries.append(
            {
                "folder": str(folder / f"try-{number}"),
                "ranks": ranks,
                "failing": (number // 2 + 1) % ranks,
                "way": ("kill", "full disk")[number % 2],
                "batch": draw.choice((BATCHES_PER_EPOCH, 2 * BATCHES_PER_EPOCH)),  # just before signals are written
                "operation": draw.randrange(15),
                "seconds": SECONDS,
            }
        )
    tally = Tally()
    for one, result in zip(tries, ask({"mode": "ranks", "tries": tries})["results"], strict=True):
        tally.tries += 1
        what = f"{one}: {result}"
        tally.most("most seconds", result["seconds"])
        tally.check(not result["hanging"], f"ranks hang in {what}")
        for rank, (status, error) in enumerate(zip(result["statuses"], result["errors"], strict=True)):
            if rank == one["failing"] and one["way"] == "kill":
                tally.check(status == -signal.SIGKILL, f"rank {rank} was not killed in {what}")
            else:
                tally.check(bool(error and error["error"]), f"rank {rank} raised nothing in {what}")
            if one["way"] == "full disk":
                named = error is not None and error["error"] == "ArchiveError" and "free some space" in error["message"]
                tally.check(named, f"rank {rank} was not told why in {what}")
        archive = RunArchive(Path(one["folder"]) / "archive", create=True)
        if archive.run_ids() or list(archive.root.glob("runs/*/manifests/*.json")):
            tally.tear(f"something was committed in {what}")
        for problem in archive.verify().problems:
            tally.tear(f"{problem} in {what}")
    return tally.outcome()


def resumed(folder: Path, count: int | None = None, seed: int = 0, kills: int = 10) -> Outcome:
    """A training that is killed at random places and resumed, ``kills`` times, compared with one that never stopped.

    Half of the kills are at the end of a random batch, half at a random change of the disk soon after one.

    Args:
        folder: Where to work.
        count: How many such trainings; 5 for None.
        seed: Of the places.
        kills: How often each one is killed.
    """
    draw, tries = random.Random(seed), []
    for number in range(5 if count is None else count):
        place = folder / f"try-{number}"
        place.mkdir(parents=True)
        if number:
            (place / "prior").symlink_to(folder / "try-0" / "prior")
        else:
            for teacher in (1, 2):
                run_id = record_run(place / "prior", seed=teacher)
                harvest(place / "prior", run_id, dataset=viewed(), model=mlp, progress=False)
        batches = sorted(draw.sample(range(1, EPOCHS * BATCHES_PER_EPOCH), kills))
        places = [(batch, None if draw.random() < 0.5 else draw.randrange(20)) for batch in batches]
        tries.append({"folder": str(place), "kills": places})
    results = ask({"mode": "kills", "tries": tries})["results"]
    tally = Tally()
    (straight,) = RunArchive(folder / "try-0" / "straight" / "archive").runs()
    killed = 0
    for one, result in zip(tries, results, strict=True):
        tally.tries += 1
        what = f"{one['kills']}, {result['statuses']}"
        killed += sum(status == -signal.SIGKILL for status in result["statuses"])
        if result["failure"]:
            tally.lose(f"the training could not be resumed: {what}: {result['failure']}")
            continue
        archive = RunArchive(Path(one["folder"]) / "broken" / "archive", create=True)
        runs = archive.runs()
        if len(runs) != 1:
            tally.lose(f"{len(runs)} finished runs: {what}")
            continue
        for difference in differences(straight, runs[0]):
            tally.tear(f"{difference} differs: {what}")
        for problem in archive.verify().problems:
            tally.tear(f"{problem}: {what}")
    tally.notes["kills"] = killed
    return tally.outcome()


def differences(one: PriorRun, other: PriorRun) -> list[str]:
    """Which weights, signals and metrics of two runs are not bit-equal; times aside."""
    found = []
    if one.weight_names != other.weight_names or one.signal_names != other.signal_names:
        found.append(f"the list of files {other.weight_names} {other.signal_names}")
    if one.metric_names != other.metric_names:
        found.append(f"the list of metrics {other.metric_names}")
    for name in set(one.weight_names) & set(other.weight_names):
        theirs = other.weights(name)
        found += [f"{name} {key}" for key, value in one.weights(name).items() if not torch.equal(value, theirs[key])]
    for name in set(one.signal_names) & set(other.signal_names):
        mine, its = one.signal(name), other.signal(name)
        if mine.slots != its.slots:
            found.append(f"the slots of {name}")
            continue
        pairs = [(a, b) for slot in mine.slots for a, b in zip(mine.dense(slot), its.dense(slot), strict=True)]
        found += [f"signal {name}" for a, b in pairs if not torch.equal(a, b)]
    for name in set(one.metric_names) & set(other.metric_names):
        columns = ("step", "sample", "epoch") if name == TIMED else ("step", "sample", "epoch", "value")
        histories: list[Any] = [one.metric(name), other.metric(name)]
        if not all(np.array_equal(*(getattr(history, column) for history in histories)) for column in columns):
            found.append(f"metric {name}")
    return found
