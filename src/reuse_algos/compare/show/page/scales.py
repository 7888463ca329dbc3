"""Places of numbers on an axis, and the ticks beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_TICKS = 5
_FARTHEST = 10.0  # a line to a place that is farther away looks the same
# Round in the unit in which they are written (minutes from two on, hours from two on).
_USUAL_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 1200, 1800, 3600, 7200, 14400, 36000, 72000, 180000)


@dataclass(frozen=True)
class Scale:
    """One axis of a plot.

    Attributes:
        low: Value at its start.
        high: Value at its end, above ``low``.
        log: Whether equal ratios take equal room; then both ends are above 0.
        ticks: Values to write beside it, ascending, within the ends.
    """

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Return where a value is, 0 at the start and 1 at the end; a value beyond an end is at that end."""
        return min(1.0, max(0.0, self.share(value)))

    def share(self, value: float) -> float:
        """Return where a value is, below 0 or above 1 where it is beyond an end; at most 10 times the axis away."""
        if not self.log:
            at = (value - self.low) / (self.high - self.low)
        elif value <= 0.0:
            at = -math.inf
        elif math.isinf(value):
            at = math.inf
        else:
            at = math.log(value / self.low) / math.log(self.high / self.low)
        return min(_FARTHEST, max(-_FARTHEST, at))


def linear_scale(
    values: Iterable[float], *, from_zero: bool = False, room: float = 0.06, seconds: bool = False
) -> Scale:
    """Return an axis that holds all finite values, with some room at both ends.

    Args:
        values: What it must hold.
        from_zero: The axis starts at 0. Default: False.
        room: At each end, as a share of the range; none below 0 where the axis starts there. Default: 0.06.
        seconds: The values are seconds, so steps between ticks are round in minutes and hours, too. Default: False.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = (0.0 if from_zero else min(finite)), max(finite)
    # One value alone still needs an axis.
    span = high - low or abs(high) or 1.0
    low, high = (0.0 if from_zero else low - room * span), high + room * span
    step = (high - low) / _TICKS
    step = next((usual for usual in _USUAL_SECONDS if seconds and step > 5 and usual >= step), _nice(step))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Scale(low, high, False, tuple(step * k for k in range(first, last + 1)))


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(nice * power for nice in (1.0, 2.0, 5.0, 10.0) if nice * power >= step * (1 - 1e-9))


def log_scale(
    values: Iterable[float],
    *,
    room: float = 0.08,
    around: float | None = None,
    most: float = 1e6,
    seconds: bool = False,
) -> Scale:
    """Return a logarithmic axis that holds all finite values above 0.

    Args:
        values: What it must hold.
        room: At each end, as a share of the range of logarithms. Default: 0.08.
        around: A value that it must hold with something on both sides of it. Default: None, no such value.
        most: At most this many times ``around`` away from it; values beyond are shown at the end. Default: 1e6.
        seconds: The values are seconds, so ticks are round in minutes and hours, too. Default: False.
    """
    finite = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    if around is not None:
        finite = [min(max(value, around / most), around * most) for value in finite]
        finite += [around / 1.5, around * 1.5]
    low, high = math.log(min(finite)), math.log(max(finite))
    span = max(high - low, math.log(1.5))
    low, high = low - room * span, high + room * span
    low, high = math.exp(low), math.exp(high)
    ticks = tuple(tick for tick in _USUAL_SECONDS if seconds and low <= tick <= high)
    if len(ticks) > _TICKS + 2:
        ticks = ticks[:: math.ceil(len(ticks) / (_TICKS + 2))]
    return Scale(low, high, True, ticks if len(ticks) > 2 else _log_ticks(low, high))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return round numbers, as dense as is still readable."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))
    ticks: tuple[float, ...] = ()
    for digits in steps:
        ticks = tuple(d * 10.0**k for k in decades for d in digits if low <= d * 10.0**k <= high)
        if len(ticks) <= _TICKS + 2:
            return ticks
    return ticks[:: math.ceil(len(ticks) / (_TICKS + 2))]
