"""Sections of the page of results in words: texts, streams, and the archive, each beside its goals."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job_runner import ResultsFile

__all__ = ["archive_costs", "beside", "streams", "torture"]

Record = dict[str, Any]


def beside(records: Sequence[Record], line: Record) -> str:
    """Return what simple methods reach on the same texts, and which methods of the study are better.

    Args:
        records: Lines of the study's results file.
        line: The newest line of ``text_lines.py`` for these texts.
    """
    sign = 1.0 if records[-1]["mode"] == "max" else -1.0
    label, level = max(line["values"].items(), key=lambda pair: sign * pair[1])
    finals: dict[tuple[str, str], list[float]] = {}
    for one in records:
        finals.setdefault((one["method"], one["budget"]), []).append(one["final"])
    means = {f"{method} at {budget}": sum(found) / len(found) for (method, budget), found in finals.items()}
    above = [f"{name} ({mean:.4f})" for name, mean in means.items() if sign * mean > sign * level]
    best = max(means, key=lambda name: sign * means[name])
    verdict = f"Better in the mean: {', '.join(above)}." if above else (
        f"No transformer of this study is as good: the best mean is {means[best]:.4f}, {best}."
    )  # fmt: skip
    simple = ", ".join(f"{name} {value:.4f}" for name, value in line["values"].items())
    text = (
        f"Without a network, on the same texts ({line['metric']}): {simple}. The best, {label}, is the line to pass. "
        f"{verdict}"
    )
    if others := line.get("other_splits"):
        text += (
            f" The line depends on which texts are held out: here {line['held']} without a copy among the training "
            f"texts; on {len(others)} random splits, which hold out all the others, it is {min(others):.4f} to "
            f"{max(others):.4f}, {sum(others) / len(others):.4f} in the mean."
        )
    return textwrap.fill(text, 100)


def streams(records: Sequence[Record]) -> str:
    """Return the newest value of each measurement of a stream, beside its goal.

    Args:
        records: Lines of ``stream_rows.py``, oldest first.
    """
    found: Record = {}
    for one in records:
        found |= one
    low, high = found["step_overhead_quartiles"]
    own = 1 + found["recorder_ms"] / found["step_ms"]["without"]
    gather = found["gather_us"]
    return "\n".join(
        [
            f"{found['rows']:,} archived rows of two ranks with two workers, killed in mid-epoch: "
            f"{found['wrong_rows']} are not their sample's",
            f"look-up of {256} rows of a shard: {gather['archived']:.0f} us, held in RAM {gather['in RAM']:.0f} us, "
            f"{found['gather_ratio']:.2f} times (goal 1.5)",
            f"a step of {found['step_ms']['without']:.0f} ms: with recording {found['step_overhead']:.3f} times "
            f"[{low:.3f}, {high:.3f}] (middle half of {found['steps']} pairs); the recorder's own "
            f"{found['recorder_ms']:.2f} ms make it {own:.3f} times (goal 1.02)",
        ]
    )


def archive_costs(path: Path) -> str:
    """Return a line for each ratio or difference, with its goal."""
    lines = []
    for one in ResultsFile(path).records():
        if "ratio" in one:
            value = f"{one['ratio']:.3g} times, n = {one['n']}"
            goal = "" if one["goal"] is None else f"; goal {one['goal']:g}: {'met' if one['met'] else 'NOT met'}"
        elif "extra_mib" in one:
            value = f"+{one['extra_mib']:.1f} MiB"
            goal = f"; goal {one['goal_mib']:g}: {'met' if one['met'] else 'NOT met'}"
        else:
            continue
        lines.append(f"{one['name']}: {value}{goal}")
    return "\n".join(lines)


def torture(path: Path) -> str:
    """Return the newest line of each case, and how many older ones found something."""
    records = [one for one in ResultsFile(path).records() if "case" in one]
    newest = {(one["row"], one["case"]): one for one in records}
    lines = [f"{'row':>3}  {'case':50} {'tries':>6} {'lost':>5} {'torn':>5} {'undetected':>10}"]
    for (row, case), one in sorted(newest.items()):
        lines.append(f"{row:3}  {case:50} {one['tries']:6} {one['lost']:5} {one['torn']:5} {one['undetected']:10}")
    older = [one for one in records if one is not newest[one["row"], one["case"]]]
    found = [one for one in older if one["lost"] or one["torn"] or one["undetected"]]
    cases = ", ".join(f"row {one['row']}: {one['torn'] + one['lost'] + one['undetected']}" for one in found)
    lines.append(f"Earlier lines of the file that found something, mended since: {cases or 'none'}.")
    return "\n".join(lines)
