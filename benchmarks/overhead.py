"""What does a training step cost with each way of reuse, against plain cross entropy in Composer?

All variants train the same network on the same random images of CIFAR's shape, at the same batch size. They make their
steps in turn, in one process, so whatever else the machine does meets all of them; ratios are taken round by round, and
their median, its 95 % interval (by order statistics) and the middle half of the rounds are reported. ``--clock cpu``
counts the CPU seconds of the training's own thread, so that a machine that others use gives narrow figures as well.
The first epoch warms up and does not count. A step is everything from the start of one batch to the start of the next
one of the same epoch, loading included; what happens at the end of an epoch (writing signals, evaluation) and before
the first step is not in it: ``archive_cost.py`` and the runs' own records count that.

    plain                Composer alone, cross entropy, channels_last; the reference. What tells an algorithm which
                         examples it sees is only in the variants that need it, so its cost is in their ratios
    raw                  a loop of PyTorch: forward, cross entropy, backward, SGD; no metrics, no Trainer
    recipe               plain with the recorder as in yamls/cifar100/resnet56/baseline.yaml (goal: at most 1.05 of raw)
    recorder             plain with the recorder on and the logits of all examples captured
    cached_1, cached_5   archived logits of one and of five earlier runs as teachers (goal: at most 1.02 of plain)
    live_1, live_5       the archived models themselves as teachers
    live_1_every_10      one live teacher at every 10th batch: time and ratio are of whole cycles, see below
    curriculum           the order of the examples by an archived score
    weighted             examples weighted by an archived score (active bias): the loss is computed per example, too
    replay_replace       archived perturbations on a part of the batch
    replay_append        the same rows in addition to the whole batch
    instruments          TrainingInstruments, which read the first batch of each epoch (goal: at most 1.02 of plain);
                         time and ratio are of whole epochs of CIFAR's 50,000 images
    timm_1               timm's LogitDistillationTask with one live teacher, in a loop of PyTorch
    torchdistill_1       torchdistill's DistillationBox with KDLoss and one live teacher, in a loop of PyTorch

A cycle is the batch at which the teacher is on and the nine after it; what is compared is its sum, with the sum of the
same rounds of plain, and the median and middle half are over all cycles. The last batch of an epoch is not timed: in an
epoch's last cycle the mean of the other eight batches without the teacher stands for it, on both sides.

The last two variants are left out where timm and torchdistill cannot be imported. timm comes with ``pip install
'reuse-algos[peers]'``. torchdistill asks for another torch than mosaicml, and works with it all the same: ``pip install
--no-deps --target FOLDER torchdistill`` and ``--peers FOLDER``.

Every measurement is one JSON line in ``--out``: all raw step times, ratios, settings, versions and hardware.

    python benchmarks/overhead.py --peers ./peers                                 # about five minutes on two CPU cores
    python benchmarks/overhead.py --batch 128 --epochs 20 --autocast bfloat16     # on a GPU
    python benchmarks/overhead.py --model resnet20 --variants plain cached_1 cached_5
    python benchmarks/overhead.py --summary
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from job_runner import ResultsFile, surroundings, without_places
from overhead_variants import VARIANTS, Setting, build, prepare
from scipy import stats
from step_clock import epochs_by_turns, ratios

from reuse_algos.errors import HarmWarning

OUT = Path(__file__).parent / "results" / "overhead.jsonl"
EVERY = 10
EXAMPLES = 50_000  # of CIFAR: the epoch over which the instruments' reading is spread
# Variant -> (reference, at most).
GOALS = {
    "instruments": ("plain", 1.02),
    "cached_1": ("plain", 1.02),
    "cached_5": ("plain", 1.02),
    "recipe": ("raw", 1.05),
}


def measure(names: list[str], setting: Setting, *, epochs: int, threads: int) -> dict[str, list[float]]:
    """Return seconds of each step by variant, all of them of equal number and made in turn."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepare(Path(folder), names, setting)
        trainings = {name: build(name, Path(folder), dataset, setting) for name in names}
        seconds = epochs_by_turns(trainings, epochs, threads)
        for training in trainings.values():
            training.close()
    return seconds


