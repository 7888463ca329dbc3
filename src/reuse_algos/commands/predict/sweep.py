"""``reuse-algos sweep``: what does one value of the recipe change?"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from typing import Any

from reuse_algos.commands.common import Subparsers, UsageError, above_zero, add_command
from reuse_algos.commands.predict.answers import Answer, add_options, check_read, histories_of, show_answer
from reuse_algos.commands.predict.charts import chart, line, points

_OUTCOMES = ("metric", "steps", "seconds", "dollars")

_DETAILS = """\
WHAT is one of:
  batch-size  least steps to --goal for each batch size, over the values of --tune (Shallue et al. 2019):
              perfect scaling, diminishing returns, maximal parallelism, or undecided; the noise scale;
              the best value beside what the linear and the square-root rule make of that of the smallest
              batch size that reached the goal, and the effective rate lr / (1 - momentum) of SGD;
              and what stands against the study (best value at the edge of the search, too few trials,
              evaluations too far apart). A regime beside such a batch size is not claimed.
  value       the last value of --metric over --over, the best over the values of --tune; with --goal,
              or --of steps, seconds or dollars, what it takes to get there. Runs that differ in their
              seeds are averaged
  strength    the last value of --metric over --over, such as the epsilon of adversarial training: two
              plateaus with a slope between, or a straight line, by AICc"""


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "sweep",
        "a metric, or the steps to a goal, against one value of the recipe",
        _DETAILS,
        """
        reuse-algos sweep batch-size ./archive --goal 0.95 --metric MulticlassAccuracy --tag study=batch-size
        reuse-algos sweep value ./archive --over model.width --tune optimizer.lr
        reuse-algos sweep value ./archive --over data.batch_size --goal 0.95 --of dollars --price-per-hour 2.5
        reuse-algos sweep strength ./archive --over algorithms.adversarial_training.epsilon --metric PGDAccuracy
        """,
    )
    add_options(parser, tuple(_QUESTIONS), "the runs' monitor", "monitor")
    parser.add_argument("--goal", type=float, metavar="X", help="value that the metric has to pass")
    parser.add_argument("--over", metavar="PATH", help="value of the recipe (batch-size: data.batch_size)")
    parser.add_argument("--tune", metavar="PATH", help="tuned value of the recipe (batch-size: optimizer.lr)")
    parser.add_argument("--of", choices=_OUTCOMES, help="value: what is compared (default: metric; with --goal steps)")
    parser.add_argument("--price-per-hour", type=above_zero, metavar="X", help="value: dollars for an hour of a worker")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer the question; 0, unless the runs are refused."""
    check_read(args, _READS)
    return show_answer(args, _QUESTIONS)


def _batch_size(args: argparse.Namespace) -> Answer:
    from reuse_algos.errors import NotEnoughEvidenceError
    from reuse_algos.predict import batch_sweep, noise_scale
    from reuse_algos.predict.evidence import trials_of

    if args.goal is None:
        raise UsageError("sweep batch-size needs --goal, the value that the metric has to pass")
    runs = histories_of(args)
    trials = trials_of(runs, args.over or "data.batch_size", args.tune or "optimizer.lr")
    sizes = {run.num_examples for run in runs if run.num_examples}
    sweep = batch_sweep(trials, args.goal, mode=runs[0].mode, num_examples=min(sizes) if sizes else None)
    rows = [
        {
            "batch": point.batch,
            "steps": point.steps,
            "perfect": point.perfect,
            "best_value": point.best.value if point.best else None,
            "effective_rate": point.effective,
            "linear_rule": point.linear if math.isfinite(point.linear) else None,
            "square_root_rule": point.square_root if math.isfinite(point.square_root) else None,
            "reached": f"{point.num_reached} of {point.num_trials}",
            # Last, as a long name leaves no room for what follows.
            "best_run": point.best.name if point.best else None,
        }
        for point in sweep.points
    ]
    regimes = [
        {"from": near.batch, "to": far.batch, "slope": slope, "interval": [low, high], "regime": said}
        for near, far, (slope, low, high), said in zip(
            sweep.points, sweep.points[1:], sweep.slopes, sweep.regimes, strict=False
        )
    ]
    found: dict[str, Any] = {"steps_to_result": rows, "regimes": regimes}
    try:
        found["noise_scale"] = asdict(noise_scale([p.batch for p in sweep.points], [p.steps for p in sweep.points]))
    # The curve is worth showing without the fit.
    except NotEnoughEvidenceError as error:
        found["noise_scale"] = {"not_enough_evidence": str(error)}
    own = [{"batch": point.batch, "flag": flag} for point in sweep.points for flag in point.flags]
    found["flags"] = [*({"batch": None, "flag": flag} for flag in sweep.flags), *own]
    # Without a batch size that reached the goal there is nothing to scale from.
    known = [row for row in rows if math.isfinite(row["perfect"])]
    perfect = line("perfect scaling", [row["batch"] for row in known], [row["perfect"] for row in known], dashed=True)
    steps = points("steps to the goal", rows, "batch", "steps")
    headline = "; ".join(f"{row['from']} to {row['to']}: {row['regime']}" for row in regimes)
    lead = f"How many steps do larger batches save on the way to {args.goal:g}?"
    return Answer(
        headline, lead, found, [chart("Steps to the goal", "batch size", "steps", [perfect, steps], log=True)]
    )


