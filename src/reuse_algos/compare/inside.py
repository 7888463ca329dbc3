"""What was read inside the runs of a comparison: diagnoses, sizes of gradients, and how good forecasts were."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from reuse_algos.compare.outcomes import Outcome
from reuse_algos.compare.reading import INSTRUMENTS
from reuse_algos.training.instruments.diagnosis import Finding, diagnose

SIZES = "gradient_sizes/"
"""Short names of the readings that count gradient elements by size begin so; the end is the lower edge of the size."""

MAPS = 12
"""The most runs of a comparison whose sizes of gradients are drawn: each is a picture of its own."""

MAP_STEPS = 40
"""The most steps of such a map; more are thinned out evenly, the last one kept."""

_ERROR = re.compile(r"forecast/([0-9.]+)pct/end_loss_error")
_NUMBER = re.compile(r"1e-?[0-9]{1,3}")

Readings = Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class RunFinding:
    """A finding of one run.

    Attributes:
        group: Name of its group.
        run_id: Of the run.
        name: Of the finding, see :class:`~reuse_algos.training.instruments.diagnosis.Finding`.
        words: The finding, a sentence.
        evidence: The numbers that it rests on, a sentence.
    """

    group: str
    run_id: str
    name: str
    words: str
    evidence: str


@dataclass(frozen=True)
class SizeMap:
    """Which share of the elements of a run's gradients has which size, over the steps.

    Attributes:
        group: Name of its group.
        run_id: Of the run.
        sizes: Lower edges of the sizes [S], from small to large; ``below`` is what is smaller than the next edge.
        steps: Steps at which they were read [K].
        shares: Shares from 0 to 1 [S][K]; not a number where a gradient was not finite.
    """

    group: str
    run_id: str
    sizes: list[str]
    steps: list[int]
    shares: list[list[float]]


def size_map(readings: Readings, group: str = "", run_id: str = "") -> SizeMap | None:
    """Return the sizes of a run's gradients, or None where they were not read.

    Args:
        readings: Readings by their short names, such as ``gradient_sizes/1e-3``; others are passed over.
        group: Name of the run's group. Default: empty.
        run_id: Of the run. Default: empty.
    """
    known = {}
    for name, rows in readings.items():
        edge = name.removeprefix(SIZES)
        # Names come from archives that others may have written.
        if name.startswith(SIZES) and (edge == "below" or _NUMBER.fullmatch(edge)):
            known[edge] = dict(rows)
    sizes = sorted(known, key=lambda edge: 0.0 if edge == "below" else float(edge))
    steps = sorted({step for shares in known.values() for step in shares})
    if not steps:
        return None
    return SizeMap(group, run_id, sizes, steps, [[known[edge].get(step, math.nan) for step in steps] for edge in sizes])


def size_maps(groups: Mapping[str, Sequence[Outcome]]) -> list[SizeMap]:
    """Return the sizes of the gradients of at most :data:`MAPS` runs, thinned out to :data:`MAP_STEPS` steps.

    Args:
        groups: The runs by group. Where there are too many, the first runs of all groups are taken.
    """
    found = [[one for run in runs if (one := size_map(_short(run), name, run.run_id))] for name, runs in groups.items()]
    in_turn = [one for place in zip_longest(*found) for one in place if one is not None]
    chosen = {one.run_id for one in in_turn[:MAPS]}
    return [_thinned(one) for runs in found for one in runs if one.run_id in chosen]


def _thinned(one: SizeMap) -> SizeMap:
    count = len(one.steps)
    if count <= MAP_STEPS:
        return one
    kept = sorted({round(k * (count - 1) / (MAP_STEPS - 1)) for k in range(MAP_STEPS)})
    shares = [[row[k] for k in kept] for row in one.shares]
    return replace(one, steps=[one.steps[k] for k in kept], shares=shares)


def findings_of(groups: Mapping[str, Sequence[Outcome]]) -> list[RunFinding]:
    """Return what the instruments say of each run; empty where none was on.

    Args:
        groups: The runs by group.
    """
    return [
        RunFinding(name, run.run_id, one.name, one.words, one.evidence)
        for name, runs in groups.items()
        for run in runs
        for one in _diagnosis(run)
    ]


def _diagnosis(run: Outcome) -> list[Finding]:
    own = _short(run)
    return diagnose(own) if own else []


def _short(run: Outcome) -> dict[str, Sequence[tuple[int, float]]]:
    """Return what instruments read, by the short names that diagnoses know."""
    return {name.removeprefix(INSTRUMENTS): rows for name, rows in run.readings.items() if name.startswith(INSTRUMENTS)}


def diagnosis_notes(groups: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Return one sentence for each finding of a group, with the number of its runs and the evidence of the first.

    Args:
        groups: The runs by group.
    """
    notes = []
    for group, runs in groups.items():
        found: dict[str, list[RunFinding]] = {}
        for one in findings_of({group: runs}):
            found.setdefault(one.name, []).append(one)
        for own in found.values():
            notes.append(f"{group}, {len(own)} of {len(runs)} runs: {own[0].words} {own[0].evidence}")
    return notes


def forecast_notes(groups: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Return how far forecasts, which the runs of each group made while they trained, were off at the end.

    Args:
        groups: The runs by group.
    """
    notes = []
    for group, runs in groups.items():
        errors: dict[str, list[float]] = {}
        held: dict[str, list[bool]] = {}
        for run in runs:
            for name, rows in run.readings.items():
                if (share := _ERROR.fullmatch(name)) and rows and math.isfinite(rows[-1][1]):
                    # Signs cancel in a median; how far off is what counts.
                    errors.setdefault(share[1], []).append(abs(rows[-1][1]))
                    held.setdefault(share[1], []).extend(_held(run, name))
        said = [
            f"{statistics.median(found):.1%} after {share} % of a run (n = {len(found)}"
            + (f"; the end was in {sum(held[share])} of {len(held[share])} intervals)" if held[share] else ")")
            for share, found in errors.items()
        ]
        if said:
            notes.append(f"{group}: forecasts of the loss at the end were off by {', '.join(said)}, as medians.")
    return notes


def _held(run: Outcome, error: str) -> list[bool]:
    """Return whether the interval of a forecast held the end; empty where it had none."""
    name = error.removesuffix("_error")
    value, low, high = (run.readings.get(name + part) for part in ("", "_low", "_high"))
    if not (value and low and high):
        return []
    # The forecast is off by this factor, so this was the end.
    end = value[-1][1] / (1 + run.readings[error][-1][1])
    return [low[-1][1] <= end <= high[-1][1]]
