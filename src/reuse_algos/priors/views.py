"""Whether archived rows of a run are true for the views that the current run shows, and how old they are.

Captured rows are what the model said while it trained, in the epoch that showed the view: of early epochs they are
those of a worse model than the run's last weights.
"""

from __future__ import annotations

from composer import Time, TimeUnit

from reuse_algos.archive import PriorRun, Signal
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import PriorRunMismatchError


def numbered_views(policy: ViewPolicy | None, why: str, instead: str = "") -> ViewPolicy:
    """Return the numbered views of the current run.

    Args:
        policy: As the train data have them.
        why: What follows where there are none, as a clause.
        instead: What else can be done, as the end of a sentence. Default: nothing.

    Raises:
        PriorRunMismatchError: The augmentation is not in numbered views.
    """
    if policy is None or policy.num_views == 0:
        raise PriorRunMismatchError(
            f"this run's augmentation is not a known view, {why}. Set data.num_views (or wrap the dataset in "
            f"ViewedDataset){instead}."
        )
    return policy


def other_views(run: PriorRun, policy: ViewPolicy) -> str | None:
    """Say that a prior run's views are not those of the current one, or None where they are."""
    record = run.manifest.dataset
    theirs = (record.view_seed, record.transform) if record else None
    ours = (policy.seed, policy.transform)
    return None if theirs == ours else f"run {run.id} has views (seed, transform) {theirs}, this run {ours}"


def missing_views(run: PriorRun, signal: Signal, policy: ViewPolicy, what: str, *, least: float = 0.0) -> str | None:
    """Say which views a signal has no rows for, or None where it has rows for all of the current run's.

    Args:
        run: The prior run.
        signal: One of its signals, whose slots are views.
        policy: The views of the current run, numbered ones.
        what: The rows in a word, such as ``logits``.
        least: Share of the examples that each view must have rows for, 0 to 1. Default: 0, any.
    """
    known = {slot for slot in signal.slots if signal.slot_meta(slot).get("view") == slot}
    absent = sorted(set(range(policy.num_views)) - known)
    if absent:
        return (
            f"run {run.id} has {what} for {len(known)} of the {policy.num_views} views (view {absent[0]} is the "
            "first missing)"
        )
    # Only where a share is asked for: it is a look at every row.
    shares = [float(signal.seen(view).float().mean()) if least else 1.0 for view in range(policy.num_views)]
    unseen = [view for view, share in enumerate(shares) if share < least]
    if not unseen:
        return None
    return f"run {run.id} has {what} for only some examples of view {unseen[0]} ({shares[unseen[0]]:.1%})"


def age_of_slot(run: PriorRun, signal: Signal, slot: int) -> int | None:
    """Return how many epochs a run trained on after it captured a slot; None for a harvest, which has no age."""
    meta = signal.slot_meta(slot)
    if meta.get("source") == "harvest" or "epoch" not in meta:
        return None
    # A run that stopped in mid-epoch has captured an epoch that it did not complete.
    return max(0, run.manifest.progress.epoch - 1 - int(meta["epoch"]))


def too_old(run: PriorRun, signal: Signal, slot: int, oldest: Time) -> bool:
    """Return whether a captured slot is older than allowed.

    Args:
        run: The prior run.
        signal: One of its signals.
        slot: One of the signal's.
        oldest: Composer time: epochs, or a share of the prior run's training.
    """
    age = age_of_slot(run, signal, slot)
    if age is None:
        return False
    epochs = max(1, run.manifest.progress.epoch)
    return age > oldest.value * (epochs if oldest.unit == TimeUnit.DURATION else 1)
