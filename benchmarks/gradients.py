"""How many steps and bytes do compressed gradients need, where each rank has digits of its own?

Four ranks (gloo, Composer's launcher) share the digits sorted by label, so that each sees two or three classes only.
For each method a rate is chosen among three on one seed; then two other seeds are trained until the accuracy on the
test digits is 95 %, looked at every ten steps. All methods have the same search; a rate of it is given up once it has
taken as many steps as the best one so far. Killed, the same command goes on.

    python benchmarks/gradients.py                # about half an hour on two CPU cores
    python benchmarks/gradients.py --summary
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State, Trainer
from composer.models import ComposerClassifier
from composer.utils import dist
from job_runner import ResultsFile, surroundings
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from reuse_algos.callbacks import GradientCompression

OUT = Path(__file__).parent / "results" / "gradients.jsonl"
RANKS, BATCH, MOST_STEPS, EVERY, GOAL = 4, 32, 1000, 10, 0.95
MEANS, SIGNS = (1.0, 0.3, 0.1), (0.01, 0.003, 0.001)
METHODS: dict[str, tuple[dict[str, Any] | None, tuple[float, ...]]] = {
    "all-reduce": (None, MEANS),
    "scalecom 100": ({"name": "scalecom", "ratio": 100, "beta": 0.1}, MEANS),
    "sign": ({"name": "sign"}, SIGNS),
    "sign, noise 0.03": ({"name": "sign", "noise": 0.03}, SIGNS),
    "median": ({"name": "median"}, MEANS),
    "median, noise 0.03": ({"name": "median", "noise": 0.03}, MEANS),
}
SEARCH_SEED, SEEDS = 1, (2, 3)


class SortedShards(DistributedSampler):
    """Gives each rank its own stretch of the examples sorted by label, in another order each epoch."""

    def __init__(self, labels: torch.Tensor, seed: int) -> None:
        super().__init__(labels, num_replicas=dist.get_world_size(), rank=dist.get_global_rank())  # type: ignore[arg-type]
        size = len(labels) // self.num_replicas
        self._own = labels.argsort(stable=True)[self.rank * size : (self.rank + 1) * size]
        self._seed = seed

    def __len__(self) -> int:
        return len(self._own)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1000 * self._seed + self.epoch)
        return iter(self._own[torch.randperm(len(self._own), generator=generator)].tolist())


class UntilGood(Callback):
    """Stops at the goal; all ranks have the same weights, and so come to the same end."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self._images, self._labels = images, labels
        self.steps: int | None = None
        self.accuracy = 0.0

    def batch_end(self, state: State, logger: Logger) -> None:
        """Look at the test digits, and stop where they are good enough."""
        batch = int(state.timestamp.batch)
        if batch % EVERY:
            return
        with torch.no_grad():
            answers = state.model.module.module(self._images).argmax(1)  # type: ignore[union-attr, operator]
        self.accuracy = float((answers == self._labels).float().mean())
        if self.accuracy >= GOAL:
            self.steps = batch
            state.stop_training()


class CountBytes(Callback):
    """Adds up what this rank sends."""

    def __init__(self, compression: GradientCompression) -> None:
        self._compression = compression
        self.sent: list[int] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        """Note the bytes of a step that was compressed."""
        if int(state.timestamp.batch) > self._compression.after:
            self.sent.append(self._compression.bytes_sent)


def one_run(method: dict[str, Any] | None, rate: float, seed: int, most_steps: int) -> dict[str, Any]:
    """Train on all ranks until the goal, or for the most steps."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    until = UntilGood(images[test], labels[test])
    compression = None if method is None else GradientCompression(method, seed=seed)
    counted = None if compression is None else CountBytes(compression)
    sampler = SortedShards(labels[train], seed)
    loader = DataLoader(TensorDataset(images[train], labels[train]), BATCH, sampler=sampler, drop_last=True)
    model = ComposerClassifier(net, num_classes=10)
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        optimizers=torch.optim.SGD(model.parameters(), lr=rate),
        max_duration=f"{most_steps}ba",
        callbacks=[until, *([] if compression is None else [compression]), *([] if counted is None else [counted])],
        seed=seed,
        progress_bar=False,
        device="cpu",
    )
    trainer.fit()
    trainer.close()
    whole = 4 * sum(one.numel() for one in net.parameters())
    sent = whole if counted is None else statistics.mean(counted.sent)
    return {
        "rate": rate, "seed": seed, "steps": until.steps, "most_steps": most_steps, "accuracy": until.accuracy,
        "bytes": sent, "whole": whole,
    }  # fmt: skip


def on_ranks(out: ResultsFile) -> None:
    """Do all runs on each rank that are not in the file yet; the first rank writes them down."""
    before = {(one["method"], one["rate"], one["seed"]): one for one in out.records() if "method" in one}
    dist.barrier()  # no rank reads what another one has written since

    def done(name: str, method: dict[str, Any] | None, rate: float, seed: int, most: int, part: str) -> dict[str, Any]:
        if (found := before.get((name, rate, seed))) is None:
            found = one_run(method, rate, seed, most)
            if dist.get_global_rank() == 0:
                out.append({"method": name, "part": part, **found})
        return found

    if dist.get_global_rank() == 0:
        # The command that a person gives, not the one of a rank.
        out.append({**surroundings(), "command": "python benchmarks/gradients.py", "ranks": RANKS})
    for name, (method, rates) in METHODS.items():
        most, ranks = MOST_STEPS, {}
        for rate in rates:
            found = done(name, method, rate, SEARCH_SEED, most, "search")
            most = found["steps"] or most
            # Where no rate comes to the goal, the one that comes nearest is the better one.
            ranks[rate] = (found["steps"] or MOST_STEPS + 1, -found["accuracy"])
        for seed in SEEDS:
            done(name, method, min(ranks, key=lambda rate: ranks[rate]), seed, MOST_STEPS, "result")


def summarise(records: Sequence[dict[str, Any]]) -> None:
    """Print steps to the goal, or the accuracy that was reached, and bytes of each method and rate."""
    ends = "steps to 95 %, or the accuracy that was reached after how many; one for each seed"
    print(f"{'method':<20} {'rate':>6}   {'bytes a step':>12}   {ends}")
    for name in METHODS:
        group = [one for one in records if one.get("method") == name]
        for rate in sorted({one["rate"] for one in group}):
            runs = [one for one in group if one["rate"] == rate]
            ends = ", ".join(_end(one) for one in runs)
            sent = statistics.mean(one["bytes"] for one in runs)
            print(f"{name:<20} {rate:>6}   {sent:>12,.0f}   {ends}")


def _end(run: dict[str, Any]) -> str:
    return str(run["steps"]) if run["steps"] else f"{run['accuracy']:.1%} after {run['most_steps']}"


def main(argv: Sequence[str] | None = None) -> int:
    """Start the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rank", action="store_true", help="be one of the ranks that the launcher has started")
    parser.add_argument("--summary", action="store_true", help="only show what is in the file")
    options = parser.parse_args(argv)
    if options.rank:
        torch.set_num_threads(1)
        dist.initialize_dist("cpu")
        on_ranks(ResultsFile(options.out))
        return 0
    if not options.summary:
        launcher = [sys.executable, "-m", "composer.cli.launcher", "-n", str(RANKS)]
        done = subprocess.run([*launcher, __file__, "--rank", "--out", str(options.out.resolve())])
        if done.returncode:
            return done.returncode
    summarise(ResultsFile(options.out).records())
    return 0


if __name__ == "__main__":
    sys.exit(main())
