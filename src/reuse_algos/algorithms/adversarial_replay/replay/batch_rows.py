"""Which rows of the running batch are replayed, followed from microbatch to microbatch.

Legend: R replayed rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from composer.utils import dist
from torch import Tensor


def _mean_over_ranks(numbers: Sequence[int], device: torch.device, alike: bool) -> list[float]:
    """Return the mean of each number over all ranks; every rank must call this."""
    # Without asking the other ranks where that is possible: reading the sum makes a GPU wait.
    if alike or dist.get_world_size() == 1:
        return [float(number) for number in numbers]
    totals = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    return (totals / dist.get_world_size()).tolist()


class BatchRows:
    """The replayed rows of this rank's batch: the same for every cut into microbatches, and every retry.

    Args:
        rows_R: int64 on the CPU, ascending: which rows of the batch.
        runs_R: int64 on the CPU: the column of the run whose perturbation each gets; None where there are no runs.
        num_rows: Rows of the batch.
        device: Of the model.
        alike: Whether all ranks replay as many rows.

    Attributes:
        replayed: Replayed rows per rank, the mean over all of them.
        first: Where the current microbatch begins in the batch.
        count: Its rows.
        runs_here: The part of ``runs_R`` that belongs to it.
    """

    def __init__(
        self, rows_R: Tensor, runs_R: Tensor | None, num_rows: int, device: torch.device, *, alike: bool
    ) -> None:
        self._rows_R, self._runs_R, self._num_rows = rows_R, runs_R, num_rows
        self._mean_rows, self.replayed = _mean_over_ranks((num_rows, len(rows_R)), device, alike)
        self.first = self.count = 0
        self.runs_here: Tensor | None = None

    def next_microbatch(self, count: int) -> Tensor:
        """Go on to the next microbatch.

        Returns:
            int64 on the CPU: which of these are replayed.
        """
        # The cut is known only now: microbatches may be smaller after Composer ran out of memory and tries again.
        self.first, self.count = self.first + self.count, count
        here = (self._rows_R >= self.first) & (self._rows_R < self.first + count)
        self.runs_here = None if self._runs_R is None else self._runs_R[here]
        return self._rows_R[here] - self.first

    def shares(self, weight: float | None, here: int) -> tuple[float, float]:
        """Return the weights of the microbatch's clean and replayed means: over the whole batch they are 1 - w and w.

        Args:
            weight: w, in [0, 1]; None: every row counts alike.
            here: Replayed rows of the microbatch.
        """
        if weight is None:
            weight = self.replayed / (self._mean_rows + self.replayed)
        # Composer weighs microbatches by their clean rows, and ranks alike: one with more than its share of the
        # replayed rows has to count with more of their weight.
        return 1 - weight, weight * (here / self.replayed) * (self._num_rows / self.count)
