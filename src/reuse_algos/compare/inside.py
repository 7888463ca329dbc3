"""What was read inside the runs of a comparison while they trained: diagnoses, and how good forecasts were."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reuse_algos.compare.outcomes import Outcome
from reuse_algos.compare.reading import INSTRUMENTS
from reuse_algos.training.instruments.diagnosis import Finding, diagnose

_ERROR = re.compile(r"forecast/([0-9.]+)pct/end_loss_error")


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
    # Diagnoses know readings by their short names.
    own = {name.removeprefix(INSTRUMENTS): rows for name, rows in run.readings.items() if name.startswith(INSTRUMENTS)}
    return diagnose(own) if own else []


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
