"""What does a step cost that trains a head on cached features, against one that runs the frozen backbone?

For each network a prior run is made, its features are harvested (which is timed), and then its head is trained again by
two trainers that differ in ``source`` only: ``live`` and ``cached``. They make their steps in turn, in one process, so
whatever else the machine does meets both; the first epoch warms up and does not count. Both see the same two views of
the same random images, and the losses of all steps are compared (goal: equal to 1e-5). A step is everything from the
start of one batch to the start of the next, loading included.

Networks: the small ResNet of yamls/cifar100/small, and torchvision's resnet18, both on images of 32 x 32.

Every measurement is one JSON line in ``--out``: all raw step times, medians, the ratio cached / live with the middle
half of its rounds, seconds of the harvest, the number of steps after which the harvest is paid for, versions and
hardware.

    python benchmarks/features.py                               # a minute on a CPU
    python benchmarks/features.py --models resnet18 --epochs 1 --steps 5 --batch 32
    python benchmarks/features.py --summary
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from adversarial_steps import CLASSES, images
from composer import Callback, State, Trainer
from job_runner import ResultsFile, surroundings
from step_clock import StepClock, epochs_by_turns, ratios

from reuse_algos.algorithms import PriorRunWarmStart
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.example_ids import TrackExamples
from reuse_algos.data.images.device_loader import DeviceImages, dataloader_of
from reuse_algos.data.sampler import EpochSampler
from reuse_algos.harvest import harvest
from reuse_algos.models import build_model

MODELS = ("resnet_small", "resnet18")
SOURCES = ("live", "cached")
OUT = Path(__file__).parent / "results" / "features.jsonl"


class Losses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []

    def before_backward(self, state: State, logger: Any) -> None:
        """Keep it where it is; nothing waits for it."""
        self.values.append(state.loss.detach().clone())  # type: ignore[union-attr]


class Training:
    """A trainer that goes on by one epoch at a time."""

    def __init__(self, name: str, dataset: DeviceImages, batch: int, *parts: Any) -> None:
        torch.manual_seed(0)
        self.clock, self.losses = StepClock(), Losses()
        model = build_model(name, num_classes=CLASSES, image_shape=(3, 32, 32))
        callbacks = [part for part in parts if isinstance(part, Callback)]
        self.trainer = Trainer(
            model=model,
            train_dataloader=dataloader_of(dataset, batch, EpochSampler(len(dataset), seed=0), drop_last=True),
            optimizers=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
            max_duration="0ep",
            device="gpu" if torch.cuda.is_available() else "cpu",
            algorithms=[part for part in parts if not isinstance(part, Callback)],
            callbacks=[self.clock, self.losses, TrackExamples(), *callbacks],
            progress_bar=False,
            auto_log_hparams=False,
        )

    def epoch(self) -> None:
        """Train one more epoch."""
        self.trainer.fit(duration="1ep")


def measure(name: str, *, batch: int, steps: int, epochs: int, threads: int) -> dict[str, Any]:
    """Measure one network: raw step times by source, the harvest, and how far the losses are apart."""
    torch.set_num_threads(threads)
    dataset = images((steps + 1) * batch, "cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive"
        recorder = RunRecorder(archive, run_name="prior")
        prior = Training(name, dataset, batch, recorder)
        prior.trainer.fit(duration="1ep")
        prior.trainer.close()
        began = time.perf_counter()
        harvest(archive, "prior", signals=("features",), dataset=dataset, batch_size=batch, progress=False)
        harvest_seconds = time.perf_counter() - began
        settings: dict[str, Any] = {"head": "reset", "trainable": {"freeze": "backbone"}}
        trainings = {
            source: Training(name, dataset, batch, PriorRunWarmStart(archive, "prior", source=source, **settings))
            for source in SOURCES
        }
        seconds = epochs_by_turns(trainings, epochs, threads)
        losses = {source: torch.stack(one.losses.values).cpu() for source, one in trainings.items()}
        for training in trainings.values():
            training.trainer.close()
    return {
        "model": name,
        "batch": batch,
        "seconds": seconds,
        "harvest_seconds": harvest_seconds,
        "harvest_examples": 2 * len(dataset),
        "largest_difference_of_losses": float((losses["live"] - losses["cached"]).abs().max()),
        "losses_compared": len(losses["live"]),
    }


def summarise(row: dict[str, Any]) -> dict[str, float]:
    """Medians, the ratio of each round with its middle half, and the steps that pay for the harvest."""
    live, cached = (row["seconds"][source] for source in SOURCES)
    low, middle, high = ratios(cached, live)
    saved = statistics.median(live) - statistics.median(cached)
    return {
        "live_median_seconds": statistics.median(live),
        "cached_median_seconds": statistics.median(cached),
        "ratio": middle,
        "ratio_25": low,
        "ratio_75": high,
        "steps_to_pay_for_harvest": math.ceil(row["harvest_seconds"] / saved) if saved > 0 else math.inf,
    }


def show(row: dict[str, Any]) -> None:
    found = row["summary"]
    epochs = found["steps_to_pay_for_harvest"] * row["batch"] / row["harvest_examples"]
    print(
        f"{row['model']:14} batch {row['batch']}: live {1000 * found['live_median_seconds']:8.2f} ms, cached "
        f"{1000 * found['cached_median_seconds']:7.2f} ms, ratio {found['ratio']:.4f} [{found['ratio_25']:.4f}, "
        f"{found['ratio_75']:.4f}] (n = {len(row['seconds']['live'])}); harvest of {row['harvest_examples']} "
        f"{row['harvest_seconds']:.1f} s, paid for after {epochs:.2f} passes over its views; losses differ by at most "
        f"{row['largest_difference_of_losses']:.1e} in {row['losses_compared']} steps"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of an epoch")
    parser.add_argument("--epochs", type=int, default=4, help="epochs that count")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--summary", action="store_true", help="show what the file has")
    args = parser.parse_args(argv)
    if args.summary:
        for row in ResultsFile(args.out).records():
            show(row)
        return
    for name in args.models:
        row = measure(name, batch=args.batch, steps=args.steps, epochs=args.epochs, threads=args.threads)
        row["summary"] = summarise(row)
        row |= {
            "threads": args.threads,
            **surroundings(),
            "command": f"python benchmarks/features.py --models {name} --batch {args.batch} --steps {args.steps} "
            f"--epochs {args.epochs} --threads {args.threads}",
        }
        show(row)
        ResultsFile(args.out).append(row)


if __name__ == "__main__":
    main()
