"""Which examples a run takes for another class than the run before it did.

Legend: N examples that both runs have scores of.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reuse_algos.archive import PriorRun
from reuse_algos.errors import PriorRunMismatchError
from reuse_algos.priors.choosing import identity_of_run, match_classes
from reuse_algos.priors.presentations import PresentationReader, latest_first


class Drift(NamedTuple):
    """What changed between two runs on the examples that both have scores of.

    Attributes:
        keys: int64 ``[N]``.
        before: int64 ``[N]``, the class that the earlier run takes each for.
        after: int64 ``[N]``, the class that the later run takes each for.
        labels: int64 ``[N]`` of the later run; -1 where it has none.
    """

    keys: Tensor
    before: Tensor
    after: Tensor
    labels: Tensor

    @property
    def changed(self) -> Tensor:
        """Keys of the examples that are taken for another class now, int64."""
        return self.keys[self.before != self.after]

    @property
    def learned(self) -> int:
        """How many examples were wrong before and are right now."""
        return int(((self.before != self.labels) & (self.after == self.labels)).sum())

    @property
    def forgotten(self) -> int:
        """How many examples were right before and are wrong now."""
        return int(((self.before == self.labels) & (self.after != self.labels)).sum())


def training_period(run: PriorRun) -> int | None:
    """Return the last period that a run was trained on, or None where its data have no periods."""
    section = ((run.manifest.recipe or {}).get("data") or {}).get("rotated")
    period = section.get("period") if isinstance(section, dict) else None
    return period if isinstance(period, int) else None


def predicted_classes(run: PriorRun) -> tuple[Tensor, Tensor]:
    """Return the class that a run takes each of its examples for, int64 ``[N]``, and whether it has logits of it.

    The logits of each example are the newest that are archived of it, of the first view: a run that ends within an
    epoch has those of the epoch before for the examples that it did not come to again.

    Raises:
        SignalNotFoundError: The run has no logits.
    """
    run.signal("logits")  # says what there is instead
    moments = latest_first(PresentationReader(run).presentations("logits"))
    logits, seen_N = run.signal(moments[0].signal).dense(moments[0].slots[0])
    classes_N = logits.argmax(1)
    for moment in moments[1:]:
        if bool(seen_N.all()):
            break
        logits, also_N = run.signal(moment.signal).dense(moment.slots[0])
        classes_N = torch.where(seen_N, classes_N, logits.argmax(1))
        seen_N = seen_N | also_N
    return classes_N, seen_N


def _marks(before: PriorRun, after: PriorRun) -> tuple[Tensor, Tensor]:
    """Return what tells the examples of two runs apart, int64 each: keys, or content where keys are positions.

    Raises:
        PriorRunMismatchError: Keys are positions of different data, and the content is not known.
    """
    records = before.manifest.dataset, after.manifest.dataset
    sides = [identity_of_run(run) for run in (before, after)]
    fingerprints = {record and record.fingerprint for record in records}
    # On the same data a position is the same example.
    if (fingerprints != {None} and len(fingerprints) == 1) or not any(side.positional for side in sides):
        return sides[0].keys, sides[1].keys
    if not all(side.whole for side in sides):
        raise PriorRunMismatchError(
            f"runs {before.id} and {after.id} were trained on different data whose examples are known by their "
            "positions only, so it is not known which are the same. Give them keys (keys_train in an .npz file, or "
            "reuse_algos.data.identify(dataset, key=...)) and record the runs again."
        )
    first, second = (torch.empty_like(side.hashes).scatter_(0, side.rows, side.hashes) for side in sides)
    return first, second


def drift_between(before: PriorRun, after: PriorRun) -> Drift:
    """Compare what two runs take the same examples for.

    Args:
        before: The earlier run.
        after: The later one, of a later period where both say theirs.

    Raises:
        SignalNotFoundError: A run has no logits.
        PriorRunMismatchError: The runs have other classes, their periods are out of order, no example is common, or
            examples are known by positions only.
    """
    model = after.manifest.model
    data = after.manifest.dataset
    # Class 3 of both must be the same class, or the comparison means nothing.
    match_classes(before, model and model.num_classes, data and data.class_names)
    periods = training_period(before), training_period(after)
    if None not in periods and periods[0] >= periods[1]:  # type: ignore[operator]
        raise PriorRunMismatchError(
            f"periods are out of order: run {before.id} is of period {periods[0]}, run {after.id} of {periods[1]}. "
            "Name the runs in the order of their periods."
        )
    (before_P, seen_P), (after_N, seen_N) = predicted_classes(before), predicted_classes(after)
    marks_P, marks_N = _marks(before, after)
    labels, keys_N = after.labels(), after.keys()[seen_N]
    labels_N = torch.full_like(keys_N, -1) if labels is None else labels[seen_N]
    marks_P, before_P, marks_N, after_N = marks_P[seen_P], before_P[seen_P], marks_N[seen_N], after_N[seen_N]
    order_P = marks_P.argsort(stable=True)
    # searchsorted answers P for a mark behind the last one, which would read outside.
    place_N = torch.searchsorted(marks_P[order_P], marks_N).clamp_(max=max(len(marks_P) - 1, 0))
    both_N = marks_P[order_P][place_N] == marks_N if len(marks_P) else torch.zeros_like(marks_N, dtype=torch.bool)
    if not bool(both_N.any()):
        raise PriorRunMismatchError(
            f"runs {before.id} and {after.id} have no scored example in common, so their answers cannot be compared. "
            "Train both on a window that overlaps."
        )
    return Drift(keys_N[both_N], before_P[order_P][place_N[both_N]], after_N[both_N], labels_N[both_N])
