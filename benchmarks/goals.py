"""The headline goals, and how far the runs in ``results/`` are from each: nothing is typed by hand.

Each goal is a ratio of what training costs with reuse and without, to be as good as training from scratch with its full
budget. They were set for ResNet-56 on full CIFAR-100; what is shown here is of the CPU-sized study, and says so. Its
runs shared a machine, so they are counted in examples (times epochs), whatever the batches were; a
sequence is counted in steps and in seconds.

    python benchmarks/goals.py
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from job_runner import ResultsFile
from study_summary import compare_records

from reuse_algos.compare import Speedup
from reuse_algos.compare.estimates.interval import Interval, mean_interval
from reuse_algos.compare.question import Axis

RESULTS = Path(__file__).parent / "results"
STUDY = "cifar100-small"
OTHER_ARCHITECTURE_STUDY = "cifar100-small-resnet20"
BASELINE = "plain"
TUNED_STUDY = "savings-small"  # its plain arm is tuned, and no setting was chosen with the seeds that are shown
TUNED_ARMS = ("taught",)
OUTPUTS_ONLY = (
    "distilled", "distilled-half", "distilled-half-batch-32", "distilled-again-batch-32", "plain-batch-32",
    "distilled-one", "distilled-kl", "curriculum", "distilled-curriculum",
)  # fmt: skip
GROWN_TUNED_STUDY = "grown-small"
GROWN_TUNED_ARMS = ("warm", "warm-taught")
PRUNED_STUDY = "pruning-long-digits"
PRUNED_ARMS = ("pruned", "pruned-static")
PRUNED_POINTS = 0.3
ROBUST_STUDY = "robust-digits"
ROBUST_ARMS = ("start", "one-step")
CLEAN = "metrics/eval/robust/CleanAccuracy"
GROWN = ("grown-warm", "grown-shrunk", "grown-distilled", "grown-focus")
OTHER_ARCHITECTURE = (
    "distilled", "distilled-half", "distilled-half-batch-32", "distilled-again-batch-32", "plain-batch-32",
)  # fmt: skip
SAME_BATCHES = {"distilled-half-batch-32": "plain-batch-32", "distilled-again-batch-32": "plain-batch-32"}
_COUNTED = {"samples": "examples", "flops": "FLOPs"}
GROWN_SEQUENCE = "sequences/growing_data"
SEARCH = "sequences/learning_rate_search"
SEARCH_RUNS = 8


def goals(folder: Path = RESULTS) -> list[str]:
    """Return a paragraph for each goal: the goal, then what was measured, one line each."""
    study = _study(folder, STUDY)
    other = _study(folder, OTHER_ARCHITECTURE_STUDY)
    searches = [one for one in ResultsFile(folder / "sequence_cost.jsonl").records() if one["sequence"] == SEARCH]
    parts = [
        (
            "(a) the same data, nothing but outputs of prior runs: at least 3 times less",
            _speedups(study, OUTPUTS_ONLY, 3),
        ),
        (
            "(a) the same, against plain training that is tuned as well: at least 3 times less",
            _speedups(_study(folder, TUNED_STUDY), TUNED_ARMS, 3),
        ),
        ("(b) data grown from 50 % to 100 %, warm start allowed: at least 4 times less", _speedups(study, GROWN, 4)),
        (
            "(b) the same, against plain training that is tuned as well: at least 4 times less",
            _speedups(_study(folder, GROWN_TUNED_STUDY), GROWN_TUNED_ARMS, 4),
        ),
        (
            "(b) the sequence 50, 60, ... 100 % in total, on digits: at least 5 times less, the last run no worse",
            _whole_sequences(ResultsFile(folder / "sequence_cost.jsonl").records(sequence=GROWN_SEQUENCE), 5),
        ),
        ("(c) runs of another architecture: at least 2.5 times less", _speedups(other, OTHER_ARCHITECTURE, 2.5)),
        (
            "(d) a learning-rate search of eight runs, as good a choice: at most 0.35 of the cost",
            _search(searches, 0.35) + _halving(ResultsFile(folder / "halving.jsonl").records(), 0.35),
        ),
        (
            "(e) pruning in 100 epochs of digits: at least 35 % of the examples saved, within 0.3 points",
            _pruned(_study(folder, PRUNED_STUDY)),
        ),
        (
            "(f) as robust (PGD-10) as online adversarial training with PGD-5: at most half of its FLOPs",
            _robust(_study(folder, ROBUST_STUDY)),
        ),
    ]
    return ["\n".join([title, *(f"    {line}" for line in lines or ["not measured"])]) for title, lines in parts]


def _study(folder: Path, name: str) -> list[dict[str, Any]]:
    """Lines of a study; none where it has not been run."""
    return ResultsFile(folder / f"{name.replace('-', '_')}.jsonl").records(study=name)


def _speedups(
    records: Sequence[dict[str, Any]],
    arms: Sequence[str],
    goal: float,
    *,
    baseline: str = BASELINE,
    axis: Axis = "samples",
) -> list[str]:
    known = {one["method"] for one in records}
    shown = [arm for arm in arms if arm in known]
    if baseline not in known or not shown:
        return []
    comparison = compare_records(records, baseline, [baseline, *shown], judge_by=axis)
    found = [(group.name, group.speedups[axis]) for group in comparison.groups if not group.is_baseline]
    for arm, alike in SAME_BATCHES.items():
        if {arm, alike} <= set(shown):
            own = compare_records(records, alike, [alike, arm], judge_by="samples").group(arm)
            found.append((f"{arm} over {alike}", own.speedups["samples"]))
    found.sort(key=lambda pair: (not pair[1].known, pair[1].bound == "<=", -pair[1].estimate))
    controls = {group.name: group.control_of for group in comparison.groups if group.control_of in shown}
    return [
        f"{name}{f' (control of {controls[name]})' if name in controls else ''}: {_words(speedup, axis)}"
        + ("" if name in controls else f": {_standing(speedup, goal)}")
        for name, speedup in found
    ]


def _whole_sequences(records: Sequence[dict[str, Any]], goal: float) -> list[str]:
    """Return what sequences cost with reuse, and how much worse their runs are, paired by repetition."""
    lines = []
    for overrides in dict.fromkeys(tuple(one["overrides"]) for one in records):
        pairs = [one["report"]["arms"] for one in records if tuple(one["overrides"]) == overrides]
        fewer = mean_interval([1 / reuse["share"]["steps"] for _, reuse in pairs], exact=True)
        gains = [
            [
                100 * (ours["final"] - theirs["final"])
                for theirs, ours in zip(plain["steps"], reuse["steps"], strict=True)
            ]
            for plain, reuse in pairs
        ]
        last, every = mean_interval([one[-1] for one in gains]), mean_interval([fmean(one) for one in gains])
        met = "MISSED" if fewer.high < goal or last.high < 0 else "met" if last.low >= 0 else "not decided"
        lines += [
            f"{' '.join(overrides)}:",
            f"    {fewer.estimate:.2f} times fewer steps, {len(pairs)} sequences; last run {_points(last)}, all of "
            f"them {_points(every)}: {met}",
        ]
    return lines


def _points(found: Interval) -> str:
    return f"{found.estimate:+.2f} [{found.low:.2f}, {found.high:.2f}] points"


def _pruned(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return for each arm what it saves, and its difference from plain training, paired by seed."""
    plain = {one["seed"]: one for one in records if one["method"] == BASELINE}
    lines = []
    for arm in PRUNED_ARMS:
        pairs = [(one, plain[one["seed"]]) for one in records if one["method"] == arm and one["seed"] in plain]
        if len(pairs) < 2:
            continue
        saved = 1 - math.fsum(one["samples"] for one, _ in pairs) / math.fsum(other["samples"] for _, other in pairs)
        lost = mean_interval([100 * (one["final"] - other["final"]) for one, other in pairs])
        met = lost.low >= -PRUNED_POINTS and saved >= 0.35
        missed = lost.high < -PRUNED_POINTS or saved < 0.35
        lines.append(
            f"{arm}: {100 * saved:.1f} % saved, {lost.estimate:+.2f} [{lost.low:.2f}, {lost.high:.2f}] points, "
            f"{len(pairs)} seeds: {'met' if met else 'MISSED' if missed else 'not decided'}"
        )
    return lines


