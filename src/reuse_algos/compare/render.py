"""Comparisons and lists of runs as rich tables that fit a terminal of 100 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from reuse_algos.compare.results import BreakEven, Comparison, CostToTarget, GroupResult
from reuse_algos.compare.statistics import Interval, Speedup

if TYPE_CHECKING:
    from reuse_algos.archive import PriorRun

__all__ = [
    "comparison_table",
    "format_number",
    "format_runs",
    "format_seconds",
    "format_speedup",
    "payback_line",
    "run_state",
    "runs_table",
    "verdict_text",
]

_VERDICT_STYLE = {"faster": "green", "slower": "red", "no difference": "yellow", "not enough runs": "yellow"}


def format_seconds(seconds: float) -> str:
    """Seconds with three significant digits and a unit: ``850 ms``, ``12.3 s``, ``4.5 min``, ``2.1 h``."""
    if not math.isfinite(seconds):
        return "?"
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size * (2.0 if size > 1.0 else 1.0):
            return f"{seconds / size:.3g} {unit}" if seconds / size < 1000 else f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1000:.3g} ms" if seconds > 0 else "0 s"


def format_number(value: float) -> str:
    """A value of a metric: four decimals, or four digits where it is large."""
    return f"{value:.4f}" if math.isfinite(value) and abs(value) < 1000 else f"{value:.4g}"


def _limits(low: float, high: float, form: str) -> str:
    left = "0" if low == 0.0 else format(low, form)
    return f"[{left}, {format(high, form)}]"


def _interval(interval: Interval) -> str:
    if not math.isfinite(interval.low) and not math.isfinite(interval.high):
        return format_number(interval.estimate)
    return f"{format_number(interval.estimate)}\n[{format_number(interval.low)}, {format_number(interval.high)}]"


def format_speedup(speedup: Speedup | None) -> str:
    """Two lines: ``2.00x`` (or ``<= 2.00x``), and the limits ``[1.70, 2.40]`` if any is known."""
    if speedup is None:
        return "-"
    if not speedup.known:
        return "?"
    estimate = f"{speedup.bound} {speedup.estimate:.2f}x" if speedup.bound else f"{speedup.estimate:.2f}x"
    if speedup.low == 0.0 and speedup.high == math.inf:
        return estimate
    return f"{estimate}\n{_limits(speedup.low, speedup.high, '.2f')}"


def _cost(cost: CostToTarget, value: str) -> str:
    return value if cost.reached else f"> {value}"


def _row(group: GroupResult) -> list[RenderableType]:
    cost = group.to_target
    differs = group.final_difference
    return [
        Text(group.name),
        str(group.n),
        _interval(group.final),
        "" if differs is None or math.isnan(differs.estimate) else f"{differs.estimate:+.4f}",
        f"{group.reached}/{group.n}",
        f"{_cost(cost, f'{cost.steps:.0f}')}\n{_cost(cost, format_seconds(cost.cost_seconds))}",
        format_speedup(group.speedup_steps),
        format_speedup(group.speedup_cost),
        _verdict(group),
    ]


def verdict_text(verdict: str) -> Text:
    """A verdict in its colour."""
    return Text(verdict, style=_VERDICT_STYLE.get(verdict, ""))


def _verdict(group: GroupResult) -> Text:
    text = verdict_text(group.verdict)
    if not group.to_target.reached:
        text.append("\ntarget not reached", style="default")
    if group.speedup_steps is not None and group.speedup_steps.verdict != group.verdict:
        text.append(f"\n(steps: {group.speedup_steps.verdict})", style="default")
    return text


def comparison_table(comparison: Comparison) -> RenderableType:
    """The comparison as a table, with how to read it above and what to beware of below."""
    word = "at least" if comparison.mode == "max" else "at most"
    given = comparison.target_source == "given"
    source = "given" if given else f"mean final value of {comparison.baseline}"
    percent = f"{100 * comparison.confidence:g} %"
    head = f"Target: {comparison.metric} {word} {comparison.target:.6g} ({source}). In brackets: {percent} intervals."
    table = Table(pad_edge=False, box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column(escape(comparison.group_by), overflow="fold", max_width=18)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("final", no_wrap=True)
    table.add_column("differs by", justify="right", no_wrap=True)
    table.add_column("runs at\ntarget", justify="right", no_wrap=True)
    table.add_column("cost to\ntarget", justify="right", no_wrap=True)
    table.add_column("speed-up\nin steps", justify="right", no_wrap=True)
    table.add_column("speed-up\nin cost", justify="right", no_wrap=True)
    table.add_column("verdict")
    for group in comparison.groups:
        table.add_row(*_row(group))
        table.add_row()
    how = (
        "Cost: steps, and seconds of training + set-up + used harvests. "
        + (
            "Mean curves against the final level of the baseline"
            if comparison.method == "curves"
            else "Each run's own cost to the target; a run that never reached it counts at its total cost"
        )
        + _pairing(comparison)
    )
    parts: list[RenderableType] = [Text(head), Text(""), table, Text(how, style="dim")]
    parts += [Text(line) for line in _break_even_lines(comparison)]
    parts += [Text(f"Note: {note}") for note in comparison.notes]
    return Group(*parts)


def _pairing(comparison: Comparison) -> str:
    paired = [group.name for group in comparison.groups if group.paired]
    others = sum(not group.is_baseline for group in comparison.groups) - len(paired)
    if not paired:
        return "; unpaired (Welch)."
    return "; paired by seed." if not others else f"; paired by seed: {', '.join(paired)}; others unpaired (Welch)."


def _break_even_lines(comparison: Comparison) -> list[str]:
    lines = [payback_line(group.name, group.break_even) for group in comparison.groups]
    return [line for line in lines if line]


def payback_line(name: str, known: BreakEven | None) -> str:
    """After how many later runs a group's harvest and prior runs are paid back; empty where nothing is known."""
    if known is None or math.isnan(known.harvest_runs.estimate):
        return ""
    parts = []
    if known.harvest_seconds > 0:
        parts.append(f"its harvest ({format_seconds(known.harvest_seconds)} per run) after {_runs(known.harvest_runs)}")
    if not math.isnan(known.prior_training_runs.estimate):
        spent = format_seconds(known.prior_training_seconds)
        parts.append(
            f"the prior runs as well ({spent}), if trained only for this, after {_runs(known.prior_training_runs)}"
        )
    if not parts:
        return ""
    head = f"Pays back, {name}" if known.saving_shown else f"May pay back, {name} (its saving is not shown)"
    return f"{head}: {'; '.join(parts)}."


