"""A sequence's plan and report as rich tables that fit a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from reuse_algos.compare.estimates.interval import CONFIDENCE
from reuse_algos.compare.show.words import format_amount, format_count, format_interval, format_number, format_seconds
from reuse_algos.sequence.planning.order import fingerprint
from reuse_algos.sequence.progress import StepState
from reuse_algos.sequence.reporting.costs import Cost
from reuse_algos.sequence.reporting.result import ArmResult, SequenceReport
from reuse_algos.sequence.reporting.search import ArmSearch, SearchResult, value_key

if TYPE_CHECKING:
    from rich.console import Console


def plan_records(states: Sequence[StepState]) -> list[dict[str, Any]]:
    """Return the plan as JSON can hold it: one record per step, in the order of training.

    Args:
        states: Every step.
    """
    return [
        {
            "arm": found.step.arm,
            "step": found.step.name,
            "state": found.state,
            "run_id": None if found.run is None else found.run.id,
            "point": found.step.point,
            # A step that labels a pool trains nothing, whatever its recipe says of durations.
            "max_duration": None if found.step.recipe.settings.label else found.step.recipe.settings.max_duration,
            "algorithms": list(found.step.recipe.settings.algorithms),
            "harvests": [harvest.name for harvest in found.step.harvests],
            "folder": str(found.step.folder),
            "fingerprint": fingerprint(found.step.recipe.record),
        }
        for found in states
    ]


def print_plan(states: Sequence[StepState], out: Console) -> None:
    """Print what would be trained, and what is there already.

    Args:
        states: Every step.
        out: Where to print.
    """
    table = _table("step", "state", "duration", "algorithms", "harvested", "recipe")
    for record in plan_records(states):
        table.add_row(
            f"{record['arm']}/{record['step']}",
            record["state"],
            str(record["max_duration"] or "-"),
            ", ".join(record["algorithms"]) or "-",
            ", ".join(record["harvests"]) or "-",
            record["fingerprint"],
        )
    out.print(table)
    # A step that a search dropped has no run either, and never gets one.
    waiting = [found.step for found in states if found.run is None and found.state != "stopped"]
    left, later = len(waiting), sum((step.rung or 1) > 1 for step in waiting)
    harvests = sum(found.state == "to harvest" for found in states)
    more = f", and {harvests} to be harvested" if harvests else ""
    if later:
        # Until the rung before has ended, nobody knows which of them these are.
        more += f"; {later} of them are of later rungs, and halving trains only the best of these"
    out.print(f"{left} of {len(states)} steps are still to be trained{more}", soft_wrap=True)


def print_report(report: SequenceReport, out: Console) -> None:
    """Print every step, the totals of the arms, the winners of a search, and the notes.

    Args:
        report: Of a finished sequence.
        out: Where to print.
    """
    out.print(f"{report.name}: {report.metric}, {'more' if report.mode == 'max' else 'less'} is better", soft_wrap=True)
    out.print()
    steps = _table("step", "final", "best", "epochs", "steps", "FLOPs", "cost", "reused", right=range(1, 8))
    for arm in report.arms:
        for step in arm.steps:
            name = f"{arm.name}/{step.name}" + ("" if step.health == "ok" else f" ({step.health})")
            # A step that trained nothing, such as a pool's, has no metric, which is not a metric that is NaN.
            metrics = ("-" if step.health == "empty" else format_number(one) for one in (step.final, step.best))
            steps.add_row(name, *metrics, *_costs(step.cost), str(len(step.prior_runs)))
        steps.add_row()
    out.print(steps)
    percent = f"{100 * CONFIDENCE:g} %"
    out.print(f"In all. In brackets: {percent} intervals over the steps.")
    totals = _table(
        "arm", "n", "mean final", "differs by", "best", "epochs", "steps", "FLOPs", "cost", right=range(1, 9)
    )
    for arm in report.arms:
        totals.add_row(*_total_row(arm))
        if arm.share:
            totals.add_row(*_share_row(arm, report.baseline or ""), end_section=True)
    out.print(totals)
    if report.search is not None:
        out.print()
        _print_search(report.search, out)
    out.print()
    out.print(
        "Cost: seconds of training + set-up + harvests, each harvest once. FLOPs: three forward passes per example, "
        "of appended rows as well, and those of live teachers."
    )
    for note in report.notes:
        out.print(f"Note: {note}")


def _table(*names: str, right: Sequence[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for index, name in enumerate(names):
        if index in right:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    return table


def _total_row(arm: ArmResult) -> list[str]:
    return [
        arm.name + (" (baseline)" if arm.is_baseline else ""),
        str(len(arm.steps)),
        format_interval(arm.final),
        format_interval(arm.final_difference, "+"),
        format_number(arm.best),
        *_costs(arm.total),
    ]


def _share_row(arm: ArmResult, baseline: str) -> list[str]:
    def percent(name: str) -> str:
        value = arm.share.get(name)
        return "?" if value is None else f"{100 * value:.0f} %"

    shares = [percent(name) for name in ("epochs", "steps", "flops", "cost_seconds")]
    return [f"  of {baseline}", "", "", "", "", *shares]


def _costs(cost: Cost) -> list[str]:
    flops = format_amount("flops", cost.flops)
    return [str(cost.epochs), format_count(cost.steps), flops, format_seconds(cost.cost_seconds)]


def _print_search(search: SearchResult, out: Console) -> None:
    table = _table(search.key, *(arm.arm for arm in search.arms), right=range(1, len(search.arms) + 1))
    # Each value once: the arms need not have tried the same ones.
    for value in {value_key(c.value): c.value for arm in search.arms for c in arm.candidates}.values():
        table.add_row(str(value), *(_candidate(arm, value) for arm in search.arms))
    out.print(table)
    for arm in search.arms:
        won = "no winner, since every value has a run that diverged"
        out.print(f"Winner of {arm.arm}: {won if arm.winner is None else f'{search.key}={arm.winner}'}", soft_wrap=True)
    for agreement in search.agreements:
        text = f"{agreement.arm} against the baseline: {agreement.verdict}"
        if agreement.difference is not None:
            limits = format_interval(agreement.difference, "+", " ")
            text += f" (in the baseline's own runs the two winners differ by {limits})"
        out.print(text, soft_wrap=True)


def _candidate(arm: ArmSearch, value: Any) -> str:
    found = next((c for c in arm.candidates if value_key(c.value) == value_key(value)), None)
    if found is None:
        return "-  "
    won = arm.winner is not None and value_key(arm.winner) == value_key(value)
    # Without successive halving all are of one rung, and the word would tell nothing.
    halved = len({candidate.rung for candidate in arm.candidates}) > 1
    rung = f", rung {found.rung}" if halved else ""
    return f"{format_number(found.final.estimate)} (n={found.n}{rung}) {'*' if won else ' '}"
