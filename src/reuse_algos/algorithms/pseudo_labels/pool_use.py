"""The Composer algorithm that keeps account of a pool: which one the training data come from, and what it cost."""

from __future__ import annotations

import os
from typing import Any

from composer import Event, State
from composer.loggers import Logger

from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.archive import PriorRun, PriorUse, RunArchive
from reuse_algos.data.info import infer_info
from reuse_algos.errors import PriorRunMismatchError


class PoolUse(ReusingAlgorithm):
    """Records that the training data were labelled by the teachers of a pool's run, and holds a resumed run to it.

    It changes nothing in training: the labels are in the dataset, where
    :func:`reuse_algos.priors.pseudo_labels.choose_pairs` says which. A recipe with
    ``data.pseudo_labels`` adds it by itself.

    Args:
        archive: A :class:`~reuse_algos.archive.RunArchive` or its path.
        runs: The pool's run, see :data:`~reuse_algos.priors.choosing.RunSelection`; exactly one.

    Raises:
        PriorRunMismatchError: At the start of training: several runs match, or a resumed run was trained on other
            pseudo-labels.
    """

    def __init__(self, archive: RunArchive | str | os.PathLike[str], runs: str | PriorRun) -> None:
        super().__init__(archive, runs)
        self._trained_on: str | None = None

    def match(self, event: Event, state: State) -> bool:
        """Return true at the start of training."""
        return event in (Event.INIT, Event.FIT_START)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Take the place among the algorithms, then look at the data."""
        if event == Event.INIT:
            self.take_place(state)
            self._trained_on = None
        else:
            self.begin(state)

    def start(self, state: State) -> None:
        """Hold the data against those of the run that is resumed."""
        now = infer_info(state.dataloader.dataset).key_fingerprint  # type: ignore[union-attr]
        if self._trained_on not in (None, now):
            raise PriorRunMismatchError(
                f"the run that is resumed was trained on other pseudo-labels of the pool {self.prior_runs[0].id} "
                f"(fingerprint {str(self._trained_on)[:12]}, now {now[:12]}): the pool, per_class or per_image has "
                "changed. Undo the change, or start a new run."
            )
        self._trained_on = now

    def prior_uses(self) -> list[PriorUse]:
        """Return the pool's run with all that its labelling took."""
        return [
            PriorUse(
                run_id=run.id,
                algorithm="pseudo_labels",
                signals=["logits"],
                harvest_seconds=sum(harvest.seconds for harvest in run.manifest.harvests),
            )
            for run in self.prior_runs
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the pinned run and the fingerprint of the training data."""
        return {**super().state_dict(), "trained_on": self._trained_on}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what the checkpoint was trained on."""
        super().load_state_dict(state)
        self._trained_on = state["trained_on"]
