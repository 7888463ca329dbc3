"""After how many later runs the work done beforehand is paid back."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reuse_algos.compare.estimates.interval import Interval, Speedup


@dataclass(frozen=True)
class BreakEven:
    """After how many later runs like these the work done beforehand is paid back.

    Each number is the seconds of work done once, divided by what one later run saves against the baseline when it gets
    that work for free. It is ``inf`` where nothing is saved, NaN where the target was not reached or the cost is not
    known. Its limits are those of the speed-up in all costs, with the baseline's cost taken as it was measured.

    Attributes:
        harvest_seconds: Mean seconds of harvest that a run used.
        harvest_runs: Later runs until the harvest alone is paid back, with limits.
        prior_training_seconds: Training and set-up of the prior runs; NaN if one of them cannot be read.
        prior_training_runs: Later runs until harvest and prior runs are paid back, with limits. It counts if the prior
            runs were trained only for this.
        saving_shown: Whether the group is "faster" in seconds of all costs; otherwise nothing may be paid back at all.
    """

    harvest_seconds: float
    harvest_runs: Interval
    prior_training_seconds: float
    prior_training_runs: Interval
    saving_shown: bool

    @staticmethod
    def of(harvest: float, prior: float, baseline_seconds: float, in_seconds: Speedup | None) -> BreakEven:
        """Compute from seconds of harvest and prior training, and how much less than the baseline a run costs.

        Args:
            harvest: Mean seconds of harvest per run; they are in the run's costs.
            prior: Seconds of all prior runs.
            baseline_seconds: All costs of the baseline; NaN where they are not known.
            in_seconds: The speed-up in all costs; None, or a bound, where it is not known.
        """
        # A speed-up that is only a limit gives no saving to divide by.
        ratios = 3 * (math.nan,)
        if in_seconds is not None and in_seconds.bound == "":
            ratios = in_seconds.estimate, in_seconds.low, in_seconds.high
        saved = [harvest + baseline_seconds * (1.0 - (1.0 / ratio if ratio else math.inf)) for ratio in ratios]

        def runs_until_paid(once: float) -> Interval:
            # The largest saving pays back soonest, so the limits change places.
            middle, most, least = (_quotient(once, saving) for saving in saved)
            return Interval(middle, least, most)

        shown = in_seconds is not None and in_seconds.verdict == "faster"
        return BreakEven(harvest, runs_until_paid(harvest), prior, runs_until_paid(harvest + prior), shown)


def _quotient(once: float, saving: float) -> float:
    if math.isnan(once) or math.isnan(saving):
        return math.nan
    if once <= 0:
        return 0.0
    return once / saving if saving > 0 else math.inf
