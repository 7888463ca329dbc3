"""``reuse-algos predict``: what will a run reach, how long will it take, how many workers are worth paying for?"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from reuse_algos.commands.common import Subparsers, UsageError, above_zero, add_command, open_archive, positive
from reuse_algos.commands.predict import layers
from reuse_algos.commands.predict.answers import Answer, add_options, check_read, histories_of, show_answer
from reuse_algos.commands.predict.charts import backtest_chart, chart, curve_chart, line, points, speed_chart
from reuse_algos.errors import NotEnoughEvidenceError

if TYPE_CHECKING:
    from reuse_algos.predict import BacktestSummary

_DETAILS = """\
WHAT is one of:
  loss-curve  the end of a run from its first part (Optimus). Without --run: every finished run is
              forecast from its own first 25, 50 and 75 %, beside two baselines (the last value, and
              the linear time, than which the forecast of the time is no better unless runs start
              slowly). --budgets fits the ends of runs over their numbers of steps instead.
  size        loss and step time of a model size that was not trained, from runs of three or more others;
              no loss where their own ends are off the curves
  speed       steps per second over workers (all-reduce), from runs on several; with --steps or a --goal
              the time and the cost as well. With --exchange synchronous or asynchronous over --servers, too,
              from runs whose tag "servers" says how many parameter servers they had
  layers      FLOPs and bytes of each layer, predicted time of a step, and strong scaling (PALEO);
              with ARCHIVE the share of the peaks is calibrated on its one-worker runs

Runs that do not belong together (mixed hardware, decayed learning rates, one run alone) are refused
with the reason: "not enough evidence" is an answer."""


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "predict",
        "what a run will reach, how long it takes, and what more workers would cost",
        _DETAILS,
        """
        reuse-algos predict loss-curve ./archive --tag study=digits
        reuse-algos predict loss-curve ./archive --run my-run --end-step 4000 --plot curve.png
        reuse-algos predict size ./archive --flops 2.3e8 --end-step 4000
        reuse-algos predict speed ./archive --workers 1 2 4 8 --steps 4000 --price-per-hour 2.5 --html speed.html
        reuse-algos predict speed ./archive --metric MulticlassAccuracy --goal 0.95 --price-per-hour 2.5
        reuse-algos predict speed ./archive --exchange synchronous --workers 1 2 4 8 16 --servers 2 4
        reuse-algos predict layers --model resnet50 --input 3 224 224 --batch 64 --device k80
        reuse-algos predict layers --model tiny_bert --vocabulary 8192 --tokens 64 --classes 5 --batch 32
        """,
    )
    add_options(parser, tuple(_QUESTIONS), "the training loss", None)
    parser.add_argument("--run", metavar="RUN", dest="run_id", help="loss-curve: id or name of the run to forecast")
    parser.add_argument("--end-step", type=above_zero, metavar="N", help="last step (--run: as its recipe says)")
    parser.add_argument("--level", type=above_zero, help="probability of intervals (default: 0.9)")
    parser.add_argument("--budgets", action="store_true", help="loss-curve: fit the ends of runs over their steps")
    parser.add_argument("--flops", type=above_zero, metavar="X", help="size: FLOPs of a forward pass of one example")
    parser.add_argument("--hardware", metavar="NAME", help="size: hardware (default: that of the runs)")
    parser.add_argument("--workers", type=positive, nargs="+", metavar="N", help="default: 1 2 4 8")
    parser.add_argument("--steps", type=above_zero, metavar="N", help="steps of the whole run, for times and costs")
    parser.add_argument("--goal", type=float, metavar="X", help="speed: value of --metric to reach")
    parser.add_argument(
        "--price-per-hour", type=above_zero, metavar="X", help="price of an hour of one worker or server"
    )
    layers.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer the question; 0, unless the runs are refused."""
    check_read(args, _READS)
    args.level = args.level or 0.9
    if args.level >= 1:
        raise UsageError(f"--level must be a probability between 0 and 1, not {args.level:g}")
    return show_answer(args, _QUESTIONS)


