"""Forecasts of finished runs from their first parts, beside what came of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from reuse_algos.errors import NotEnoughEvidenceError
from reuse_algos.predict.forecast import EndForecast, first_part, forecast_run
from reuse_algos.predict.history import History


@dataclass(frozen=True)
class Backtest:
    """A forecast of a finished run beside what came of it.

    Attributes:
        forecast: Made from the first part; neither it nor its interval saw the run's own end.
        asked: Share of the run after which it was to be made; rows may be missing just before it.
        value: Loss at the end as measured.
        seconds: Seconds of training as measured.
    """

    forecast: EndForecast
    asked: float
    value: float
    seconds: float

    @property
    def error(self) -> float:
        """Relative error of the forecast end value."""
        return abs(self.forecast.value / self.value - 1)

    @property
    def baseline_error(self) -> float:
        """Relative error of the last value that was seen."""
        return abs(self.forecast.last / self.value - 1)

    @property
    def seconds_error(self) -> float:
        """Relative error of the forecast time."""
        return abs(self.forecast.seconds / self.seconds - 1)

    @property
    def baseline_seconds_error(self) -> float:
        """Relative error of the linear time."""
        return abs(self.forecast.linear_seconds / self.seconds - 1)

    @property
    def covered(self) -> bool | None:
        """Whether the end value lies in the interval; None without an interval."""
        if not math.isfinite(self.forecast.high):
            return None
        return self.forecast.low <= self.value <= self.forecast.high

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast, what came of it, and the errors, as JSON-able data."""
        errors = ("error", "baseline_error", "seconds_error", "baseline_seconds_error", "covered")
        measured = {"measured": self.value, "measured_seconds": self.seconds}
        return {**asdict(self.forecast), **measured, **{name: getattr(self, name) for name in errors}}


@dataclass(frozen=True)
class BacktestSummary:
    """Errors of all forecasts at one share, as medians and 90th percentiles of relative errors.

    Attributes:
        fraction: Share that was asked for.
        num_runs: Number of runs.
        methods: Number of forecasts by each method, such as ``{"curve": 3, "shape": 9}``.
        error: Of the end value.
        baseline_error: Of the last value that was seen.
        seconds_error: Of the time.
        baseline_seconds_error: Of the linear time.
        coverage: Share of the intervals that held the end value; NaN without intervals.
    """

    fraction: float
    num_runs: int
    methods: dict[str, int]
    error: tuple[float, float]
    baseline_error: tuple[float, float]
    seconds_error: tuple[float, float]
    baseline_seconds_error: tuple[float, float]
    coverage: float


def summarise(tests: Iterable[Backtest]) -> list[BacktestSummary]:
    """Return the distribution of the errors, for each share.

    Args:
        tests: Of :func:`backtest`.
    """
    groups: dict[float, list[Backtest]] = {}
    for test in tests:
        # By the share that was asked for: what a run really showed by then differs from run to run.
        groups.setdefault(test.asked, []).append(test)

    def spread(group: list[Backtest], name: str) -> tuple[float, float]:
        # Not the mean: one run that was forecast badly would decide it.
        middle, high = np.quantile([getattr(test, name) for test in group], [0.5, 0.9]).tolist()
        return middle, high

    rows = []
    for fraction, group in sorted(groups.items()):
        covered = [test.covered for test in group if test.covered is not None]
        rows.append(
            BacktestSummary(
                fraction,
                len(group),
                dict(sorted(Counter(test.forecast.method for test in group).items())),
                spread(group, "error"),
                spread(group, "baseline_error"),
                spread(group, "seconds_error"),
                spread(group, "baseline_seconds_error"),
                float(np.mean(covered)) if covered else math.nan,
            )
        )
    return rows


def backtest(
    runs: Sequence[History], fractions: Iterable[float] = (0.25, 0.5, 0.75), *, level: float = 0.9
) -> list[Backtest]:
    """Forecast every finished run after some shares of it, from its own first part and the other runs.

    Args:
        runs: Of an archive. Runs that diverged, have not ended, or have too few rows before a share are left out of it.
        fractions: Shares of the steps, in (0, 1). Default: 0.25, 0.5, 0.75.
        level: Of the intervals. Default: 0.9.

    Raises:
        NotEnoughEvidenceError: No forecast could be made; the message says why the last one could not.
    """
    tests: list[Backtest] = []
    why = "there are no runs"
    # What an earlier run's forecast was off does not depend on the run that is asked about, so it is found once.
    known: dict[tuple[str, float], float] = {}
    for run in runs:
        if run.diverged or not run.finished:
            why = f"run {run.run_id} {'diverged' if run.diverged else 'has not ended'}"
            continue
        end_step, end = float(run.steps[-1]), float(run.losses()[-1])
        for fraction in fractions:
            # Neither the forecast nor its interval may see the end of the run.
            part = first_part(run, fraction)
            try:
                forecast = forecast_run(
                    part, end_step, [one for one in runs if one is not run], level=level, known=known
                )
            except NotEnoughEvidenceError as error:
                why = str(error)
                continue
            tests.append(Backtest(forecast, fraction, end, float(run.seconds[-1])))
    if not tests:
        raise NotEnoughEvidenceError(f"no run of {len(runs)} could be forecast: {why}")
    return tests
