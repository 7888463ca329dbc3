"""``reuse-algos demo``: the data grew, and the next run goes on from an earlier one. What does that save?

All settings were fixed on the seeds 101 to 104 and an earlier run of seed 901. Learning rates: for plain training the
best of 0.1, 0.2 and 0.4 (accuracy after 4 epochs 0.883, 0.899, 0.899), for the warm start the best of 0.05, 0.1 and 0.2
(after 2 epochs 0.915, 0.917, 0.899). The seeds that are shown, 1 and up, had no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from reuse_algos.archive import RunArchive
from reuse_algos.compare import Comparison, Costs, Group, Question, compare, read_outcomes
from reuse_algos.compare.show.page import report_page, write_report
from reuse_algos.compare.show.words import format_interval, payback_line
from reuse_algos.demo.runs import Ahead, console, one_thread, quiet_run
from reuse_algos.errors import ArchiveError

_STUDY = "digits-grown"
_EPOCHS_BEFORE = 6  # what 24 epochs of a quarter of the images take, in epochs of all of them


class _Arm(NamedTuple):
    """Runs of one recipe at one budget, over the seeds."""

    recipe: str
    epochs: int
    what: str
    overrides: tuple[str, ...] = ()


_ARMS = (
    _Arm("baseline", 4, "plain training"),
    _Arm("baseline", 2, "plain training"),
    _Arm("warm_start", 2, "warm start from the earlier run"),
    _Arm("warm_start", 4, "warm start from the earlier run"),
)
# The warm start has a lower rate than plain training: is it the rate that helps?
_CONTROL = _Arm(
    "baseline",
    4,
    "the control, plain training with the warm start's rate",
    ("optimizer.lr=0.1", "tags.method=same-rate", "tags.control_of=warm-start", "run_name=digits-same-rate-${seed}"),
)
_CONTROL_SEEDS = 3


def show_saving(folder: Path, archive: Path, *, seeds: int) -> int:
    """Train with and without reuse at short budgets, and print what it saved in one screen.

    Args:
        folder: Where the report goes.
        archive: Where the archive goes.
        seeds: Runs in each group.

    Returns:
        The exit status, 0.

    Raises:
        ReuseAlgosError: A run fails.
    """
    out = console()
    plan = [*((arm, seeds) for arm in _ARMS), (_CONTROL, min(seeds, _CONTROL_SEEDS))]
    runs = 1 + sum(count for _, count in plan)
    out.print(
        "Once there were 125 images of handwritten digits, and one run was trained on them. Now there are\n"
        "500. Does the next run need fewer steps if it goes on from the earlier one?\n\n"
        f"{runs} short runs with one thread, about a minute. Archive: {archive}\n",
        soft_wrap=True,
    )
    ahead = Ahead(out, runs, _EPOCHS_BEFORE + sum(count * arm.epochs for arm, count in plan))
    try:
        with one_thread():
            _train_all(archive, plan, ahead, out)
    finally:
        ahead.close()
    question = Question(baseline="baseline", over="budgets", costs=Costs(judge_by="steps"))
    outcomes = read_outcomes(RunArchive(archive), question, {"study": _STUDY})
    comparison = compare(outcomes, question)
    report = folder / "report.html"
    write_report(report_page(comparison, outcomes), report)
    out.print()
    out.print(_table(comparison))
    out.print()
    # The first is the baseline, which is not compared with itself.
    for group in comparison.groups[1:]:
        out.print(_verdict(group, comparison.target))
    out.print(
        "Not counted is the training of the earlier run: it was there anyway, from when there were 125 images.\n"
        + "".join(f"{line}\n" for group in comparison.groups if (line := payback_line(group.name, group.break_even)))
        + f"\n{runs} runs in {ahead.seconds:.0f} s. Curves, figures and recipes: {report}\n"
        f"Next: reuse-algos runs {archive}\n"
        f"      reuse-algos compare {archive} --budgets --judge-by steps\n"
        "      reuse-algos demo --all",
        soft_wrap=True,
    )
    return 0


def _train_all(archive: Path, plan: Sequence[tuple[_Arm, int]], ahead: Ahead, out: Console) -> None:
    """Train the earlier run and then the groups, with a line for each that has ended."""
    if not _has_earlier_run(archive):
        ahead.begin("the earlier run, on 125 images")
        before = quiet_run("digits/grown/before", archive, "seed=1")
        out.print(f"the earlier run, on 125 images: accuracy {before.final_metric():.4f}")
    ahead.end(_EPOCHS_BEFORE)
    for arm, seeds in plan:
        finals = []
        for seed in range(1, seeds + 1):
            ahead.begin(f"{arm.what}, {arm.epochs} epochs, seed {seed}")
            own = [f"seed={seed}", f"max_duration={arm.epochs}ep", *arm.overrides]
            finals.append(quiet_run(f"digits/grown/{arm.recipe}", archive, *own).final_metric())
            ahead.end(arm.epochs)
        shown = ", ".join(f"{value:.4f}" for value in finals)
        out.print(f"{arm.what}, {arm.epochs} epochs: {shown}{ahead.left()}", soft_wrap=True)


def _has_earlier_run(archive: Path) -> bool:
    """Return whether a demo before this one has left its earlier run."""
    try:
        return bool(RunArchive(archive).runs(tags={"study": _STUDY, "method": "before"}))
    except ArchiveError:
        return False


def _verdict(group: Group, target: float) -> str:
    """Return what the comparison says of a group; of a control that surely misses the target, that it does."""
    last = group.points[-1]
    if group.control_of is not None and last.final.high < target:
        return (
            f"The control ends at {last.final.estimate:.4f} after {last.steps:.0f} steps, surely below the baseline: "
            "it is not the rate."
        )
    return f"[bold]{group.verdict}[/bold]{_role(group)}: {group.sentence}"


def _role(group: Group) -> str:
    return "" if group.control_of is None else f" (control of {group.control_of})"


def _table(comparison: Comparison) -> Table:
    """Return the last accuracy of each group at each budget."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("group")
    table.add_column("steps", justify="right")
    table.add_column("seeds", justify="right")
    table.add_column("accuracy: mean, and 95 % interval")
    for group in comparison.groups:
        for point in group.points:
            name = f"{group.name}{_role(group)}"
            # Rich would take the bracket for a style.
            accuracy = format_interval(point.final, between=" ").replace("[", r"\[")
            table.add_row(name, f"{point.steps:.0f}", str(point.n), accuracy)
    return table
