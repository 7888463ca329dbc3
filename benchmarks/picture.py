"""Draw the README's picture from raw values: accuracy over the examples that a run trains on, with and without reuse.

python benchmarks/picture.py            # writes docs/saving.svg
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RAW = HERE / "results" / "cifar100_small.jsonl"
PICTURE = HERE.parent / "docs" / "saving.svg"
SHOWN = {
    "plain": ("plain, batches of 128", "#8a8f98"),
    "plain-batch-32": ("plain, batches of 32 (the control)", "#4a4f57"),
    "distilled-again-batch-32": ("taught by three earlier runs, batches of 32", "#1f6feb"),
}


def main() -> None:
    """Read the raw file and write the picture."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in RAW.read_text().splitlines():
        record = json.loads(line)
        found[record["method"]][record["samples"]].append(100 * record["final"])
    matplotlib.rcParams["svg.hashsalt"] = "saving"  # the same bytes at every call
    figure, axes = plt.subplots(figsize=(7.2, 3.4))
    for method, (label, colour) in SHOWN.items():
        costs = sorted(found[method])
        means = [sum(found[method][cost]) / len(found[method][cost]) for cost in costs]
        axes.plot([cost / 1000 for cost in costs], means, marker="o", color=colour, label=label)
        for cost in costs:
            axes.scatter([cost / 1000] * len(found[method][cost]), found[method][cost], s=8, color=colour, alpha=0.4)
    axes.set_xlabel("thousand training examples (2.5 to 20 epochs of 10,000 images)")
    axes.set_ylabel("accuracy in percent")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
