"""A stream of 100,000 samples, two ranks, killed in mid-epoch: is every archived row its own sample's?

    python benchmarks/stream_rows.py FOLDER                 # writes shards, trains, is killed, resumes, and looks
    python benchmarks/stream_rows.py FOLDER --samples 2000  # the same, smaller

It needs the package mosaicml-streaming (pip install reuse-algos[streams]) and about 100 MB in FOLDER. Three numbers
come out, as one JSON line at the end of ``--out``:

- ``wrong_rows``: archived rows that are not their sample's. The model's logits are the sample's number, digit by digit,
  and its weights do not move, so every row says whose it is.
- ``step_overhead``: seconds of a step with recording over those without, the median over pairs of steps that one rank
  makes in turn, with quartiles; and ``recorder_ms``, what the recorder itself takes of a step. The step is as long as
  that of the small ResNet with 128 images.
- ``gather_ratio``: seconds to look up cached rows of a shard's samples, in order, in the archive over the same held in
  RAM.

Seconds are the processor's, since the machine may do other work as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Callback, Event, State, Trainer
from composer.models import ComposerModel
from composer.utils import dist
from job_runner import ResultsFile, command_line, surroundings
from step_clock import StepClock, epochs_by_turns, ratios

from reuse_algos import RunRecorder
from reuse_algos.archive import RunArchive
from reuse_algos.data.streams import stream_info, with_ids
from reuse_algos.training.batch_keys import BatchKeys

RESULTS = Path(__file__).parent / "results" / "stream_rows.jsonl"
DIGITS, BATCH, PER_SHARD = 6, 256, 2000
STEPS = 40  # of an epoch of the trainings that are timed
KEYS = BatchKeys(ids="id", views="view", target="y")


class Echo(ComposerModel):
    """Its logits are the digits of the sample's number. Beside them it does some work, whose result counts for nothing.

    The work makes a step take as long as one of a small network: the overhead of nothing has no meaning.

    Args:
        width: Of the work's layers, which say how long a step takes.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [torch.nn.Linear(DIGITS, width), *[torch.nn.Linear(width, width) for _ in range(3)]]
        self.work = torch.nn.Sequential(*layers, torch.nn.Linear(width, DIGITS))

    def forward(self, batch: Any) -> torch.Tensor:
        """Return what the sample says, as logits."""
        return batch["x"] + 0.0 * self.work(batch["x"])

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the cross entropy."""
        return torch.nn.functional.cross_entropy(outputs, batch["y"])


class Die(Callback):
    """An end without a word after some batches."""

    def __init__(self, die_at: int) -> None:
        self.die_at = die_at

    def batch_end(self, state: State, logger: Any) -> None:
        """End the process, where it is time."""
        if int(state.timestamp.batch) == self.die_at:
            os._exit(9)


def digits_of(numbers: np.ndarray) -> np.ndarray:
    """Return the decimal digits of numbers: float32 ``[n, 6]``."""
    return (numbers[:, None] // 10 ** np.arange(DIGITS) % 10).astype(np.float32)


def write_shards(folder: Path, samples: int) -> None:
    """Write two streams with three quarters and one quarter of the samples."""
    from streaming import MDSWriter

    first = samples * 3 // 4
    for name, numbers in (("a", range(first)), ("b", range(first, samples))):
        if (folder / name).is_dir():
            continue
        size = PER_SHARD * (DIGITS * 4 + 60)
        with MDSWriter(out=str(folder / name), columns={"x": "ndarray", "y": "int"}, size_limit=size) as writer:
            for number in numbers:
                writer.write({"x": digits_of(np.array([number]))[0], "y": number % DIGITS})


def loader_of(folders: list[Path], size: int) -> Any:
    """Return a loader of two streams with two workers."""
    from streaming import Stream, StreamingDataLoader, StreamingDataset

    streams = [Stream(local=str(folder)) for folder in folders]
    dataset = with_ids(StreamingDataset)(streams=streams, shuffle=True, batch_size=size, num_canonical_nodes=1)
    return StreamingDataLoader(dataset, batch_size=size, num_workers=2)


def recorder_of(archive: Path, loader: Any, kind: type[RunRecorder] = RunRecorder) -> RunRecorder:
    """Return a recorder of logits and losses."""
    signals = {"logits": {}, "loss": {}}
    return kind(archive, run_name="stream", signals=signals, keys=KEYS, dataset=stream_info(loader.dataset))


def train(folder: Path, die_at: int) -> None:
    """Train one epoch on this rank, in mid-epoch from the last checkpoint where there is one."""
    dist.initialize_dist("cpu")
    loader = loader_of([folder / "a", folder / "b"], BATCH // dist.get_world_size())
    model = Echo(16)
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.0),
        max_duration="1ep",
        device="cpu",
        callbacks=[recorder_of(folder / "archive", loader), Die(die_at)],
        progress_bar=False,
        save_folder=str(folder / "save"),
        save_interval="100ba",
        run_name="stream",
        autoresume=True,
        save_overwrite=True,
    )
    trainer.fit()


class TimedRecorder(RunRecorder):
    """A recorder that counts the processor's seconds of its own thread, each step by itself."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.own, self.steps = 0.0, []

    def run_event(self, event: Event, state: State, logger: Any) -> None:
        """Record, and count."""
        began = time.thread_time()
        super().run_event(event, state, logger)
        self.own += time.thread_time() - began
        if event == Event.BATCH_END:
            self.steps.append(self.own)
        if event in (Event.BATCH_START, Event.BATCH_END):
            self.own = 0.0