def _robust(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the speed-ups in FLOPs, and for each budget the difference in clean accuracy, paired by seed."""
    lines = _speedups(records, ROBUST_ARMS, 2, baseline="online", axis="flops")
    online = {(one["budget"], one["seed"]): one["finals"][CLEAN] for one in records if one["method"] == "online"}
    for arm in ROBUST_ARMS:
        for budget in dict.fromkeys(one["budget"] for one in records if one["method"] == arm):
            gains = [
                100 * (one["finals"][CLEAN] - online[budget, one["seed"]])
                for one in records
                if one["method"] == arm and one["budget"] == budget and (budget, one["seed"]) in online
            ]
            if len(gains) > 1:
                gain = mean_interval(gains)
                lines.append(
                    f"{arm}, {budget}: clean accuracy {gain.estimate:+.2f} [{gain.low:.2f}, {gain.high:.2f}] points"
                )
    return lines


def _words(speedup: Speedup, axis: Axis) -> str:
    if not speedup.known:
        return "not known"
    about = {"<=": "at most ", ">=": "at least "}.get(speedup.bound, "")
    high = "no upper limit" if math.isinf(speedup.high) else f"{speedup.high:.2f}"
    return f"{about}{speedup.estimate:.2f} [{speedup.low:.2f}, {high}] times fewer {_COUNTED.get(axis, axis)}"


def _standing(speedup: Speedup, goal: float) -> str:
    if not speedup.known:
        return "not decided"
    if speedup.low >= goal:
        return "met"
    if speedup.high < goal or (speedup.bound == "<=" and speedup.estimate < goal):
        return f"MISSED, {'at least ' * (speedup.bound == '<=')}{goal / speedup.estimate:.2f} times short"
    return "not decided: the goal lies within the limits"


def _search(records: Sequence[dict[str, Any]], goal: float) -> list[str]:
    """Describe searches of one kind, repeated with other seeds: what they cost, and what their choices are worth."""
    lines = []
    for overrides in dict.fromkeys(tuple(one["overrides"]) for one in records):
        reports = [one["report"] for one in records if tuple(one["overrides"]) == overrides]
        for place, arm in enumerate(reports[0]["arms"]):
            tried = next(one["candidates"] for one in reports[0]["search"]["arms"] if one["arm"] == arm["name"])
            if not arm["share"] or len(tried) != SEARCH_RUNS:
                continue
            lines.append(f"{' '.join(overrides)}:" if overrides else f"{SEARCH}:")
            for share, words in (("steps", "steps"), ("cost_seconds", "seconds, all costs")):
                # Steps are exact: searches that all took equally many are not copies of each other.
                exact = share == "steps"
                found = mean_interval([report["arms"][place]["share"][share] for report in reports], exact=exact)
                met = "met" if found.high <= goal else "MISSED" if found.low > goal else "not decided"
                limits = f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"
                lines.append(f"    {limits} of the {words}, {len(reports)} searches: {met}")
            lines.append(_choices([report["search"]["arms"] for report in reports], arm["name"]))
    return lines


def _halving(records: Sequence[dict[str, Any]], goal: float) -> list[str]:
    """Return the cost of searches by successive halving over that of the full grid, for each recipe."""
    lines = []
    for recipe in dict.fromkeys(one["recipe"] for one in records):
        own = [one for one in records if one["recipe"] == recipe]
        cost = mean_interval([one["share"]["cost_seconds"] for one in own])
        lost = mean_interval([100 * one["loss"] for one in own])
        met = "met" if cost.high <= goal else "MISSED" if cost.low > goal else "not decided"
        lines.append(
            f"halving, {recipe}: {cost.estimate:.3f} [{cost.low:.3f}, {cost.high:.3f}] of the seconds, {len(own)} "
            f"searches: {met}; what it chose loses {lost.estimate:.2f} [{lost.low:.2f}, {lost.high:.2f}] points"
        )
    return lines


def _choices(searches: Sequence[Sequence[dict[str, Any]]], name: str) -> str:
    """Return how much worse the chosen values are, by the mean of all runs without reuse that have them."""
    baselines, others = zip(
        *((arms[0], next(arm for arm in arms if arm["arm"] == name)) for arms in searches), strict=True
    )
    finals: dict[str, list[float]] = {}
    for arm in baselines:
        for candidate in arm["candidates"]:
            finals.setdefault(str(candidate["value"]), []).append(candidate["final"]["estimate"])
    means = {value: math.fsum(ends) / len(ends) for value, ends in finals.items()}
    pairs = [(str(ours["winner"]), str(theirs["winner"])) for ours, theirs in zip(baselines, others, strict=True)]
    # The means are those of all searches, so searches that choose alike lose exactly the same.
    lost = mean_interval([means[ours] - means[theirs] for ours, theirs in pairs], exact=True)
    same = sum(ours == theirs for ours, theirs in pairs)
    verdict = "a WORSE choice" if lost.low > 0.0 else "not told apart from the choice without reuse"
    chosen = ", ".join(f"{ours} and {theirs}" for ours, theirs in pairs)
    return (
        f"    {same} of {len(pairs)} chose the same rate (without and with reuse: {chosen}); what it chose loses "
        f"{100 * lost.estimate:.2f} [{100 * lost.low:.2f}, {100 * lost.high:.2f}] points: {verdict}"
    )


def main() -> int:
    print("\n\n".join(goals()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
