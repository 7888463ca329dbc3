"""How well do four depths predict a fifth, and one process two?

Depths: ResNet-20, 32, 44 and 56 at a constant rate predict the loss curve, its end and the step time of ResNet-50,
which is trained as well. Processes: one process says how long an example takes, and the model of strong scaling
predicts two (gloo, over the loopback device), of which the sum (nothing overlaps) and the maximum (all overlaps) are
given. All processes have one thread, so that two have a core each; where the machine has fewer cores, nothing is
predicted.

    python benchmarks/layers.py --archive ./layers-archive                # about three minutes on a quiet CPU core
    python benchmarks/layers.py --archive ./layers-archive --summary

What the archive holds is not trained again. Seconds on a machine that is shared with other work tell little.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from job_runner import ResultsFile, command_line, surroundings

from reuse_algos import train as reuse_train
from reuse_algos.archive import RunArchive
from reuse_algos.predict import History, LossCurve, histories, leave_one_size_out, predict_size, strong_scaling
from reuse_algos.predict.evidence import shared_hardware, sized_runs, steps_per_second
from reuse_algos.predict.sizes import curve_misfit, end_interval
from reuse_algos.recipe.shipped import shipped_recipe

OUT = Path(__file__).parent / "results" / "layers.jsonl"
DEPTHS = (20, 32, 44, 56)
UNSEEN = 50
BATCH = 50


def train(archive: Path, depth: int, epochs: int, processes: int, seed: int) -> None:
    """Train one run, unless the archive holds it; with several processes by Composer's launcher."""
    name = f"layers-{depth}-{processes}-{seed}"
    if archive.is_dir() and RunArchive(archive, read_only=True).runs(run_name=name):
        return
    words = [
        f"archive={archive}", f"run_name={name}", f"seed={seed}", f"max_duration={epochs}ep", "device=cpu",
        f"model={{name: resnet_small, depth: {depth}, width: 8}}", f"data.batch_size={BATCH}", "scheduler=null",
        "optimizer.lr=0.05",
        f"eval_interval={epochs}ep", "callbacks.run_recorder={weights: []}", "progress_bar=false",
        f"tags={{study: layers, depth: '{depth}', processes: '{processes}'}}",
    ]  # fmt: skip
    recipe = str(shipped_recipe("digits/baseline"))
    print(f"trains {name}", flush=True)
    if processes == 1:
        # In this process: to start one takes longer than the training.
        if status := reuse_train.main([recipe, *words]):
            raise SystemExit(status)
        return
    launcher = ["-m", "composer.cli.launcher", "-n", str(processes)]
    command = [sys.executable, *launcher, "-m", "reuse_algos.train", recipe, *words]
    # Composer's launcher leaves torch its default, as many threads as cores in each process.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def depths_record(archive: RunArchive) -> dict[str, Any]:
    """Return what four depths predict of the fifth, beside what it measured."""
    runs = histories(archive, tags={"study": "layers", "processes": "1"})
    known = [run for run in runs if _depth(run) != UNSEEN]
    unseen = next(run for run in runs if _depth(run) == UNSEEN)
    sized, (last,) = sized_runs(known), sized_runs([unseen])
    made = predict_size(sized, last.flops, last.hardware)
    loss = float(made.curve.loss(last.end_step))
    return {
        "what": "depths",
        "depths": [sorted(_depth(run) for run in known), UNSEEN],
        "curve": curve_by_quarters(made.curve, unseen),
        "loss": {"predicted": loss, "measured": last.end_loss, "error": loss / last.end_loss - 1},
        # Beyond sizes.MISFIT the command gives no loss.
        "misfit": curve_misfit(sized),
        "interval": list(end_interval(sized, loss)),
        "step_seconds": {
            "predicted": made.step_seconds,
            "measured": last.step_seconds,
            "error": made.step_seconds / last.step_seconds - 1,
        },
        "errors_when_left_out": {size: list(errors) for size, errors in leave_one_size_out(sized).items()},
    }


def curve_by_quarters(curve: LossCurve, run: History) -> list[dict[str, float]]:
    """Return the mean loss in each quarter of a training, as predicted and as measured, and the relative error."""
    found = []
    for steps, losses in zip(np.array_split(run.steps, 4), np.array_split(run.losses(), 4), strict=True):
        predicted, measured = float(np.mean(curve.loss(steps))), float(np.mean(losses))
        found.append({"predicted": predicted, "measured": measured, "error": predicted / measured - 1})
    return found


