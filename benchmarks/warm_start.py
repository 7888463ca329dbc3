"""What does a warm start save, on the same data and on data that grew from 50 % to 100 %?

From scratch, warm, shrink-and-perturb, warm + distillation and warm + focus, at budgets of 2.5, 5, 10 and 20 epochs of
the CPU-sized CIFAR-100, three seeds, each run with a schedule of its own. These are arms of the study
``studies/cifar100_small.yaml``: this trains them (and what they reuse) by ``study.py``, takes its options, and shows
two comparisons of budget-accuracy curves. ``plain`` is trained from scratch on all the data in both of them.

On the same data the prior run is at the target before training starts, so what a warm start saves there proves nothing;
it shows what going on from an earlier run costs or brings (Ash & Adams 2020).

    python benchmarks/warm_start.py --jobs 2 --time-limit 50m overrides.data.name=npz overrides.data.path=cifar100.npz
    python benchmarks/warm_start.py --summary
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import study

STUDY = Path(__file__).parent / "studies" / "cifar100_small.yaml"
WAYS = ("warm", "shrunk", "distilled", "focus")
SAME, GROWN = "The same data", "Data grown from 50 % to 100 %"
QUESTIONS = {SAME: ["warm", *(f"warm-{way}" for way in WAYS[1:])], GROWN: [f"grown-{way}" for way in WAYS]}
CAVEAT = """\
The prior run is at the target before training starts, so that what is saved below proves nothing about
reuse: nobody needs to train again for what is there already. It shows what going on from a run brings
or costs, and nothing is recommended from it.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, and show both comparisons."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
    arms = ["plain", *(arm for group in QUESTIONS.values() for arm in group)]
    given = [str(STUDY), *arguments]
    status = 0 if "--summary" in given else study.main([*given, "--arms", ",".join(arms)])
    for title, group in QUESTIONS.items():
        print(f"\n{title}\n{'=' * len(title)}")
        if title == SAME:
            print(CAVEAT)
        shown = [*(one for one in given if one != "--summary"), *(["--no-advice"] if title == SAME else [])]
        status = status or study.main([*shown, "--summary", "--arms", ",".join(["plain", *group])])
    return status


if __name__ == "__main__":
    sys.exit(main())
