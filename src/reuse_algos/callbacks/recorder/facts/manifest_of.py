"""The manifest of a run under way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from composer import State

from reuse_algos.algorithms.base import ReusingAlgorithm, snake_case
from reuse_algos.archive import CostRecord, DatasetRecord, FileEntry, Manifest, ModelRecord, Progress, TaskRecord
from reuse_algos.archive.format.records import MAX_TEXT
from reuse_algos.callbacks.recorder.facts.provenance import environment, model_record
from reuse_algos.callbacks.recorder.metric_log import MetricLog
from reuse_algos.training.flops import training_flops


@dataclass(frozen=True)
class RunFacts:
    """What the recorder knows of its run and Composer's state does not.

    Attributes:
        run_name: Name of the run.
        tags: Labels of the run.
        recipe: The settings that made the run, or None.
        dataset: The training data, or None where nothing is known of them.
        task: The kind of problem, or None where it is not known.
        model: The model, or None before the first batch.
        log: The metrics so far.
        monitor: Name of the metric that orders runs, or None.
        monitor_mode: ``max`` or ``min``.
        overhead_seconds: What recording has cost so far.
    """

    run_name: str
    tags: Mapping[str, str]
    recipe: Mapping[str, Any] | None
    dataset: DatasetRecord | None
    task: TaskRecord | None
    model: ModelRecord | None
    log: MetricLog
    monitor: str | None
    monitor_mode: str
    overhead_seconds: float


def manifest_of(facts: RunFacts, state: State, base: Manifest | None, files: list[FileEntry]) -> Manifest:
    """Return the manifest of a run as it is now.

    Args:
        facts: What the recorder knows.
        state: Composer's state.
        base: The newest committed manifest of the run, or None before the first commit. It gives what this process did
            not see itself.
        files: The valid data files.
    """
    reusing = [one for one in state.algorithms if isinstance(one, ReusingAlgorithm)]
    uses = [use for one in reusing for use in one.prior_uses()]
    now = state.timestamp
    # A run whose last loss is not a number cannot teach; selection leaves it out unless it is asked for.
    finite = facts.log.is_finite("loss/train/total", facts.monitor)
    return Manifest(
        run_name=facts.run_name,
        tags=dict(facts.tags),
        seed=state.rank_zero_seed,
        recipe=None if facts.recipe is None else dict(facts.recipe),
        dataset=facts.dataset or (base and base.dataset),
        task=facts.task or (base and base.task),
        model=facts.model or model_record(state.model, None),
        environment=environment() if base is None else base.environment,
        progress=Progress(epoch=int(now.epoch), batch=int(now.batch), sample=int(now.sample)),
        cost=CostRecord(
            train_seconds=facts.log.clock.train_seconds,
            eval_seconds=facts.log.clock.eval_seconds,
            setup_seconds=sum(one.setup_seconds for one in reusing),
            overhead_seconds=facts.overhead_seconds,
            train_flops=training_flops(facts.model and facts.model.flops_per_example, state),
        ),
        monitor=facts.monitor,
        monitor_mode=facts.monitor_mode,  # type: ignore[arg-type]
        health="empty" if int(now.batch) == 0 else "ok" if finite else "diverged",
        harvests=[] if base is None else base.harvests,
        prior_runs=uses or ([] if base is None else base.prior_runs),
        decisions={
            snake_case(type(one).__name__): why[:MAX_TEXT] for one in reusing if (why := one.skipped or one.why())
        },
        files=files,
    )
