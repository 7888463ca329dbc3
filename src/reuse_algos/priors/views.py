"""Whether archived rows of a run are true for the views of the examples that the current run shows."""

from __future__ import annotations

from reuse_algos.archive import PriorRun, Signal
from reuse_algos.data.views import ViewPolicy

__all__ = ["missing_views", "other_views"]


def other_views(run: PriorRun, policy: ViewPolicy) -> str | None:
    """Say that a prior run's views are not those of the current one, or None where they are.

    Args:
        run: the prior run.
        policy: the views of the current run, numbered ones.
    """
    record = run.manifest.dataset
    theirs = (record.view_seed, record.transform) if record else None
    ours = (policy.seed, policy.transform)
    return None if theirs == ours else f"run {run.id} has views (seed, transform) {theirs}, this run {ours}"


def missing_views(run: PriorRun, signal: Signal, policy: ViewPolicy, what: str, *, whole: bool) -> str | None:
    """Say which views a signal has no rows for, or None where it has rows for all of the current run's.

    Args:
        run: the prior run.
        signal: one of its signals, whose slots are views.
        policy: the views of the current run, numbered ones.
        what: the rows in a word, such as ``logits``.
        whole: also ask for every example of every view.
    """
    known = {slot for slot in signal.slots if signal.slot_meta(slot).get("view") == slot}
    absent = sorted(set(range(policy.num_views)) - known)
    if absent:
        return (
            f"run {run.id} has {what} for {len(known)} of the {policy.num_views} views (view {absent[0]} is the "
            "first missing)"
        )
    unseen = [view for view in range(policy.num_views) if whole and not bool(signal.seen(view).all())]
    return f"run {run.id} has {what} for only some examples of view {unseen[0]}" if unseen else None
