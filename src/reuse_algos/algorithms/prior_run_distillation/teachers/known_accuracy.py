"""Whether live teachers answer the first batch about as well as their runs ended.

Inputs that a teacher was not trained on (another normalisation, another range of pixels, channels in another order)
have the shape that it wants, so it answers without a word, and wrongly.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

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


def can_be_asked(microbatch: Microbatch) -> bool:
    """Return whether each row has one label that a teacher may give."""
    # A row of many tokens or labels is right only as a whole, which is not the accuracy that a run records; nor can a
    # mixture of two labels be right.
    kind, targets = microbatch.task.kind, microbatch.rows.targets
    return targets is not None and (kind == "binary" or (kind == "multiclass" and not targets.is_floating_point()))


def warn_of_surprises(
    runs: Sequence[PriorRun], weight_names: Sequence[str], logits: Sequence[Tensor], microbatch: Microbatch
) -> None:
    """Warn of each live teacher whose answers are a surprise.

    Args:
        runs: Prior runs.
        weight_names: Names of archived weights; each (run, name) pair is one teacher.
        logits: Of each teacher for the microbatch, ``[B, C]``, in the layout of the task.
        microbatch: Of :func:`can_be_asked`.
    """
    for index, theirs in enumerate(logits):
        # Weights of the middle of a run are not as good as its end.
        if weight_names[index % len(weight_names)] != "last":
            continue
        right = int(microbatch.task.correct(microbatch.rows._replace(logits_BCX=theirs)).sum())
        if words := surprise(runs[index // len(weight_names)], right, len(theirs)):
            warnings.warn(f"PriorRunDistillation: {words}", HarmWarning, stacklevel=2)
