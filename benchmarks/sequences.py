"""What the sequences of retraining and of pools came to: what the archive holds of them as raw lines.

    reuse-algos sequence yamls/sequences/periods.yaml archive=./archive
    reuse-algos sequence yamls/sequences/pool.yaml archive=./archive
    python benchmarks/sequences.py --archive ./archive
    python benchmarks/sequences.py --summary

Each run is a line: its arm and step, its error on the evaluation data (of periods: the period that comes next, which no
run of the arm has seen), steps, FLOPs and seconds, and the examples that changed their class since the arm's run before
(of those that both have archived logits of).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job_runner import ResultsFile, command_line, surroundings

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.errors import ReuseAlgosError
from reuse_algos.priors.drift import drift_between, training_period

OUT = Path(__file__).parent / "results" / "sequences.jsonl"
NAMES = ("periods", "pool")


def line_of(run: PriorRun, before: PriorRun | None) -> dict[str, Any]:
    """Return what is kept of one run."""
    tags, cost = run.manifest.tags, run.manifest.cost
    accuracy = run.final_metric() if run.manifest.monitor else None
    found = {
        "sequence": tags["sequence"],
        "arm": tags["arm"],
        "step": tags["step"],
        "period": training_period(run),
        "error": None if accuracy is None else 1 - accuracy,
        "steps": run.manifest.progress.batch,
        "flops": cost.train_flops,
        "seconds": cost.train_seconds + cost.setup_seconds,
    }
    if before is not None and found["period"] is not None:
        drift = drift_between(before, run)
        changes = {"common": len(drift.keys), "changed": len(drift.changed)}
        found["drift"] = {**changes, "learned": drift.learned, "forgotten": drift.forgotten}
    return found


def lines_of(archive: RunArchive, sequence: str) -> list[dict[str, Any]]:
    """Return the lines of a sequence in the order of its runs; empty where it was not trained."""
    lines, last = [], dict[str, PriorRun]()
    # A pool has trained nothing, which counts as unhealthy where teachers are looked for.
    for run in archive.runs(tags={"sequence": sequence}, order="first", unhealthy=True):
        arm = run.manifest.tags["arm"]
        lines.append(line_of(run, last.get(arm)))
        last[arm] = run
    return lines


def summary(records: Sequence[dict[str, Any]]) -> str:
    """Return a table for each sequence."""
    parts = []
    periods = [one for one in records if one["sequence"] == "periods"]
    if periods:
        parts += _periods(periods)
    pools = [one for one in records if one["sequence"] == "pool"]
    if pools:
        parts += _pools(pools)
    return "\n".join(parts)


def _periods(records: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["error on the period after the last one trained on, steps, GFLOP, examples that changed their class"]
    for arm in dict.fromkeys(one["arm"] for one in records):
        own = sorted((one for one in records if one["arm"] == arm), key=lambda one: one["period"])
        for one in own:
            drift = one.get("drift")
            changed = f"{drift['changed']} of {drift['common']}" if drift else ""
            lines.append(
                f"{arm:14} period {one['period']}: {100 * one['error']:5.1f} %  {one['steps']:4} steps  "
                f"{(one['flops'] or 0) / 1e9:6.1f} GFLOP  {changed}".rstrip()
            )
        later = [one["error"] for one in own[1:]]
        flops = sum(one["flops"] or 0 for one in own) / 1e9
        lines.append(
            f"{arm:14} mean of periods {own[1]['period']} to {own[-1]['period']}: "
            f"{100 * statistics.fmean(later):.1f} %, {sum(one['steps'] for one in own)} steps, {flops:.0f} GFLOP in all"
        )
    return lines


def _pools(records: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["error at the end and steps of each step of the pool's sequence, means over seeds"]
    kinds = dict.fromkeys((one["arm"], one["step"].partition("_")[0]) for one in records)
    for arm, step in kinds:
        own = [one for one in records if (one["arm"], one["step"].partition("_")[0]) == (arm, step)]
        errors = [one["error"] for one in own if one["error"] is not None]
        shown = ", ".join(f"{100 * error:.1f}" for error in errors)
        mean = f"{100 * statistics.fmean(errors):.1f} % ({shown})" if errors else "no metric"
        steps, flops = (statistics.fmean(one[key] or 0 for one in own) for key in ("steps", "flops"))
        lines.append(f"{arm:8} {step:12} n = {len(own)}: {mean}, {steps:.0f} steps, {flops / 1e9:.2f} GFLOP")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Take the runs of the sequences that the file does not have yet, or print the summary; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, default=Path("archive"))
    parser.add_argument("--out", default=str(OUT))
    parser.add_argument("--summary", action="store_true", help="only show what is in the file")
    options = parser.parse_args(argv)
    out = ResultsFile(options.out)
    if not options.summary:
        archive = RunArchive(options.archive, read_only=True)
        for name in NAMES:
            if not out.records(sequence=name):
                for line in lines_of(archive, name):
                    out.append({**line, **surroundings(), "command": command_line(__file__)})
    print(summary(out.records()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ReuseAlgosError as error:
        sys.exit(str(error))
