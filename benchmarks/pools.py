"""Does an unlabelled pool help, how does that depend on K, and what of it is due to the teacher?

A teacher (an MLP) is trained on a few labelled images and scores a pool. For each K the student, a new MLP, is trained
on the K best images per class (reuse_algos.priors.pseudo_labels) and fine-tuned on the labelled ones. Controls; each
seed has a labelled part, pool, initial weights and batches of its own:

- labelled: the teacher itself; labelled, equal steps: labelled images only, for the steps of student and fine-tuning;
- labelled, summed steps: the same, for those of the teacher as well;
- shuffled: the teacher's scores belong to other images; no fine-tuning: the student before it (field ``student``);
- three-classes: each image proposes three classes; all-labels: the pool's true labels, too, for the summed steps.

Rates, steps and ratios of K to the pool were written down once, for digits; Fashion-MNIST has the same, and nothing was
tuned on it. The loops are plain torch, since they are many and tiny.

Every seed is one JSON line in ``--out``: all accuracies, the accuracy of the chosen labels, versions and hardware.

    python benchmarks/pools.py --data digits                     # ten seeds, some minutes on one core
    python benchmarks/pools.py --data npz --path fashion.npz --name fashion_mnist
    python benchmarks/pools.py --summary
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scipy.stats
import torch
import torch.nn.functional as F
from job_runner import ResultsFile, command_line, seeds_parser, surroundings
from torch import Tensor, nn

from reuse_algos.data import DataConfig, load_datasets
from reuse_algos.priors.pseudo_labels import select_pairs

OUT = Path(__file__).parent / "results" / "pools.jsonl"
RATIOS = (0.07, 0.29, 0.58, 0.87, 1.44, 2.88)  # K over the pool's images per class
BEST = 0.58
STEPS = {"teacher": 500, "student": 1000, "fine_tuning": 200}
HIDDEN, RATE, FINE_RATE, BATCH = 32, 0.05, 0.01, 32


def network(inputs: int, classes: int) -> nn.Module:
    """Return an MLP of one hidden layer, drawn from the global generator."""
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float, generator: torch.Generator) -> nn.Module:
    """SGD with momentum and a rate that falls linearly to 0, on batches drawn with replacement."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return share of the rows that are right."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def one_seed(data: dict[str, Tensor], labelled: int, pool: int, seed: int) -> dict[str, Any]:
    """Return all arms of one seed."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, y, test = data["x"], data["y"], (data["x_test"], data["y_test"])
    classes, inputs = int(y.max()) + 1, x.shape[1]
    order = torch.randperm(len(x), generator=generator)
    # As many labelled images of each class.
    each = [order[y[order] == number][: labelled // classes] for number in range(classes)]
    few = torch.cat(each)
    rest = order[~torch.isin(order, few)][:pool]
    teacher = train(network(inputs, classes), x[few], y[few], STEPS["teacher"], RATE, generator)
    with torch.no_grad():
        scores = teacher(x[rest]).double().softmax(1)
    found: dict[str, Any] = {"labelled": accuracy(teacher, *test), "students": {}}
    summed = sum(STEPS.values())
    found["labelled_summed"] = accuracy(train(network(inputs, classes), x[few], y[few], summed, RATE, generator), *test)

    def student(scores: Tensor, ratio: float, per_image: int = 1) -> dict[str, float]:
        k = max(1, round(ratio * len(rest) / classes))
        images, labels = select_pairs(scores, per_class=k, per_image=per_image)
        model = train(network(inputs, classes), x[rest[images]], labels, STEPS["student"], RATE, generator)
        before = accuracy(model, *test)
        train(model, x[few], y[few], STEPS["fine_tuning"], FINE_RATE, generator)
        right = float((labels == y[rest[images]]).double().mean())
        return {"k": k, "labels": right, "student": before, "fine_tuned": accuracy(model, *test)}

    for ratio in RATIOS:
        found["students"][str(ratio)] = student(scores, ratio)
    found["shuffled"] = student(scores[torch.randperm(len(rest), generator=generator)], BEST)
    found["three_classes"] = student(scores, BEST, per_image=3)
    both = torch.cat([few, rest])
    found["all_labels"] = accuracy(train(network(inputs, classes), x[both], y[both], summed, RATE, generator), *test)
    # Last, so that the arms above draw what they drew before this one was added.
    equal = summed - STEPS["teacher"]
    found["labelled_equal"] = accuracy(train(network(inputs, classes), x[few], y[few], equal, RATE, generator), *test)
    return found


def load(arguments: argparse.Namespace) -> tuple[dict[str, Tensor], int, int]:
    """Images as rows of normalised pixels, and how many are labelled and in the pool."""
    config = DataConfig(name=arguments.data, path=arguments.path, drop_last=False)
    loaded: Any = load_datasets(config)
    found = {}
    for part, suffix in ((loaded.train, ""), (loaded.eval, "_test")):
        count = min(len(part), 12_000)
        images, labels = part.__getitems__(range(count))
        found["x" + suffix], found["y" + suffix] = images.flatten(1), labels
    return (found, 50, 1387) if arguments.data == "digits" else (found, 200, 5000)


def summary(records: list[dict[str, Any]]) -> str:
    """Means with the difference from labelled-summed, paired by seed, and its 95 % interval."""
    lines = []
    for name in sorted({record["data"] for record in records}):
        runs = [record["found"] for record in records if record["data"] == name]
        base = [run["labelled_summed"] for run in runs]
        rows = [("labelled", [run["labelled"] for run in runs], "")]
        rows.append(("labelled, equal steps", [run["labelled_equal"] for run in runs], ""))
        rows.append(("labelled, summed steps", base, ""))
        for ratio in RATIOS:
            own = [run["students"][str(ratio)] for run in runs]
            right = statistics.fmean(one["labels"] for one in own)
            said = f"labels {right:.3f}, before fine-tuning {statistics.fmean(one['student'] for one in own):.3f}"
            rows.append((f"K={own[0]['k']}", [one["fine_tuned"] for one in own], said))
        for arm in ("shuffled", "three_classes"):
            rows.append((arm, [run[arm]["fine_tuned"] for run in runs], ""))
        rows.append(("all labels", [run["all_labels"] for run in runs], ""))
        lines.append(f"{name}, {len(runs)} seeds:")
        for arm, values, said in rows:
            difference = ""
            if len(runs) > 2 and values is not base:
                interval = scipy.stats.ttest_rel(values, base).confidence_interval(0.95)
                difference = f"  {interval.low:+.3f} to {interval.high:+.3f}"
            lines.append(f"  {arm:24} {statistics.fmean(values):.3f}{difference}  {said}".rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the seeds that are missing, or print the summary; 0."""
    parser = seeds_parser(__doc__, OUT)
    parser.add_argument("--data", choices=("digits", "npz"), default="digits")
    parser.add_argument("--path", help="the .npz file")
    parser.add_argument("--name", help="what the data are called in the results (default: as --data)")
    arguments = parser.parse_args(argv)
    results = ResultsFile(arguments.out)
    if not arguments.summary:
        torch.set_num_threads(1)
        name = arguments.name or arguments.data
        done = {(record["data"], record["seed"]) for record in results.records()}
        data, labelled, pool = load(arguments)
        for seed in range(1, arguments.seeds + 1):
            if (name, seed) not in done:
                found = one_seed(data, labelled, pool, seed)
                made = {"data": name, "seed": seed, "labelled": labelled, "pool": pool, "found": found}
                results.append({**made, **surroundings(), "command": command_line(__file__)})
                print(f"{name} seed {seed}: labelled {found['labelled']:.3f}", flush=True)
    print(summary(results.records()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
