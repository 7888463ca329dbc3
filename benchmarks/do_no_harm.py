"""Whether the presets were ever worse than plain training: the raw values of the do_no_harm studies, as one table.

    for name in digits fashion cifar100 glyphs; do
        python benchmarks/study.py benchmarks/studies/do_no_harm_$name.yaml --out do_no_harm_$name.jsonl
    done
    cat do_no_harm_*.jsonl > do_no_harm.jsonl
    python benchmarks/do_no_harm.py --summary --out do_no_harm.jsonl

A line is the difference of final accuracies, in points, of a taught arm and plain training of the same architecture, by
pairs of runs with the same seed. A preset does harm where its upper limit is below -0.3 points; it is shown to help
where its lower limit is above 0.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from job_runner import ResultsFile

from reuse_algos.compare.estimates.interval import mean_interval

OUT = Path(__file__).parent / "results" / "do_no_harm.jsonl"
ALLOWED = -0.3  # points


def table(path: Path) -> str:
    """Return a line for each study, taught arm and budget, and what they show together."""
    finals: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    for one in ResultsFile(path).records():
        if one["role"] != "prior":
            finals[one["study"], one["method"], one["budget"]][one["seed"]] = 100 * one["final"]
    lines = [f"{'study':22} {'arm':16} {'budget':>6} {'plain':>6} {'difference':>26}  n"]
    harms, helps, count, others = [], [], 0, []
    for (study, arm, budget), taught in sorted(finals.items(), key=lambda one: (*one[0][:2], int(one[0][2][:-2]))):
        if arm.startswith("plain"):
            continue
        plain = finals.get((study, plain_of(arm, {name for at, name, _ in finals if at == study}), budget), {})
        seeds = sorted(set(taught) & set(plain))
        if len(seeds) < 2:
            continue
        found = mean_interval([taught[seed] - plain[seed] for seed in seeds])
        level = sum(plain[seed] for seed in seeds) / len(seeds)
        words = f"{found.estimate:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
        line = f"{study:22} {arm:16} {budget:>6} {level:6.1f} {words:>26}  {len(seeds)}"
        if not arm.startswith(("preset", "crossed")):
            others.append(line)  # other settings that were in question: no preset is judged by them
            continue
        lines.append(line)
        count += 1
        harms += [f"{study} {arm} {budget}"] * (found.high < ALLOWED)
        helps += [f"{study} {arm} {budget}"] * (found.low > 0)
    lines.append(f"Surely more than {-ALLOWED} points below plain: {', '.join(harms) or 'none'} of {count} lines.")
    lines.append(f"Surely above plain: {', '.join(helps) or 'none'}.")
    return "\n".join([*lines, *(["", "Other settings:", *others] if others else [])])


def plain_of(arm: str, arms: set[str]) -> str:
    """Return the plain arm of the architecture that an arm trains: crossed ones train the study's second one."""
    second = next((name for name in sorted(arms) if name.startswith("plain-")), "plain")
    return second if arm == "crossed" or arm.endswith(second.removeprefix("plain")) else "plain"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="raw values of the studies")
    parser.add_argument("--summary", action="store_true", help="accepted, as by the other benchmarks")
    print(table(parser.parse_args(arguments).out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
