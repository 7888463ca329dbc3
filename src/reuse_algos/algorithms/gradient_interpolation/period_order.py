"""The Composer algorithm that refuses prior runs from the future."""

from __future__ import annotations

from composer import Algorithm, Event, State
from composer.loggers import Logger

from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.errors import PriorRunMismatchError
from reuse_algos.priors.drift import training_period


class PeriodOrder(Algorithm):
    """Refuses a prior run on a later period than is trained on: it has seen what this run is judged by.

    A recipe with ``data.rotated`` adds it by itself. It looks before the first batch of each fit, when the other
    algorithms have chosen their runs.

    Args:
        period: The last period that is trained on.
    """

    def __init__(self, period: int) -> None:
        self.period = period

    def match(self, event: Event, state: State) -> bool:
        """Return true at the start of an epoch."""
        return event == Event.EPOCH_START

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Look at the prior runs of the other algorithms."""
        for algorithm in state.algorithms:
            for run in algorithm.prior_runs if isinstance(algorithm, ReusingAlgorithm) else ():
                theirs = training_period(run)
                if theirs is not None and theirs > self.period:
                    raise PriorRunMismatchError(
                        f"periods are out of order: run {run.id} was trained up to period {theirs}, this run up to "
                        f"{self.period}, so it would start from what it is to foresee. Choose a run of period "
                        f"{self.period} or before."
                    )
