"""Do alpha and the norm test tell a wrong learning rate before the loss does, and by how many steps?

Digits (digits_cnn, 500 images, batches of 20, SGD without momentum, constant rate), four rates named by what they do,
three seeds each; all readings of the set ``economy`` at every second step of 20 epochs. The runs of the good rate are
the reference: at each step their running medians over five readings span a range, widened by half of its width (and 5 %
of its middle) on both sides. A reading tells a run apart at the first step from which on its own running median stays
outside for five readings. The loss is that of the same examples.

What came out (12 runs; the first step that can be told apart is 17; two of three good runs are the range of the third,
which is narrow, and good runs leave it, too: by alpha from step 71 on, by the norm test from step 25 on):

- too small (0.0003): alpha at step 45 in all seeds, the loss at 39 to 53, the size of the update at 17. Alpha is not
  earlier than the loss; the norm test (113 to 251) is later. The median alpha is -1.000, that of the good rate -0.148.
- too large (0.6): alpha at step 17, the loss at 23 to 27: 6 to 10 steps earlier; the norm test at 29 to 45, later. The
  rate was not in truth too large: it ended at 92 to 96 % accuracy, above the good one (91 to 93 %).
- diverging (20): alpha at 17, 17, 25, norm test and loss at 17. The loss is as early. The median alpha is 0.308, so the
  diagnosis says nothing: its bound for a rate that is too large (0.5) was not reached by any run.
- the early-stopping criterion (running median of five above 0) is at step 251 to 301 for the rate of 0.6, whose best
  accuracy is at 325 to 425; never for the good rate (best at 350 to 450); and at 253 and 367 for two of the runs that
  had hardly begun to learn. It was no guide to the validation optimum here.
- the norm test never told a rate apart before the loss did.

Every run is one JSON line in ``--out`` with the raw readings, accuracy, versions and hardware.

    python benchmarks/instruments.py             # some minutes on a CPU
    python benchmarks/instruments.py --summary
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

from job_runner import ResultsFile, surroundings

from reuse_algos.archive import RunArchive
from reuse_algos.commands.show.instrument_panel import readings_of_run
from reuse_algos.recipe import build_trainer, load_recipe
from reuse_algos.training.instruments.diagnosis import diagnose

ROOT = Path(__file__).resolve().parents[1]
RATES = {"too small": 0.0003, "good": 0.1, "too large": 0.6, "diverging": 20.0}
SEEDS = (1, 2, 3)
READINGS = ("loss", "alpha", "norm_test", "gradient_norm", "update_size", "noise_scale")
WINDOW = 5


def one_run(name: str, seed: int) -> dict[str, Any]:
    """Train one run and return its record."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe = load_recipe(
            str(ROOT / "yamls" / "digits" / "instruments.yaml"),
            [
                f"archive={folder}", f"seed={seed}", "max_duration=20ep", "progress_bar=false", "scheduler=null",
                f"optimizer.lr={RATES[name]}", "optimizer.momentum=0", "optimizer.weight_decay=0",
                "callbacks.training_instruments.sets=[economy, stopping]", "callbacks.training_instruments.every=2ba",
            ],
        )  # fmt: skip
        trainer = build_trainer(recipe)
        trainer.fit()
        trainer.close()
        run = RunArchive(folder).run(f"digits-instruments-{seed}")
        everything = readings_of_run(run)
        metric = run.metric("metrics/eval/MulticlassAccuracy")
    findings = [[one.name, one.evidence] for one in diagnose(everything)]
    # Six digits: what the summary compares differs in the second or third.
    readings = {
        key: [[at, float(f"{value:.6g}")] for at, value in everything[key]] for key in (*READINGS, "early_stopping")
    }
    accuracy = [metric.step.tolist(), metric.value.tolist()]
    return {"rate": name, "lr": RATES[name], "seed": seed, "accuracy": accuracy, "findings": findings,
            "readings": readings, **surroundings()}  # fmt: skip


def medians(rows: list[list[float]]) -> dict[int, float]:
    """Return step -> median of the last readings up to it; what is not a number counts as infinite."""
    values = [value if value == value else float("inf") for _, value in rows]
    return {
        int(rows[at][0]): statistics.median(values[at - WINDOW + 1 : at + 1]) for at in range(WINDOW - 1, len(rows))
    }


def told_apart(rows: list[list[float]], good: list[list[list[float]]]) -> int | None:
    """Return the step from which on a run is outside the range of the good ones for so many readings; None: never."""
    references, own, outside = [medians(one) for one in good], medians(rows), 0
    for step, value in own.items():
        low, high = (pick(one[step] for one in references) for pick in (min, max))
        slack = 0.5 * (high - low) + 0.05 * abs(high + low) / 2
        outside = outside + 1 if not low - slack <= value <= high + slack else 0
        if outside == WINDOW:
            return step
    return None


def summary(records: list[dict[str, Any]]) -> None:
    """Print a line for each run: the step at which each reading tells it apart, and what is said of it."""
    good = [one for one in records if one["rate"] == "good"]
    print(f"{'rate':10} seed  final accuracy  " + "  ".join(READINGS) + "  findings")
    for one in records:
        others = [other for other in good if other is not one]
        steps = [told_apart(one["readings"][key], [other["readings"][key] for other in others]) for key in READINGS]
        shown = "  ".join(
            "-".rjust(len(k)) if s is None else str(s).rjust(len(k)) for k, s in zip(READINGS, steps, strict=True)
        )
        words = ", ".join(name for name, _ in one["findings"]) or "none"
        print(f"{one['rate']:10} {one['seed']:4}  {one['accuracy'][1][-1]:14.3f}  {shown}  {words}")
    for name in RATES:
        values = [v for one in records if one["rate"] == name for _, v in one["readings"]["alpha"] if v == v]
        tests = [v for one in records if one["rate"] == name for _, v in one["readings"]["norm_test"] if v == v]
        if values and tests:
            print(f"{name}: median alpha {statistics.median(values):.3f}, norm test {statistics.median(tests):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "instruments.jsonl"))
    parser.add_argument("--summary", action="store_true", help="only print what the file says")
    args = parser.parse_args()
    results = ResultsFile(args.out)
    if not args.summary:
        for name in RATES:
            for seed in SEEDS:
                if not results.records(rate=name, seed=seed):
                    results.append(one_run(name, seed))
    summary(results.records())


if __name__ == "__main__":
    main()