def summarise(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Median of each variant's steps, and its ratio to plain (for ``recipe`` also to raw) with the middle half.

    For a variant that is on at some batches only, these are of whole cycles, ``cycles`` many.
    """
    seconds, found = row["seconds"], {}
    for name, times in seconds.items():
        length = EXAMPLES // row["setting"]["batch"] if name == "instruments" else EVERY
        in_cycles = name == "instruments" or name.endswith(f"_every_{EVERY}")
        own = cycles(times, row["batches"], length) if in_cycles else times
        result: dict[str, Any] = {"median_seconds": statistics.median(own)}
        if in_cycles:
            result |= {"cycles": len(own), "batches_of_a_cycle": length}
        for reference in ("plain", "raw"):
            if reference in seconds and (reference == "plain" or name in ("plain", "recipe")):
                other = cycles(seconds[reference], row["batches"], length) if in_cycles else seconds[reference]
                low, middle, high = ratios(own, other)
                bounds = interval_of_median(own, other)
                result[f"to_{reference}"] = {"ratio": middle, "ratio_25": low, "ratio_75": high, "interval": bounds}
        if name in GOALS and f"to_{GOALS[name][0]}" in result:
            reference, goal = GOALS[name]
            result["goal"] = {"to": reference, "at_most": goal, "met": result[f"to_{reference}"]["ratio"] <= goal}
        found[name] = result
    return found


def interval_of_median(own: Sequence[float], other: Sequence[float]) -> list[float] | None:
    """Return the 95 % interval of the median of the ratios, free of any distribution; None for too few rounds."""
    if len(own) < 6:
        return None
    found = stats.quantile_test([x / y for x, y in zip(own, other, strict=True)], p=0.5).confidence_interval()
    return [float(found.low), float(found.high)]


def cycles(times: Sequence[float], batches: int, length: int = EVERY) -> list[float]:
    """Return the mean seconds of a step over each cycle of ``length`` batches, of which the first one is dear.

    An epoch's last batch is not timed, and a cycle may be longer than an epoch: the mean of the cycle's other batches
    stands for those that were not timed; the median, where many were not, as one slow step would count many times.

    Args:
        times: Of all timed steps, ``batches - 1`` of each epoch.
        batches: Of an epoch.
        length: Of a cycle. Default: :data:`EVERY`.
    """
    timed = batches - 1
    middle = statistics.median if length > batches else statistics.fmean
    found = []
    for epoch in range(0, len(times), timed):
        for first in range(epoch, epoch + timed, length):
            dear, *cheap = times[first : min(first + length, epoch + timed)]
            found.append((dear + (length - 1) * middle(cheap)) / length)
    return found


def show(row: dict[str, Any]) -> None:
    setting = row["setting"]
    rounds = len(row["seconds"]["plain"])
    clock = ", CPU seconds" if setting.get("cpu") else ""
    print(f"{setting['model']}, batch {setting['batch']}, {row['hardware']['name']}, {rounds} rounds{clock};")
    print("ratio (95 % interval of the median) [middle half of the rounds]")
    for name, result in row["summary"].items():
        words = f"{name:16} {1000 * result['median_seconds']:9.2f} ms"
        for reference in ("plain", "raw"):
            if (ratio := result.get(f"to_{reference}")) is not None:
                low, high = ratio.get("interval") or (float("nan"), float("nan"))
                words += f"   {ratio['ratio']:.3f} x {reference} ({low:.3f} to {high:.3f}) "
                words += f"[{ratio['ratio_25']:.3f}, {ratio['ratio_75']:.3f}]"
        if "cycles" in result:
            words += f"   over {result['cycles']} cycles of {result['batches_of_a_cycle']} batches"
        if (goal := result.get("goal")) is not None:
            words += f"   goal at most {goal['at_most']} x {goal['to']}: {'met' if goal['met'] else 'not met'}"
        print(words)


def versions_of_peers() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("timm", "torchdistill") if util.find_spec(name) is not None}


def command_of(args: argparse.Namespace) -> str:
    """Return the command that measures the same, defaults written out; of the peers' folder as in ``command_line``."""
    words = ["python", "benchmarks/overhead.py"]
    for name in ("model", "batch", "batches", "epochs", "threads", "autocast"):
        if (value := getattr(args, name)) is not None:
            words += [f"--{name}", str(value)]
    words += ["--clock", "cpu"] if args.clock == "cpu" else []
    words += ["--peers", without_places(str(args.peers))] if args.peers is not None else []
    words += ["--variants", *args.variants] if args.variants else []
    return shlex.join(words)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="plain is always among them")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=10, help="of an epoch, a multiple of 10; all but one are timed")
    parser.add_argument("--epochs", type=int, default=3, help="epochs that count")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--autocast", choices=("bfloat16", "float16"), help="of the network's forward pass")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="seconds that count (default: wall)")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="where timm and torchdistill were installed")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--summary", action="store_true", help="show what the file has")
    args = parser.parse_args(argv)
    # A term that was switched off would be measured as one that costs nothing.
    warnings.simplefilter("error", HarmWarning)
    if args.summary:
        for row in ResultsFile(args.out).records():
            show({**row, "summary": summarise(row)})
        return
    if args.batches < EVERY or args.batches % EVERY:
        parser.error(f"--batches must be a multiple of {EVERY}, got {args.batches}")
    if args.clock == "cpu" and (torch.cuda.is_available() or args.threads != 1):
        parser.error("--clock cpu needs one thread and no GPU: what other threads and the GPU do is not in it")
    if args.peers is not None:
        sys.path.append(str(args.peers))
    wanted = args.variants or [name for name, needs in VARIANTS.items() if needs is None or util.find_spec(needs)]
    missing = {needs for name in wanted if (needs := VARIANTS[name]) is not None and not util.find_spec(needs)}
    if missing:
        parser.error(f"{', '.join(sorted(missing))} cannot be imported: see --peers")
    names = ["plain", *(name for name in wanted if name != "plain")]
    for name in set(VARIANTS) - set(names):
        print(f"left out: {name}")
    if args.epochs * args.batches < 2 * EVERY and any(name.endswith(f"_every_{EVERY}") for name in names):
        parser.error(f"a ratio over cycles of {EVERY} batches needs two of them: more --batches or --epochs")
    setting = Setting(args.model, args.batch, args.batches, args.autocast, args.clock == "cpu")
    where = surroundings()
    row: dict[str, Any] = {
        "setting": vars(setting),
        "batches": args.batches,
        "epochs": args.epochs,
        "threads": args.threads,
        "seconds": measure(names, setting, epochs=args.epochs, threads=args.threads),
        **where,
        "versions": {**where["versions"], **versions_of_peers()},
        "command": command_of(args),
    }
    row["summary"] = summarise(row)
    show(row)
    ResultsFile(args.out).append(row)


if __name__ == "__main__":
    main()
