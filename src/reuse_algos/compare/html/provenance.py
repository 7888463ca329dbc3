"""Where each run comes from: recipe, commit, versions, hardware, prior runs and the parts of its cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from reuse_algos.archive import Manifest
from reuse_algos.compare.html.markup import Child, Html, el
from reuse_algos.compare.html.values import Numbers
from reuse_algos.compare.results import json_safe

__all__ = ["run_details", "run_facts"]

_COSTS = (
    ("train_seconds", "training"),
    ("setup_seconds", "set-up"),
    ("harvest_seconds", "used share of harvests"),
    ("eval_seconds", "evaluation (not counted)"),
    ("overhead_seconds", "recorder"),
)
_FACTS = ("run_name", "seed", "health", "created_at", "committed_at", "tags", "progress", "environment", "prior_runs")


def run_facts(manifest: Manifest) -> dict[str, Any]:
    """What the report keeps of a run's manifest, as JSON can hold it.

    ``cost`` has a further entry ``harvest_seconds``, the used share of the harvests of prior runs, and ``model`` has
    no names and shapes of parameters.
    """
    plain: dict[str, Any] = msgspec.to_builtins(manifest)
    facts = {name: plain[name] for name in _FACTS}
    facts["cost"] = plain["cost"] | {"harvest_seconds": sum(use.harvest_seconds for use in manifest.prior_runs)}
    model = plain["model"]
    facts["model"] = model and {key: value for key, value in model.items() if key != "parameters"}
    facts["dataset"] = plain["dataset"]
    facts["recipe"] = plain["recipe"]
    return json_safe(facts)


def run_details(run_id: str, title: Child, facts: Mapping[str, Any] | None, numbers: Numbers, anchor: str) -> Html:
    """One run, closed until it is asked for.

    Args:
        run_id: of the run.
        title: what stands there while it is closed.
        facts: of :func:`run_facts`; None where there is no manifest.
        numbers: to look numbers up at ``runs/<run_id>/...``.
        anchor: its id in the page.
    """
    if facts is None:
        known: Child = el("p", "No manifest of this run is at hand.", class_="quiet")
        return el("details", el("summary", title), known, id=anchor, class_="run")
    costs = [
        el("div", el("dt", name), el("dd", numbers.seconds("runs", run_id, "cost", key)))
        for key, name in _COSTS
        if facts["cost"].get(key) is not None
    ]
    parts = [
        el("dl", *_rows(run_id, facts), class_="facts"),
        el("h4", "Cost"),
        el("dl", *costs, class_="facts costs"),
        el("h4", "Prior runs"),
        _prior_runs(run_id, facts["prior_runs"], numbers),
        el("h4", "Recipe"),
        _recipe(facts["recipe"]),
    ]
    return el("details", el("summary", title), el("div", *parts, class_="run-body"), id=anchor, class_="run")


def _rows(run_id: str, facts: Mapping[str, Any]) -> list[Html]:
    progress, data, model = facts["progress"], facts["dataset"], facts["model"]
    environment = facts["environment"] or {"git_commit": None, "versions": {}, "hardware": {}}
    rows: list[tuple[str, Child]] = [
        ("run", el("code", run_id)),
        ("name", facts["run_name"]),
        ("seed", "not recorded" if facts["seed"] is None else facts["seed"]),
        ("health", facts["health"]),
        ("trained", f"{progress['epoch']} epochs, {progress['batch']} steps, {progress['sample']} examples"),
        ("tags", _pairs(facts["tags"])),
        ("committed", facts["committed_at"]),
        ("code commit", el("code", environment["git_commit"]) if environment["git_commit"] else "not recorded"),
        ("versions", _pairs(environment["versions"])),
        ("hardware", _pairs(environment["hardware"])),
    ]
    if data:
        rows.append(("data", f"{data['name']}: {data['num_examples']} examples; fingerprint {data['fingerprint']}"))
    if model:
        flops = model["flops_per_example"]
        per_example = "" if flops is None else f", {flops / 1e6:.4g} MFLOPs forward per example"
        rows.append(("model", f"{model['name']}: {model['num_parameters']} parameters{per_example}"))
    return [el("div", el("dt", name), el("dd", value)) for name, value in rows]


def _pairs(pairs: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in pairs.items()) or "not recorded"


def _prior_runs(run_id: str, uses: list[dict[str, Any]], numbers: Numbers) -> Html:
    if not uses:
        return el("p", "None: this run reused nothing.")
    items = []
    for position, use in enumerate(uses):
        what = ", ".join([*(f"weights {name}" for name in use["weights"]), *(f"signal {s}" for s in use["signals"])])
        harvest = numbers.seconds("runs", run_id, "prior_runs", position, "harvest_seconds")
        items.append(
            el("li", el("code", use["run_id"]), f" by {use['algorithm']}: {what or 'nothing named'}; harvest ", harvest)
        )
    return el("ul", *items)


def _recipe(recipe: Any) -> Html:
    if not recipe:
        return el("p", "No recipe was recorded.")
    written = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)
    return el("pre", el("code", written), tabindex=0, role="region", aria_label="Recipe")