def _loss_curve(args: argparse.Namespace) -> Answer:
    from reuse_algos.predict import backtest, forecast_run, history_of, summarise
    from reuse_algos.predict.history import planned_end

    if args.run_id is None:
        if args.budgets:
            return _over_budgets(args)
        tests = backtest(histories_of(args), level=args.level)
        found = {
            "errors_of_forecasts": [_errors(row) for row in summarise(tests)],
            "forecasts": [test.to_dict() for test in tests],
        }
        errors = ", ".join(
            f"{100 * row['error_median']:.3g} % after {row['fraction']:.0%}" for row in found["errors_of_forecasts"]
        )
        headline = f"Forecasts of the end are off by {errors} (medians of relative errors)"
        lead = "How far off is a forecast of each finished run from its own first part and the other runs?"
        return Answer(headline, lead, found, [backtest_chart(found)], ["forecasts"])
    if args.budgets:
        raise UsageError("predict loss-curve: --run is about one run and --budgets about all; give one of them")
    archived = open_archive(args).run(args.run_id)
    run = history_of(archived, args.metric)
    end_step = args.end_step or planned_end(archived)
    if end_step is None:
        raise UsageError(f"the recipe of {run.run_id} does not say at which step it ends: give --end-step")
    if run.finished and args.end_step is None:
        raise UsageError(
            f"run {run.run_id} ended at step {run.end_step:g}. Give --end-step for a longer run; without --run each "
            "finished run is forecast from its first parts."
        )
    made = asdict(forecast_run(run, end_step, histories_of(args), level=args.level))
    rows = [{"step": a, "loss": b} for a, b in zip(run.steps.tolist(), run.losses().tolist(), strict=True)]
    # NaN is not equal to itself: then no interval is known.
    limits = f" [{made['low']:.4g}, {made['high']:.4g}]" if made["low"] == made["low"] else ""
    headline = f"{run.name} is predicted to end at {made['value']:.4g}{limits} after {made['seconds']:.4g} s"
    lead = f"Where does {run.metric} of {run.run_id} end at step {end_step:g}?"
    return Answer(headline, lead, {"forecast": made, "rows": rows}, [curve_chart(made, rows)], ["rows"])


def _errors(row: BacktestSummary) -> dict[str, Any]:
    """Return one row of the table of errors, with one number under each heading."""
    spreads = {
        "error": row.error,
        "last_value_error": row.baseline_error,
        "seconds_error": row.seconds_error,
        "linear_time_error": row.baseline_seconds_error,
    }
    found: dict[str, Any] = {"fraction": row.fraction, "runs": row.num_runs, "methods": row.methods}
    for name, (median, high) in spreads.items():
        found |= {f"{name}_median": median, f"{name}_p90": high}
    return {**found, "coverage": row.coverage}


def _over_budgets(args: argparse.Namespace) -> Answer:
    from reuse_algos.predict.evidence import budget_curve

    runs = histories_of(args)
    curve = budget_curve(runs)
    rows = [{"run": run.run_id, "steps": run.end_step, "loss": float(run.losses()[-1])} for run in runs]
    at = {"at_step": args.end_step, "loss": float(curve.loss(args.end_step))} if args.end_step else {}
    steps = sorted({row["steps"] for row in rows} | ({args.end_step} if args.end_step else set()))
    drawn = [line("fitted", steps, curve.loss(steps).tolist()), points("ends of runs", rows, "steps", "loss")]
    headline = f"The loss at the end is predicted to be {at['loss']:.4g}" if at else "The ends of runs over their steps"
    found = {"curve_over_budgets": {**asdict(curve), **at}, "runs": rows}
    lead = "What does a longer run end at, each run under a schedule of its own?"
    return Answer(headline, lead, found, [chart("Ends over budgets", "steps of the run", "loss", drawn)], ["runs"])


def _size(args: argparse.Namespace) -> Answer:
    from reuse_algos.predict import leave_one_size_out, predict_size
    from reuse_algos.predict.evidence import sized_runs
    from reuse_algos.predict.sizes import MISFIT, curve_misfit, end_interval

    if args.flops is None or args.end_step is None:
        raise UsageError("predict size needs --flops of the unseen size, and --end-step")
    runs = sized_runs(histories_of(args))
    made = predict_size(runs, args.flops, args.hardware or runs[0].hardware)
    errors = [
        {"left_out": size, "loss_error": error, "step_seconds_error": seconds}
        for size, (error, seconds) in leave_one_size_out(runs).items()
    ]
    loss, (low, high) = float(made.curve.loss(args.end_step)), (None, None)
    misfit = curve_misfit(runs)
    # A curve that does not describe the runs that it was fitted to says nothing of another one.
    described = misfit <= MISFIT
    if described:
        low, high = end_interval(runs, loss)
    forecast = {
        "flops": made.flops,
        "hardware": made.hardware,
        "end_step": args.end_step,
        "end_loss": loss if described else None,
        "low": low,
        "high": high,
        "step_seconds": made.step_seconds,
        "train_seconds": made.step_seconds * args.end_step,
        "extrapolates": made.extrapolates,
    }
    count = len(errors)
    fits = {
        "curves_miss_their_own_ends_by_a_factor_of": misfit,
        "interval_holds_a_like_size_in": f"{count} of {count + 1}" if described else None,
    }
    steps = [args.end_step * k / 100 for k in range(1, 101)]
    series = [line("predicted", steps, made.curve.loss(steps).tolist(), 1, dashed=True)] if described else []
    ends = [{"step": one.end_step, "loss": one.end_loss} for one in runs]
    # The other sizes beside it show how far the prediction reaches out.
    drawn = chart("Predicted loss", "steps", "loss", [*series, points("ends of other sizes", ends, "step", "loss", 2)])
    size, seconds = f"A size of {args.flops:.4g} FLOPs", f"{forecast['train_seconds']:.4g} s"
    headline = (
        f"{size} is predicted to end at {loss:.4g} [{low:.4g}, {high:.4g}] after {seconds}"
        if described
        else f"{size} is predicted to take {seconds}. Not enough evidence for its loss: at the ends of their own runs "
        f"the curves are off by a factor of {misfit:.3g}, so the losses do not fall as the form of the curve does"
    )
    lead = f"What does a size that was not trained reach at step {args.end_step:g} on {made.hardware}?"
    return Answer(headline, lead, {"forecast": forecast, "fits": fits, "errors_when_left_out": errors}, [drawn])


