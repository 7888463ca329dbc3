"""Which steps of a sequence reuse the runs of which, and what order that asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from reuse_algos.archive.asked import tags_match
from reuse_algos.recipe.grouping import trained_by
from reuse_algos.sequence.planning.step import PlannedStep


def other_arms_first(steps: Sequence[PlannedStep]) -> list[PlannedStep]:
    """Return the steps in their order, except that one whose query is for runs of other arms comes after all of these.

    A query that also fits steps of its own arm means those before it, whatever comes later.
    """
    asked: dict[str, list[PlannedStep]] = {}
    ordered: list[PlannedStep] = []
    entered: set[int] = set()

    def matches(query: Mapping[str, Any]) -> list[PlannedStep]:
        # Thousands of steps ask for few different things, and each answer looks at all steps.
        key = json.dumps([query["tags"], query.get("run_name")], sort_keys=True, default=str)
        if key not in asked:
            asked[key] = [other for other in steps if fits(query, other)]
        return asked[key]

    def add(step: PlannedStep) -> None:
        # A step that is entered twice closes a circle; its query then means those before it.
        if id(step) in entered:
            return
        entered.add(id(step))
        for _, query in queries_of(step):
            found = matches(query)
            own = any(other.arm == step.arm for other in found)
            for other in found:
                if not own or (other.arm == step.arm and other.position < step.position):
                    add(other)
        ordered.append(step)

    for step in steps:
        add(step)
    return ordered


def queries_of(step: PlannedStep) -> list[tuple[str, dict[str, Any]]]:
    """Return where a step's algorithms ask for prior runs, and for which."""
    found = []
    for name, options in step.recipe.settings.algorithms.items():
        asked = options.get("runs")
        for query in asked if isinstance(asked, list) else [asked]:
            if isinstance(query, str):
                query = {"run_name": query}
            if isinstance(query, dict):
                found.append((f"algorithms.{name}.runs", {**query, "tags": query.get("tags") or {}}))
    return found + _pool_queries(step)


def _pool_queries(step: PlannedStep) -> list[tuple[str, dict[str, Any]]]:
    """Return where a step asks for teachers of a pool, or for a pool."""
    settings, found = step.recipe.settings, []
    if settings.label is not None:
        asked = settings.label.runs
        for query in asked if isinstance(asked, list) else [asked]:
            query = query if isinstance(query, dict) else {"run_name": query}
            found.append(("label.runs", {**query, "tags": query.get("tags") or {}}))
    if settings.data.pseudo_labels is not None:
        found.append(("data.pseudo_labels.run", {"run_name": settings.data.pseudo_labels.run, "tags": {}}))
    return found


def fits(query: Mapping[str, Any], other: PlannedStep) -> bool:
    """Return whether a query means the run of a step."""
    name = query.get("run_name")
    return tags_match(other.tags, query["tags"]) and (name is None or name == other.recipe.settings.run_name)


def reuses(step: PlannedStep, other: PlannedStep) -> bool:
    """Return whether the run of ``other`` is among those that an algorithm of ``step`` asks for."""
    return any(fits(query, other) for _, query in queries_of(step))


def waits_for(step: PlannedStep, other: PlannedStep) -> bool:
    """Return whether ``step`` must not be trained at the same time as ``other``, which comes before it in the plan.

    It reuses the run of ``other``, or its own run, if it were there too early, would be reused by it.
    """
    # Which steps of a rung are trained at all is known when the rung before has ended.
    later = step.arm == other.arm and (step.rung or 0) > (other.rung or 0)
    return later or reuses(step, other) or reuses(other, step)


def fingerprint(record: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits that change with what a recipe trains, and not with where its run goes."""
    # Twelve digits fit into a table, and tell thousands of recipes apart.
    return hashlib.sha256(json.dumps(trained_by(record), sort_keys=True).encode()).hexdigest()[:12]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what two records of recipes say otherwise about the training, one text for each key."""
    old, new = trained_by(then), trained_by(now)
    return [
        f"{key} was {json.dumps(old[key]) if key in old else 'not set'} and is now "
        f"{json.dumps(new[key]) if key in new else 'not set'}"
        for key in sorted(old.keys() | new.keys())
        if key not in old or key not in new or old[key] != new[key]
    ]
