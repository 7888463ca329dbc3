"""The report of a comparison whose groups have one budget each: mean curves over training, and runs' own costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reuse_algos.compare.html.document import FOOTER, Section, document
from reuse_algos.compare.html.markup import Child, Html, el, join, scroll_table
from reuse_algos.compare.html.plain_plots import curve_data, curves_section, speedup_section
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
from reuse_algos.compare.outcomes import RunOutcome
from reuse_algos.compare.results import Comparison, GroupResult
from reuse_algos.compare.statistics import Speedup
from reuse_algos.compare.table import Selection

__all__ = ["comparison_report"]


def comparison_report(comparison: Comparison, selection: Selection) -> str:
    """One self-contained page that shows a comparison.

    Args:
        comparison: the result of :func:`~reuse_algos.compare.table.compare_runs`.
        selection: the runs that it was made from.

    Returns:
        HTML. It loads nothing, from nowhere. Its element ``report-data`` holds as JSON: ``comparison`` (as
        :meth:`Comparison.to_dict() <reuse_algos.compare.results.Comparison.to_dict>`), ``curves``, ``amortisation`` and
        ``runs`` (the provenance by run id); each number on the page names its place there.
    """
    outcomes = selection.groups
    names = [group.name for group in comparison.groups]
    looks = looks_of(names, {name: _control_of(outcomes[name]) for name in names})
    spendings = [_spending(look, comparison.groups[look.index]) for look in looks]
    spent = [spending for spending in spendings if spending is not None]
    timed = all(o.train_seconds[-1] > 0 for group in outcomes.values() for o in group)
    axes = ["cost_seconds", "steps"] if timed else ["steps"]
    data = {
        "comparison": comparison,
        "curves": {
            axis: [curve_data(look.name, outcomes[look.name], axis, comparison.confidence) for look in looks]
            for axis in axes
        },
        "amortisation": amortisation_data(
            [s for s in spent if all(comparison.groups[k].to_target.reached for k in (0, s.look.index))],
            comparison.groups[0].to_target.cost_seconds,
        ),
        "runs": {o.run_id: run_facts(o.manifest) for group in outcomes.values() for o in group},
    }
    numbers = Numbers(data)
    verdicts = [
        Verdict(look, comparison.groups[look.index].verdict, _sentence(comparison, look, numbers)) for look in looks
    ]
    sections = [
        verdict_section(verdicts),
        speedup_section(looks, comparison, axes, numbers),
        curves_section(looks, comparison, axes, numbers),
        Section("figures", "In figures", _table(looks, comparison, numbers)),
        amortisation_section(spent, data["amortisation"], numbers),
        notes_section(comparison.notes, _reading(comparison)),
        _runs(looks, comparison, data["runs"], numbers),
    ]
    word = "at least" if comparison.mode == "max" else "at most"
    given = "declared in advance" if comparison.target_source == "given" else f"mean final value of {names[0]}"
    lead = el(
        "p",
        "What does each group spend to be as good as ", el("strong", names[0]), "? Target: ", comparison.metric,
        f" {word} ", numbers.number("comparison", "target"), f" ({given}). In brackets: ",
        f"{100 * comparison.confidence:g} % intervals.",
        class_="lead",
    )  # fmt: skip
    title = headline(verdicts, names[0])
    return document(
        title=title,
        headline=title,
        lead=lead,
        sections=[section for section in sections if section is not None],
        data=data | {"comparison": comparison.to_dict()},
        footer=join(["Archive ", el("code", comparison.archive), f", id {comparison.archive_id}. ", FOOTER]),
    )


def _control_of(group: Sequence[RunOutcome]) -> str | None:
    found = {outcome.manifest.tags.get("control_of") for outcome in group}
    return found.pop() if len(found) == 1 else None


def _spending(look: Look, group: GroupResult) -> Spending | None:
    if group.break_even is None:
        return None
    return Spending(
        look,
        group.to_target.cost_seconds,
        group.break_even.harvest_seconds,
        group.break_even.prior_training_seconds,
        group.break_even.saving_shown,
        ("comparison", "groups", look.index, "break_even"),
    )


def _sentence(comparison: Comparison, look: Look, numbers: Numbers) -> Child:
    group, baseline = comparison.groups[look.index], comparison.groups[0]
    if group.is_baseline:
        return None
    path = ("comparison", "groups", look.index)
    key = "speedup_steps" if group.speedup_cost is None else "speedup_cost"
    what = "steps" if group.speedup_cost is None else "cost"
    pairing = "paired by seed" if group.paired else "unpaired"
    how = f"{group.n} run{'s' * (group.n != 1)} against {baseline.n}, {pairing}"
    speedup: Speedup = numbers.record(*path, key)
    ratio = numbers.speedup(*path, key)
    if group.verdict == "faster":
        less = "cheaper" if what == "cost" else "fewer steps"
        said: list[Child] = ["As good as ", baseline.name, " and ", ratio, f" {less} ({how})."]
    elif group.verdict == "slower":
        said = ["It needs more ", what, " to be as good: speed-up ", ratio, f" ({how})."]
    elif group.verdict == "not enough runs":
        said = ["Too few runs to tell (", how, "); 3 in each group are needed for a claim, 5 for a headline."]
    elif speedup.bound == "?":
        said = [f"The speed-up in {what} is ", ratio, f": in neither group all runs reached the target ({how})."]
    else:
        said = [f"The speed-up in {what} is ", ratio, f", an interval that does not exclude 1 ({how})."]
    if math.isfinite(group.final.estimate):
        differs = numbers.interval(*path, "final_difference", signed=True)
        said += [" Final value: ", numbers.number(*path, "final", "estimate"), ", which differs by ", differs, "."]
    else:
        said.append(" It has no mean final value, because a run of it ended with none.")
    if not group.to_target.reached:
        said.append(" It did not reach the target within its budget.")
    return join(said)


def _table(looks: Sequence[Look], comparison: Comparison, numbers: Numbers) -> Html:
    rows = []
    for look in looks:
        group, path = comparison.groups[look.index], ("comparison", "groups", look.index)
        mark = "" if group.to_target.reached else "> "
        rows.append(
            [
                look.sign,
                group.verdict,
                numbers.count(*path, "n"),
                numbers.interval(*path, "final"),
                None if group.is_baseline else numbers.interval(*path, "final_difference", signed=True),
                join([numbers.count(*path, "reached"), "/", numbers.count(*path, "n")]),
                join([mark, numbers.count(*path, "to_target", "steps")]),
                join([mark, numbers.seconds(*path, "to_target", "train_seconds")]),
                join([mark, numbers.seconds(*path, "to_target", "cost_seconds")]),
                None if group.speedup_steps is None else numbers.speedup(*path, "speedup_steps"),
                None if group.speedup_cost is None else numbers.speedup(*path, "speedup_cost"),
            ]
        )
    head = [
        comparison.group_by, "verdict", "n", f"final {comparison.metric.rsplit('/', 1)[-1]}", "differs by",
        "runs at target", "steps to target", "train time to target", "cost to target", "speed-up in steps",
        "speed-up in cost",
    ]  # fmt: skip
    caption = "Each group: how good it ends, and what it spends to reach the target (>: not reached, total spent)"
    return scroll_table(caption, head, rows, words=2)


def _runs(looks: Sequence[Look], comparison: Comparison, facts: Mapping[str, Any], numbers: Numbers) -> Section:
    rows, details = [], []
    for look in looks:
        opened = []
        for position, run in enumerate(comparison.groups[look.index].runs):
            path = ("comparison", "groups", look.index, "runs", position)
            anchor = f"run-{look.index}-{position}"
            mark = "" if run.to_target.reached else "> "
            rows.append(
                [
                    el("a", run.run_id, href=f"#{anchor}"),
                    look.name,
                    "-" if run.seed is None else numbers.at(*path, "seed").show(str(run.seed)),
                    run.health,
                    numbers.number(*path, "final"),
                    join([mark, numbers.count(*path, "to_target", "steps")]),
                    join([mark, numbers.seconds(*path, "to_target", "cost_seconds")]),
                    numbers.seconds(*path, "setup_seconds"),
                    numbers.seconds(*path, "harvest_seconds"),
                ]
            )
            seed = "no seed" if run.seed is None else f"seed {run.seed}"
            title = join([el("code", run.run_id), f" {seed}, final ", numbers.number(*path, "final")])
            opened.append(run_details(run.run_id, title, facts.get(run.run_id), numbers, anchor))
        details.append((look, opened))
    head = ["run", "group", "seed", "health", "final", "steps to target", "cost to target", "set-up", "harvest"]
    return runs_section(scroll_table("All runs", head, rows, words=2), details)


def _reading(comparison: Comparison) -> list[Child]:
    if comparison.method == "curves":
        how = (
            "Groups are compared by their mean curves: the cost at which a mean curve first is as good as the mean "
            "final value of the baseline. The interval of the speed-up comes from inverted t tests at each "
            "evaluation, and counts the noise of the target and of the seconds."
        )
    else:
        how = (
            "Each run has its own cost to the target. A run that never reached it counts at its total cost, and its "
            "group is then never called faster."
        )
    return [
        how,
        "Cost in seconds is training, set-up (loading teachers and caches) and the used share of harvests; evaluation "
        "is left out. The training of prior runs is not counted, but shown under amortisation.",
        "Faster: the whole interval of the speed-up is above 1. Slower: all of it is below. No difference: it holds 1, "
        "so none was shown, which is not to say that there is none. ∞: no upper limit is known.",
    ]
