"""Numbers, costs, speed-ups and verdicts in words: the one place for the terminal, the page, notes and sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reuse_algos.compare.estimates.interval import Bound, Interval, Speedup
from reuse_algos.compare.payback import BreakEven
from reuse_algos.compare.question import Axis

AXIS_WORDS: dict[Axis, str] = {
    "steps": "steps",
    "samples": "examples",
    "train_seconds": "train seconds",
    "cost_seconds": "seconds, all costs",
    "amortised_seconds": "seconds, harvest shared",
    "flops": "FLOPs",
    "dollars": "dollars",
}
"""What to call an axis in a heading."""

BOUND_WORDS: dict[Bound, str] = {"": "", "<=": "at most ", ">=": "at least ", "?": ""}
"""What stands in front of a speed-up that is only a limit."""


def cost_words(axis: Axis) -> str:
    """Return an axis for a sentence: ``steps``, ``cost in seconds``, ``FLOPs``."""
    return {"cost_seconds": "cost in seconds", "amortised_seconds": "shared cost in seconds"}.get(
        axis, AXIS_WORDS[axis]
    )


def less_of(axis: Axis) -> str:
    """Return "less of it": ``fewer steps``, ``less cost in seconds``."""
    return f"{'less' if axis in ('cost_seconds', 'amortised_seconds') else 'fewer'} {cost_words(axis)}"


def short(metric: str) -> str:
    """Return the last part of a metric's name."""
    return metric.rsplit("/", 1)[-1]


def format_seconds(seconds: float) -> str:
    """Return seconds with three significant digits and a unit: ``850 ms``, ``12.3 s``, ``4.5 min``, ``2.1 h``."""
    if not math.isfinite(seconds):
        return "?"
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        # From two minutes and two hours on, so that 90 s stays 90 s.
        if seconds >= size * (2.0 if size > 1.0 else 1.0):
            return f"{seconds / size:.3g} {unit}" if seconds / size < 1000 else f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1000:.3g} ms" if seconds > 0 else "0 s"


def format_number(value: float, sign: str = "") -> str:
    """Return a value of a metric: four decimals, or four digits where it is large; ``not finite`` where it is not.

    Args:
        value: The value.
        sign: ``+`` writes the sign of positive values, too. Default: empty.
    """
    if not math.isfinite(value):
        return "not finite"
    return format(value, f"{sign}.4f" if abs(value) < 1000 else f"{sign}.4g")


def format_count(value: float) -> str:
    """Return steps, examples or FLOPs: ``750``, ``12,500``, ``1.25e+12``."""
    if not math.isfinite(value):
        return "?"
    # Steps and examples in full, to be compared digit by digit; FLOPs would fill the column.
    return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"


def format_amount(axis: str, value: float | None) -> str:
    """Return a cost on an axis: seconds with a unit, dollars with a sign, else a count; ``?`` where it is not known."""
    if value is None or not math.isfinite(value):
        return "?"
    if axis.endswith("seconds"):
        return format_seconds(value)
    if axis == "dollars":
        return f"${value:,.2f}" if value >= 1 else f"${value:.3g}"
    return format_count(value)


def format_times(value: float) -> str:
    """Return a ratio with two digits; ``∞`` where it has no limit, ``0`` for 0, ``?`` where it is not known."""
    if math.isnan(value):
        return "?"
    return "∞" if math.isinf(value) else "0" if value == 0.0 else f"{value:.2f}"


def format_runs(number: float) -> str:
    """Return a limit of a number of runs: ``0.061``, ``1.46``, ``12.3``, ``1204``, ``∞``."""
    if math.isinf(number):
        return "∞"
    # Three digits of 1204 would be written as 1.2e+03.
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def format_interval(interval: Interval | None, sign: str = "", between: str = "\n") -> str:
    """Return an estimate of a metric with its limits, without them where none is known."""
    if interval is None or math.isnan(interval.estimate):
        return "" if interval is None else "nan"
    estimate = format_number(interval.estimate, sign)
    if not math.isfinite(interval.low) and not math.isfinite(interval.high):
        return estimate
    return f"{estimate}{between}[{format_number(interval.low, sign)}, {format_number(interval.high, sign)}]"


def format_speedup(speedup: Speedup | None, between: str = " ") -> str:
    """Return a speed-up: ``at most 0.80× [0, 0.95]``, or ``not known``; ``-`` for None.

    Args:
        speedup: The speed-up.
        between: What stands between the estimate and its limits. Default: a space.
    """
    if speedup is None:
        return "-"
    if not speedup.known:
        return "not known"
    estimate = f"{BOUND_WORDS[speedup.bound]}{format_times(speedup.estimate)}\u00d7"
    # Limits that exclude nothing are left out.
    if speedup.low == 0.0 and speedup.high == math.inf:
        return estimate
    return f"{estimate}{between}[{format_times(speedup.low)}, {format_times(speedup.high)}]"


def limits_words(low: float, high: float) -> str:
    """Return the limits of a speed-up for a sentence: ``from 1.20 to 3.35``, ``from 1.20, no upper limit``."""
    if low == 0.0 and math.isinf(high):
        return "without limits"
    if math.isinf(high):
        return f"from {low:.2f}, no upper limit"
    return f"from {low:.2f} to {high:.2f}" if low > 0.0 else f"up to {high:.2f}, no lower limit"


