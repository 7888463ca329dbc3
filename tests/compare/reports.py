"""What the tests of the HTML report show: two comparisons with everything in them that a report must survive."""

from __future__ import annotations

import dataclasses
import math
from typing import Any
from unittest import mock

import numpy as np

from compare.asking import compare_runs, outcomes_of, select_outcomes
from compare.synthetic_runs import METRIC, noisy, write_run
from reuse_algos.archive import DatasetRecord, EnvironmentRecord, Manifest, ModelRecord, PriorUse, RunArchive
from reuse_algos.compare import Comparison, Costs, Outcome, Outcomes, Question, compare

HOSTILE = "</script><script>document.title='owned'</script><!--\"'`&\u202eevil\u2028 ünï 名前"
X = np.arange(1, 21) / 20


def environment() -> dict[str, Any]:
    return {
        "environment": EnvironmentRecord(
            versions={"torch": "2.7.0", "mosaicml": "0.32.1"},
            hardware={"name": "A100", "cores": 8},
            git_commit="0123456789abcdef",
        ),
        "model": ModelRecord(name="resnet20", num_parameters=272474, flops_per_example=40_000_000),
        "dataset": DatasetRecord(name="digits", num_examples=1437, fingerprint="f" * 16),
    }


def recipe(method: str) -> dict[str, Any]:
    return {"max_duration": "20ep", "optimizer": {"name": "sgd", "lr": 0.1}, "note": f"{method} </script> & <b>"}


def plain(archive: RunArchive) -> tuple[Comparison, Outcomes]:
    """A baseline, a faster technique with a control, a diverged one, one that stops short, and a hostile name."""
    rng = np.random.default_rng(0)

    def add(method: str, seed: int, values: Any, **fields: Any) -> str:
        return write_run(archive, method, seed, values, recipe=recipe(method), **(environment() | fields))

    prior = [add("baseline", seed, noisy(rng, 0.9 * (1 - np.exp(-3 * X)))) for seed in range(3)]
    use = PriorUse(
        run_id=prior[0], algorithm="prior_run_distillation", signals=["logits"], weights=["last"], harvest_seconds=12.0
    )
    for seed in range(3):
        add("distilled", seed, noisy(rng, 0.94 * (1 - np.exp(-5 * X))), prior_runs=[use], setup_seconds=2.0)
        add("smoothed", seed, noisy(rng, 0.9 * (1 - np.exp(-3.1 * X))), tags={"control_of": "distilled"})
        bad = seed == 0
        values = [*noisy(rng, 0.8 * (1 - np.exp(-3 * X[:-1]))), math.nan if bad else 0.8]
        add("pruned", seed, values, health="diverged" if bad else "ok")
        add("warm start", seed, noisy(rng, 0.9 * (1 - np.exp(-3 * X[:10])) + 0.05), prior_runs=[use])
    # A writer refuses such names and tags; a record of somebody else may have them.
    allowed = [
        mock.patch(f"reuse_algos.archive.{module}.check_labels") for module in ("run_archive", "format.manifest")
    ]
    with allowed[0], allowed[1]:
        hostile = archive.start_run(HOSTILE[:40])  # an unfinished run is named in the notes
        hostile.commit(Manifest(tags={"method": HOSTILE}))
        write_run(archive, HOSTILE, 0, noisy(rng, 0.9 * (1 - np.exp(-3 * X))))
    selection = select_outcomes(archive)
    return compare_runs(archive, selection=selection), selection


def budgets() -> tuple[Comparison, Outcomes]:
    """A baseline, a technique twice as fast with its control, and one that never gets there; four budgets, 3 seeds."""
    rng = np.random.default_rng(0)
    runs = []
    manifests = {}
    speeds = {"baseline": 1.0, "distilled": 2.2, "untrained teacher": 0.95, HOSTILE: 1.1}
    for method, speed in speeds.items():
        for epochs in (5, 10, 20, 40) if method != HOSTILE else (5, 10):
            for seed in range(3):
                value = 0.8 - 0.6 * (speed * epochs) ** -0.6 + rng.normal(0, 0.004)
                if method == HOSTILE and epochs == 5 and seed == 0:
                    value = math.nan
                distilled = method == "distilled"
                run = Outcome(
                    group=method,
                    seed=seed,
                    budget=f"{epochs}ep",
                    steps=100 * epochs,
                    samples=3200 * epochs,
                    final=value,
                    train_seconds=10.0 * epochs * (1.1 if distilled else 1.0) * rng.lognormal(0, 0.02),
                    setup_seconds=2.0 if distilled else 0.0,
                    harvest_seconds=15.0 if distilled else 0.0,
                    flops=3.0 * 4e7 * 3200 * epochs,
                    prior_run_ids=("prior-0",) if distilled else (),
                    run_id=f"run-{len(runs)}",
                    control_of="distilled" if method == "untrained teacher" else None,
                )
                runs.append(run)
                if method == "distilled":
                    use = PriorUse(run_id="prior-0", algorithm="prior_run_distillation", harvest_seconds=15.0)
                    manifests[run.run_id] = Manifest(
                        run_id=run.run_id, seed=seed, recipe=recipe(method), prior_runs=[use], **environment()
                    )
    runs = [dataclasses.replace(run, manifest=manifests.get(run.run_id)) for run in runs]
    about = {"metric": METRIC, "mode": "max", "group_by": "tags.method", "archive": f"study {HOSTILE}.jsonl"}
    outcomes = outcomes_of(runs, {**about, "prior_seconds": {"prior-0": 420.0}})
    return compare(outcomes, Question(over="budgets", costs=Costs(price_per_hour=2.5))), outcomes