class Stepped:
    """A training of one rank that goes on by one short epoch at a time, with or without a recorder."""

    def __init__(self, folder: Path, record: bool) -> None:
        own = folder / ("with" if record else "without")
        own.mkdir(exist_ok=True)
        for name in "ab":  # streaming refuses two datasets of one folder in a process
            if not (own / name).exists():
                (own / name).symlink_to((folder / name).resolve())
        loader, model = loader_of([own / "a", own / "b"], BATCH // 2), Echo(2048)
        self.clock, self.recorder = StepClock(time.process_time), None
        if record:
            self.recorder = recorder_of(own / "archive", loader, TimedRecorder)
        self.trainer = Trainer(
            model=model,
            train_dataloader=loader,
            train_subset_num_batches=STEPS,
            optimizers=torch.optim.SGD(model.parameters(), lr=0.0),
            max_duration="0ep",
            device="cpu",
            callbacks=[self.clock, *([self.recorder] if self.recorder else [])],
            progress_bar=False,
        )

    def epoch(self) -> None:
        """Train one more epoch."""
        self.trainer.fit(duration="1ep")


def overhead(folder: Path) -> dict[str, Any]:
    """Return what a step with recording takes, over one without."""
    recorded = Stepped(folder, True)
    seconds = epochs_by_turns({"with": recorded, "without": Stepped(folder, False)}, 2, threads=1)
    low, middle, high = ratios(seconds["with"], seconds["without"])
    assert isinstance(recorded.recorder, TimedRecorder)
    return {
        "step_ms": {name: round(1000 * float(np.median(found)), 2) for name, found in seconds.items()},
        "step_overhead": round(middle, 3),
        "step_overhead_quartiles": [round(low, 3), round(high, 3)],
        "recorder_ms": round(1000 * float(np.median(recorded.recorder.steps[-len(seconds["with"]) :])), 2),
        "steps": len(seconds["with"]),
    }


def look(folder: Path, samples: int) -> dict[str, Any]:
    """Return whose the archived rows are, and what it takes to look them up."""
    run = RunArchive(folder / "archive").run("stream")
    signal = run.signal("logits")
    (slot,) = signal.slots
    values, seen = signal.dense(slot)
    keys, first = run.keys().numpy(), samples * 3 // 4
    numbers = np.where(keys >> 40 == 0, keys, first + (keys & ((1 << 40) - 1)))
    wrong = (values.float().numpy() != digits_of(numbers)).any(1) | ~seen.numpy()
    in_memory, seconds = signal.resident("cpu"), []
    for begin in range(0, samples, PER_SHARD):
        rows = begin + torch.randperm(PER_SHARD, generator=torch.Generator().manual_seed(begin))[:BATCH].sort().values
        timed = []
        slots = torch.full_like(rows, slot)
        for held in (signal, in_memory):
            began = time.process_time()
            for _ in range(20):
                held.gather(rows, slots)
            timed.append(time.process_time() - began)
        seconds.append([one / 20 for one in timed])
    gathers = np.median(np.array(seconds), axis=0).tolist()
    return {
        "samples": samples,
        "rows": len(values),
        "wrong_rows": int(wrong.sum()),
        "gather_us": {name: round(1e6 * value, 1) for name, value in zip(("archived", "in RAM"), gathers, strict=True)},
        "gather_ratio": round(gathers[0] / gathers[1], 2),
    }


def train_killed(folder: Path, middle: int) -> None:
    """Train with two ranks that end without a word at a batch, and again to the end."""
    for die_at in (middle, -1):
        launch = [sys.executable, "-m", "composer.cli.launcher", "-n", "2", __file__, str(folder)]
        done = subprocess.run([*launch, f"--rank={die_at}"], capture_output=True, text=True, check=False)
        if (done.returncode == 0) != (die_at < 0):
            sys.exit(f"the training to batch {die_at} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--part", choices=("rows", "steps"), help="measure this part only")
    parser.add_argument("--rank", type=int, help="internal: train as one rank, and end at this batch", default=None)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        train(arguments.folder, arguments.rank)
        return
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_shards(arguments.folder, arguments.samples)
    found: dict[str, Any] = {}
    if arguments.part != "steps":
        train_killed(arguments.folder, arguments.samples // BATCH * 2 // 3)
        found |= look(arguments.folder, arguments.samples)
    if arguments.part != "rows":
        found |= overhead(arguments.folder)
    ResultsFile(arguments.out).append({**found, **surroundings(), "command": command_line(__file__)})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
