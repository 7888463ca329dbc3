"""Sequences of small runs, trained in this process, that several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from compare.synthetic_runs import write_run
from reuse_algos import train
from reuse_algos.archive import RunArchive
from reuse_algos.sequence import Plan, PlannedStep, StepState, load_sequence, look_up_states, plan_sequence
from reuse_algos.sequence.progress import RECIPE

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


def in_process(step: PlannedStep, ranks: int, lock: int, **options: Any) -> int:
    """Trains a step as its own process would."""
    del ranks, lock, options
    return train.main([str(step.folder / RECIPE)])


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
