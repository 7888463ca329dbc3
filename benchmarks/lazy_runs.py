"""How lazily do networks learn, over widths and over ways of starting?

Each run keeps its initial and its last weights, and ``laziness_of_run`` compares them: the relative distance of the
weights, the distance of the tangent kernels on 64 examples, and the accuracy of the network linearised at its initial
weights beside that of the network (on all evaluation data). For a warm start the initial weights are those that it
starts from, so a small distance says that little was left to learn, and not that the network is lazy by nature.

- digits: digits_cnn of width 2, 4, 8, 16 from random weights on 500 images; width 4 also on 250 images (half), and from
  there on all 500 (warm), and with the weights shrunk by 0.4 and perturbed by 0.1 (shrunk).
- CIFAR-100 small (20 superclasses): a ResNet-8 of width 4, 8, 16 on 2,000 images; width 8 also half, warm, shrunk.

Three seeds each, the recipes' optimizer without a schedule, momentum and decay. Every run is a line of the file that
``instruments.py`` writes to, and its summary shows them.

    python benchmarks/lazy_runs.py                        # digits: some minutes on one core
    python benchmarks/lazy_runs.py --data cifar100.npz
    python benchmarks/instruments.py --summary
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from instruments import OUT, SEEDS, own_data, small_cifar, train
from job_runner import ResultsFile, command_line, surroundings

from reuse_algos.archive import RunArchive
from reuse_algos.harvest.laziness import laziness_of_run

# Dataset -> widths, the one that is also started warm, images, batch, epochs.
CASES: dict[str, tuple[tuple[int, ...], int, int, int, int]] = {
    "digits": ((2, 4, 8, 16), 4, 500, 20, 15),
    "cifar100_small": ((4, 8, 16), 8, 2000, 50, 12),
}
SHRINK = {"warm": "{shrink: 1.0, perturb: 0.0}", "shrunk": "{shrink: 0.4, perturb: 0.1}"}
RATE = 0.1


def one_run(data: str, path: str | None, archive: str, start: str, width: int, seed: int) -> dict[str, Any]:
    """Train one run into the archive and return how lazy it was; warm starts need the run ``half`` there."""
    count, batch, epochs = CASES[data][2:]
    words = [
        *own_data(data, path, count // 2 if start == "half" else count, batch), f"seed={seed}",
        f"model.width={width}", f"max_duration={epochs}ep", f"eval_interval={epochs}ep", f"optimizer.lr={RATE}",
        "callbacks.run_recorder={weights: [init, last]}",
    ]  # fmt: skip
    if start in SHRINK:
        prior = f"{{runs: half-{width}-{seed}, change: {SHRINK[start]}}}"
        words.append(f"algorithms.prior_run_warm_start={prior}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no logits are recorded
        run = train(data, words, archive, f"{start}-{width}-{seed}")
    lazy = laziness_of_run(run, data={"path": path} if path else None, trust_data=True)
    return {"what": "laziness", "data": data, "start": start, "width": width, "seed": seed, "lazy": lazy}


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FILE", help="CIFAR-100 as .npz (default: digits)")
    parser.add_argument("--out", default=str(OUT))
    options = parser.parse_args(argv)
    results = ResultsFile(options.out)
    torch.set_num_threads(1)
    data = "cifar100_small" if options.data else "digits"
    widths, warm = CASES[data][:2]
    wanted = [("random", width) for width in widths] + [(start, warm) for start in ("half", *SHRINK)]
    with tempfile.TemporaryDirectory() as folder:
        path = small_cifar(options.data, folder) if options.data else None
        for seed in SEEDS:
            RunArchive(archive := f"{folder}/archive-{seed}", create=True)
            # Together for each seed: warm starts need the run before, which is not kept.
            if results.records(what="laziness", data=data, seed=seed):
                continue
            found = [one_run(data, path, archive, start, width, seed) for start, width in wanted]
            for record in found:
                results.append({**record, **surroundings(), "command": command_line(__file__)})
            print(f"{data}, seed {seed}: {[one['lazy']['kernel_distance'] for one in found]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