def _speed(args: argparse.Namespace) -> Answer:
    from reuse_algos.predict.cost.speed import Scheme
    from reuse_algos.predict.evidence import finished, shared_hardware, speed_of, steps_per_second, steps_to_goal

    scheme: Any = layers.chosen_exchange(args, get_args(Scheme), "all_reduce")
    if args.servers and scheme == "all_reduce":
        raise UsageError("--servers are parameter servers: give --exchange synchronous or asynchronous as well")
    if args.steps is not None and args.goal is not None:
        raise UsageError("predict speed: --steps says how long a run is, and --goal finds it out; give one of them")
    runs = finished(histories_of(args))
    model = speed_of(runs, scheme)
    steps, measured_steps = (args.steps, None) if args.goal is None else steps_to_goal(runs, args.goal)
    measured: dict[tuple[int, int], list[float]] = {}
    for one in runs:
        measured.setdefault((one.workers, one.servers or 1), []).append(steps_per_second(one))
    rows, refused = [], []
    for servers in args.servers or [1]:
        place = {} if scheme == "all_reduce" else {"servers": servers}
        for count in args.workers or layers.WORKERS:
            if not model.measured(count, servers) and (why := shared_hardware(runs, count)):
                refused.append({"workers": count, **place, "why": why})
                continue
            speed = float(model.steps_per_second(count, servers))
            seen = [sum(found) / len(found) for found in [measured.get((count, servers))] if found]
            seconds = None if steps is None else steps / speed
            price = args.price_per_hour
            rows.append(
                {
                    "workers": count,
                    **place,
                    # "between": within the range of measured numbers of workers, where a fit is trusted more.
                    "kind": "measured" if seen else "between" if model.measured(count, servers) else "predicted",
                    "steps_per_second": speed,
                    "examples_per_second": speed * model.batch,
                    "measured_steps_per_second": seen[0] if seen else None,
                    "error": speed / seen[0] - 1 if seen else None,
                    "seconds": seconds,
                    # A server is a machine to pay for, too.
                    "cost": None if seconds is None or price is None else seconds / 3600 * price * (
                        count + place.get("servers", 0)
                    ),
                }
            )  # fmt: skip
    if not rows:
        raise NotEnoughEvidenceError(f"{refused[0]['why']}. Ask for numbers of --workers that were measured.")
    fit = {"scheme": model.scheme, "terms": list(model.terms), "error": model.error}
    found: dict[str, Any] = {"speed": rows, "not_predicted": refused, "fit": fit}
    if args.goal is not None:
        kind = "measured" if measured_steps else "predicted"
        found["steps_to_goal"] = {"metric": runs[0].metric, "goal": args.goal, "steps": steps, "kind": kind}
    # The fastest is not the cheapest; the table has both.
    best = max(rows, key=lambda row: row["steps_per_second"])
    counts = [f"{best[key]} {key[: -1 if best[key] == 1 else None]}" for key in ("workers", "servers") if key in best]
    headline = f"The fastest of these: {' and '.join(counts)}, with {best['steps_per_second']:.4g} steps per second"
    charts = [speed_chart(rows, "steps_per_second", "Speed over workers")]
    if steps is not None:
        headline += f", {best['seconds']:.4g} s for {steps:.4g} steps"
        charts.append(speed_chart(rows, "seconds", "Time over workers"))
    if refused:
        alone = ", ".join(map(str, dict.fromkeys(one["workers"] for one in refused)))
        headline += f"; not predicted, as they would share hardware: {alone} workers"
    return Answer(headline, "How many workers are worth paying for?", found, charts)


_READS = {
    "loss-curve": ("run_id", "end_step", "level", "budgets"),
    "size": ("flops", "end_step", "hardware"),
    "speed": ("workers", "steps", "goal", "price_per_hour", "exchange", "servers"),
    "layers": ("workers", "steps", "price_per_hour", "exchange", "servers", *layers.OPTIONS),
}

_QUESTIONS = {"loss-curve": _loss_curve, "size": _size, "speed": _speed, "layers": layers.answer}
