"""Whether live teachers answer the first batch about as well as their runs ended.

Inputs that a teacher was not trained on (another normalisation, another range of pixels, channels in another order)
have the shape that it wants, so it answers without a word, and wrongly.
"""

from __future__ import annotations

from scipy.stats import binom

from reuse_algos.archive import PriorRun
from reuse_algos.errors import SignalNotFoundError

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
