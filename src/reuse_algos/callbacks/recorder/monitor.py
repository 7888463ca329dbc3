"""Which metric orders runs, in which direction, and the weights at its best value."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from composer import State
from composer.utils import dist

from reuse_algos.archive import infer_mode
from reuse_algos.callbacks.recorder.facts.state_facts import evaluated_weights
from reuse_algos.callbacks.recorder.metric_log import MetricLog
from reuse_algos.callbacks.robust_evaluation import ROBUST, RobustEvaluation
from reuse_algos.errors import ArchiveWarning, nearest


@dataclass(frozen=True)
class Monitor:
    """The metric that orders runs and decides ``best``, as recipes write it: ``monitor: {metric: MeanAbsoluteError}``.

    Attributes:
        metric: Name of the metric, whole (``metrics/eval/MulticlassAccuracy``) or its end (``MulticlassAccuracy``).
            Default: None, which takes the first evaluation metric whose name holds ``Accuracy``, else the first one.
        mode: ``max`` where larger values are better, ``min`` where smaller ones are. Default: None, which asks the
            metric (``higher_is_better`` of torchmetrics), and its name where the metric does not say.

    Raises:
        ValueError: ``mode`` is something else.
    """

    metric: str | None = None
    mode: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in (None, "max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', not {self.mode!r}")


def choose_monitor(names: Sequence[str]) -> str | None:
    """Return the metric that orders runs where nobody has chosen one: the first accuracy, or else the first metric.

    Args:
        names: Of the evaluation metrics, in order.
    """
    return next((name for name in names if "Accuracy" in name), names[0] if names else None)


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
        self._directions: dict[str, str] = {}

    def name(self, log: MetricLog) -> str | None:
        """Return the whole name of the monitored metric, or None before its first value."""
        names = [name for name in log.names if name.startswith("metrics/") and "/train/" not in name]
        if (wanted := self.monitor.metric) is not None:
            return next((name for name in names if name == wanted or name.endswith("/" + wanted)), None)
        # Robust metrics come at some evaluations only, so they would order runs by chance.
        names = [name for name in names if f"/{ROBUST}/" not in name]
        return choose_monitor(names)

    def mode(self, log: MetricLog) -> str:
        """Return ``max`` where larger values of the monitored metric are better, else ``min``."""
        name = self.name(log) or ""
        return self.monitor.mode or self._directions.get(name) or infer_mode(name)

    def check(self, state: State, log: MetricLog) -> None:
        """Refuse a monitor that no evaluator has, after the first evaluation.

        Raises:
            ValueError: No metric has this name.
        """
        if self.monitor.metric is None or self.name(log) is not None:
            return
        names = [f"metrics/{label}/{name}" for label, metrics in state.eval_metrics.items() for name in metrics]
        wanted = self.monitor.metric
        robust = [one for one in state.callbacks if isinstance(one, RobustEvaluation)]
        # Robust evaluations are rarer than others: the first may be still to come.
        names += [f"metrics/eval/{name}" for one in robust for name in one.metric_names]
        if not any(name == wanted or name.endswith("/" + wanted) for name in names):
            # The metrics of robust evaluation are in the log only.
            names = sorted(
                {*names, *(name for name in log.names if name.startswith("metrics/") and "/train/" not in name)}
            )
            raise ValueError(f"RunRecorder monitor: no evaluation has a metric {wanted!r}.{nearest(wanted, names)}")

    def warn_where_never_seen(self, log: MetricLog) -> None:
        """Warn at the end where no evaluation had the metric that was asked for: nothing orders the run."""
        if self.monitor.metric is not None and self.name(log) is None:
            warnings.warn(
                f"RunRecorder monitor: no evaluation of the whole training had {self.monitor.metric!r}, so the run is "
                "archived without a monitored metric. Evaluate at the end (eval_interval), and robust metrics by "
                "RobustEvaluation's interval",
                ArchiveWarning,
                stacklevel=2,
            )

    def update(self, log: MetricLog, label: str, state: State) -> None:
        """Compare the newest value of the metric with the best one, after an evaluation.

        Args:
            log: The metrics so far.
            label: Label of the evaluator that has just ended.
            state: Composer's state, whose weights are copied where they are the best so far.
        """
        for metric_name, metric in state.eval_metrics.get(label, {}).items():
            if (higher := getattr(metric, "higher_is_better", None)) is not None:
                self._directions[f"metrics/{label}/{metric_name}"] = "max" if higher else "min"
        name = self.name(log)
        value = log.last(name)
        if name is None or value is None or not name.startswith(f"metrics/{label}/"):
            return
        sign = 1 if self.mode(log) == "max" else -1
        # Written as "not at most": the first value is compared with NaN, and must win.
        if math.isfinite(value) and not sign * value <= sign * self.value:
            self.value = value
            if self._keep_weights and dist.get_global_rank() == 0:
                self.weights = evaluated_weights(state)
