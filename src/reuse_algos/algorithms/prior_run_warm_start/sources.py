"""Which archived weights training starts from."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from torch import Tensor

from reuse_algos.algorithms.prior_run_warm_start.initial_weights import average_weights, differences
from reuse_algos.algorithms.prior_run_warm_start.settings import Average
from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.archive.run import weights_name
from reuse_algos.errors import PriorRunMismatchError, RunNotFoundError, SignalNotFoundError
from reuse_algos.priors.model import refuse_broken

USE = "prior_run_warm_start"
"""What this algorithm is called in the records of runs that used it."""

_EPOCH = re.compile(r"ep([0-9]{4,})", re.ASCII)


class Source(NamedTuple):
    """Archived weights of one run."""

    run: PriorRun
    weights: str

    @property
    def digest(self) -> str:
        """The sha256 of the file that holds them; empty where there is none."""
        files = [e for e in self.run.manifest.files if (e.kind, e.name) == ("weights", weights_name(self.weights))]
        return files[-1].sha256 if files else ""


def choose_sources(archive: RunArchive, runs: Sequence[PriorRun], weights: Average | str) -> list[Source]:
    """Return the weights to load or to average, the newest last.

    Args:
        archive: Where the runs' own prior runs are looked up.
        runs: At least one.
        weights: A name of archived weights, or their average.

    Raises:
        PriorRunMismatchError: There are several runs and nothing says how they become one, or they are not one lineage.
        SignalNotFoundError: The run has not so many checkpoints.
    """
    if isinstance(weights, str):
        if len(runs) > 1:
            listed = ", ".join(run.id for run in runs[:5])
            raise PriorRunMismatchError(
                f"runs names {len(runs)} runs ({listed}), and training can start from one. Add limit: 1 and an order "
                "(best, latest, first), or average runs of one lineage (weights: average)."
            )
        return [Source(runs[0], weights)]
    if len(runs) == 1:
        return _last_checkpoints(runs[0], weights.last_k)
    if weights.last_k is not None:
        raise PriorRunMismatchError(
            f"last_k averages the checkpoints of one run, and runs names {len(runs)}. Leave one of them out."
        )
    _refuse_unrelated(archive, runs)
    return [Source(run, "last") for run in sorted(runs, key=lambda run: (run.manifest.created_at, run.id))]


def read_sources(sources: Sequence[Source], parameters: Collection[str]) -> dict[str, Tensor]:
    """Return the weights of the sources, or the mean of them.

    Args:
        sources: At least one.
        parameters: Names of the parameters, as the archive has them or with another prefix than ``module.``.

    Raises:
        PriorRunMismatchError: Models of different architectures are to be averaged, or the weights are not finite.
        SignalNotFoundError: A run has no such weights.
        ArchiveCorruptError: A file is damaged.
    """
    checkpoints = [source.run.weights(source.weights) for source in sources]
    for source, checkpoint in zip(sources, checkpoints, strict=True):
        refuse_broken(source.run, source.weights, checkpoint, parameters)
        if listed := differences(checkpoints[0], checkpoint):
            raise PriorRunMismatchError(
                f"runs {sources[0].run.id} and {source.run.id} cannot be averaged, their weights differ in "
                f"{len(listed)} tensors:\n  " + "\n  ".join(listed) + "\nChoose runs of one architecture."
            )
    return checkpoints[0] if len(checkpoints) == 1 else average_weights(checkpoints)


def used_weights(sources: Sequence[Source]) -> list[tuple[str, list[str]]]:
    """Return the names of the weights by run, for the record of a run that loads them."""
    uses: dict[str, list[str]] = {}
    for source in sources:
        uses.setdefault(source.run.id, []).append(source.weights)
    return list(uses.items())


def _last_checkpoints(run: PriorRun, last_k: int | None) -> list[Source]:
    """Return the last k of a run, with ``last`` where the newest numbered checkpoint does not hold the same weights."""
    if last_k is None:
        raise PriorRunMismatchError(
            f"weights: average got one run, {run.id}: say over how many of its last checkpoints (last_k: 5), or name "
            "several runs of one lineage."
        )
    numbered = {int(found[1]): name for name in run.weight_names if (found := _EPOCH.fullmatch(name))}
    names = [numbered[epoch] for epoch in sorted(numbered)]
    # A run may have ended in the middle of an epoch, behind its newest numbered checkpoint.
    if "last" in run.weight_names and Source(run, "last").digest not in {
        Source(run, name).digest for name in names[-1:]
    }:
        names.append("last")
    if len(names) < last_k:
        raise SignalNotFoundError(
            f"run {run.id} has {len(names)} checkpoints to average ({', '.join(names) or 'none'}), not {last_k}. "
            "Record more of them: callbacks.run_recorder.weights=[1ep, last]."
        )
    return [Source(run, name) for name in names[-last_k:]]


def _refuse_unrelated(archive: RunArchive, runs: Sequence[PriorRun]) -> None:
    """Refuse runs that do not all come from one run."""
    # Weights that started from different random numbers lie in different basins, and their mean is worth nothing.
    shared = set.intersection(*(_ancestors(archive, run) for run in runs))
    if not shared:
        listed = ", ".join(run.id for run in runs[:5])
        raise PriorRunMismatchError(
            f"the runs {listed} are not of one lineage: no run is the warm start of all of them, so the mean of their "
            "weights is not a model. Choose runs that were warm started from one another or from one run, or average "
            "the checkpoints of one run (last_k), or learn from all of them by prior_run_distillation."
        )


def _ancestors(archive: RunArchive, run: PriorRun) -> set[str]:
    """Return the ids of the run and of all that it was warm started from, over any number of steps."""
    found: set[str] = set()
    waiting = [run]
    while waiting:
        current = waiting.pop()
        found.add(current.id)
        for use in current.manifest.prior_runs:
            if use.algorithm == USE and use.run_id not in found:
                found.add(use.run_id)
                try:
                    waiting.append(archive.run(use.run_id))
                except RunNotFoundError:
                    continue  # deleted since; that it was the ancestor is on record
    return found
