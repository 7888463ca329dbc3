"""Whether cached logits are true for what this run sees, and the reason where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from composer import State

from reuse_algos.algorithms.prior_run_distillation.settings import Auto, Cached, Live
from reuse_algos.archive import PriorRun
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import PriorRunMismatchError
from reuse_algos.priors.advice import harvest_command
from reuse_algos.priors.presentations import harvested_name
from reuse_algos.priors.views import age_of_slot, missing_views, other_views, too_old
from reuse_algos.training.interplay import changes_inputs, hides_inputs, mixes_examples

# Share of the examples of each view with a target from which `auto` takes the cache: `drop_last` loses a few.
_LEAST_SEEN = 0.95


class SourceChoice(NamedTuple):
    """Where the teachers' logits come from.

    Attributes:
        kind: ``live`` or ``cached``.
        why: In words.
    """

    kind: str
    why: str


def choose_source(
    state: State,
    runs: Sequence[PriorRun],
    source: Live | Cached,
    policy: ViewPolicy | None,
    no_ids: str | None,
    mismatch: str,
) -> SourceChoice:
    """Choose where the teachers' logits come from.

    Args:
        state: At the start of training.
        runs: The prior runs.
        source: As the recipe has it.
        policy: The views of the train data.
        no_ids: Why the train examples cannot be followed; None where they can.
        mismatch: ``refuse`` or ``allow`` cached logits of unknown views.

    Raises:
        PriorRunMismatchError: What is asked for is not true for what this run sees.
    """
    hiding = hides_inputs(state)
    if isinstance(source, Live):
        if hiding:
            raise PriorRunMismatchError(_no_images(hiding[0], "source: live was asked for"))
        return SourceChoice("live", "as asked for")
    automatic = isinstance(source, Auto)
    reasons = (_missing_from_cache(run, source, policy, _LEAST_SEEN if automatic else 0.0) for run in runs)
    reason = no_ids or next((found for found in reasons if found), None)
    # In place of any other reason: no harvest could mend this one.
    if changers := mixes_examples(state) + changes_inputs(state):
        reason = (
            f"{changers[0]} changes the inputs, so logits that were cached without it are not true for what the "
            "student sees. Use source: live, whose teachers see the same changed inputs"
        )
    if automatic:
        if reason and hiding:
            raise PriorRunMismatchError(_no_images(hiding[0], reason))
        true = "archived logits are true for every view that this run shows"
        return SourceChoice("live", reason) if reason else SourceChoice("cached", true)
    # mismatch: allow speaks of unknown views. A row that mixes examples is not a view of any.
    if reason and (mixes_examples(state) or mismatch != "allow"):
        raise PriorRunMismatchError(reason)
    return SourceChoice("cached", "as asked for" + (f", though {reason}" if reason else ""))


def signal_name(weights: str) -> str:
    """Return the name of the logits signal that belongs to archived weights: ``logits``, or ``logits.ep0100``."""
    return harvested_name("logits", weights)


def _missing_from_cache(run: PriorRun, source: Cached, policy: ViewPolicy | None, least: float = 0.0) -> str | None:
    """Say why cached logits of a run cannot stand for this run's views, or None where they can."""
    views = f"--views {policy.num_views}" if policy and policy.num_views else "--views 1"
    advice = f"Run {harvest_command(run, 'logits', views=views)}, or use source: live"
    names = source.weight_names
    for name in names:
        if signal_name(name) not in run.signal_names:
            return f"run {run.id} has no signal {signal_name(name)!r}. {advice}."
    if policy is None or policy.num_views == 0:
        return (
            "this run's augmentation is not a known view, so no cached row is true for it. Set data.num_views (or wrap "
            "the dataset in ViewedDataset), use source: live, or say mismatch: allow"
        )
    if differs := other_views(run, policy):
        return f"{differs}. {advice}"
    for name in names:
        signal = run.signal(signal_name(name))
        if missing := missing_views(run, signal, policy, "logits", least=least):
            return f"{missing}. {advice}."
        old = [view for view in range(policy.num_views) if too_old(run, signal, view, source.oldest_time)]
        if old:
            ages = [age_of_slot(run, signal, view) for view in old]
            return (
                f"run {run.id} captured {len(old)} of the {policy.num_views} views while it still learned: view "
                f"{old[0]} is {ages[0]} of {run.manifest.progress.epoch} epochs old, and source.oldest is "
                f"{source.oldest}. {advice}, or set source: {{name: cached, oldest: 1dur}} to take them on purpose."
            )
    return None


def refuse_top_k(runs: Sequence[PriorRun], weights: Sequence[str]) -> None:
    """Make sure that all logits of the teachers are archived, for MSE and for logits in units of their deviation.

    Raises:
        PriorRunMismatchError: A run keeps only its largest ones.
    """
    for run in runs:
        for name in weights:
            if run.signal(signal_name(name)).encoding == "top_k":
                raise PriorRunMismatchError(
                    f"run {run.id} keeps only its largest logits (top_k), and MSE and a scale need all of them. Use "
                    "loss: {name: kl, scale: none}, source: live, or harvest dense logits."
                )


def _no_images(algorithm: str, why: str) -> str:
    """Say that teachers must be cached, since an algorithm loads no images, and why they would not be."""
    return (
        f"{algorithm} with source: cached trains on features, and live teachers need the images. Teachers must be "
        f"cached beside it: {why}"
    )
