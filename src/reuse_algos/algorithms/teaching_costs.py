"""What teaching costs: seconds, FLOPs, and which archived views were looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reuse_algos.algorithms.base import Stopwatch
from reuse_algos.archive import PriorRun, PriorUse
from reuse_algos.priors.lookup import harvest_share


class TeachingCosts:
    """Adds up what getting targets has cost, over all attempts of a run.

    Args:
        algorithm: The name that records have for the algorithm.

    Attributes:
        stopwatch: Of the running attempt.
        slots: Slots of cached signals that were looked up.
        flops: Of live teachers, over all ranks; None where they are not known.
    """

    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self.stopwatch = Stopwatch()
        self.slots: set[int] = set()
        self.flops: float | None = 0.0
        self._earlier_seconds = 0.0

    def add(self, rows: float, flops_per_example: Sequence[int | None]) -> None:
        """Count the passes of the teachers for a batch of so many rows over all ranks.

        Args:
            rows: Rows of the batch, of all ranks.
            flops_per_example: Of each teacher; None where it is not known.
        """
        for each in flops_per_example:
            self.flops = None if each is None or self.flops is None else self.flops + each * rows

    def seconds(self) -> float:
        """Return the seconds so far; this waits for work on a GPU."""
        return self._earlier_seconds + self.stopwatch.read()

    def uses(self, runs: Sequence[PriorRun], weights: Sequence[str], signals: Sequence[str]) -> list[PriorUse]:
        """Return what was used of each prior run.

        Args:
            runs: The prior runs.
            weights: Names of archived weights.
            signals: Names of the cached signals; empty for live teachers.
        """
        return [
            PriorUse(
                run_id=run.id,
                algorithm=self._algorithm,
                weights=[] if signals else list(weights),
                signals=list(signals),
                harvest_seconds=harvest_share(run, signals, self.slots),
            )
            for run in runs
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the costs so far."""
        slots = sorted(self.slots)
        return {"teacher_seconds": self.seconds(), "teacher_flops": self.flops, "slots_used": slots}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from there."""
        self._earlier_seconds = float(state["teacher_seconds"])
        self.flops = state.get("teacher_flops")  # None after a checkpoint that does not say
        self.slots = {int(slot) for slot in state["slots_used"]}
