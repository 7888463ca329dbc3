"""Sequences of small runs, trained in this process, that several tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from compare.synthetic_runs import write_run
from reuse_algos import train
from reuse_algos.archive import RunArchive
from reuse_algos.sequence import (
    Job,
    LocalLauncher,
    Plan,
    PlannedStep,
    StepState,
    load_sequence,
    look_up_states,
    plan_sequence,
)
from reuse_algos.sequence.planning.harvests import Harvest
from reuse_algos.sequence.progress import RECIPE
from reuse_algos.sequence.running.job import harvest_run

QUERY = {"tags": {"sequence": "${name}", "arm": "reuse"}, "order": "first"}
REUSE = {
    "first": {},
    "overrides": {
        "max_duration": "1ep",
        "algorithms": {
            "prior_run_distillation": {"runs": QUERY, "source": "cached", "loss": {"name": "mse", "weight": 0.5}}
        },
    },
}


def sequence(here: Path, **keys: Any) -> Path:
    """A sequence file over the digits: two arms of two seeds, 60 images, two epochs."""
    values = {
        "name": "tiny",
        "archive": str(here / "archive"),
        "folder": str(here / "work"),
        "recipe": "digits/baseline",
        "overrides": {"max_duration": "2ep", "data.train_examples": 60, "scheduler": None, "device": "cpu"},
        "grid": {"seed": [1, 2]},
        "arms": {"without": {}, "reuse": REUSE},
        **keys,
    }
    path = here / "sequence.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def planned(here: Path, *overrides: str, **keys: Any) -> Plan:
    return plan_sequence(load_sequence(sequence(here, **keys), overrides))


def in_process(step: PlannedStep, ranks: int) -> int:
    """Trains a step as its own process would."""
    del ranks
    return train.main([str(step.folder / RECIPE)])


def harvest_here(step: PlannedStep, run_id: str, asked: Harvest) -> int:
    """Harvests as a process of its own would."""
    harvest_run(step.folder / RECIPE, run_id, asked.signal, asked.config)
    return 0


class Clock:
    """The clock by which sequences end, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("reuse_algos.sequence.running.halt.monotonic", lambda: self.now)


class Here:
    """A launcher that calls a function for each job, in this process, as soon as it is submitted.

    Args:
        runner: trains: (step, ranks) -> exit status.
        harvester: harvests: (step, run id, what) -> exit status.
    """

    local = True

    def __init__(self, runner: Callable[..., int] = in_process, harvester: Callable[..., int] = harvest_here) -> None:
        self.runner, self.harvester = runner, harvester

    def submit(self, job: Job) -> int:
        if job.harvest is not None:
            return self.harvester(job.step, job.run_id, job.harvest)
        return self.runner(job.step, job.ranks)

    def wait(self, handle: int, timeout: float) -> int:
        return handle

    def cancel(self, handle: int) -> None:
        pass


class Mixed:
    """A launcher that gives some jobs processes of their own, and calls functions for the others.

    Args:
        apart: which jobs have a process.
        here: runs the others.
    """

    local = True

    def __init__(self, apart: Callable[[Job], bool], here: Here | None = None) -> None:
        self.apart, self.here = apart, here or Here()

    def submit(self, job: Job) -> Any:
        one: Any = LocalLauncher() if self.apart(job) else self.here
        return one, one.submit(job)

    def wait(self, handle: Any, timeout: float) -> int | None:
        return handle[0].wait(handle[1], timeout)

    def cancel(self, handle: Any) -> None:
        handle[0].cancel(handle[1])


def made_up(plan: Plan, values: dict[str, dict[str, list[float]]], **fields: Any) -> tuple[RunArchive, list[StepState]]:
    """An archive in which every step of the plan has a made-up run: arm -> step -> metric at each evaluation.

    A run has 100 steps, 3200 examples and 10 s per evaluation.
    """
    archive = RunArchive(plan.config.archive, create=True)
    for step in plan.steps:
        settings = fields.get(step.title, {})
        write_run(
            archive,
            None,
            step.recipe.settings.seed,
            values[step.arm][step.name],
            tags=step.tags,
            recipe=step.recipe.record,
            **settings,
        )
    return archive, look_up_states(plan, archive)
