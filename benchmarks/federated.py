"""Does an archived teacher, or alternate training, help clients without labels? Digits, clients sorted by label.

    python benchmarks/federated.py                 # what is not in --out yet; about a minute for each run on one core
    python benchmarks/federated.py --summary

Four clients have two shards each of 700 digits sorted by label, and none of their labels; the server has the labels of
40 other ones. Six rounds, of two epochs of a client and ten of the server. The arms:

- ``alternate``: SemiFL. The server trains on the average of the clients.
- ``parallel``: the server trains beside the clients, and is averaged with them.
- ``alternate+teacher``, ``parallel+teacher``: the first round's labels are of an archived run, which was trained on the
  server's 40 images for 60 epochs, so it brings no further labels.
- ``server``: the server trains alone on its 40 images for as many rounds.
- ``labels``: the clients have their labels, and the server only averages. What labels would give.

Each run is one line in ``--out``: the accuracy after each round, and which share of the images was trained on and had
its true label. The same seeds give every arm the same first model and the same images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job_runner import ResultsFile, command_line, surroundings

from reuse_algos import train
from reuse_algos.archive import RunArchive
from reuse_algos.compare.estimates.interval import difference_interval, mean_interval
from reuse_algos.federated import FederatedConfig, run_federated
from reuse_algos.federated.settings import ClientsConfig, SelectionConfig, ServerConfig

OUT = Path(__file__).parent / "results" / "federated.jsonl"
SEEDS = (1, 2, 3)
LABELLED, EXAMPLES, ROUNDS, CLIENTS = 40, 740, 6, 4
RATE, WIDTH = 0.05, 16
ARMS = ("alternate", "parallel", "alternate+teacher", "parallel+teacher", "server", "labels")
COMPARED = (
    ("alternate", "server", ROUNDS),
    ("alternate", "parallel", ROUNDS),
    ("alternate+teacher", "alternate", 1),
    ("alternate+teacher", "alternate", ROUNDS),
)
DATA = {"train_examples": EXAMPLES, "batch_size": 10, "augment": "crop"}


def overrides(seed: int) -> dict[str, Any]:
    """Return what every part changes in the recipe."""
    model = {"width": WIDTH}
    return {"seed": seed, "device": "cpu", "data": DATA, "model": model, "optimizer": {"lr": RATE}, "scheduler": None}


def config_of(arm: str, seed: int, folder: Path) -> FederatedConfig:
    """Return the federated run of an arm."""
    server = ServerConfig(examples=0 if arm == "labels" else LABELLED, epochs=10, alternate="parallel" not in arm)
    # Nothing is as sure as 1.0, so the clients of the arm "server" train on nothing.
    select = SelectionConfig(threshold=1.0 if arm == "server" else 0.95)
    return FederatedConfig(
        run_name=f"federated-{arm}-{seed}".replace("+", "-"),
        recipe="digits/baseline",
        archive=str(folder / "archive"),
        folder=str(folder / "work"),
        rounds=ROUNDS,
        overrides=overrides(seed),
        teacher="teacher" if "teacher" in arm else None,
        clients=ClientsConfig(
            count=CLIENTS, split="labels", shards=2, epochs=2, labels="own" if arm == "labels" else "none"
        ),
        server=server,
        select=select,
    )


def train_teacher(seed: int, folder: Path) -> float:
    """Train the earlier run on the server's images, and return its accuracy."""
    changes = ["run_name=teacher", f"seed={seed}", "device=cpu", "max_duration=60ep"]
    changes += [f"optimizer.lr={RATE}", f"model.width={WIDTH}"]
    # Of 740 images the server's 40 are the beginning of the same order.
    data = [f"data.train_examples={LABELLED}", "data.batch_size=10", "data.augment=crop", "eval_interval=60ep"]
    status = train.main(["digits/baseline", f"archive={folder / 'archive'}", "progress_bar=false", *changes, *data])
    assert status == 0
    (run,) = RunArchive(folder / "archive").runs(run_name="teacher")
    return run.final_metric()


def one(arm: str, seed: int) -> dict[str, Any]:
    """Do the run of an arm from an empty archive."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher = train_teacher(seed, folder) if "teacher" in arm else None
        config = config_of(arm, seed, folder)
        run = RunArchive(config.archive, create=True).run(run_federated(config))
        series = {key.rsplit("/", 1)[-1]: run.metric(key).value.tolist() for key in run.metric_names}
        return {
            "arm": arm, "seed": seed, "teacher_accuracy": teacher, "accuracy": series["MulticlassAccuracy"],
            "chosen": series.get("chosen", []), "correct": series.get("correct", []),
            "train_seconds": run.manifest.cost.train_seconds, "label_seconds": run.manifest.cost.setup_seconds,
            "examples_shown": run.manifest.progress.sample,
        }  # fmt: skip


def summarise(out: ResultsFile) -> None:
    """Print the accuracy of each arm after some rounds, with 95 % intervals."""
    for arm in ARMS:
        runs = out.records(arm=arm)
        if not runs:
            continue
        words = []
        for number in (1, 2, 4, ROUNDS):
            values = [run["accuracy"][number - 1] for run in runs]
            words.append(f"round {number}: {_with_interval(values)}")
        print(f"{arm} (n = {len(runs)}): " + "; ".join(words))
    for arm, other, number in COMPARED:
        own, theirs = (
            {run["seed"]: run["accuracy"][number - 1] for run in out.records(arm=one)} for one in (arm, other)
        )
        seeds = sorted(own.keys() & theirs.keys())
        if len(seeds) > 1:
            found = difference_interval([own[seed] for seed in seeds], [theirs[seed] for seed in seeds], paired=True)
            print(
                f"{arm} over {other}, round {number}: {found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}] "
                f"(paired, n = {len(seeds)})"
            )


def _with_interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{statistics.mean(values):.3f}"
    found = mean_interval(values)
    return f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Do the runs that are missing, then summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(OUT))
    parser.add_argument("--summary", action="store_true", help="only show what is in the file")
    options = parser.parse_args(argv)
    out = ResultsFile(options.out)
    if not options.summary:
        for seed in SEEDS:
            for arm in ARMS:
                if not out.records(arm=arm, seed=seed):
                    out.append({**one(arm, seed), **surroundings(), "command": command_line(__file__)})
    summarise(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
