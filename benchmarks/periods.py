"""How wrong is a model on the period that comes next, on moons that turn: does it help to be told the time, and more?

Ten periods of 200 points (sklearn's make_moons, noise 0.1), turned by i pi/9. Nine are trained on; the error is that on
the tenth, which no arm sees. Arms, paired by seed (data, initial weights and batches are those of the seed):

- no-time: the time input is 0 everywhere; time: the model is told the time (the control beside every claim);
- time-fine: then trained on for 100 steps on the last two periods; interpolation: the same, with gradient interpolation
  (reuse_algos.algorithms.gradient_interpolation: weight 1, 5 ascent steps, rate 0.05, clamp 0.5).

The loops are plain torch around the library's functions, since they are many and tiny; Adam at 5e-3, batches of 100.
Every seed is one JSON line in ``--out``: all errors, seconds of each arm, versions and hardware.

    python benchmarks/periods.py                   # ten seeds, about two minutes on one core
    python benchmarks/periods.py --summary
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scipy.stats
import torch
import torch.nn.functional as F
from job_runner import ResultsFile, command_line, seeds_parser, surroundings
from sklearn.datasets import make_moons
from torch import Tensor, nn

from reuse_algos.algorithms.gradient_interpolation import ascend_delta, interpolate
from reuse_algos.models.time_conditioned import TimeConditioned, time_of, with_time

OUT = Path(__file__).parent / "results" / "periods.jsonl"
PERIODS, POINTS, NOISE, RATE, BATCH = 10, 200, 0.1, 5e-3, 100
STEPS, FINE_STEPS = 540, 100
CLAMP, SPREAD, ASCENT, ASCENT_RATE = 0.5, 0.1, 5, 0.05


def moons(seed: int) -> tuple[Tensor, Tensor]:
    """Return all periods: inputs float [N, 3], the last column the time from 0 to 0.9, and labels [N]."""
    parts, labels = [], []
    for period in range(PERIODS):
        points, classes = make_moons(POINTS, noise=NOISE, random_state=1000 * seed + period)
        angle = period * math.pi / 9
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        turned = torch.from_numpy(points).float() @ turn.T
        parts.append(torch.cat([turned, torch.full((POINTS, 1), period / PERIODS)], 1))
        labels.append(torch.from_numpy(classes).long())
    return torch.cat(parts), torch.cat(labels)


def network(seed: int) -> nn.Module:
    """Return an MLP of two hidden layers that is told the time."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2 + 8, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 2))
    return TimeConditioned(net, 8)


class Interpolated:
    """The loss of gradient interpolation, with its step in time."""

    def __init__(self, generator: torch.Generator) -> None:
        self.delta, self.generator = 0.0, generator

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of the extrapolation and of the model as it is."""

        def loss(delta: Tensor) -> Tensor:
            z = interpolate(lambda t: model(with_time(x, t)), time_of(x), delta.to(x))
            return F.cross_entropy(z, y)

        if abs(self.delta) < 0.02 * CLAMP or abs(self.delta) > 0.98 * CLAMP:
            self.delta = SPREAD * float(2 * torch.rand((), generator=self.generator) - 1)
        self.delta = ascend_delta(loss, self.delta, steps=ASCENT, rate=ASCENT_RATE, limit=CLAMP)
        return loss(torch.tensor(self.delta)) + plain(model, x, y)


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the loss of a model as it is."""
    return F.cross_entropy(model(x), y)


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int, generator: torch.Generator, loss: Any = plain) -> None:
    """Adam on batches drawn with replacement."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(model, x[rows], y[rows]).backward()
        optimizer.step()


def one_seed(seed: int) -> dict[str, Any]:
    """Errors on the last period, by arm, and the seconds of each."""
    x, y = moons(seed)
    last = slice((PERIODS - 1) * POINTS, None)
    known, recent = slice(0, (PERIODS - 1) * POINTS), slice((PERIODS - 3) * POINTS, (PERIODS - 1) * POINTS)
    errors, seconds = {}, {}
    for arm in ("no-time", "time", "time-fine", "interpolation"):
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        model = network(seed)
        shown = with_time(x, torch.zeros(len(x))) if arm == "no-time" else x
        train(model, shown[known], y[known], STEPS, generator)
        if arm in ("time-fine", "interpolation"):
            loss = plain if arm == "time-fine" else Interpolated(generator)
            train(model, shown[recent], y[recent], FINE_STEPS, generator, loss)
        with torch.no_grad():
            errors[arm] = float((model(shown[last]).argmax(1) != y[last]).double().mean())
        seconds[arm] = time.perf_counter() - began
    return {"errors": errors, "seconds": seconds}


def summary(records: Sequence[dict[str, Any]]) -> str:
    """Means, and the difference from the control that is told the time, paired by seed, with its 95 % interval."""
    lines = [f"error on the unseen period, {len(records)} seeds:"]
    base = [record["errors"]["time"] for record in records]
    for arm in ("no-time", "time", "time-fine", "interpolation"):
        values = [record["errors"][arm] for record in records]
        difference = ""
        for name, other in (("time", base), ("time-fine", [record["errors"]["time-fine"] for record in records])):
            if len(records) > 2 and arm != name and values != other:
                interval = scipy.stats.ttest_rel(values, other).confidence_interval(0.95)
                difference += f"  against {name} {100 * interval.low:+.1f} to {100 * interval.high:+.1f}"
        lines.append(f"  {arm:14} {100 * statistics.fmean(values):5.1f} %{difference}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the seeds that are missing, or print the summary; 0."""
    arguments = seeds_parser(__doc__, OUT).parse_args(argv)
    results = ResultsFile(arguments.out)
    if not arguments.summary:
        torch.set_num_threads(1)
        done = {record["seed"] for record in results.records()}
        for seed in range(1, arguments.seeds + 1):
            if seed not in done:
                found = one_seed(seed)
                results.append({"seed": seed, **found, **surroundings(), "command": command_line(__file__)})
                print(f"seed {seed}: {found['errors']}", flush=True)
    print(summary(results.records()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