def target_words(metric: str, mode: str, target: float) -> str:
    """Return the target for a heading: ``metrics/eval/Accuracy at least 0.958``."""
    return f"{metric} {'at least' if mode == 'max' else 'at most'} {target:.6g}"


def runs_words(number: Interval) -> str:
    """Return a number of later runs with its limits: ``3 later runs [2.1, 5.3]``, ``no number of runs``."""
    limits = "" if math.isinf(number.low) else f" [{format_runs(number.low)}, {format_runs(number.high)}]"
    if math.isinf(number.estimate):
        return f"no number of runs{limits}"
    # Less a hair: 3.0000000001 from rounding in the division is three runs, and not four.
    whole = math.ceil(number.estimate - 1e-9)
    return f"{whole} later run{'' if whole == 1 else 's'}{limits}"


def payback_line(name: str, known: BreakEven | None) -> str:
    """Return after how many later runs a group's harvest and prior runs are paid back; empty where it is not known."""
    if known is None or math.isnan(known.harvest_runs.estimate):
        return ""
    parts = []
    if known.harvest_seconds > 0:
        each = format_seconds(known.harvest_seconds)
        parts.append(f"its harvest ({each} per run) after {runs_words(known.harvest_runs)}")
    if not math.isnan(known.prior_training_runs.estimate):
        seconds = format_seconds(known.prior_training_seconds)
        parts.append(
            f"the prior runs as well ({seconds}), if trained only for this, "
            f"after {runs_words(known.prior_training_runs)}"
        )
    if not parts:
        return ""
    head = f"Pays back, {name}" if known.saving_shown else f"May pay back, {name} (its saving is not shown)"
    return f"{head}: {'; '.join(parts)}."


@dataclass(frozen=True)
class Sentence:
    """What the sentences of all groups of a comparison share.

    Attributes:
        baseline: Name of the baseline.
        metric: Full name.
        target: The target value.
        given: Whether the target was given.
        confidence: Of the intervals.
    """

    baseline: str
    metric: str
    target: float
    given: bool
    confidence: float

    @property
    def goal(self) -> str:
        """What a group is to reach."""
        if self.given:
            return f"to reach {short(self.metric)} {self.target:.4g}"
        return f"to be as good as {self.baseline}"

    def of_baseline(self, name: str, basis: str, bound: Bound, where: str) -> str:
        """Return the sentence of the baseline itself.

        Args:
            name: Of the group.
            basis: Number of runs in words.
            bound: Of its cost to the target.
            where: Its largest budget in words; empty where it has only one.
        """
        if not self.given:
            at = f" with {where}" if where else ""
            return (
                f"{name} ends at a mean {short(self.metric)} of {self.target:.4g}{at}; {basis}. The others are "
                "measured by what they need to get there."
            )
        how = {
            "<=": "is at the target with its smallest budget already",
            ">=": "does not reach the target within its budget" + (f"s (the end is {where})" if where else ""),
        }.get(bound, "reaches the target within its budget" + "s" * bool(where))
        return f"{name} ({basis}) {how}."

    def not_reached(self, name: str, end: Interval, where: str, basis: str) -> str:
        """Return the sentence of a group that does not reach the target at any of its budgets.

        Args:
            name: Of the group.
            end: Its mean final value at its largest budget.
            where: That budget in words.
            basis: Number of runs in words, and whether they are paired.
        """
        wanted = "" if self.given else f", which it needs {self.goal}"
        return (
            f"{name} does not reach {short(self.metric)} {self.target:.4g}{wanted}: it ends at "
            f"{format_interval(end, between=' ')} with {where} ({basis})."
        )

    def of_group(
        self, name: str, speedup: Speedup, axis: Axis, basis: str, why_unknown: str, than: str | None = None
    ) -> str:
        """Return the verdict on a group.

        Args:
            name: Of the group.
            speedup: On the axis of the verdict.
            axis: That axis.
            basis: Number of runs in words, and whether they are paired.
            why_unknown: What to say where both costs are only limits.
            than: The group that it is compared with. Default: None, the baseline.
        """
        cost, less, base, goal = cost_words(axis), less_of(axis), than or self.baseline, self.goal
        about = BOUND_WORDS[speedup.bound]
        limits = f"{100 * self.confidence:g} % interval {limits_words(speedup.low, speedup.high)}; {basis}"
        if speedup.verdict == "faster":
            return f"{name} needs {about}{speedup.estimate:.2f} times {less} than {base} {goal} ({limits})."
        if speedup.verdict == "slower":
            return (
                f"{name} needs more {cost} than {base} {goal}: its speed-up is {about}{speedup.estimate:.2f}, below 1 "
                f"({limits})."
            )
        if speedup.verdict == "not enough runs":
            return f"Not enough runs to say whether {name} needs {less} than {base} {goal} ({basis})."
        if not speedup.known:
            return f"Nothing can be said about the {cost} that {name} needs {goal}: {why_unknown} ({basis})."
        return (
            f"No difference was shown in the {cost} that {name} and {base} need {goal}: speed-up "
            f"{about}{speedup.estimate:.2f} ({limits})."
        )
