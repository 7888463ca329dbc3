"""``reuse-algos sweep``: what does one value of the recipe change?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from reuse_algos.commands.common import (
    ARCHIVE_HELP,
    Subparsers,
    UsageError,
    add_archive,
    add_command,
    add_json,
    add_tags,
    open_archive,
    print_json,
    tags_of,
)

__all__ = ["add_parser", "run"]

_DETAILS = """\
WHAT is one of:
  batch-size  least steps to --goal for each batch size, over the values of --tune (Shallue et al. 2019):
              perfect scaling, diminishing returns, maximal parallelism, or undecided; the noise scale;
              and what stands against the study (best value at the edge of the search, too few trials,
              evaluations too far apart). A regime beside such a batch size is not claimed.
  strength    the last value of --metric over --over, such as the epsilon of adversarial training: two
              plateaus with a slope between, or a straight line, by AICc"""


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "sweep",
        "a metric, or the steps to a goal, against one value of the recipe",
        f"{_DETAILS}\n\n{ARCHIVE_HELP}",
        """
        reuse-algos sweep batch-size ./archive --goal 0.95 --metric MulticlassAccuracy --tag study=batch-size
        reuse-algos sweep strength ./archive --over algorithms.adversarial_training.epsilon --metric RobustAccuracy
        """,
    )
    parser.add_argument("what", choices=("batch-size", "strength"), metavar="WHAT", help="batch-size or strength")
    add_archive(parser)
    add_tags(parser)
    parser.add_argument("--metric", metavar="NAME", default="monitor", help="default: the runs' monitor")
    parser.add_argument("--goal", type=float, metavar="X", help="batch-size: value that the metric has to pass")
    parser.add_argument("--over", metavar="PATH", help="value of the recipe (batch-size: data.batch_size)")
    parser.add_argument(
        "--tune", metavar="PATH", default="optimizer.lr", help="batch-size: tuned value (default: optimizer.lr)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also write a plot: .png, .pdf or .svg")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer the question; 0, unless the runs are refused."""
    from reuse_algos.commands.predict.plot import check_plot, draw
    from reuse_algos.commands.predict.predict import show_table

    if args.plot is not None:
        check_plot(args.plot, args.what)
    found = _batch_size(args) if args.what == "batch-size" else _strength(args)
    if args.plot is not None:
        draw(args.what, found, args.plot)
    if args.json:
        print_json(found)
        return 0
    for title, rows in found.items():
        if rows:
            show_table(title, rows)
    return 0


def _batch_size(args: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from reuse_algos.errors import NotEnoughEvidenceError
    from reuse_algos.predict import batch_sweep, histories, noise_scale
    from reuse_algos.predict.evidence import trials_of

    if args.goal is None:
        raise UsageError("sweep batch-size needs --goal, the value that the metric has to pass")
    runs = histories(open_archive(args), args.metric, tags=tags_of(args))
    trials = trials_of(runs, args.over or "data.batch_size", args.tune)
    sizes = {run.num_examples for run in runs if run.num_examples}
    found = batch_sweep(trials, args.goal, mode=runs[0].mode, num_examples=min(sizes) if sizes else None)
    points = [
        {
            "batch": point.batch,
            "steps": point.steps,
            "perfect": point.perfect,
            "best_value": point.best.value if point.best else None,
            "best_run": point.best.name if point.best else None,
            "reached": f"{point.num_reached} of {point.num_trials}",
            "flags": "; ".join(point.flags),
        }
        for point in found.points
    ]
    regimes = [
        {"from": near.batch, "to": far.batch, "slope": slope, "interval": [low, high], "regime": said}
        for near, far, (slope, low, high), said in zip(
            found.points, found.points[1:], found.slopes, found.regimes, strict=False
        )
    ]
    answer: dict[str, Any] = {"steps_to_result": points, "regimes": regimes}
    try:
        scale = noise_scale([p.batch for p in found.points], [p.steps for p in found.points])
        answer["noise_scale"] = asdict(scale)
    except NotEnoughEvidenceError as error:
        answer["noise_scale"] = {"not_enough_evidence": str(error)}
    answer["flags"] = [{"flag": flag} for flag in found.flags]
    return answer


def _strength(args: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from reuse_algos.predict import find_transition, histories
    from reuse_algos.predict.evidence import points_over

    if args.over is None:
        raise UsageError("sweep strength needs --over, such as algorithms.adversarial_training.epsilon")
    runs = histories(open_archive(args), args.metric, tags=tags_of(args))
    points = sorted(points_over(runs, args.over))
    found = find_transition([value for value, _ in points], [metric for _, metric in points])
    answer = "a transition is shown" if found.shown else "no transition shown"
    return {
        "transition": {"answer": answer, **asdict(found)},
        "points": [{"value": value, "metric": metric} for value, metric in points],
    }
