"""Made-up runs at several budgets: as records, and as an archive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compare.synthetic_runs import write_run
from reuse_algos.archive import ModelRecord, PriorUse, RunArchive
from reuse_algos.compare import Outcome

FLOPS = 40_000_000
STEPS_PER_EPOCH = 20


def level(epochs: float) -> float:
    """Mean final metric of plain training at a budget."""
    return 0.75 - 0.9 * epochs**-0.5


def records(group: str, budgets: Sequence[int], speed: float = 1.0, seeds: Sequence[int] = (0, 1, 2), **fields: Any):
    """Runs of a group that is ``speed`` times as quick as plain training, at 2 seconds per epoch.

    The mean of each budget is exact, its spread is about 0.002.
    """
    rng = np.random.default_rng([int(100 * speed), len(seeds)])
    noise = 0.002 * rng.standard_normal((len(budgets), len(seeds)))
    noise -= noise.mean(axis=1, keepdims=True)
    return [
        Outcome(
            group=group,
            seed=seed,
            budget=f"{epochs}ep",
            steps=epochs * STEPS_PER_EPOCH,
            samples=epochs * STEPS_PER_EPOCH * 32,
            final=level(speed * epochs) + float(noise[number, place]),
            train_seconds=2.0 * epochs,
            run_id=f"{group}-{epochs}-{seed}",
            **fields,
        )
        for number, epochs in enumerate(budgets)
        for place, seed in enumerate(seeds)
    ]


def study(archive: RunArchive, seeds: Sequence[int] = (0, 1, 2)) -> list[str]:
    """A baseline, a technique 2.5 times as quick in steps with a harvest, and its control; returns the prior runs."""
    rng = np.random.default_rng(0)

    def add(method: str, seed: int, epochs: int, speed: float, **fields: Any) -> str:
        final = level(speed * epochs) + rng.normal(0.0, 0.003)
        return write_run(
            archive,
            method,
            seed,
            [final / 2, final],
            every=epochs * STEPS_PER_EPOCH // 2,
            seconds_per_step=0.1 * rng.lognormal(0.0, 0.03),
            recipe={"max_duration": f"{epochs}ep"},
            model=ModelRecord(name="resnet20", flops_per_example=FLOPS),
            **fields,
        )

    prior = [add("baseline", seed, 80, 1.0) for seed in seeds]
    use = PriorUse(run_id=prior[0], algorithm="prior_run_distillation", harvest_seconds=20.0)
    for epochs in (10, 20, 40):
        for seed in seeds:
            add("baseline", seed, epochs, 1.0)
    for epochs in (5, 10, 20, 40):
        for seed in seeds:
            add("distilled", seed, epochs, 2.5, prior_runs=[use], setup_seconds=1.0)
            add("a smooth teacher", seed, epochs, 1.0, prior_runs=[use], tags={"control_of": "distilled"})
    return prior
