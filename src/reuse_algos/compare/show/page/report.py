"""The page of a comparison: what its template ``page.html.j2`` shows.

page = report_page(compare(outcomes, question), outcomes)
write_report(page, Path("report.html"))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from reuse_algos.compare.inside import MAPS, findings_of, size_maps
from reuse_algos.compare.outcomes import Outcomes
from reuse_algos.compare.result import Comparison
from reuse_algos.compare.show import charts, drawing
from reuse_algos.compare.show.drawing import Look
from reuse_algos.compare.show.page import tables
from reuse_algos.compare.show.page.document import render
from reuse_algos.compare.show.page.provenance import COSTS, recipe_text, run_facts, run_rows
from reuse_algos.compare.show.page.sample import only_runs, sampled
from reuse_algos.compare.show.page.svg import bar_views, map_views, plot_of
from reuse_algos.compare.show.page.texts import headline, texts_of
from reuse_algos.compare.show.page.values import Numbers
from reuse_algos.compare.show.words import AXIS_WORDS
from reuse_algos.errors import CompareError

_SIGNS = {"faster": "▲", "slower": "▼", "no difference": "=", "not enough runs": "?", "baseline": "●"}


def report_page(comparison: Comparison, outcomes: Outcomes) -> str:
    """Return one self-contained page that shows a comparison.

    Args:
        comparison: What to show.
        outcomes: The runs that it was made from.

    Returns:
        HTML. It loads nothing, from nowhere. Its element ``report-data`` holds as JSON: ``comparison`` (as
        :meth:`Comparison.to_dict() <reuse_algos.compare.result.Comparison.to_dict>`), ``charts``, ``pareto``,
        ``amortisation``, ``readings``, ``sizes`` and ``runs`` (the provenance by run id). Each number on the page names
        its place there.

    Raises:
        CompareError: Only ends are compared.
    """
    if comparison.method == "ends":
        # Without a target and costs there is neither a curve nor a speed-up to draw.
        raise CompareError("a comparison of ends has no page: compare over training or over budgets")
    # A page of thousands of runs takes a browser minutes: the runs that are shown are a sample, the numbers are of
    # all.
    comparison = sampled(comparison)
    listed = {run.run_id for group in comparison.groups for run in group.runs}
    manifests = {run.run_id: run.manifest for run in outcomes.runs if run.manifest is not None and run.run_id in listed}
    roots: dict[str, Any] = {
        "comparison": comparison,
        "charts": only_runs(charts.charts_of(comparison, outcomes), listed),
        "pareto": charts.pareto(comparison),
        "amortisation": charts.amortisation(comparison),
        "readings": charts.readings_charts(comparison, outcomes),
        "sizes": size_maps(outcomes.groups),
        "runs": {run_id: run_facts(manifests[run_id]) for run_id in sorted(manifests)},
    }
    numbers = Numbers(roots)
    data = {name: _plain(value) for name, value in roots.items()} | {"comparison": comparison.to_dict()}
    looks = drawing.looks_of(comparison)
    over_budgets = comparison.method == "budgets"
    maps = map_views(roots["sizes"], looks, numbers)
    view = {
        "comparison": comparison,
        "numbers": numbers,
        "headline": headline(comparison, looks),
        "cards": _cards(comparison, looks),
        "bars": [_bars(bars, looks, comparison, numbers) for bars in drawing.bars_of(comparison)],
        "curves": [_curves(chart, numbers, k, over_budgets) for k, chart in enumerate(roots["charts"])],
        "pareto": [_panel(chart, numbers, "pareto", k) for k, chart in enumerate(roots["pareto"])],
        "figures": tables.figures_table(looks, comparison, numbers),
        "payback": tables.payback_table(looks, comparison, numbers),
        "amortisation": roots["amortisation"] and plot_of(roots["amortisation"], numbers, "amortisation"),
        "readings": [
            {"key": chart.key, "tab": chart.key, "plot": plot_of(chart, numbers, "readings", k)}
            for k, chart in enumerate(roots["readings"])
        ]
        + ([{"key": "sizes", "tab": "sizes of gradients", "maps": maps}] if maps else []),
        "most_maps": MAPS,
        "findings": findings_of(outcomes.groups),
        "runs_table": tables.runs_table(looks, comparison, numbers),
        "details": [(look, _details(look, comparison, numbers, roots["runs"])) for look in looks],
        **texts_of(comparison),
        "signs": _SIGNS,
        "costs": COSTS,
        "kind": "Run comparison",
        "first": "verdict",
        "source_of_runs": comparison.archive,
        "archive_id": comparison.archive_id,
    }
    shown = {"speedup": view["bars"], "pareto": view["pareto"], "amortisation": view["payback"],
             "readings": view["readings"]}  # fmt: skip
    titles = {
        "verdict": "Verdict", "curves": "Budget and result" if over_budgets else "Curves",
        "figures": "All budgets" if over_budgets else "In figures", "speedup": "Speed-up", "pareto": "Pareto front",
        "amortisation": "Amortisation", "readings": "Inside the runs", "notes": "Notes", "runs": "Runs",
    }  # fmt: skip
    view["sections"] = {anchor: title for anchor, title in titles.items() if shown.get(anchor, True)}
    return render("page", data, **view)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _cards(comparison: Comparison, looks: Sequence[Look]) -> list[dict[str, Any]]:
    """Return one card per technique, with its controls inside; the faster ones first."""
    order = list(_SIGNS)

    def card(look: Look, **more: Any) -> dict[str, Any]:
        group = comparison.groups[look.index]
        over = [one.sentence for one in group.over_controls]
        return {"look": look, "verdict": group.verdict, "sentence": group.sentence, "over_controls": over, **more}

    def warning(look: Look, technique: Look) -> str:
        ours, theirs = (comparison.groups[one.index].verdict for one in (look, technique))
        # A control should not be faster: what it lacks would then not be what helps.
        if ours != "faster":
            return ""
        if theirs == "faster":
            return f"The control is faster, too: what {technique.name} claims may not be what made it fast."
        return f"The control is faster, though {technique.name} is not: look for what else differs."

    cards = []
    for look in (look for look in looks[1:] if look.technique is None):
        controls = [card(c, warning=warning(c, look)) for c in looks if c.technique == look.name]
        cards.append(card(look, controls=controls))
    return sorted(cards, key=lambda one: order.index(one["verdict"]) if one["verdict"] in order else len(order))


def _tab(axis: str) -> str:
    words = AXIS_WORDS[axis]  # type: ignore[index]
    return words[0].upper() + words[1:]


def _bars(bars: drawing.Bars, looks: Sequence[Look], comparison: Comparison, numbers: Numbers) -> dict[str, Any]:
    views, ticks, one = bar_views(bars, numbers)
    words = AXIS_WORDS[bars.key]
    found: dict[str, Any] = {
        "key": bars.key, "tab": _tab(bars.key), "name": f"Speed-ups in {words}", "bars": views, "ticks": ticks,
        "one": one, "title": f"times less than {comparison.baseline} ({words})",
    }  # fmt: skip
    if comparison.method == "budgets":
        found["open_table"] = tables.target_table(looks, comparison, bars.key, numbers)
    return found


def _panel(chart: drawing.Chart, numbers: Numbers, root: str, k: int) -> dict[str, Any]:
    return {"key": chart.key, "tab": _tab(chart.key), "plot": plot_of(chart, numbers, root, k)}


def _curves(chart: drawing.Chart, numbers: Numbers, k: int, over_budgets: bool) -> dict[str, Any]:
    panel = _panel(chart, numbers, "charts", k)
    if not over_budgets:
        panel["table"] = tables.curve_table(chart.series, chart.key, numbers, "charts", k, "series")  # type: ignore[arg-type]
    return panel


def _details(look: Look, comparison: Comparison, numbers: Numbers, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    opened = []
    for k, run in enumerate(comparison.groups[look.index].runs):
        path = ("comparison", "groups", look.index, "runs", k)
        known = facts.get(run.run_id)
        opened.append(
            {
                "anchor": f"run-{look.index}-{k}", "run_id": run.run_id, "budget": run.budget,
                "seed": numbers.seed(*path, "seed"), "final": numbers.number(*path, "final"), "facts": known,
                "rows": [] if known is None else run_rows(run.run_id, known),
                "recipe": "" if known is None else recipe_text(known["recipe"]),
            }
        )  # fmt: skip
    return opened
