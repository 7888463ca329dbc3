"""Archives of made-up runs, written with the real writer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reuse_algos.archive import (
    CostRecord,
    Manifest,
    MetricHistory,
    PriorUse,
    Progress,
    RunArchive,
    history_tensors,
)

METRIC = "metrics/eval/MulticlassAccuracy"


def history(
    values: Sequence[float], *, every: int = 100, seconds_per_step: float = 0.1, batch: int = 32
) -> MetricHistory:
    """One evaluation every ``every`` steps."""
    steps = every * np.arange(1, len(values) + 1)
    return MetricHistory(
        step=steps,
        sample=steps * batch,
        epoch=np.arange(1, len(values) + 1),
        train_seconds=steps * seconds_per_step,
        eval_seconds=np.zeros(len(values)),
        value=np.asarray(values, dtype=np.float64),
    )


def write_run(
    archive: RunArchive,
    method: str | None,
    seed: int | None,
    values: Sequence[float],
    *,
    every: int = 100,
    seconds_per_step: float = 0.1,
    batch: int = 32,
    setup_seconds: float = 0.0,
    extra_flops: float | None = 0.0,
    trained_on: int = 0,
    prior_runs: Sequence[PriorUse] = (),
    metric: str = METRIC,
    monitor: str | None = METRIC,
    mode: Any = "max",
    finish: bool = True,
    tags: dict[str, str] | None = None,
    put: Sequence[tuple[Any, ...]] = (),
    **fields: Any,
) -> str:
    """Write one run and return its id.

    Its FLOPs are three forward passes of ``model`` per example and ``extra_flops``, unknown where one of them is.
    It was ``trained_on`` for so many examples behind its last value. ``put`` are the arguments of further
    ``RunWriter.put`` calls, further keywords are fields of the manifest.
    """
    writer = archive.start_run(f"{method}-{seed}")
    recorded = history(values, every=every, seconds_per_step=seconds_per_step, batch=batch)
    entry = writer.put("metrics", "history", history_tensors({metric: recorded}))
    each, examples = getattr(fields.get("model"), "flops_per_example", None), every * len(values) * batch
    writer.commit(
        Manifest(
            tags={**({} if method is None else {"method": method}), **(tags or {})},
            seed=seed,
            monitor=monitor,
            monitor_mode=mode,
            progress=Progress(epoch=len(values), batch=every * len(values), sample=examples + trained_on),
            cost=CostRecord(
                train_seconds=float(recorded.train_seconds[-1]) if len(values) else 0.0,
                setup_seconds=setup_seconds,
                train_flops=None if each is None or extra_flops is None else 3.0 * each * examples + extra_flops,
            ),
            prior_runs=list(prior_runs),
            files=[entry, *(writer.put(*arguments) for arguments in put)],
            **fields,
        )
    )
    if finish:
        writer.finish()
    return writer.run_id


def noisy(
    rng: np.random.Generator, mean: Sequence[float], *, seed_sd: float = 0.004, step_sd: float = 0.002
) -> np.ndarray:
    """A run around a mean curve: one offset for the whole run, and noise at each evaluation."""
    return np.asarray(mean) + rng.normal(0.0, seed_sd) + rng.normal(0.0, step_sd, len(mean))
