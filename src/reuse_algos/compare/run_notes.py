"""Notes on the runs themselves: which take no part, and what differs between them besides the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from reuse_algos.archive import EnvironmentRecord, Manifest
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


def machines(records: Sequence[EnvironmentRecord | None]) -> list[str | None]:
    """Return a text for the hardware of each record; texts differ where an entry does that all records have.

    Args:
        records: None gives None. Records of earlier versions lack some entries, such as the threads of a process.
    """
    known = [one.hardware.keys() for one in records if one is not None]
    shared = sorted(set(known[0]).intersection(*known)) if known else []
    return [None if one is None else str([(key, str(one.hardware[key])) for key in shared]) for one in records]


_FACTS: dict[str, tuple[str, Callable[[Sequence[Manifest]], Sequence[object]]]] = {
    "model": (
        "so this does not compare methods alone",
        lambda ms: [None if m.model is None else (m.model.name, m.model.num_parameters) for m in ms],
    ),
    "data": (
        "so this does not compare methods alone",
        lambda ms: [None if m.dataset is None else (m.dataset.name, m.dataset.fingerprint) for m in ms],
    ),
    "hardware": (
        "so seconds are not comparable",
        lambda ms: machines([m.environment for m in ms]),
    ),
    "software versions": (
        "so seconds may not be comparable",
        lambda ms: [None if m.environment is None else sorted(m.environment.versions.items()) for m in ms],
    ),
    "code commit": (
        "so more than the method may differ",
        lambda ms: [None if m.environment is None else m.environment.git_commit for m in ms],
    ),
}


def differences(baseline: str, groups: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Return the facts that are not the same in all runs, though a fair comparison wants them to be.

    Args:
        baseline: Name of the baseline group.
        groups: The runs by group; without manifests nothing is known.
    """
    runs = [(name, run) for name, group in groups.items() for run in group]
    manifests = [run.manifest for _, run in runs if run.manifest is not None]
    # Records of results files have no manifests: what is not known cannot differ.
    if len(manifests) < len(runs):
        return []
    notes = []
    for fact, (meaning, get) in _FACTS.items():
        # By their text: versions are lists, which a set cannot hold.
        sets: dict[str, set[str]] = {}
        for (name, _), value in zip(runs, get(manifests), strict=True):
            sets.setdefault(name, set()).add(repr(value))
        if len(set().union(*sets.values())) > 1:
            odd = sorted(name for name, found in sets.items() if found != sets[baseline] or len(found) > 1)
            notes.append(f"The {fact} is not the same in all runs (look at {', '.join(odd)}), {meaning}.")
    # Rounded, as the last batch of an epoch is smaller.
    rates = {name: {round(run.samples / max(run.steps, 1)) for run in group} for name, group in groups.items()}
    if len(set().union(*rates.values())) > 1:
        shown = "; ".join(f"{name}: {', '.join(map(str, sorted(rate)))}" for name, rate in sorted(rates.items()))
        notes.append(f"Examples per step differ ({shown}), so steps are not comparable: look at samples and seconds.")
    return notes
