"""What does a search by successive halving cost over the full grid, and what does its choice lose?

Each repetition trains eight learning rates in full and by halving, with a seed of its own. The share of the cost counts
every run of every rung. The loss of the choice is what the full grid ends at with its own winner, less what it ends at
with the winner of halving. Both have Student's t interval over the repetitions. Killed, the same command goes on.

    python benchmarks/halving.py --archive ./halving-archive                              # digits, one CPU core
    python benchmarks/halving.py --archive ./halving-archive --recipe cifar100/small/baseline data.name=npz ...
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from job_runner import ResultsFile, command_line, surroundings, without_places

from reuse_algos import train
from reuse_algos.archive import RunArchive
from reuse_algos.compare.estimates.interval import mean_interval
from reuse_algos.recipe.shipped import shipped_recipe
from reuse_algos.sequence import Job, SequenceReport, load_sequence, plan_sequence, run_sequence, sequence_report
from reuse_algos.sequence.progress import RECIPE

OUT = Path(__file__).parent / "results" / "halving.jsonl"
SHARES = ("steps", "flops", "train_seconds", "cost_seconds")
EXACT = ("steps", "flops")  # counted and not measured: equal values do not mean copies


class InThisProcess:
    """A launcher that trains each step as soon as it is submitted: no start of a process for a run of seconds."""

    local = True

    def submit(self, job: Job) -> int:
        """Train, and return the exit status."""
        return train.main([str(job.step.folder / RECIPE)])

    def wait(self, handle: int, timeout: float) -> int:
        """Return the exit status."""
        return handle

    def cancel(self, handle: int) -> None:
        """Do nothing: the job has ended."""


def search(archive: Path, recipe: str, overrides: Sequence[str], repetition: int) -> SequenceReport:
    """Train what is left of one repetition, and return its report."""
    name = f"halving-{recipe.replace('/', '-')}-{repetition}"
    own = [f"name={name}", f"recipe={recipe}", f"grid.seed=[{repetition + 1}]", f"folder={archive}-work/{name}"]
    words = [f"overrides.{word}" for word in overrides]
    config = load_sequence(shipped_recipe("sequences/rate_halving"), [*own, *words], archive=str(archive))
    # Every run is paid for here: what the archive holds from other studies would make the share too small.
    plan = plan_sequence(dataclasses.replace(config, use_held=False))
    states = run_sequence(plan, launcher=InThisProcess(), say=lambda line: print(f"  {line}", flush=True))
    return sequence_report(plan.config, states, RunArchive(archive, read_only=True))


def record_of(report: SequenceReport) -> dict[str, Any]:
    """Return the share of the cost, both winners, and the loss of the choice."""
    assert report.search is not None
    full, halving = report.search.arms
    finals = {one.value: one.final.estimate for one in full.candidates}
    sign = 1.0 if report.mode == "max" else -1.0
    return {
        "share": report.arms[1].share,
        "winner": {"full": full.winner, "halving": halving.winner},
        "loss": sign * (finals[full.winner] - finals[halving.winner]),
        "finals": {str(value): final for value, final in finals.items()},
        "metric": report.metric,
    }


def summarise(records: Sequence[dict[str, Any]]) -> None:
    """Print share and loss of each recipe, with intervals over the repetitions."""
    for recipe in dict.fromkeys(one["recipe"] for one in records):
        own = [one for one in records if one["recipe"] == recipe]
        print(f"{recipe}: {len(own)} repetitions; in brackets: 95 % intervals over these")
        measured = [
            (f"{name} over those of the full grid", [one["share"][name] for one in own], name) for name in SHARES
        ]
        for what, numbers, name in [*measured, ("loss of the choice", [one["loss"] for one in own], "loss")]:
            known = [number for number in numbers if number is not None] or [float("nan")]
            found = mean_interval(known, exact=name in EXACT)
            print(f"  {what}: {found.estimate:.4f} [{found.low:.4f}, {found.high:.4f}]")
        print(f"  winners: {[tuple(one['winner'].values()) for one in own]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, then summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values in place of those of the recipe")
    parser.add_argument("--archive", type=Path, default=Path("halving-archive"))
    parser.add_argument("--recipe", default="digits/baseline")
    parser.add_argument("--repeat", type=int, default=5, help="how many repetitions in all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default=str(OUT))
    parser.add_argument("--summary", action="store_true", help="only show what is in the file")
    options = parser.parse_intermixed_args(argv)
    torch.set_num_threads(options.threads)
    out = ResultsFile(options.out)
    # Where data lie on a machine says nothing about the result.
    asked = {"recipe": options.recipe, "overrides": [without_places(word) for word in options.overrides]}
    done = {one["repetition"] for one in out.records(**asked)}
    for repetition in [] if options.summary else [k for k in range(options.repeat) if k not in done]:
        report = search(options.archive.resolve(), options.recipe, options.overrides, repetition)
        out.append(
            {
                **asked,
                "repetition": repetition,
                **record_of(report),
                **surroundings(),
                "command": command_line(__file__),
            }
        )
    summarise(out.records())
    return 0


if __name__ == "__main__":
    sys.exit(main())
