"""Forecasts of the end of a run from its first part, and how far earlier forecasts were off.

Two ways to the end value. ``curve``: that of :mod:`reuse_algos.predict.loss_curve`, at a constant learning rate.
``shape``: the value so far, times the median of what the same share of a run left of it in earlier runs. Under a
schedule that decays, where the form of the curve does not hold, only the second; else the one that forecast the earlier
runs better.

The interval is conformal (Vovk et al., "Algorithmic learning in a random world", 2005, chapter 2): the error that a
share of earlier forecasts did not exceed. It assumes only that the run is like the earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from reuse_algos.errors import NotEnoughEvidenceError
from reuse_algos.predict.history import History
from reuse_algos.predict.loss_curve import fit_loss_curve, looks_decayed

Method = Literal["curve", "shape"]

MIN_EARLIER = 3
"""Earlier runs that it takes to choose between the two ways by their errors."""


@dataclass(frozen=True)
class EndForecast:
    """What is forecast of the end of a run.

    Attributes:
        run_id: Of the run.
        method: ``curve`` or ``shape``.
        fraction: Share of the run that was seen, in (0, 1).
        end_step: At which the run ends.
        value: Forecast of the loss (or of the error, for an accuracy) at the end.
        low: Lower end of the interval; NaN where too few earlier runs calibrate it.
        high: Upper end of the interval; NaN where too few earlier runs calibrate it.
        seconds: Forecast of the seconds of training in all; see :func:`end_seconds` for how good it is.
        last: Last value that was seen, which is the first baseline.
        linear_seconds: Seconds so far over the share of the steps, which is the second baseline (Composer's ETA).
    """

    run_id: str
    method: Method
    fraction: float
    end_step: float
    value: float
    low: float
    high: float
    seconds: float
    last: float
    linear_seconds: float


def conformal_factor(log_errors: Iterable[float], level: float = 0.9) -> float:
    """Return the factor by which a forecast may be off, either way, with a given probability.

    Args:
        log_errors: ``ln(measured / forecast)`` of earlier forecasts of the same method and share.
        level: Probability, in (0, 1). Default: 0.9.

    Returns:
        At least 1: the ``ceil((n + 1) level)``-th smallest absolute error, as a factor. NaN where n is below
        ``level / (1 - level)``: level 0.9 needs 9 forecasts.
    """
    sizes = sorted(abs(error) for error in log_errors)
    # The + 1 is the run to come, which is one of n + 1 exchangeable ones.
    rank = math.ceil((len(sizes) + 1) * level - 1e-9)
    return math.exp(sizes[rank - 1]) if 0 < rank <= len(sizes) else math.nan


def end_seconds(steps: ArrayLike, seconds: ArrayLike, end_step: float) -> float:
    """Return the predicted seconds of a whole run, from the times of its first steps.

    The median time of a step over the later half of what was seen goes on to the end: a slow start (compilation,
    caches, the first epoch's data) is not multiplied. Without such a start it is no better than the linear time (the
    seconds so far over the share of the steps), which was closer in 84 of 144 forecasts on a shared machine
    (benchmarks/forecasts.py).

    Args:
        steps: ``[N]``, ascending.
        seconds: Seconds of training at those steps.
        end_step: At which the run ends.

    Raises:
        NotEnoughEvidenceError: There are fewer than two points.
    """
    steps_N, seconds_N = np.asarray(steps, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    if len(steps_N) < 2:
        raise NotEnoughEvidenceError(f"the time of a step needs two points in time, got {len(steps_N)}")
    # The median and not the mean: one evaluation or one pause must not slow the whole forecast.
    rates = np.diff(seconds_N) / np.diff(steps_N)
    later = rates[len(rates) // 2 :]
    return float(seconds_N[-1] + np.median(later) * (end_step - steps_N[-1]))


def forecast_run(
    run: History,
    end_step: float,
    earlier: Sequence[History] = (),
    *,
    level: float = 0.9,
    method: Method | None = None,
    known: dict[tuple[str, float], float] | None = None,
) -> EndForecast:
    """Forecast the end of a run from the rows that it has so far.

    Args:
        run: The running one, or the first part of a finished one.
        end_step: At which it ends, above its last row.
        earlier: Finished runs of the same kind; they calibrate the interval, and under a decayed schedule they give the
            forecast itself. Diverged ones, and the run itself, are left out. Default: none.
        level: Of the interval, in (0, 1). Default: 0.9.
        method: ``curve`` or ``shape``. Default: under a schedule that decays ``shape``; else ``curve``, unless there
            are :data:`MIN_EARLIER` earlier runs and ``shape`` forecast them with the smaller median error.
        known: Errors of earlier runs by (run id, share); what is missing is added, so that many forecasts fit each
            earlier run once. Default: None.

    Raises:
        NotEnoughEvidenceError: The run diverged, has too few rows or none before the end; ``curve`` was asked for under
            a schedule that decays; or there is no earlier run for ``shape``.
    """
    if run.diverged:
        raise NotEnoughEvidenceError(f"run {run.run_id} diverged: its end cannot be forecast")
    if not len(run.steps) or not run.steps[-1] < end_step:
        raise NotEnoughEvidenceError(
            f"run {run.run_id} is at step {run.steps[-1] if len(run.steps) else 0:g} of {end_step:g}: a forecast needs "
            "rows before the end"
        )
    fraction = float(run.steps[-1] / end_step)
    losses = run.losses()
    decayed = run.schedule == "decayed" or (run.schedule == "unknown" and looks_decayed(run.steps, losses))
    if method == "curve" and decayed:
        raise NotEnoughEvidenceError(
            f"the learning rate of run {run.run_id} decays, and the loss curve assumes a constant one. Forecast it "
            "from earlier runs under the same schedule (method: shape), or fit the ends of runs over several budgets."
        )
    # Another schedule leaves another share of the loss.
    usable = [one for one in earlier if _usable(one, run) and one.schedule == run.schedule]
    errors: dict[Method, list[float]] = {"shape": _shape_errors(fraction, usable)}
    if not decayed:
        errors["curve"] = _curve_errors(fraction, usable, {} if known is None else known)
    if method is None:
        method = "shape" if decayed or _is_better(errors["shape"], errors["curve"]) else "curve"
    value = _end_value(run, losses, end_step, method, usable)
    factor = conformal_factor(errors[method], level)
    return EndForecast(
        run_id=run.run_id,
        method=method,
        fraction=fraction,
        end_step=end_step,
        value=value,
        low=value / factor,
        high=value * factor,
        # With the start of the run, so that one row is enough for the time of a step.
        seconds=end_seconds(np.r_[0.0, run.steps], np.r_[0.0, run.seconds], end_step),
        last=float(losses[-1]),
        linear_seconds=float(run.seconds[-1] / fraction),
    )


def _usable(other: History, run: History) -> bool:
    same = other.run_id != run.run_id and other.metric == run.metric
    return same and other.finished and not other.diverged and len(other.steps) > 1 and bool((other.losses() > 0).all())


def _is_better(errors: Sequence[float], than: Sequence[float]) -> bool:
    if len(errors) < MIN_EARLIER:
        return False
    return not len(than) or float(np.median(np.abs(errors))) < float(np.median(np.abs(than)))


def first_part(run: History, fraction: float) -> History:
    """Return a run as it was after a share of its steps.

    Args:
        run: A finished one.
        fraction: Share of the steps of its last row, in (0, 1].
    """
    # Rounding must not leave out the row at the share itself.
    seen = run.steps <= fraction * run.steps[-1] * (1 + 1e-9)
    return replace(run, steps=run.steps[seen], values=run.values[seen], seconds=run.seconds[seen])


def _end_value(run: History, losses: ArrayLike, end_step: float, method: Method, earlier: Sequence[History]) -> float:
    if method == "curve":
        return float(fit_loss_curve(run.steps, losses, relative=True).loss(end_step))
    fraction = float(run.steps[-1] / end_step)
    left = [_log_left(one, fraction) for one in earlier]
    if not left:
        raise NotEnoughEvidenceError(
            f"the learning rate of run {run.run_id} decays, and no earlier finished run under such a schedule shows "
            "what becomes of the loss"
        )
    return float(np.asarray(losses)[-1] * math.exp(np.median(left)))


def _log_left(run: History, fraction: float) -> float:
    """Return the logarithm of what is left of the loss at the end, of what there was after a share of the run."""
    losses, steps = run.losses(), run.steps / run.steps[-1]
    return math.log(losses[-1] / np.interp(fraction, steps, losses))


def _shape_errors(fraction: float, earlier: Sequence[History]) -> list[float]:
    """Return ``ln(measured / forecast)`` that each earlier run would have had at this share, by the others."""
    # Leave-one-out, so that a run does not calibrate itself.
    left = np.asarray([_log_left(one, fraction) for one in earlier])
    return [float(own - np.median(np.delete(left, at))) for at, own in enumerate(left) if len(left) > 1]


def _curve_errors(fraction: float, earlier: Sequence[History], known: dict[tuple[str, float], float]) -> list[float]:
    """Return ``ln(measured / forecast)`` that each earlier run would have had at this share, by its own curve."""
    for one in earlier:
        if (one.run_id, fraction) in known:
            continue
        part = first_part(one, fraction)
        try:
            curve = fit_loss_curve(part.steps, part.losses(), relative=True)
            error = math.log(float(one.losses()[-1]) / max(float(curve.loss(one.steps[-1])), 1e-12))
        except NotEnoughEvidenceError:
            error = math.nan  # too few rows before this share
        known[one.run_id, fraction] = error
    return [error for one in earlier if math.isfinite(error := known[one.run_id, fraction])]
