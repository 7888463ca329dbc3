"""Which metric orders runs, in which direction, and the weights at its best value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from composer import State
from composer.utils import dist

from reuse_algos.archive import infer_mode
from reuse_algos.callbacks.metric_log import MetricLog
from reuse_algos.callbacks.robust_evaluation import ROBUST
from reuse_algos.callbacks.state_facts import evaluated_weights

__all__ = ["BestSoFar", "Monitor"]


@dataclass(frozen=True)
class Monitor:
    """The metric that orders runs and decides ``best``, as recipes write it: ``monitor: {metric: MeanAbsoluteError}``.

    Attributes:
        metric: Name of the metric, whole (``metrics/eval/MulticlassAccuracy``) or its end (``MulticlassAccuracy``).
            Default: None, which takes the first evaluation metric whose name holds ``Accuracy``, else the first one.
    """

    metric: str | None = None


class BestSoFar:
    """Follows the monitored metric and keeps the weights at its best value.

    Args:
        monitor: The metric.
        keep_weights: Whether to keep the weights.
    """

    def __init__(self, monitor: Monitor, *, keep_weights: bool) -> None:
        self.monitor = monitor
        self.value = math.nan
        self.weights: dict[str, torch.Tensor] | None = None
        self._keep_weights = keep_weights

    def name(self, log: MetricLog) -> str | None:
        """Return the whole name of the monitored metric, or None before its first value."""
        names = [name for name in log.names if name.startswith("metrics/") and "/train/" not in name]
        if (wanted := self.monitor.metric) is not None:
            return next((name for name in names if name == wanted or name.endswith("/" + wanted)), None)
        names = [name for name in names if f"/{ROBUST}/" not in name]
        return next((name for name in names if "Accuracy" in name), names[0] if names else None)

    def mode(self, log: MetricLog) -> str:
        """Return ``max`` where larger values of the monitored metric are better, else ``min``."""
        return infer_mode(self.name(log) or "")

    def update(self, log: MetricLog, label: str, state: State) -> None:
        """Compare the newest value of the metric with the best one, after an evaluation.

        Args:
            log: The metrics so far.
            label: Label of the evaluator that has just ended.
            state: Composer's state, whose weights are copied where they are the best so far.
        """
        name = self.name(log)
        value = log.last(name)
        if name is None or value is None or not name.startswith(f"metrics/{label}/"):
            return
        sign = 1 if self.mode(log) == "max" else -1
        if math.isfinite(value) and not sign * value <= sign * self.value:
            self.value = value
            if self._keep_weights and dist.get_global_rank() == 0:
                self.weights = evaluated_weights(state)
