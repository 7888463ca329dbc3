"""What the recorder sends to the run's loggers (W&B, MLflow, TensorBoard, ...), so that their panels can compare runs.

All of it goes through Composer's :class:`~composer.loggers.Logger`: any destination gets it, and none is needed.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from composer import State
from composer.loggers import Logger

from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.archive import Manifest
from reuse_algos.errors import ArchiveWarning

if TYPE_CHECKING:
    from reuse_algos.callbacks.recorder.run_recorder import RunRecorder

TRAIN_SECONDS = "time/train_seconds"
"""Metric that serves as an x axis: wall-clock seconds of training so far, evaluation excluded, as in the archive."""


def log_identity(recorder: RunRecorder, state: State, logger: Logger) -> None:
    """Log, as one hyperparameter ``reuse``, which record this is and what it reuses.

    Its keys: ``archive`` (location), ``archive_id``, ``run_id``, ``tags``, ``algorithms`` (class names) and
    ``prior_runs`` (run ids, sorted). Call it at FIT_START, behind the algorithms, which pin their prior runs there.

    A logger that refuses it (W&B does, where a resumed W&B run holds other values) is warned of and passed over:
    labels on a dashboard must not stop a training.
    """
    reusing = [one for one in state.algorithms if isinstance(one, ReusingAlgorithm)]
    facts: dict[str, Any] = {
        "archive": recorder.archive.location,
        "archive_id": recorder.archive.archive_id,
        "run_id": recorder.run_id,
        "tags": dict(recorder.tags),
        "algorithms": [type(one).__name__ for one in reusing],
        "prior_runs": sorted({run.id for one in reusing for run in one.prior_runs}),
    }
    # One by one, so that one destination's refusal does not keep the facts from the others.
    for destination in logger.destinations:
        try:
            destination.log_hyperparameters({"reuse": facts})
        except Exception as error:  # whatever a third party's logger raises
            warnings.warn(
                f"{type(destination).__name__} did not take the record's run id, archive and prior runs; training and "
                f"record go on without them there: {error}",
                ArchiveWarning,
                stacklevel=2,
            )


def log_train_seconds(seconds: float, logger: Logger) -> None:
    """Log the seconds trained so far at the current step, in the same row as an evaluation of that step."""
    logger.log_metrics({TRAIN_SECONDS: seconds})


def log_cost(manifest: Manifest, logger: Logger) -> None:
    """Log what the whole run cost as ``reuse/cost/...``; trackers keep it as the run's summary.

    ``total_seconds`` is training + set-up + used harvests, what ``reuse-algos compare`` counts for this run; evaluation
    and the recorder's own work stand beside it, and so does ``train_flops`` where it is known.
    """
    cost = manifest.cost
    harvest = sum((use.harvest_seconds for use in manifest.prior_runs), 0.0)
    flops = {} if cost.train_flops is None else {"reuse/cost/train_flops": cost.train_flops}
    logger.log_metrics(
        {
            "reuse/cost/train_seconds": cost.train_seconds,
            "reuse/cost/setup_seconds": cost.setup_seconds,
            "reuse/cost/harvest_seconds": harvest,
            "reuse/cost/total_seconds": cost.train_seconds + cost.setup_seconds + harvest,
            "reuse/cost/eval_seconds": cost.eval_seconds,
            "reuse/cost/recorder_seconds": cost.overhead_seconds,
            **flops,
        }
    )
