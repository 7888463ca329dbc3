"""What does a sequence of runs cost with reuse, over what it costs without?

Trains a sequence file several times, each time from an empty archive and with seeds of its own (those of the file, plus
100 for each repetition), one step after the other, and sums what each arm took: steps, FLOPs, seconds of training,
set-up and harvests. The share is taken within a repetition, so whatever else the machine does meets both arms; its
interval is over the repetitions (Student's t). Repetitions with other overrides are another measurement.

Every repetition is one JSON line in ``--out``: the sequence's whole report, hardware, versions and commit. Those that
are in the file are not repeated.

    python benchmarks/sequence_cost.py sequences/five_seeds --repeat 3        # about five minutes on two CPU cores
    python benchmarks/sequence_cost.py sequences/learning_rate_search --repeat 3
    python benchmarks/sequence_cost.py --summary
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job_runner import ResultsFile, command_line, surroundings

from reuse_algos.archive import RunArchive
from reuse_algos.compare.estimates.interval import mean_interval
from reuse_algos.errors import ReuseAlgosError
from reuse_algos.recipe.shipped import shipped_recipe
from reuse_algos.sequence import load_sequence, plan_sequence, run_sequence, sequence_report

OUT = Path(__file__).parent / "results" / "sequence_cost.jsonl"
BETWEEN_REPETITIONS = 100
SHARES = ("steps", "flops", "train_seconds", "cost_seconds")
EXACT = ("steps", "flops")  # counted and not measured: equal values are not a sign of copies


def measure(name: str, overrides: Sequence[str], repetition: int) -> dict[str, Any]:
    """Train the whole sequence in an empty archive; its report as plain data."""
    path = shipped_recipe(name)
    seeds = [seed + BETWEEN_REPETITIONS * repetition for seed in load_sequence(path, overrides).grid["seed"]]
    with tempfile.TemporaryDirectory() as folder:
        places = [f"archive={folder}/archive", f"folder={folder}/work", f"grid.seed={seeds}"]
        plan = plan_sequence(load_sequence(path, [*overrides, *places]))
        states = run_sequence(plan, say=lambda line: print(f"  {line}", flush=True))
        report = sequence_report(plan.config, states, RunArchive(plan.config.archive)).to_dict()
    del report["archive"]
    return report


def summarise(records: Sequence[dict[str, Any]]) -> None:
    """Print, for each sequence and its overrides, the mean share of each arm and what its runs ended at."""
    measured: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one in records:
        measured.setdefault((one["sequence"], *one["overrides"]), []).append(one["report"])
    for words, chosen in measured.items():
        first = chosen[0]
        count = len(first["arms"][0]["steps"])
        print(
            f"{' '.join(words)}: {count} steps in each arm, {len(chosen)} repetitions; in brackets: 95 % intervals "
            "over these"
        )
        for place, arm in enumerate(first["arms"]):
            finals = [report["arms"][place]["final"]["estimate"] for report in chosen]
            print(f"  {arm['name']:10} mean final {_shown(finals)}")
            for share in SHARES if arm["share"] else ():
                values = [report["arms"][place]["share"][share] for report in chosen]
                print(f"    {share} over those of {first['baseline']}: {_shown(values, exact=share in EXACT)}")
        if first["search"] is not None:
            for number, report in enumerate(chosen, start=1):
                winners = ", ".join(f"{arm['arm']} {arm['winner']}" for arm in report["search"]["arms"])
                verdicts = ", ".join(agreement["verdict"] for agreement in report["search"]["agreements"])
                print(f"  repetition {number}: winners {winners}; {verdicts}")


def _shown(values: Sequence[float], *, exact: bool = False) -> str:
    found = mean_interval(values, exact=exact)
    if len(values) == 1:
        return f"{found.estimate:.4f}"
    return f"{found.estimate:.4f} [{found.low:.4f}, {found.high:.4f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, then summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequence", nargs="?", default="sequences/five_seeds", help="one that comes with the library")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values in place of those of the file")
    parser.add_argument("--repeat", type=int, default=3, help="how many times in all")
    parser.add_argument("--out", default=str(OUT))
    parser.add_argument("--summary", action="store_true", help="only show what is in the file")
    options = parser.parse_intermixed_args(argv)
    try:
        return _measure_and_summarise(options, ResultsFile(options.out))
    except ReuseAlgosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _measure_and_summarise(options: argparse.Namespace, out: ResultsFile) -> int:
    done = {one["repetition"] for one in out.records(sequence=options.sequence, overrides=options.overrides)}
    for repetition in range(0 if options.summary else options.repeat):
        if repetition in done:
            continue
        print(f"{options.sequence}, repetition {repetition + 1} of {options.repeat}", flush=True)
        report = measure(options.sequence, options.overrides, repetition)
        record = {"sequence": options.sequence, "overrides": options.overrides, "repetition": repetition}
        out.append({**record, "report": report, **surroundings(), "command": command_line(__file__)})
    summarise(out.records())
    return 0


if __name__ == "__main__":
    sys.exit(main())