def format_runs(number: float) -> str:
    """A limit of a number of runs: ``0.061``, ``1.46``, ``12.3``, ``1204``, ``inf``."""
    return f"{number:.3g}" if number < 1000 or math.isinf(number) else f"{number:.0f}"


def _runs(number: Interval) -> str:
    limits = "" if math.isinf(number.low) else f" [{format_runs(number.low)}, {format_runs(number.high)}]"
    if math.isinf(number.estimate):
        return f"no number of runs{limits}"
    whole = math.ceil(number.estimate - 1e-9)
    return f"{whole} later run{'' if whole == 1 else 's'}{limits}"


def runs_table(runs: Sequence[PriorRun], values: Sequence[float | None], metric: str | None) -> RenderableType:
    """A list of runs.

    Args:
        runs: what to list, in order.
        values: the metric's last value of each, None where it has none.
        metric: short name of it for the header; None if each run's own monitor is shown.
    """
    table = Table(pad_edge=False, box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column(escape(f"final {metric or 'monitor'}"), justify="right")
    table.add_column("seed", justify="right", no_wrap=True)
    table.add_column("epochs", justify="right", no_wrap=True)
    table.add_column("trained", justify="right", no_wrap=True)
    table.add_column("tags", overflow="fold")
    for run, value in zip(runs, values, strict=True):
        manifest = run.manifest
        table.add_row(
            Text(run.id),
            run_state(run),
            "-" if value is None else format_number(value),
            "-" if manifest.seed is None else str(manifest.seed),
            str(manifest.progress.epoch),
            format_seconds(manifest.cost.train_seconds),
            Text(" ".join(f"{key}={value}" for key, value in sorted(run.tags.items()))),
        )
    return table


def run_state(run: PriorRun) -> str:
    """``finished``, ``diverged``, ``empty``, or ``unfinished`` (still going, or died)."""
    if not run.finished:
        return "unfinished"
    return "finished" if run.health == "ok" else run.health
