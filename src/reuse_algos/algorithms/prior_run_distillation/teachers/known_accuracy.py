"""Whether live teachers answer the first batch about as well as their runs ended.

Inputs that a teacher was not trained on (another normalisation, another range of pixels, channels in another order)
have the shape that it wants, so it answers without a word, and wrongly.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from scipy.stats import binom
from torch import Tensor

from reuse_algos.algorithms.prior_run_distillation.loss.layout import Microbatch
from reuse_algos.archive import PriorRun
from reuse_algos.errors import HarmWarning, SignalNotFoundError

_ACCURACIES = ("MulticlassAccuracy", "BinaryAccuracy", "MultilabelAccuracy", "Accuracy")
# Augmentation and noisy labels cost a teacher some rows; a batch that is this unlikely is not bad luck.
_CHANCE = 1e-6


def archived_accuracy(run: PriorRun) -> float | None:
    """Return the accuracy at which a run ended, 0 to 1; None where it monitored something else."""
    name = run.manifest.monitor
    if name is None or name.rsplit("/", 1)[-1] not in _ACCURACIES:
        return None
    try:
        value = run.final_metric(name)
    except SignalNotFoundError:
        return None
    return value if 0 < value <= 1 else None


def surprise(run: PriorRun, right: int, rows: int) -> str | None:
    """Return what is odd about a teacher's answers, for a warning; None where nothing is.

    Args:
        run: The teacher's.
        right: Rows of a batch whose label it gives.
        rows: Rows of the batch that have a label.

    Returns:
        A sentence where so few right answers have a chance below one in a million at the run's own accuracy.
    """
    accuracy = archived_accuracy(run)
    if accuracy is None or not rows or binom.cdf(right, rows, accuracy) >= _CHANCE:
        return None
    return (
        f"teacher {run.id} is right in {right} of the {rows} rows of the first batch, and its run ended at "
        f"{run.manifest.monitor} {accuracy:.3f}. It may get other inputs than it was trained on: compare "
        "normalisation, range and order of channels of both runs' transforms."
    )


def teachers_to_ask(
    runs: Sequence[PriorRun], weight_names: Sequence[str], microbatch: Microbatch
) -> dict[int, PriorRun]:
    """Return the teachers whose answers tell something, by their number; none where rows have no single label.

    Args:
        runs: Prior runs.
        weight_names: Names of archived weights; each (run, name) pair is one teacher.
        microbatch: The first one.
    """
    # A row of many tokens or labels is right only as a whole, which is not the accuracy that a run records; nor can a
    # mixture of two labels be right.
    kind, targets = microbatch.task.kind, microbatch.rows.targets
    if targets is None or (kind != "binary" and (kind != "multiclass" or targets.is_floating_point())):
        return {}
    # Weights of the middle of a run are not as good as its end.
    pairs = [(run, name) for run in runs for name in weight_names]
    return {i: run for i, (run, name) in enumerate(pairs) if name == "last" and archived_accuracy(run) is not None}


def warn_of_surprises(runs: Iterable[PriorRun], logits: Sequence[Tensor], microbatch: Microbatch) -> None:
    """Warn of each live teacher whose answers are a surprise.

    Args:
        runs: Of the teachers that were asked.
        logits: Of each of them for the microbatch, ``[B, C]``, in the layout of the task.
        microbatch: The first one.
    """
    for run, theirs in zip(runs, logits, strict=True):
        right = int(microbatch.task.correct(microbatch.rows._replace(logits_BCX=theirs)).sum())
        if words := surprise(run, right, len(theirs)):
            warnings.warn(f"PriorRunDistillation: {words}", HarmWarning, stacklevel=2)
