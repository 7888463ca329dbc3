"""Notes on the runs themselves: which take no part, and what differs between them besides the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reuse_algos.compare.outcomes import LeftOut, Outcome


def some(names: Sequence[str]) -> str:
    """Return the first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def left_out(runs: LeftOut) -> list[str]:
    """Return which runs take no part, and why: unfinished, without the grouping key, or there to be reused."""
    notes = []
    if runs.unfinished:
        notes.append(
            f"Left out, because unfinished: {some(runs.unfinished)}. If they died of what is compared here, the "
            "comparison flatters their group."
        )
    if runs.without_key:
        notes.append(f"Left out, because the grouping key is missing: {some(runs.without_key)}.")
    if runs.reused:
        notes.append(f"Left out, because they were trained to be reused (role: prior): {some(runs.reused)}.")
    return notes


_FACTS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "model": (
        "so this does not compare methods alone",
        lambda m: None if m.model is None else (m.model.name, m.model.num_parameters),
    ),
    "data": (
        "so this does not compare methods alone",
        lambda m: None if m.dataset is None else (m.dataset.name, m.dataset.fingerprint),
    ),
    "hardware": (
        "so seconds are not comparable",
        lambda m: None if m.environment is None else sorted(m.environment.hardware.items(), key=str),
    ),
    "software versions": (
        "so seconds may not be comparable",
        lambda m: None if m.environment is None else sorted(m.environment.versions.items()),
    ),
    "code commit": (
        "so more than the method may differ",
        lambda m: None if m.environment is None else m.environment.git_commit,
    ),
}


def differences(baseline: str, groups: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Return the facts that are not the same in all runs, though a fair comparison wants them to be.

    Args:
        baseline: Name of the baseline group.
        groups: The runs by group; without manifests nothing is known.
    """
    # Records of results files have no manifests: what is not known cannot differ.
    if any(run.manifest is None for group in groups.values() for run in group):
        return []
    notes = []
    for fact, (meaning, get) in _FACTS.items():
        # By their text: hardware and versions are lists and mappings, which a set cannot hold.
        sets = {name: {repr(get(run.manifest)) for run in group} for name, group in groups.items()}
        if len(set().union(*sets.values())) > 1:
            odd = sorted(name for name, values in sets.items() if values != sets[baseline] or len(values) > 1)
            notes.append(f"The {fact} is not the same in all runs (look at {', '.join(odd)}), {meaning}.")
    # Rounded, as the last batch of an epoch is smaller.
    rates = {name: {round(run.samples / max(run.steps, 1)) for run in group} for name, group in groups.items()}
    if len(set().union(*rates.values())) > 1:
        shown = "; ".join(f"{name}: {', '.join(map(str, sorted(rate)))}" for name, rate in sorted(rates.items()))
        notes.append(f"Examples per step differ ({shown}), so steps are not comparable: look at samples and seconds.")
    return notes
