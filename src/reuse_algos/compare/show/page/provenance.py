"""Where each run comes from: recipe, commit, versions, hardware, prior runs and the parts of its cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import yaml
from markupsafe import Markup

from reuse_algos.archive import Manifest
from reuse_algos.compare.result import json_safe
from reuse_algos.compare.show.page.values import visible

COSTS = (
    ("train_seconds", "training"),
    ("setup_seconds", "set-up"),
    ("harvest_seconds", "used share of harvests"),
    ("eval_seconds", "evaluation (not counted)"),
    ("overhead_seconds", "recorder"),
)
_FACTS = (
    "run_name", "seed", "health", "created_at", "committed_at", "tags", "progress", "environment", "prior_runs",
    "dataset", "recipe",
)  # fmt: skip


def run_facts(manifest: Manifest) -> dict[str, Any]:
    """Return what the report keeps of a run's manifest, as JSON can hold it.

    ``cost`` has a further entry ``harvest_seconds``, the used share of the harvests of prior runs, and ``model`` has
    no names and shapes of parameters.
    """
    plain: dict[str, Any] = msgspec.to_builtins(manifest)
    facts = {name: plain[name] for name in _FACTS}
    facts["cost"] = plain["cost"] | {"harvest_seconds": sum(use.harvest_seconds for use in manifest.prior_runs)}
    model = plain["model"]
    facts["model"] = model and {key: value for key, value in model.items() if key != "parameters"}
    return json_safe(facts)


def run_rows(run_id: str, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and texts of what is known of a run.

    Args:
        run_id: Of the run.
        facts: Of :func:`run_facts`.
    """
    progress, data, model = facts["progress"], facts["dataset"], facts["model"]
    environment = facts["environment"] or {"git_commit": None, "versions": {}, "hardware": {}}
    rows = [
        ("run", _code(run_id)),
        ("name", facts["run_name"]),
        ("seed", "not recorded" if facts["seed"] is None else str(facts["seed"])),
        ("health", facts["health"]),
        ("trained", f"{progress['epoch']} epochs, {progress['batch']} steps, {progress['sample']} examples"),
        ("tags", _pairs(facts["tags"])),
        ("committed", facts["committed_at"]),
        ("code commit", _code(environment["git_commit"]) if environment["git_commit"] else "not recorded"),
        ("versions", _pairs(environment["versions"])),
        ("hardware", _pairs(environment["hardware"])),
    ]
    if data:
        rows.append(("data", f"{data['name']}: {data['num_examples']} examples; fingerprint {data['fingerprint']}"))
    if model:
        flops = model["flops_per_example"]
        per_example = "" if flops is None else f", {flops / 1e6:.4g} MFLOPs forward per example"
        rows.append(("model", f"{model['name']}: {model['num_parameters']} parameters{per_example}"))
    return rows


def _code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(visible(text))


def _pairs(pairs: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in pairs.items()) or "not recorded"


def used_words(use: Mapping[str, Any]) -> str:
    """Return what a run used of a prior run."""
    what = [*(f"weights {name}" for name in use["weights"]), *(f"signal {name}" for name in use["signals"])]
    return ", ".join(what) or "nothing named"


def recipe_text(recipe: Any) -> str:
    """Return a recipe as YAML; empty where none was recorded."""
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100) if recipe else ""
