"""Whether cached logits are true for what this run sees, and what is said where they are not."""

from __future__ import annotations

from collections.abc import Sequence

from reuse_algos.archive import PriorRun
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import PriorRunMismatchError
from reuse_algos.priors.presentations import harvested_name
from reuse_algos.priors.views import missing_views, other_views

__all__ = ["missing_from_cache", "no_images", "refuse_top_k", "signal_name"]


def signal_name(weights: str) -> str:
    """Name of the logits signal that belongs to archived weights: ``logits``, or ``logits.ep0100``."""
    return harvested_name("logits", weights)


def missing_from_cache(
    run: PriorRun, weights: Sequence[str], policy: ViewPolicy | None, whole: bool = False
) -> str | None:
    """Why cached logits of a run cannot stand for this run's views exactly, or None where they can.

    Args:
        run: the prior run.
        weights: whose logits are wanted.
        policy: the views that this run will see.
        whole: also ask for every example of every view.
    """
    views = f"--views {policy.num_views}" if policy and policy.num_views else "--views 1"
    advice = f"Run `reuse-algos harvest ARCHIVE {run.id} {views}`, or use source: live"
    for name in weights:
        if signal_name(name) not in run.signal_names:
            return f"run {run.id} has no signal {signal_name(name)!r}. {advice}."
    if policy is None or policy.num_views == 0:
        return (
            "this run's augmentation is not a known view, so no cached row is true for it. Set data.num_views (or wrap "
            "the dataset in ViewedDataset), use source: live, or say mismatch: allow"
        )
    if differs := other_views(run, policy):
        return f"{differs}. {advice}"
    for name in weights:
        if missing := missing_views(run, run.signal(signal_name(name)), policy, "logits", whole=whole):
            return f"{missing}. {advice}."
    return None


def no_images(algorithm: str, why: str) -> str:
    """Say that teachers must be cached, since an algorithm loads no images, and why they would not be."""
    return (
        f"{algorithm} with source: cached trains on features, and live teachers need the images. Teachers must be "
        f"cached beside it: {why}"
    )


def refuse_top_k(runs: Sequence[PriorRun], weights: Sequence[str]) -> None:
    """Make sure that all logits of the teachers are archived, for MSE.

    Raises:
        PriorRunMismatchError: a run keeps only its largest ones.
    """
    for run in runs:
        for name in weights:
            if run.signal(signal_name(name)).encoding == "top_k":
                raise PriorRunMismatchError(
                    f"run {run.id} keeps only its largest logits (top_k), and MSE needs all of them. Use loss: kl, "
                    "source: live, or harvest dense logits."
                )
