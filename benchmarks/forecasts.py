"""How far are forecasts of the end of a run off, after 25, 50 and 75 % of it?

Trains digits runs of several learning rates, widths and seeds into an archive (half at a constant rate, half under the
cosine schedule of the recipe), then forecasts every one of them from its own first part and the other runs. Baselines:
the last value that was seen, and the linear time to the end (Composer's ETA). One JSON line for each forecast.

    python benchmarks/forecasts.py --archive ./forecast-archive          # about ten minutes on two CPU cores
    python benchmarks/forecasts.py --archive ./forecast-archive --no-training
    python benchmarks/forecasts.py --archive ./forecast-archive --summary
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job_runner import ResultsFile, command_line, surroundings

from reuse_algos.archive import RunArchive
from reuse_algos.predict import backtest, histories
from reuse_algos.recipe.build import build_trainer
from reuse_algos.recipe.compose import load_recipe
from reuse_algos.recipe.shipped import shipped_recipe

OUT = Path(__file__).parent / "results" / "forecasts.jsonl"
SCHEDULES = {"constant": "scheduler=null", "cosine": "tags.schedule=cosine"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--summary", action="store_true", help="only show what is in the file")
    arguments = parser.parse_args(argv)
    out = ResultsFile(arguments.out)
    if not arguments.summary:
        if not arguments.no_training:
            train(arguments.archive, arguments.seeds, arguments.epochs)
        arguments.out.unlink(missing_ok=True)
        out.append({"epochs": arguments.epochs, **surroundings(), "command": command_line(__file__)})
        for schedule in SCHEDULES:
            runs = histories(RunArchive(arguments.archive, read_only=True), tags={"schedule": schedule})
            for test in backtest(runs):
                out.append({"schedule": schedule, "asked": test.asked, **test.to_dict()})
    summarise(out.records())
    return 0


def summarise(records: Sequence[dict[str, Any]]) -> None:
    """Print the median relative errors of each schedule and share, beside those of the baselines, and the coverage."""
    print("schedule   after  runs   end value, last value   time, linear time   90 % intervals that hold the end")
    for schedule in SCHEDULES:
        for asked in sorted({one["asked"] for one in records if "asked" in one}):
            group = [one for one in records if (one.get("schedule"), one.get("asked")) == (schedule, asked)]
            names = ("error", "baseline_error", "seconds_error", "baseline_seconds_error")
            value, last, seconds, linear = (statistics.median(abs(one[name]) for one in group) for name in names)
            covered = [one["covered"] for one in group if one["covered"] is not None]
            held = f"{sum(covered)} of {len(covered)} ({sum(covered) / max(1, len(covered)):.1%})"
            errors = f"{value:>9.1%}, {last:>10.1%}   {seconds:>4.1%}, {linear:>11.1%}"
            print(f"{schedule:<9} {asked:>6.0%} {len(group):>5}   {errors}   {held}")
    timed = [one for one in records if "asked" in one]
    closer = sum(abs(one["seconds_error"]) < abs(one["baseline_seconds_error"]) for one in timed)
    print(f"the time was closer to the end than the linear one in {closer} of {len(timed)} forecasts")


def train(archive: Path, seeds: int, epochs: int) -> None:
    for seed in range(1, seeds + 1):
        for width in (4, 8):
            for rate in (0.03, 0.1, 0.2):
                for schedule, override in SCHEDULES.items():
                    recipe = load_recipe(
                        shipped_recipe("digits/baseline"),
                        [
                            f"archive={archive}",
                            f"seed={seed}",
                            f"model.width={width}",
                            f"optimizer.lr={rate}",
                            f"max_duration={epochs}ep",
                            "eval_interval=4ep",
                            "callbacks.run_recorder={weights: []}",
                            "progress_bar=false",
                            f"tags.schedule={schedule}",
                            override,
                        ],
                    )
                    trainer = build_trainer(recipe)
                    trainer.fit()
                    trainer.close()


if __name__ == "__main__":
    sys.exit(main())