def processes_record(archive: RunArchive, network: float, price: float) -> dict[str, Any]:
    """Return what one process predicts of two, beside what they measured."""
    alone, together = (
        next(run for run in histories(archive, tags={"study": "layers", "depth": "20"}) if run.workers == count)
        for count in (1, 2)
    )
    model = archive.run(alone.run_id).manifest.model
    gradients = 4.0 * (model.num_parameters if model is not None else 0)
    each = 1 / steps_per_second(alone) / BATCH
    row = strong_scaling(each, BATCH, together.end_step, gradients, network, workers=[2], price_per_hour=price)[0]
    measured = steps_per_second(together)
    runtime = together.end_step / measured
    return {
        "what": "processes",
        "not_predictable": shared_hardware([alone, together], together.workers),
        "throughput": {
            "nothing_overlaps": row.examples_per_second,
            "all_overlaps": BATCH / row.overlapped_seconds,
            "measured": measured * BATCH,
            "one_process": steps_per_second(alone) * BATCH,
        },
        "runtime_seconds": {"predicted": row.runtime_seconds, "measured": runtime},
        "cost": {"predicted": row.cost, "measured": runtime / 3600 * 2 * price},
        "error": row.examples_per_second / (measured * BATCH) - 1,
    }


def _depth(run: History) -> int:
    return int(run.recipe["model"]["depth"])


def summarise(records: Sequence[dict[str, Any]]) -> None:
    """Print each record, predicted beside measured."""
    for one in records:
        if one["what"] == "processes" and (reason := not_predictable(one)):
            numbers = ", ".join(f"{key} {value:.4g}" for key, value in one["throughput"].items())
            print(f"processes: {reason}. With hardware of their own they would have had, and had: {numbers}")
            continue
        known, unseen = one.get("depths", [DEPTHS[:3], DEPTHS[3]])
        what = f"ResNet-{', '.join(map(str, known))} predict {unseen}" if one["what"] == "depths" else one["what"]
        for name, found in one.items():
            if isinstance(found, dict) and "measured" in found:
                numbers = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
                print(f"{what}, {name}: {numbers}")
        if "misfit" in one:
            low, high = one["interval"]
            print(
                f"{what}, loss: interval {low:.4g} to {high:.4g}; curves miss their own ends {one['misfit']:.3g} times"
            )
        for number, quarter in enumerate(one.get("curve", []), start=1):
            numbers = ", ".join(f"{key} {value:.4g}" for key, value in quarter.items())
            print(f"{what}, mean loss in quarter {number}: {numbers}")
        for size, (loss, seconds) in one.get("errors_when_left_out", {}).items():
            print(f"{what}, left out {size}: relative errors loss {loss:+.3g}, step time {seconds:+.3g}")


def not_predictable(record: dict[str, Any]) -> str | None:
    """Return why one process does not predict two, or None where it does."""
    if "not_predictable" in record:
        return record["not_predictable"]
    # Records without the answer are older: one process had one thread, and each of two as many as there are cores.
    return f"two processes of {record['hardware']['cpu_count']} threads each shared as many cores: not predictable"


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, then predict and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--network-gbits", type=float, default=10.0, help="of the link between the processes")
    parser.add_argument("--price-per-hour", type=float, default=1.0, help="of one process")
    parser.add_argument("--out", default=str(OUT))
    parser.add_argument("--summary", action="store_true", help="only show what is in the file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    out = ResultsFile(options.out)
    if not options.summary:
        path = options.archive.resolve()
        for depth, processes in [*((depth, 1) for depth in (*DEPTHS, UNSEEN)), (DEPTHS[0], 2)]:
            train(path, depth, options.epochs, processes, options.seed)
        archive = RunArchive(path, read_only=True)
        found = [
            depths_record(archive),
            processes_record(archive, options.network_gbits * 1e9 / 8, options.price_per_hour),
        ]
        for record in found:
            out.append({**record, "epochs": options.epochs, **surroundings(), "command": command_line(__file__)})
    summarise(out.records())
    return 0


if __name__ == "__main__":
    sys.exit(main())
