"""The Composer callback that forecasts the end of a run while it trains."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from composer import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks.train_clock import TrainClock
from reuse_algos.errors import NoEffectWarning, NotEnoughEvidenceError
from reuse_algos.predict.forecast import EndForecast, forecast_run
from reuse_algos.predict.history import TRAIN_LOSS, History, histories
from reuse_algos.training.ranks import on_rank_zero
from reuse_algos.training.window import batches_of

_ROWS = 200  # enough for a fit of three coefficients, and a checkpoint stays small


class RunForecast(Callback):
    """Forecast the training loss and the time at the end of this run, and log afterwards how far that was off.

    After each share of the run it logs ``forecast/25pct/end_loss`` with ``..._low`` and ``..._high``, and
    ``forecast/25pct/end_seconds``; after the last batch ``forecast/25pct/end_loss_error`` and ``..._seconds_error``,
    relative errors with their signs. A ``RunRecorder`` beside it archives them, so that ``reuse-algos predict`` can
    show how well forecasts were calibrated.

    At a constant learning rate the forecast is the loss curve of :mod:`reuse_algos.predict.loss_curve`. Once the rate
    has fallen, that form does not hold: then the forecast is what became of earlier runs under a decaying schedule, and
    without such runs there is none.

    The forecast of the time leaves out a slow start. Without one it is no better than the linear time that Composer's
    progress bar shows: over 144 forecasts on a shared machine it was closer in 60.

    Args:
        archive: Archive with earlier runs, or its path; it gives the intervals. Default: None.
        at: Shares of the run after which to forecast, in (0, 1). Default: 0.25, 0.5, 0.75.
        earlier: Tags of the earlier runs that are of the same kind as this one. Default: all runs of the archive.
        schedule: ``constant`` or ``decayed``; ``auto`` looks whether the rate has fallen by the time of the forecast,
            and cannot know of a drop to come. Default: ``auto``.
        level: Probability of the intervals, in (0, 1). Default: 0.9.

    Raises:
        ValueError: A setting is out of its range; or, at the start, ``max_duration`` does not give the number of
            batches.
    """

    def __init__(
        self,
        archive: RunArchive | str | os.PathLike[str] | None = None,
        *,
        at: Sequence[float] = (0.25, 0.5, 0.75),
        earlier: Mapping[str, str] | None = None,
        schedule: Literal["auto", "constant", "decayed"] = "auto",
        level: float = 0.9,
    ) -> None:
        if not at or not all(0 < share < 1 for share in at):
            raise ValueError(f"RunForecast at must be shares between 0 and 1, such as [0.25, 0.5], not {list(at)}")
        if schedule not in ("auto", "constant", "decayed"):
            raise ValueError(f"RunForecast schedule must be auto, constant or decayed, not {schedule!r}")
        if not 0 < level < 1:
            raise ValueError(f"RunForecast level must be between 0 and 1, not {level}")
        self.archive = archive
        self.at = sorted(at)
        self.earlier = None if earlier is None else dict(earlier)
        self.schedule = schedule
        self.level = level
        self._earlier_runs: list[History] = []
        self._begin()

    def _begin(self) -> None:
        self.forecasts: dict[float, EndForecast] = {}
        self.clock = TrainClock()
        self._rows: list[tuple[float, float, float]] = []
        self._block: list[float] = []
        self._highest_rate = 0.0
        self._read: tuple[int, dict[str, float]] = (-1, {})
        self._tried: list[float] = []

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the clock, and do the event's work: Composer's entry point."""
        self.clock.follow(event)
        super().run_event(event, state, logger)

    def init(self, state: State, logger: Logger) -> None:
        """Forget another Trainer."""
        self._begin()

    def fit_start(self, state: State, logger: Logger) -> None:
        """Check that the end is known, and read the earlier runs."""
        _end_step(state)
        if self.archive is not None:
            on_rank_zero(self._read_earlier)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Keep the loss, and log a forecast when a share of the run is done."""
        if readings := self.readings(state):
            logger.log_metrics(readings)

    def readings(self, state: State) -> dict[str, float]:
        """Return the forecasts that this step made, or at the last step their errors; empty at most steps.

        They are made once in a step: the recorder may ask before BATCH_END reaches this
        callback. They are made on rank 0, and other ranks get none.
        """
        now = int(state.timestamp.batch)
        if self._read[0] != now:
            self._read = now, self._follow(state)
        return self._read[1]

    def _follow(self, state: State) -> dict[str, float]:
        """Keep the loss of the step that has just ended, and return what can be said at it."""
        loss = (state.total_loss_dict or {}).get(TRAIN_LOSS)
        if loss is None:  # gradient scaling skipped the step
            return {}
        end, now = _end_step(state), int(state.timestamp.batch)
        self._block.append(float(loss))
        if len(self._block) >= max(1, end // _ROWS) or now >= end:
            self._rows.append((float(now), float(np.mean(self._block)), self.clock.running_seconds))
            self._block = []
        # Warm-up rises to its highest rate; a rate below that has begun to decay.
        rate = float(state.optimizers[0].param_groups[0]["lr"])
        self._highest_rate = max(self._highest_rate, rate)
        found: dict[str, float] = {}
        if dist.get_global_rank() != 0:
            return found
        for share in self.at:
            if share not in self._tried and now >= share * end and now < end:
                self._tried.append(share)
                found |= self._forecast(share, end, rate, state)
        return self._errors(state) if now >= end else found

    def state_dict(self) -> dict[str, Any]:
        """Return the losses so far and the forecasts that were made."""
        return {
            "clock": self.clock.state_dict(),
            "rows": [list(row) for row in self._rows],
            "block": list(self._block),
            "highest_rate": self._highest_rate,
            "tried": list(self._tried),
            "forecasts": {str(share): vars(forecast) for share, forecast in self.forecasts.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.clock.load_state_dict(state["clock"])
        self._rows = [(float(a), float(b), float(c)) for a, b, c in state["rows"]]
        self._block = [float(value) for value in state["block"]]
        self._highest_rate = float(state["highest_rate"])
        self._tried = [float(share) for share in state["tried"]]
        self.forecasts = {float(share): EndForecast(**made) for share, made in state["forecasts"].items()}

    def _read_earlier(self) -> None:
        assert self.archive is not None
        archive = self.archive if isinstance(self.archive, RunArchive) else RunArchive(self.archive)
        try:
            self._earlier_runs = histories(archive, tags=self.earlier)
        except NotEnoughEvidenceError:  # the first run of an archive
            self._earlier_runs = []

    def _forecast(self, share: float, end: int, rate: float, state: State) -> dict[str, float]:
        # A fall of less than a percent is rounding of the schedule, or the end of a warm-up.
        fell = self.schedule == "decayed" or (self.schedule == "auto" and rate < 0.99 * self._highest_rate)
        try:
            made = forecast_run(self._history(fell, state), float(end), self._earlier_runs, level=self.level)
        except NotEnoughEvidenceError as error:
            warnings.warn(
                f"RunForecast makes no forecast at {share:.0%} of the run: {error}", NoEffectWarning, stacklevel=2
            )
            return {}
        self.forecasts[share] = made
        values = {
            "end_loss": made.value,
            "end_loss_low": made.low,
            "end_loss_high": made.high,
            "end_seconds": made.seconds,
        }
        return {f"{_name(share)}/{key}": value for key, value in values.items() if math.isfinite(value)}

    def _history(self, fell: bool, state: State) -> History:
        steps, losses, seconds = (np.asarray(column) for column in zip(*self._rows, strict=True))
        if fell:
            # Archived losses are means over epochs, and the shape compares with them.
            losses[-1] = self._last_epoch(state)
        return History(
            run_id=state.run_name,
            name=state.run_name,
            metric=TRAIN_LOSS,
            mode="min",
            steps=steps,
            values=losses,
            seconds=seconds,
            end_step=float(steps[-1]),
            train_seconds=float(seconds[-1]),
            finished=False,
            diverged=not bool(np.isfinite(losses).all()),
            schedule="decayed" if fell else "constant",
        )

    def _last_epoch(self, state: State) -> float:
        """Return the mean loss over about the last epoch."""
        since = int(state.timestamp.batch) - int(state.dataloader_len or 1)
        return float(np.mean([loss for step, loss, _ in self._rows if step > since]))

    def _errors(self, state: State) -> dict[str, float]:
        """Return how far each forecast was off, relative and with its sign."""
        loss, seconds = self._last_epoch(state), self._rows[-1][2]
        errors: dict[str, float] = {}
        for share, made in self.forecasts.items():
            errors[f"{_name(share)}/end_loss_error"] = made.value / loss - 1
            errors[f"{_name(share)}/end_seconds_error"] = made.seconds / seconds - 1
        return errors


def _name(share: float) -> str:
    return f"forecast/{share * 100:g}pct"


def _end_step(state: State) -> int:
    """Return the number of batches of the whole run."""
    if (batches := batches_of(state)) is None:
        raise ValueError(
            f"RunForecast needs to know the last batch, and max_duration={state.max_duration} does not give it. Give "
            "max_duration in batches, or in epochs of a DataLoader whose length is known."
        )
    return batches
