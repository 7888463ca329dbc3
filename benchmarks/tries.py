"""Single tries of other settings on the CPU-sized CIFAR-100: what was tried for goals that were missed is kept.

One training of the recipe ``cifar100/small/baseline`` with the overrides of a try, and a line in a file that only
grows. Teachers and other prior runs are those of the study ``cifar100_small`` in its archive, which is only read. A try
has a seed or two and no interval: it says where to look, and claims nothing.

    python benchmarks/tries.py "batches of 32" data.batch_size=32 --npz cifar100.npz --archive ARCHIVE --seed 11
    python benchmarks/tries.py --summary
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job_runner import ROOT, ResultsFile, command_line, surroundings

from reuse_algos.recipe import build_trainer, load_recipe

OUT = Path(__file__).parent / "results" / "tries_cifar100_small.jsonl"
RECIPE = ROOT / "yamls" / "cifar100" / "small" / "baseline.yaml"


def attempt(options: argparse.Namespace) -> dict[str, Any]:
    """Train once; the record."""
    settings = {
        "seed": options.seed,
        "run_name": "try",
        "archive": options.archive,
        "max_duration": options.max_duration,
        "eval_interval": "1dur",
        "scheduler.t_warmup": "0.05dur",
        "model.autocast": "bfloat16",
        "data.name": "npz",
        "data.path": options.npz,
        "callbacks": "{}",
        "progress_bar": "false",
    }
    given = [f"{key}={value}" for key, value in settings.items()]
    trainer = build_trainer(load_recipe(RECIPE, [*given, *options.overrides]))
    trainer.fit()
    final = float(trainer.state.eval_metrics["eval"]["MulticlassAccuracy"].compute())
    seconds = trainer.state.timestamp.total_wct.total_seconds()
    trainer.close()
    return {
        "name": options.name,
        "max_duration": options.max_duration,
        "seed": options.seed,
        "overrides": options.overrides,
        "final": final,
        "train_seconds": seconds,
        **surroundings(),
        "command": command_line(__file__),
    }


def summary(records: Sequence[dict[str, Any]]) -> str:
    """Return a line for each setting: duration, number of seeds, mean accuracy in %, what was tried; the best first."""
    finals: dict[tuple[str, str], dict[int, float]] = {}
    for one in records:
        finals.setdefault((one["max_duration"], one["name"]), {})[one["seed"]] = one["final"]
    means = {key: math.fsum(found.values()) / len(found) for key, found in finals.items()}
    best_first = sorted(finals, key=lambda key: (int(key[0].removesuffix("ep")), -means[key], key))
    lines = [f"{'epochs':>6}  {'n':>2}  {'accuracy':>8}  tried"]
    for duration, name in best_first:
        seeds = finals[duration, name]
        accuracy = 100 * means[duration, name]
        lines.append(f"{duration.removesuffix('ep'):>6}  {len(seeds):>2}  {accuracy:8.1f}  {name}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="what is tried, in words")
    parser.add_argument("overrides", nargs="*", help="key=value of the recipe")
    parser.add_argument("--npz", help="CIFAR-100 in the Keras layout")
    parser.add_argument("--archive", help="the study's archive, with its prior runs")
    parser.add_argument("--max-duration", default="7ep", help="whole epochs, such as %(default)s")
    parser.add_argument("--seed", type=int, default=11, help="default: %(default)s")
    parser.add_argument("--out", type=ResultsFile, default=ResultsFile(OUT), help=f"results file; default: {OUT.name}")
    parser.add_argument("--summary", action="store_true", help="print what the file has, and train nothing")
    options = parser.parse_args(arguments)
    if not options.summary:
        if not (options.name and options.npz and options.archive):
            parser.error("a try needs its name, --npz and --archive")
        options.out.append(attempt(options))
    print(summary(options.out.records()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
