"""Whether live teachers answer the first batch about as well as their runs ended.

Inputs that a teacher was not trained on (another normalisation, another range of pixels, channels in another order)
have the shape that it wants, so it answers without a word, and wrongly.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence

from scipy.stats import binom
from torch import Tensor

from reuse_algos.algorithms.prior_run_distillation.loss.layout import Microbatch
from reuse_algos.archive import PriorRun
from reuse_algos.errors import HarmWarning, SignalNotFoundError

_ACCURACIES = ("MulticlassAccuracy", "BinaryAccuracy", "MultilabelAccuracy", "Accuracy")
_TRAIN_LOSS = "loss/train/total"
_LEARNED = 0.5  # of the loss of one who knows nothing
_FEWEST_TARGETS = 16
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


def worse_than_nothing(run: PriorRun, theirs: Tensor, microbatch: Microbatch) -> str | None:
    """Return what is odd about a teacher's loss, for a warning; None where nothing is.

    Args:
        run: The teacher's.
        theirs: Its logits for the microbatch, in the layout of the task.
        microbatch: The first one, with a task whose plain loss is the model's own.

    Returns:
        A sentence where the loss is greater than that of one who knows nothing (all classes alike, the mean of the
        targets), though the run ended at less than half of that.
    """
    task, rows = microbatch.task, microbatch.rows
    targets, counted = rows.targets, rows.counted_BX
    if targets is None or not task.is_confirmed or theirs.shape != rows.logits_BCX.shape:
        return None
    if (targets.numel() if counted is None else int(counted.sum())) < _FEWEST_TARGETS:
        return None
    nothing = math.log(task.num_classes if task.is_softmax else 2)
    if task.kind == "regression":
        kept_BC = targets if counted is None else targets.masked_fill(~counted, math.nan)
        nothing = float((kept_BC - kept_BC.nanmean(0)).square().nanmean())
    # The loss of a run that was taught itself has a further term, in other units.
    if run.manifest.prior_runs:
        return None
    try:
        ended = run.final_metric(_TRAIN_LOSS)
    except SignalNotFoundError:
        return None
    said = float(task.losses(rows._replace(logits_BCX=theirs)).nanmean())
    if not (ended < _LEARNED * nothing and said > nothing):
        return None
    return (
        f"teacher {run.id} has a loss of {said:.4g} in the first batch, where one who knows nothing has {nothing:.4g}, "
        f"and its run ended at {ended:.4g}. It may get other inputs than it was trained on: compare normalisation, "
        "range, order of channels and tokens of both runs."
    )


def teachers_to_ask(runs: Sequence[PriorRun], weight_names: Sequence[str]) -> dict[int, PriorRun]:
    """Return the teachers whose answers tell something, by their number.

    Args:
        runs: Prior runs.
        weight_names: Names of archived weights; each (run, name) pair is one teacher.
    """
    # Weights of the middle of a run are not as good as its end.
    pairs = [(run, name) for run in runs for name in weight_names]
    return {i: run for i, (run, name) in enumerate(pairs) if name == "last"}


def _has_single_labels(microbatch: Microbatch) -> bool:
    # A row of many tokens or labels is right only as a whole, which is not the accuracy that a run records; nor can a
    # mixture of two labels be right.
    kind, targets = microbatch.task.kind, microbatch.rows.targets
    return targets is not None and (kind == "binary" or (kind == "multiclass" and not targets.is_floating_point()))


def warn_of_surprises(runs: Iterable[PriorRun], logits: Sequence[Tensor], microbatch: Microbatch) -> None:
    """Warn of each live teacher whose answers are a surprise.

    Args:
        runs: Of the teachers that were asked.
        logits: Of each of them for the microbatch, in the layout of the task.
        microbatch: The first one.
    """
    for run, theirs in zip(runs, logits, strict=True):
        if words := odd_answers(run, theirs, microbatch):
            warnings.warn(f"PriorRunDistillation: {words}", HarmWarning, stacklevel=2)


def odd_answers(run: PriorRun, theirs: Tensor, microbatch: Microbatch) -> str | None:
    """Return what is odd about what a run's last weights answer, for a warning; None where nothing is.

    Args:
        run: The run.
        theirs: Logits of its last weights for the microbatch, in the layout of the task.
        microbatch: The first one.
    """
    words = None
    if _has_single_labels(microbatch) and archived_accuracy(run) is not None:
        right = int(microbatch.task.correct(microbatch.rows._replace(logits_BCX=theirs)).sum())
        words = surprise(run, right, len(theirs))
    return words or worse_than_nothing(run, theirs, microbatch)