def _value(args: argparse.Namespace) -> Answer:
    from reuse_algos.predict import best_values
    from reuse_algos.predict.evidence import also_differs, attempts_of

    if args.over is None:
        raise UsageError("sweep value needs --over, a number in the recipes such as model.width")
    outcome = args.of or ("metric" if args.goal is None else "steps")
    if outcome == "metric" and args.goal is not None:
        raise UsageError("sweep value: --goal ends a count of steps, seconds or dollars; name one with --of")
    if (outcome == "dollars") != (args.price_per_hour is not None):
        raise UsageError("sweep value: --of dollars and --price-per-hour go together")
    runs = histories_of(args)
    price = args.price_per_hour or 0.0
    attempts = attempts_of(runs, args.over, args.tune, outcome=outcome, goal=args.goal, price_per_hour=price)
    found = best_values(attempts, runs[0].mode if outcome == "metric" else "min")
    rows = [{**asdict(one), "flags": "; ".join(one.flags)} for one in found]
    known = [one for one in found if one.num_runs]
    most = outcome == "metric" and runs[0].mode == "max"
    best = (max if most else min)(known, key=lambda one: one.outcome)
    what = runs[0].metric if outcome == "metric" else outcome + ("" if args.goal is None else f" to {args.goal:g}")
    tuned = "" if best.tuned is None else f" with {args.tune} {best.tuned:g}"
    headline = f"{args.over} {best.at:g}{tuned} has the {'most' if most else 'least'} {what}: {best.outcome:.4g}"
    lead = f"What does {args.over} change in {what}?"
    series = [points(what, rows, "at", "outcome")]
    # Costs fall by factors; metrics may be 0 or below.
    log = outcome != "metric" and all(one.at > 0 and one.outcome > 0 for one in known)
    drawn = chart(f"{what} over {args.over}", args.over, what, series, log=log)
    others = also_differs(runs, (args.over, args.tune))
    told = [
        {"flag": f"the runs also differ in {path}, and are averaged over it: --tune it, or select (--tag)"}
        for path in others
    ]
    return Answer(headline, lead, {"best_values": rows, "flags": told}, [drawn])


def _strength(args: argparse.Namespace) -> Answer:
    from reuse_algos.predict import find_transition
    from reuse_algos.predict.evidence import points_over

    if args.over is None:
        raise UsageError("sweep strength needs --over, such as algorithms.adversarial_training.epsilon")
    runs = histories_of(args)
    rows = [{"value": value, "metric": metric} for value, metric in sorted(points_over(runs, args.over))]
    shape = find_transition([row["value"] for row in rows], [row["metric"] for row in rows])
    answer = "a transition is shown" if shape.shown else "no transition shown"
    series = [points("runs", rows, "value", "metric")]
    if shape.shown:
        ends = [rows[0]["value"], shape.start, shape.stop, rows[-1]["value"]]
        series.append(line("plateaus", ends, [shape.before, shape.before, shape.after, shape.after]))
    lead = f"Does the metric change at once over {args.over}, or little by little?"
    found = {"transition": {"answer": answer, **asdict(shape)}, "points": rows}
    return Answer(
        answer.capitalize(), lead, found, [chart("Metric over the strength", args.over, runs[0].metric, series)]
    )


_READS = {
    "batch-size": ("goal", "over", "tune"),
    "value": ("goal", "over", "tune", "of", "price_per_hour"),
    "strength": ("over",),
}

_QUESTIONS = {"batch-size": _batch_size, "value": _value, "strength": _strength}
