"""What is logged, counted and warned of while rows are replayed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from reuse_algos.algorithms.adversarial_replay.settings import Append, Replace
from reuse_algos.algorithms.adversarial_replay.sums import ReplaySums, warn_stale
from reuse_algos.training.window import Window


class ReplayRecord:
    """Sums of the running batch and epoch, and counts of the whole training.

    Attributes:
        sums: Of the running batch; None where the algorithm is off in it.
        replayed: Rows replayed in all batches.
        appended: Rows appended in all batches; None after a checkpoint that does not say.
    """

    def __init__(self) -> None:
        self.sums: ReplaySums | None = None
        self.replayed = 0
        self.appended: int | None = 0
        self._wanted = 0
        self._epoch_sums = torch.zeros(0, dtype=torch.float64)
        self._times_on = self._times_due = 0  # batches in which it was on, and in which rows were to be replayed
        self._warned = False

    def begin_batch(self, wanted: int, device: torch.device) -> None:
        """Begin a batch in which the algorithm is on.

        Args:
            wanted: How many rows of this rank are to be replayed.
            device: Of the model.
        """
        self.sums, self._wanted = ReplaySums(device), wanted

    def end_batch(self, *, appends: bool) -> dict[str, float]:
        """Return the metrics of the batch by name, over all ranks, and count it."""
        if self.sums is None:
            return {"rows": 0.0}
        totals = self.sums.over_ranks(self._wanted)
        metrics = ReplaySums.read(totals)
        self._epoch_sums = totals if not len(self._epoch_sums) else self._epoch_sums + totals
        self._times_on += 1
        self._times_due += int(totals[-1] > 0)  # small fractions of small batches may ask for none
        self.replayed += int(metrics["rows"])
        if appends and self.appended is not None:
            self.appended += int(metrics["rows"])
        self.sums = None
        return metrics

    def end_epoch(self, warn_below: float) -> None:
        """Warn of perturbations that turned fewer examples than asked for, once for a stretch of such epochs."""
        fooling = ReplaySums.staleness(self._epoch_sums) if len(self._epoch_sums) else None
        self._epoch_sums = torch.zeros(0, dtype=torch.float64)
        if fooling is not None:
            # Warn of a later stretch, too: the perturbations may have fooled the model in between.
            if fooling < warn_below and not self._warned:
                warn_stale(fooling, warn_below)
            self._warned = fooling < warn_below

    def why_idle(self, when: Window, mode: Append | Replace) -> str:
        """Say why no row was replayed in the whole training."""
        if not self._times_on:
            return f"no batch lay between start={when.start} and stop={when.stop}"
        if not self._times_due:
            return f"fraction={mode.fraction} of the {self._times_on} batches in which it was on is not one row"
        if mode.weight == 0:
            return "replayed rows have weight=0"
        return f"no row that was drawn in {self._times_due} batches has a perturbation: harvest more views or examples"

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of it."""
        return {
            "warned": self._warned,
            "times": (self._times_on, self._times_due),
            "appended": self.appended,
            "replayed": self.replayed,
            "epoch_sums": self._epoch_sums.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._warned, self.appended = bool(state["warned"]), state.get("appended")
        self.replayed = int(state["replayed"])
        self._times_on, self._times_due = map(int, state["times"])
        self._epoch_sums = torch.as_tensor(state["epoch_sums"]).cpu().clone()
