"""The report of a budget comparison: every point is the end of runs with a fully decayed schedule of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reuse_algos.archive import Manifest
from reuse_algos.compare.budgets import AXES, AXIS_WORDS, Axis, BudgetComparison, BudgetGroup
from reuse_algos.compare.html.budget_plots import curves_section, drawn_axes, pareto_section, points_of, speedup_section
from reuse_algos.compare.html.document import FOOTER, Section, document
from reuse_algos.compare.html.markup import Child, Html, el, join, scroll_table
from reuse_algos.compare.html.provenance import run_details, run_facts
from reuse_algos.compare.html.sections import (
    Look,
    Spending,
    Verdict,
    amortisation_data,
    amortisation_section,
    headline,
    looks_of,
    notes_section,
    runs_section,
    verdict_section,
)
from reuse_algos.compare.html.values import Numbers

__all__ = ["budget_report"]


def budget_report(comparison: BudgetComparison, manifests: Mapping[str, Manifest]) -> str:
    """One self-contained page that shows a budget comparison.

    Args:
        comparison: what to show.
        manifests: of its runs, by run id, for their recipes and provenance; runs may be missing.

    Returns:
        HTML. It loads nothing, from nowhere. Its element ``report-data`` holds as JSON: ``comparison`` (as
        :meth:`BudgetComparison.to_dict() <reuse_algos.compare.budgets.BudgetComparison.to_dict>`), ``amortisation`` and
        ``runs`` (the provenance by run id); each number on the page names its place there.
    """
    groups = comparison.groups
    looks = looks_of([group.name for group in groups], {group.name: group.control_of for group in groups})
    spent = [spending for look in looks if (spending := _spending(look, groups[look.index])) is not None]
    baseline_cost = groups[0].cost_to_target.get("cost_seconds")
    used = {run_id for group in groups for point in group.points for run_id in point.run_ids}
    facts = {run_id: run_facts(manifests[run_id]) for run_id in sorted(used & set(manifests))}
    data = {
        "comparison": comparison,
        "amortisation": amortisation_data(
            # The cost of a side that is only a limit says nothing about what is paid back.
            [s for s in spent if groups[0].target_bound == groups[s.look.index].target_bound == ""],
            math.nan if baseline_cost is None else baseline_cost.estimate,
        ),
        "runs": facts,
    }
    numbers = Numbers(data)
    verdicts = [Verdict(look, groups[look.index].verdict, groups[look.index].sentence) for look in looks]
    axes = drawn_axes(comparison)
    sections = [
        verdict_section(verdicts),
        speedup_section(looks, comparison, axes, numbers),
        curves_section(looks, comparison, axes, numbers),
        pareto_section(looks, comparison, axes, numbers),
        Section("figures", "All budgets", _table(looks, comparison, numbers)),
        amortisation_section(spent, data["amortisation"], numbers),
        notes_section(comparison.notes, _reading(comparison)),
        _runs(looks, comparison, facts, numbers),
    ]
    word = "at least" if comparison.mode == "max" else "at most"
    given = comparison.target_source == "given"
    source = "declared in advance" if given else f"mean of {comparison.baseline} at {groups[0].largest_budget}"
    lead = el(
        "p",
        "How much less must be spent to be as good as ", el("strong", comparison.baseline), "? Every point is trained "
        "with its own schedule to the end. Target: ", comparison.metric, f" {word} ",
        numbers.number("comparison", "target"), f" ({source}). In brackets: ",
        f"{100 * comparison.confidence:g} % intervals.",
        class_="lead",
    )  # fmt: skip
    title = headline(verdicts, comparison.baseline)
    identity = f", id {comparison.archive_id}" if comparison.archive_id else ""
    return document(
        title=title,
        headline=title,
        lead=lead,
        sections=[section for section in sections if section is not None],
        data=data | {"comparison": comparison.to_dict()},
        footer=join(["Runs from ", el("code", comparison.archive), f"{identity}. ", FOOTER]),
    )


def _spending(look: Look, group: BudgetGroup) -> Spending | None:
    cost = group.cost_to_target.get("cost_seconds")
    if group.break_even is None or cost is None:
        return None
    return Spending(
        look,
        cost.estimate,
        group.break_even.harvest_seconds,
        group.break_even.prior_training_seconds,
        group.break_even.saving_shown,
        ("comparison", "groups", look.index, "break_even"),
    )


def _table(looks: Sequence[Look], comparison: BudgetComparison, numbers: Numbers) -> Html:
    points = points_of(comparison.groups)
    axes: list[Axis] = [axis for axis in AXES if any(point.costs.get(axis) is not None for point in points)]
    rows = []
    for look in looks:
        group, path = comparison.groups[look.index], ("comparison", "groups", look.index)
        for k, point in enumerate(group.points):
            here = (*path, "points", k)
            fronts = ", ".join(AXIS_WORDS[axis] for axis in axes if point.on_pareto_front.get(axis))
            costs = [numbers.amount(axis, *here, "costs", axis) for axis in axes]
            budget = point.budget if point.used else f"{point.budget} (too few runs, not used)"
            rows.append(
                [
                    look.sign, budget, numbers.count(*here, "n"), numbers.interval(*here, "final"), *costs,
                    fronts or "no",
                ]
            )  # fmt: skip
    head = [comparison.group_by, "budget", "n", f"final {comparison.metric.rsplit('/', 1)[-1]}",
            *(AXIS_WORDS[axis] for axis in axes), "on the Pareto front in"]  # fmt: skip
    return scroll_table(
        "Every group at every budget: mean final value, and cost of a run (geometric mean)", head, rows, words=2
    )


def _runs(looks: Sequence[Look], comparison: BudgetComparison, facts: Mapping[str, Any], numbers: Numbers) -> Section:
    rows: list[list[Child]] = []
    details = []
    for look in looks:
        opened = []
        for k, point in enumerate(comparison.groups[look.index].points):
            for r, (run_id, seed) in enumerate(zip(point.run_ids, point.seeds, strict=True)):
                path = ("comparison", "groups", look.index, "points", k)
                anchor = f"run-{look.index}-{k}-{r}"
                shown_seed = "-" if seed is None else numbers.at(*path, "seeds", r).show(str(seed))
                value = numbers.number(*path, "values", r)
                rows.append([el("a", run_id, href=f"#{anchor}"), look.name, point.budget, shown_seed, value])
                title = join([el("code", run_id), f" {point.budget}, seed ", shown_seed, ", final ", value])
                opened.append(run_details(run_id, title, facts.get(run_id), numbers, anchor))
        details.append((look, opened))
    return runs_section(scroll_table("All runs", ["run", "group", "budget", "seed", "final"], rows, words=3), details)


def _reading(comparison: BudgetComparison) -> list[Child]:
    prior = "and the training of the prior runs " if comparison.count_prior_training else ""
    reading: list[Child] = [
        "Each run was trained for its own budget with a fully decayed schedule, and only its last value counts. The "
        "mean values of a group are joined by straight lines over the logarithm of its steps, whatever the cost is "
        "counted in; where that line first reaches the target, the steps to it are read. What they cost is linear in "
        "steps between two budgets. Nothing is read beyond the budgets that were trained. In the plots the points are "
        "joined by straight lines for the eye only.",
        "Cost in seconds is training, set-up (loading teachers and caches) and all of the used harvests; evaluation is "
        f"left out. Where harvests are shared, their seconds {prior}are divided among {comparison.later_runs} later "
        "runs.",
        "FLOPs count the forward and backward passes of training, three forward passes for each example, and those of "
        "live teachers and of appended rows. Harvests are in the seconds only.",
        "Faster: the whole interval of the speed-up is above 1. Slower: all of it is below. No difference: it holds 1, "
        "so none was shown, which is not to say that there is none. ∞: no upper limit is known.",
    ]
    if comparison.price_per_hour is not None:
        reading.append(f"Dollars are the cost in seconds at ${comparison.price_per_hour:g} per hour.")
    return reading
