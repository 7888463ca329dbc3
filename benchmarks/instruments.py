"""What instruments tell of a run: wrong learning rates, when to stop, and what a reading costs.

Rates. Do alpha and the norm test tell a wrong rate before the loss does, and by how many steps? Digits (digits_cnn, 500
images, batches of 20, 20 epochs) and CIFAR-100 small (20 superclasses, 2,000 images, a ResNet-8 of width 8, batches of
50, 4 epochs), SGD without momentum at a constant rate, three seeds each, all readings of the set ``economy``. The runs
of the good rate are the reference: at each step their running medians over five readings span a range, widened by half
of its width (and 5 % of its middle) on both sides. A reading tells a run apart at the first step from which on its own
running median stays outside for five readings. The loss is that of the same examples.

Stopping. Few images and many epochs, so that the validation loss has a minimum: where is the early-stopping criterion
(its running median over five readings) above 0 for good, and what does stopping there lose?

The rates are named by what they were expected to do; the summary says how each run ended. Every run is one JSON line in
``--out`` with the raw readings, versions and hardware. ``lazy_runs.py`` and ``instruments_cost.py`` write to the same
file, and the summary shows their lines as well.

    python benchmarks/instruments.py                             # digits: some minutes on one core
    python benchmarks/instruments.py --data cifar100.npz         # CIFAR-100 in the layout of Keras
    python benchmarks/instruments.py --summary
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import instruments_summary
import numpy as np
import torch
from job_runner import ResultsFile, command_line, surroundings

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.commands.show.instrument_panel import readings_of_run
from reuse_algos.recipe import build_trainer, load_recipe
from reuse_algos.recipe.shipped import shipped_recipe

OUT = Path(__file__).parent / "results" / "instruments.jsonl"
SEEDS = (1, 2, 3)
RATES = {
    "digits": {"too small": 0.0003, "good": 0.1, "too large": 0.6, "far too large": 4.0, "diverging": 20.0},
    "cifar100_small": {"too small": 0.001, "good": 0.1, "too large": 3.0, "diverging": 20.0},
}
READINGS = ("loss", "alpha", "norm_test", "gradient_norm", "update_size", "noise_scale")
TRAIN, HELD = 2000, 1000  # images of CIFAR-100, the first of its file
WIDTH = 8  # of its network: half of the recipe's, so that a run takes seconds
CONSTANT = ["progress_bar=false", "scheduler=null", "optimizer.momentum=0", "optimizer.weight_decay=0"]
RECIPES = {"digits": "digits/baseline", "cifar100_small": "cifar100/small/baseline"}
# Images, length, and how often it is read and evaluated: for the rates, and for the question of when to stop.
LENGTHS = {
    ("digits", "rates"): (500, "20ep", "2ba", "1ep"),
    ("digits", "stopping"): (100, "60ep", "5ba", "1ep"),
    ("cifar100_small", "rates"): (2000, "4ep", "4ba", "4ep"),
    ("cifar100_small", "stopping"): (500, "24ep", "5ba", "2ep"),
}
STOPPING_RATE = 0.1


def small_cifar(path: str, folder: str) -> str:
    """Write the first images of an ``.npz`` file to another one, and return its path."""
    with np.load(path) as arrays:
        few = {name: arrays[name][: TRAIN if name.endswith("train") else HELD] for name in arrays.files}
    np.savez(small := str(Path(folder) / "small.npz"), **few)
    return small


def own_data(data: str, path: str | None, count: int, batch: int) -> list[str]:
    """Return the overrides that name the images of one of the two datasets, without augmentation."""
    words = [f"data.train_examples={count}", f"data.batch_size={batch}"]
    if data == "digits":
        return [*words, "device=cpu"]
    fixed = ["data.name=npz", f"data.path={path}", "data.augment=none", "data.num_views=1", "optimizer.nesterov=false"]
    return [*words, *fixed, "device=cpu", f"model.width={WIDTH}"]


def train(data: str, words: Sequence[str], archive: str, name: str) -> PriorRun:
    """Train one run of a dataset's recipe in this process, and return what the archive holds of it."""
    recipe = load_recipe(
        str(shipped_recipe(RECIPES[data])), [f"archive={archive}", f"run_name={name}", *CONSTANT, *words]
    )
    trainer = build_trainer(recipe)
    trainer.fit()
    trainer.close()
    return RunArchive(archive).run(name)


def one_run(what: str, data: str, path: str | None, rate: float, seed: int) -> dict[str, Any]:
    """Train one run with instruments, and return its readings and evaluations."""
    (count, duration, every, evaluated), batch = LENGTHS[data, what], instruments_summary.BATCH[data]
    sets = "[economy, stopping]" if what == "rates" else "[stopping]"
    instruments = f"{{sets: {sets}, every: {every}, examples: {batch if what == 'stopping' else min(batch, 25)}}}"
    words = [
        *own_data(data, path, count, batch), f"seed={seed}", f"optimizer.lr={rate}", f"max_duration={duration}",
        f"eval_interval={evaluated}", f"callbacks.training_instruments={instruments}",
        "callbacks.run_recorder={weights: []}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rate that diverges
        run = train(data, words, folder, "run")
        everything = readings_of_run(run)
        accuracy, entropy = (run.metric(f"metrics/eval/{name}") for name in ("MulticlassAccuracy", "CrossEntropy"))
    found = {
        "accuracy": [accuracy.step.tolist(), accuracy.value.tolist()],
        "entropy": [entropy.step.tolist(), entropy.value.tolist()],
        # Six digits: what the summary compares differs in the second or third.
        "readings": {
            key: [[at, float(f"{value:.6g}")] for at, value in everything[key]]
            for key in (*READINGS, "early_stopping")
            if key in everything
        },
    }
    return {"what": what, "data": data, "lr": rate, "seed": seed, **found, **surroundings()}


def main(argv: Sequence[str] | None = None) -> int:
    """Train the runs that are missing, then print the summary; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FILE", help="CIFAR-100 as .npz (default: digits)")
    parser.add_argument("--out", default=str(OUT))
    parser.add_argument("--summary", action="store_true", help="only print what the file says")
    args = parser.parse_args(argv)
    results = ResultsFile(args.out)
    if not args.summary:
        torch.set_num_threads(1)
        data = "cifar100_small" if args.data else "digits"
        wanted = [("rates", name, rate, seed) for name, rate in RATES[data].items() for seed in SEEDS]
        wanted += [("stopping", "good", STOPPING_RATE, seed) for seed in SEEDS]
        done = {(one["what"], one["lr"], one["seed"]) for one in instruments_summary.runs(results.records(), data)}
        with tempfile.TemporaryDirectory() as folder:
            path = small_cifar(args.data, folder) if args.data else None
            for what, name, rate, seed in wanted:
                if (what, rate, seed) not in done:
                    record = one_run(what, data, path, rate, seed)
                    results.append({"rate": name, **record, "command": command_line(__file__)})
                    print(f"{data}, {what}, {name}, seed {seed}: {record['accuracy'][1][-1]:.3f}", flush=True)
    print(instruments_summary.text(results.records()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
