"""A comparison of any kind as one HTML file that explains itself: no network, light and dark, on a phone and on paper.

    page = report_page(compare(outcomes, question), outcomes)
    write_report(page, Path("report.html"))

The page is one Jinja2 template, ``page.html.j2``; every text that reaches it is escaped there.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from reuse_algos.compare.outcomes import Outcomes
from reuse_algos.compare.result import Comparison, json_safe
from reuse_algos.compare.show import charts, drawing
from reuse_algos.compare.show.drawing import Look
from reuse_algos.compare.show.page import tables
from reuse_algos.compare.show.page.provenance import COSTS, recipe_text, run_facts, run_rows, used_words
from reuse_algos.compare.show.page.sample import only_runs, sampled
from reuse_algos.compare.show.page.svg import bar_views, plot_of, sign_of
from reuse_algos.compare.show.page.texts import headline, texts_of
from reuse_algos.compare.show.page.values import Numbers, visible
from reuse_algos.compare.show.words import AXIS_WORDS
from reuse_algos.errors import CompareError

__all__ = ["FILE_TYPES", "check_report_path", "embedded_json", "report_page", "write_report"]

FILE_TYPES = ("html", "htm")

_SIGNS = {"faster": "▲", "slower": "▼", "no difference": "=", "not enough runs": "?", "baseline": "●"}


def report_page(comparison: Comparison, outcomes: Outcomes) -> str:
    """Return one self-contained page that shows a comparison.

    Args:
        comparison: What to show.
        outcomes: The runs that it was made from.

    Returns:
        HTML. It loads nothing, from nowhere. Its element ``report-data`` holds as JSON: ``comparison`` (as
        :meth:`Comparison.to_dict() <reuse_algos.compare.result.Comparison.to_dict>`), ``charts``, ``pareto``,
        ``amortisation`` and ``runs`` (the provenance by run id); each number on the page names its place there.

    Raises:
        CompareError: Only ends are compared.
    """
    if comparison.method == "ends":
        # Without a target and costs there is neither a curve nor a speed-up to draw.
        raise CompareError("a comparison of ends has no page: compare over training or over budgets")
    comparison = sampled(comparison)
    listed = {run.run_id for group in comparison.groups for run in group.runs}
    manifests = {run.run_id: run.manifest for run in outcomes.runs if run.manifest is not None and run.run_id in listed}
    roots: dict[str, Any] = {
        "comparison": comparison,
        "charts": only_runs(charts.charts_of(comparison, outcomes), listed),
        "pareto": charts.pareto(comparison),
        "amortisation": charts.amortisation(comparison),
        "runs": {run_id: run_facts(manifests[run_id]) for run_id in sorted(manifests)},
    }
    numbers = Numbers(roots)
    data = {name: _plain(value) for name, value in roots.items()} | {"comparison": comparison.to_dict()}
    looks = drawing.looks_of(comparison)
    over_budgets = comparison.method == "budgets"
    style, script = _resource("style.css"), _resource("script.js")
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
        "runs_table": tables.runs_table(looks, comparison, numbers),
        "details": [(look, _details(look, comparison, numbers, roots["runs"])) for look in looks],
        **texts_of(comparison),
        "signs": _SIGNS,
        "costs": COSTS,
        "data": embedded_json(data),
        "style": Markup(style),
        "script": Markup(script),
        # Nothing may be loaded from anywhere, and only this style and this script apply.
        "policy": f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
    }
    shown = {"speedup": view["bars"], "pareto": view["pareto"], "amortisation": view["payback"]}
    titles = {
        "verdict": "Verdict", "speedup": "Speed-up", "curves": "Budget and result" if over_budgets else "Curves",
        "pareto": "Pareto front", "figures": "All budgets" if over_budgets else "In figures",
        "amortisation": "Amortisation", "notes": "Notes", "runs": "Runs",
    }  # fmt: skip
    view["sections"] = {anchor: title for anchor, title in titles.items() if shown.get(anchor, True)}
    return _environment().get_template("page").render(view)


@functools.cache
def _environment() -> Environment:
    def load(name: str) -> str:
        return _resource(f"{name}.html.j2")

    environment = Environment(
        loader=FunctionLoader(load),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Plain text is shown with its hidden characters; what is markup already was made by this package.
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.globals.update(sign_of=sign_of, used=used_words)
    return environment


def _resource(name: str) -> str:
    return (resources.files("reuse_algos.compare.show.page") / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def embedded_json(data: Mapping[str, Any]) -> Markup:
    """Return data as JSON that can stand in an element of a page, from which no text in it can break out.

    Numbers that are not finite become null. Other than the JSON grammar asks, ``<``, ``>`` and ``&`` are escaped as
    well, so that neither ``</script>`` nor ``<!--`` can stand there; any JSON parser gives them back.
    """
    written = json.dumps(json_safe(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return Markup(written)


def _cards(comparison: Comparison, looks: Sequence[Look]) -> list[dict[str, Any]]:
    """Return one card per technique, with its controls inside; the faster ones first."""
    order = list(_SIGNS)

    def card(look: Look, **more: Any) -> dict[str, Any]:
        group = comparison.groups[look.index]
        return {"look": look, "verdict": group.verdict, "sentence": group.sentence, **more}

    def warning(look: Look, technique: Look) -> str:
        ours, theirs = (comparison.groups[one.index].verdict for one in (look, technique))
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


def check_report_path(path: Path) -> None:
    """Refuse a name that no browser would open as a page, before any work is done.

    Raises:
        CompareError: The extension is not one of :data:`FILE_TYPES`, or the folder does not exist.
    """
    if path.suffix.lower().removeprefix(".") not in FILE_TYPES:
        raise CompareError(f"a report cannot be written as {path.name!r}: end the name in .{' or .'.join(FILE_TYPES)}")
    if not path.parent.is_dir():
        raise CompareError(f"the report cannot be written to {path}: there is no folder {path.parent}")


def write_report(page: str, path: Path) -> Path:
    """Write a page to a file.

    Raises:
        CompareError: As :func:`check_report_path`; or the file cannot be written.
    """
    check_report_path(path)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise CompareError(f"the report cannot be written to {path}: {error.strerror or error}") from error
    return path
