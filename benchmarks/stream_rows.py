"""A stream of 100,000 samples, two ranks, killed in mid-epoch: is every archived row its own sample's?

    python benchmarks/stream_rows.py FOLDER                 # writes shards, trains, is killed, resumes, and looks
    python benchmarks/stream_rows.py FOLDER --samples 2000  # the same, smaller

It needs the package mosaicml-streaming (pip install reuse-algos[streams]) and about 100 MB in FOLDER. Three numbers
come out, as one JSON line at the end of ``--out``:

- ``wrong_rows``: archived rows that are not their sample's. The model's logits are the sample's number, digit by digit,
  and its weights do not move, so every row says whose it is.
- ``step_overhead``: seconds of a step with recording over those without, the median of 200 steps each.
- ``gather_ratio``: seconds to look up cached rows of a shard's samples, in order, in the memory map over the same held
  in RAM.
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
from composer import Callback, State, Trainer
from composer.models import ComposerModel
from composer.utils import dist

from reuse_algos import RunRecorder
from reuse_algos.archive import RunArchive
from reuse_algos.data.streams import stream_info, with_ids
from reuse_algos.training.batch_keys import BatchKeys

RESULTS = Path(__file__).parent / "results" / "stream_rows.jsonl"
DIGITS, BATCH, PER_SHARD = 6, 256, 2000
KEYS = BatchKeys(ids="id", views="view", target="y")


class Echo(ComposerModel):
    """Its logits are the digits of the sample's number. Beside them it does some work, whose result counts for nothing.

    The work makes a step take as long as one of a small network: the overhead of nothing has no meaning.
    """

    def __init__(self) -> None:
        super().__init__()
        width = 1024
        layers = [torch.nn.Linear(DIGITS, width), *[torch.nn.Linear(width, width) for _ in range(3)]]
        self.work = torch.nn.Sequential(*layers, torch.nn.Linear(width, DIGITS))

    def forward(self, batch: Any) -> torch.Tensor:
        """Return what the sample says, as logits."""
        return batch["x"] + 0.0 * self.work(batch["x"])

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the cross entropy."""
        return torch.nn.functional.cross_entropy(outputs, batch["y"])


class Clock(Callback):
    """Seconds of each step, and an end without a word at one of them."""

    def __init__(self, die_at: int) -> None:
        self.die_at, self.began, self.seconds = die_at, 0.0, []

    def batch_start(self, state: State, logger: Any) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def batch_end(self, state: State, logger: Any) -> None:
        """Stop the clock, and the process."""
        self.seconds.append(time.perf_counter() - self.began)
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


def train(folder: Path, die_at: int, record: bool) -> None:
    """Train one epoch on this rank, in mid-epoch from the last checkpoint where there is one."""
    from streaming import Stream, StreamingDataLoader, StreamingDataset

    dist.initialize_dist("cpu")
    size = BATCH // dist.get_world_size()
    streams = [Stream(local=str(folder / name)) for name in "ab"]
    dataset = with_ids(StreamingDataset)(streams=streams, shuffle=True, batch_size=size, num_canonical_nodes=1)
    loader = StreamingDataLoader(dataset, batch_size=size, num_workers=2)
    clock, callbacks = Clock(die_at), []
    if record:
        signals = {"logits": {}, "loss": {}}
        info = stream_info(dataset)
        callbacks = [RunRecorder(folder / "archive", run_name="stream", signals=signals, keys=KEYS, dataset=info)]
    model = Echo()
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.0),
        max_duration="1ep",
        device="cpu",
        callbacks=[*callbacks, clock],
        progress_bar=False,
        save_folder=str(folder / "save") if record else None,
        save_interval="100ba",
        run_name="stream",
        autoresume=record,
        save_overwrite=True,
    )
    trainer.fit()
    if dist.get_global_rank() == 0:
        name = "with" if record else "without"
        (folder / f"{name}.json").write_text(json.dumps(clock.seconds[-200:]))


def look(folder: Path, samples: int) -> dict[str, Any]:
    """Return the three numbers."""
    run = RunArchive(folder / "archive").run("stream")
    signal = run.signal("logits")
    (slot,) = signal.slots
    values, seen = signal.dense(slot)
    keys, first = run.keys().numpy(), samples * 3 // 4
    numbers = np.where(keys >> 40 == 0, keys, first + (keys & ((1 << 40) - 1)))
    wrong = (values.float().numpy() != digits_of(numbers)).any(1) | ~seen.numpy()
    steps = {name: np.median(json.loads((folder / f"{name}.json").read_text())) for name in ("with", "without")}
    in_memory, seconds = signal.resident("cpu"), []
    for begin in range(0, samples - PER_SHARD, PER_SHARD):
        rows = begin + torch.randperm(PER_SHARD, generator=torch.Generator().manual_seed(begin))[:BATCH].sort().values
        timed = []
        slots = torch.full_like(rows, slot)
        for held in (signal, in_memory):
            began = time.perf_counter()
            for _ in range(20):
                held.gather(rows, slots)
            timed.append(time.perf_counter() - began)
        seconds.append([one / 20 for one in timed])
    gathers = np.median(np.array(seconds), axis=0).tolist()
    return {
        "samples": samples,
        "rows": len(values),
        "wrong_rows": int(wrong.sum()),
        "step_ms": {name: round(1000 * float(value), 2) for name, value in steps.items()},
        "step_overhead": round(float(steps["with"] / steps["without"]), 3),
        "gather_us": {name: round(1e6 * value, 1) for name, value in zip(("mapped", "in RAM"), gathers, strict=True)},
        "gather_ratio": round(gathers[0] / gathers[1], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rank", help="internal: what a rank does, such as record:150", default=None)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        what, _, die_at = arguments.rank.partition(":")
        train(arguments.folder, int(die_at), what == "record")
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_shards(arguments.folder, arguments.samples)
    middle = arguments.samples // BATCH * 2 // 3
    for what in ("plain:-1", f"record:{middle}", "record:-1"):
        launch = [sys.executable, "-m", "composer.cli.launcher", "-n", "2", __file__, str(arguments.folder)]
        done = subprocess.run([*launch, "--rank", what], capture_output=True, text=True, check=False)
        if (done.returncode == 0) != what.endswith("-1"):
            sys.exit(f"{what} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found = look(arguments.folder, arguments.samples)
    with arguments.out.open("a") as file:
        file.write(json.dumps(found) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
