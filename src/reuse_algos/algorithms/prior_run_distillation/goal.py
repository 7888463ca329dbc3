"""Whether the student is better than its teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from composer import State

from reuse_algos.archive import PriorRun
from reuse_algos.errors import SignalNotFoundError


@dataclass(frozen=True)
class TeacherGoal:
    """The best value of a metric that a teacher had.

    Attributes:
        metric: its full name.
        mode: ``max`` or ``min``: whether more or less of it is better.
        value: the best of all teachers.
    """

    metric: str
    mode: str
    value: float

    @staticmethod
    def of(runs: Sequence[PriorRun], monitor: str | None) -> TeacherGoal:
        """The goal that prior runs set.

        Args:
            runs: at least one.
            monitor: the metric; None: the one that the first run monitored.

        Raises:
            SignalNotFoundError: that run monitored none.
        """
        name = monitor or runs[0].manifest.monitor
        if name is None:
            raise SignalNotFoundError(f"stop_when_better: run {runs[0].id} monitored no metric; name one (monitor)")
        mode = runs[0].metric_mode(name)
        theirs = [run.best_metric(name)[0] for run in runs]
        return TeacherGoal(name, mode, max(theirs) if mode == "max" else min(theirs))

    def passed_with(self, state: State) -> float | None:
        """EVAL_END: the student's value where its evaluator just ran and it is better than the teachers', else None."""
        label, metric = self.metric.split("/")[-2:] if "/" in self.metric else ("eval", self.metric)
        found = state.eval_metrics.get(label, {}).get(metric) if state.dataloader_label == label else None
        value = None if found is None else float(found.compute())
        if value is None or not (value > self.value if self.mode == "max" else value < self.value):
            return None
        return value
