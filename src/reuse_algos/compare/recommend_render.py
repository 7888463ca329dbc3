"""A recommendation as rich text that fits a terminal of 100 columns."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from reuse_algos.compare.budget_render import format_cost, new_table
from reuse_algos.compare.budgets import AXIS_WORDS, Axis
from reuse_algos.compare.candidates import Candidate
from reuse_algos.compare.recommend import Recommendation
from reuse_algos.compare.render import format_number, format_speedup
from reuse_algos.compare.statistics import Bound, Interval

__all__ = ["recommendation_table"]

_SHOWN_ELSEWHERE = ("steps", "dollars")
_HEADS: dict[Axis, str] = {**dict.fromkeys(_SHOWN_ELSEWHERE, ""), "flops": "FLOPs", "samples": "examples"}
_STYLE = {"recommended": "bold green", "cheaper than the baseline": "green", "not enough evidence": "yellow"}


def recommendation_table(found: Recommendation) -> RenderableType:
    """The answer in words, the ranking, the evidence behind it, and what to beware of."""
    word = "at least" if found.mode == "max" else "at most"
    percent = f"{100 * found.confidence:g} %"
    parts: list[RenderableType] = [
        Text(found.sentence, style="bold"),
        Text(f"\nTarget: {found.metric} {word} {found.target:.6g}. In brackets: {percent} intervals.\n"),
        _ranking(found),
        Text("\nWhat it rests on", style="bold"),
    ]
    parts += [Text(line) for candidate in found.candidates for line in _evidence(candidate)]
    parts.append(Text(""))
    parts += [Text(f"- {reason}") for candidate in found.candidates for reason in candidate.lacking]
    parts += [Text(f"Note: {note}") for note in found.notes]
    axis: Axis = "cost_seconds" if found.axis == "amortised_seconds" else found.axis
    shared = (
        f", harvests shared among {found.later_runs} runs" if axis == "cost_seconds" and found.later_runs > 1 else ""
    )
    parts.append(
        Text(
            "The prediction is of the mean: about half of all runs trained for so long end below the target. From the "
            f"sure budget on, the mean is surely there. Cost: {AXIS_WORDS[axis]}{shared}.",
            style="dim",
        )
    )
    return Group(*parts)


def _ranking(found: Recommendation) -> Table:
    table = new_table(
        (escape(found.group_by), False),
        ("train for, in steps", True),
        ("sure\nbudget", True),
        (_HEADS.get(found.axis, "cost"), True),
        *([("dollars", True)] if found.price_per_hour is not None else []),
        ("speed-up", True),
    )
    table.columns[0].overflow = "fold"
    table.columns[0].max_width = 26
    for candidate in found.candidates:
        name = Text(candidate.name)
        name.append(f"\n{candidate.standing}", style=_STYLE.get(candidate.standing, ""))
        cells = [
            _two_lines(candidate.steps, "steps", candidate.bound),
            candidate.sure_budget or "-",
            "" if found.axis in _SHOWN_ELSEWHERE else _two_lines(candidate.cost, found.axis, candidate.bound),
        ]
        if found.price_per_hour is not None:
            cells.append(_two_lines(candidate.dollars, "dollars", candidate.bound))
        table.add_row(name, *cells, format_speedup(candidate.speedup))
        table.add_row()
    return table


def _two_lines(cost: Interval | None, axis: Axis, bound: Bound) -> str:
    if cost is None:
        return "?"
    sign = {"": "", "<=": "<= ", ">=": "> ", "?": ""}[bound]
    low = "0" if cost.low == 0.0 else format_cost(cost.low, axis)
    high = "inf" if math.isinf(cost.high) else format_cost(cost.high, axis)
    return f"{sign}{format_cost(cost.estimate, axis)}\n[{low}, {high}]"


def _evidence(candidate: Candidate) -> list[str]:
    lines = []
    for point in candidate.evidence:
        seeds = ", ".join("none" if seed is None else str(seed) for seed in point.seeds)
        runs = ", ".join(point.run_ids)
        lines.append(
            f"{candidate.name} at {point.budget}: mean {format_number(point.mean)}, n = {point.n}, seeds {seeds}; "
            f"runs {runs}"
        )
    return lines
