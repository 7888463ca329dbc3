"""Comparisons, recommendations and lists of runs as rich tables that fit a terminal of 100 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.console import Group as Parts
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from reuse_algos.compare.advice.recommend import Candidate, Recommendation
from reuse_algos.compare.estimates.interval import Bound, Interval, Speedup
from reuse_algos.compare.question import Axis
from reuse_algos.compare.result import Comparison, CostToTarget, Group
from reuse_algos.compare.show.words import (
    AXIS_WORDS,
    format_amount,
    format_count,
    format_interval,
    format_number,
    format_seconds,
    format_speedup,
    payback_line,
    target_words,
)

if TYPE_CHECKING:
    from reuse_algos.archive import PriorRun

_VERDICT_STYLE = {"faster": "green", "slower": "red", "no difference": "yellow", "not enough runs": "yellow"}
_STANDING_STYLE = {"recommended": "bold green", "cheaper than the baseline": "green", "not enough evidence": "yellow"}
_FRONTS: tuple[tuple[Axis, str], ...] = (
    ("steps", "steps"), ("samples", "examples"), ("cost_seconds", "cost"), ("flops", "FLOPs"),
)  # fmt: skip


_TAGS_WIDTH = 16
_WIDE = 10_000


def new_table(*columns: tuple[str, bool], padding: int = 2, first: int | None = None) -> Table:
    """Return an empty table without lines.

    Args:
        columns: Title of each column, and whether it holds numbers, which stand to the right and do not wrap.
        padding: Spaces between columns. Default: 2.
        first: Width at which the first column wraps. Default: None, as wide as needed.
    """
    table = Table(pad_edge=False, box=None, header_style="bold", padding=(0, padding, 0, 0))
    for title, right in columns:
        table.add_column(title, justify="right" if right else "left", no_wrap=right, overflow="fold")
    # Names come from tags, and may be long.
    table.columns[0].max_width = first
    return table


def verdict_text(verdict: str) -> Text:
    """Return a verdict in its colour."""
    return Text(verdict, style=_VERDICT_STYLE.get(verdict, ""))


def comparison_table(comparison: Comparison) -> RenderableType:
    """Return a comparison of any kind: how to read it, verdicts, figures, and what to beware of."""
    over_budgets = comparison.method == "budgets"
    source = "given"
    if comparison.target_source != "given":
        at = f" at {comparison.groups[0].largest_budget}" if over_budgets else ""
        source = f"mean final value of {comparison.baseline}{at}"
    target = target_words(comparison.metric, comparison.mode, comparison.target)
    parts: list[RenderableType] = [
        Text(f"Target: {target} ({source}). In brackets: {100 * comparison.confidence:g} % intervals."),
        Text(""),
    ]
    if over_budgets:
        said = [
            line
            for group in comparison.groups
            for line in (group.sentence, *(over.sentence for over in group.over_controls))
        ]
        parts += [*(Text(f"- {line}") for line in said), Text("")]
        parts += [_speedups_table(comparison)] if len(comparison.groups) > 1 else []
        parts += [_points_table(comparison), Text(_how_over_budgets(comparison), style="dim")]
    else:
        parts += [_groups_table(comparison), Text(_how_over_training(comparison), style="dim")]
    lines = [payback_line(group.name, group.break_even) for group in comparison.groups]
    parts += [Text(line) for line in lines if line]
    parts += [Text(f"Note: {note}") for note in comparison.notes]
    return Parts(*parts)


def _how_over_training(comparison: Comparison) -> str:
    how = (
        "Mean curves against the final level of the baseline"
        if comparison.method == "curves"
        else "Each run's own cost to the target; a run that never reached it counts at its total cost"
    )
    paired = [group.name for group in comparison.groups if group.paired]
    others = len(comparison.groups) - 1 - len(paired)
    pairing = f"paired by seed: {', '.join(paired)}; others unpaired (Welch)" if others else "paired by seed"
    return (
        f"Cost: steps, and seconds of training + set-up + used harvests. {how}; "
        f"{pairing if paired else 'unpaired (Welch)'}."
    )


def _how_over_budgets(comparison: Comparison) -> str:
    shared = f"Shared: the harvest{' and the prior runs' if comparison.count_prior_training else ''}"
    return (
        "Costs where the mean curve over the budgets reaches the target; each run counts with its last value only. All "
        f"costs: training + set-up + used harvests, in seconds. {shared} divided by {comparison.later_runs} later runs."
    )


def _groups_table(comparison: Comparison) -> Table:
    heads = [
        "n",
        "final",
        "differs by",
        "runs at\ntarget",
        "cost to\ntarget",
        "speed-up\nin steps",
        "speed-up\nin cost",
    ]
    table = new_table(
        (escape(comparison.group_by), False), *((h, True) for h in heads), ("verdict", False), padding=1, first=18
    )
    # The final value stands over its interval, and both begin with the same digits.
    table.columns[2].justify = "left"
    for group in comparison.groups:
        differs, cost = group.final_difference, group.to_target
        table.add_row(
            Text(group.name),
            str(group.n),
            format_interval(group.final),
            "" if differs is None or math.isnan(differs.estimate) else format_number(differs.estimate, "+"),
            f"{group.reached}/{group.n}",
            "" if cost is None else _to_target(cost),
            _speedup(group.speedups.get("steps"), "\n"),
            _speedup(group.speedups.get("cost_seconds"), "\n"),
            _verdict(group),
        )
        table.add_row()
    return table


def _speedup(speedup: Speedup | None, between: str = " ") -> str:
    # Signs instead of words: a table of 100 columns has no room for more.
    return format_speedup(speedup, between).replace("at most", "<=").replace("at least", ">=")


def _to_target(cost: CostToTarget) -> str:
    mark = "" if cost.reached else "> "
    return f"{mark}{format_count(cost.steps)}\n{mark}{format_seconds(cost.cost_seconds)}"


def _verdict(group: Group) -> Text:
    text = verdict_text(group.verdict)
    if group.target_bound == ">=":
        text.append("\ntarget not reached", style="default")
    # The verdict is about seconds; where steps say something else, both are shown.
    in_steps = group.speedups.get("steps")
    if in_steps is not None and in_steps.verdict != group.verdict:
        text.append(f"\n(steps: {in_steps.verdict})", style="default")
    return text


def _cost(cost: Interval | None, axis: Axis, bound: Bound, between: str = " ") -> str:
    if cost is None:
        return "?"
    # A target that was not reached costs more than what was trained, not just as much.
    sign = {"": "", "<=": "<= ", ">=": "> ", "?": ""}[bound]
    # Bare: "0 s" and "inf h" would look measured.
    low = "0" if cost.low == 0.0 else format_amount(axis, cost.low)
    high = "∞" if math.isinf(cost.high) else format_amount(axis, cost.high)
    return f"{sign}{format_amount(axis, cost.estimate)}{between}[{low}, {high}]"


def _points_table(comparison: Comparison) -> Table:
    money = comparison.price_per_hour is not None
    heads = [(escape(comparison.group_by), False), ("budget", True), ("n", True), ("final", True), ("steps", True)]
    heads += [("all costs", True), *([("dollars", True)] if money else []), ("best at its\ncost, by", False)]
    table = new_table(*heads, first=22)
    fronts: list[tuple[Axis, str]] = [(axis, word) for axis, word in _FRONTS if axis in comparison.shown_axes]
    axes: tuple[Axis, ...] = ("cost_seconds", "dollars") if money else ("cost_seconds",)
    for group in comparison.groups:
        for number, point in enumerate(group.points):
            table.add_row(
                Text(group.name if number == 0 else ""),
                Text(point.budget),
                str(point.n),
                format_interval(point.final, between=" "),
                format_count(point.steps),
                *(format_amount(axis, point.costs[axis]) for axis in axes),
                ", ".join(word for axis, word in fronts if point.on_pareto_front[axis]),
            )
        table.add_row()
    return table


def _speedups_table(comparison: Comparison) -> Table:
    heads = [(escape(comparison.group_by), False), ("counted in", False), ("cost to target", True), ("speed-up", True)]
    table = new_table(*heads, first=30)
    for group in comparison.groups:
        label = Text(group.name if group.control_of is None else f"{group.name}\n(control of {group.control_of})")
        if not group.is_baseline:
            label.append("\n").append(_verdict(group))
        rows = [
            (AXIS_WORDS[axis], _cost(cost, axis, group.target_bound), _speedup(group.speedups.get(axis)))
            for axis in comparison.shown_axes
            if (cost := group.cost_to_target[axis]) is not None
        ]
        table.add_row(label, *("\n".join(column) for column in zip(*rows, strict=True)))
        table.add_row()
    return table


def recommendation_table(found: Recommendation) -> RenderableType:
    """Return a recommendation: the answer in words, the ranking, the evidence behind it, and what to beware of."""
    target = target_words(found.metric, found.mode, found.target)
    parts: list[RenderableType] = [
        Text(found.sentence, style="bold"),
        Text(f"\nTarget: {target}. In brackets: {100 * found.confidence:g} % intervals.\n"),
        _ranking(found),
        Text("\nWhat it rests on", style="bold"),
    ]
    parts += [Text(line) for candidate in found.candidates for line in _evidence(candidate)]
    parts.append(Text(""))
    parts += [Text(f"- {reason}") for candidate in found.candidates for reason in candidate.lacking]
    parts += [Text(f"Note: {note}") for note in found.notes]
    axis: Axis = "cost_seconds" if found.axis == "amortised_seconds" else found.axis
    shared = f", harvests shared among {found.later_runs} runs" * (axis == "cost_seconds" and found.later_runs > 1)
    parts.append(
        Text(
            "The prediction is of the mean: about half of all runs trained for so long end below the target. From the "
            f"sure budget on, the mean is surely there. Cost: {AXIS_WORDS[axis]}{shared}.",
            style="dim",
        )
    )
    return Parts(*parts)


def _ranking(found: Recommendation) -> Table:
    elsewhere = found.axis in ("steps", "dollars")
    money = [("dollars", True)] if found.price_per_hour is not None else []
    cost = "" if elsewhere else {"flops": "FLOPs", "samples": "examples"}.get(found.axis, "cost")
    heads = [("train for, in steps", True), ("sure\nbudget", True), (cost, True), *money, ("speed-up", True)]
    table = new_table((escape(found.group_by), False), *heads, first=26)
    for one in found.candidates:
        name = Text(one.name)
        # Under the name: a column of its own would not fit.
        name.append(f"\n{one.standing}", style=_STANDING_STYLE.get(one.standing, ""))
        cells = [
            _cost(one.steps, "steps", one.bound, "\n"),
            one.sure_budget or "-",
            "" if elsewhere else _cost(one.cost, found.axis, one.bound, "\n"),
            *([_cost(one.dollars, "dollars", one.bound, "\n")] if money else []),
        ]
        table.add_row(name, *cells, _speedup(one.speedup, "\n"))
        table.add_row()
    return table


def _evidence(candidate: Candidate) -> list[str]:
    lines = []
    for point in candidate.evidence:
        seeds = ", ".join("none" if seed is None else str(seed) for seed in point.seeds)
        lines.append(
            f"{candidate.name} at {point.budget}: mean {format_number(point.mean)}, n = {point.n}, seeds {seeds}; "
            f"runs {', '.join(point.run_ids)}"
        )
    return lines


def runs_table(runs: Sequence[PriorRun], values: Sequence[float | None], metric: str | None) -> RenderableType:
    """Return a list of runs.

    Args:
        runs: What to list, in order.
        values: The metric's last value of each, None where it has none.
        metric: Short name of it for the header; None if each run's own monitor is shown.
    """
    heads = [("run", False), ("state", False), (f"final {metric or 'monitor'}", True), ("seed", True)]
    table = new_table(
        *((escape(head), right) for head, right in heads),
        ("epochs", True),
        ("trained", True),
        ("tags", False),
        padding=1,
    )
    # Ids are copied from the screen, so a line break must not cut them.
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    # Without it Rich takes the room from the one column that may wrap, down to a letter.
    table.columns[-1].min_width = _TAGS_WIDTH
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


def narrowest(table: RenderableType, console: Console) -> int:
    """Return the width below which a table would break or cut what must not be.

    Args:
        table: Whose columns say what does not wrap.
        console: Where it is printed.
    """
    # At any real width Rich reports no more than that width.
    return Measurement.get(console, console.options.update(width=_WIDE), table).minimum


def run_state(run: PriorRun) -> str:
    """Return ``finished``, ``diverged``, ``empty``, or ``unfinished`` (still going, or died)."""
    # Asked first: a run that goes on may be healthy so far.
    if not run.finished:
        return "unfinished"
    return "finished" if run.health == "ok" else run.health
