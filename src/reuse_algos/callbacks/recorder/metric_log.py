"""The metrics history of a run while it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from composer import State

from reuse_algos.archive import MetricHistory, PriorRun, history_tensors
from reuse_algos.callbacks.train_clock import TrainClock


class MetricLog:
    """Rows of (step, sample, epoch, train seconds, evaluation seconds, value) for each metric.

    Args:
        clock: Gives the seconds.
    """

    def __init__(self, clock: TrainClock) -> None:
        self.clock = clock
        self._rows: dict[str, list[tuple[float, ...]]] = {}
        self._sums: dict[str, tuple[float, int]] = {}

    @classmethod
    def of_run(cls, run: PriorRun, clock: TrainClock) -> MetricLog:
        """Return the history that a run has so far."""
        log = cls(clock)
        for name in run.metric_names:
            log._rows[name] = list(zip(*(column.tolist() for column in run.metric(name)), strict=True))
        return log

    def add(self, name: str, value: float, state: State) -> None:
        """Add one row, at the state's time. A second value at the same step replaces the first."""
        time = state.timestamp
        row = (
            int(time.batch),
            int(time.sample),
            int(time.epoch),
            self.clock.train_seconds,
            self.clock.eval_seconds,
            float(value),
        )
        rows = self._rows.setdefault(name, [])
        # An evaluation at the end of an epoch and one at the end of training fall on one step.
        if rows and rows[-1][0] == row[0]:
            rows.pop()
        rows.append(row)

    def accumulate(self, values: Mapping[str, float]) -> None:
        """Add the values of one training batch to the means of the epoch."""
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + float(value), count + 1)

    def end_epoch(self, state: State) -> None:
        """Write the means of the epoch's batches as rows."""
        for name, (total, count) in self._sums.items():
            self.add(name, total / count, state)
        self._sums.clear()

    def last(self, name: str | None) -> float | None:
        """Return the latest value of a metric."""
        rows = self._rows.get(name or "")
        return rows[-1][-1] if rows else None

    @property
    def names(self) -> list[str]:
        """Metrics with at least one row."""
        return list(self._rows)

    def is_finite(self, *names: str | None) -> bool:
        """Return whether the latest values of these metrics are numbers (metrics without rows do not count)."""
        return all(math.isfinite(value) for value in map(self.last, names) if value is not None)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return columns ``<metric>/<column>``, int64 and float64 ``[rows]``, as the archive stores them."""
        columns = {name: map(np.asarray, zip(*rows, strict=True)) for name, rows in self._rows.items()}
        return history_tensors({name: MetricHistory(*parts) for name, parts in columns.items()})

    def state_dict(self) -> dict[str, Any]:
        """Return what the archive does not hold in mid-epoch."""
        return {"sums": {name: list(pair) for name, pair in self._sums.items()}, "clock": self.clock.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._sums = {name: (float(total), int(count)) for name, (total, count) in state["sums"].items()}
        self.clock.load_state_dict(state["clock"])
