"""``reuse-algos predict``: what will a run reach, how long will it take, how many workers are worth paying for?"""

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
    console,
    open_archive,
    positive,
    print_json,
    tags_of,
)

__all__ = ["add_parser", "run", "show_table"]

_JSON_ONLY = ("forecasts", "rows", "runs")  # a row for each run or step: too much for a terminal

_DETAILS = """\
WHAT is one of:
  loss-curve  the end of a run from its first part (Optimus). Without --run: every finished run is
              forecast from its own first 25, 50 and 75 %, beside two baselines (the last value, and
              the linear time). --budgets fits the ends of runs over their numbers of steps instead.
  size        loss and step time of a model size that was not trained, from runs of other sizes
  speed       steps per second, time and cost over workers (all-reduce), from runs on several
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
        f"{_DETAILS}\n\n{ARCHIVE_HELP}",
        """
        reuse-algos predict loss-curve ./archive --tag study=digits
        reuse-algos predict loss-curve ./archive --run my-run --end-step 4000 --plot curve.png
        reuse-algos predict size ./archive --flops 2.3e8 --end-step 4000
        reuse-algos predict speed ./archive --workers 1 2 4 8 --steps 4000 --price-per-hour 2.5
        reuse-algos predict layers --model resnet50 --input 3 224 224 --batch 64 --device k80
        """,
    )
    parser.add_argument("what", choices=tuple(_QUESTIONS), metavar="WHAT", help=", ".join(_QUESTIONS))
    add_archive(parser)
    add_tags(parser)
    parser.add_argument("--metric", metavar="NAME", help="metric (default: the training loss)")
    parser.add_argument("--run", metavar="RUN", dest="run_id", help="loss-curve: id or name of the run to forecast")
    parser.add_argument("--end-step", type=float, metavar="N", help="step at which the run ends")
    parser.add_argument("--level", type=float, default=0.9, help="probability of intervals (default: 0.9)")
    parser.add_argument("--budgets", action="store_true", help="loss-curve: fit the ends of runs over their steps")
    parser.add_argument("--flops", type=float, metavar="X", help="size: FLOPs of a forward pass of one example")
    parser.add_argument("--hardware", metavar="NAME", help="size: hardware (default: that of the runs)")
    parser.add_argument("--workers", type=positive, nargs="+", default=[1, 2, 4, 8], help="default: 1 2 4 8")
    parser.add_argument("--steps", type=float, metavar="N", help="steps of the whole run, for times and costs")
    parser.add_argument("--price-per-hour", type=float, metavar="X", help="price of an hour of one worker")
    layers = parser.add_argument_group("layers")
    layers.add_argument("--model", metavar="NAME", help="a model that recipes can name")
    layers.add_argument("--classes", type=positive, default=1000, help="its number of classes (default: 1000)")
    layers.add_argument("--input", type=positive, nargs=3, metavar=("C", "H", "W"), default=[3, 224, 224])
    layers.add_argument("--batch", type=positive, default=1, metavar="B", help="global batch (default: 1)")
    layers.add_argument("--device", metavar="NAME", help="k80, k40 or titan_x, in place of the next two")
    layers.add_argument("--peak-gflops", type=float, metavar="X", help="peak of the device, in GFLOP/s")
    layers.add_argument("--bandwidth-gbs", type=float, metavar="X", help="memory bandwidth, in GB/s")
    layers.add_argument("--percent", type=float, metavar="X", help="share of the peaks that is reached, in (0, 1]")
    layers.add_argument("--network-gbits", type=float, metavar="X", default=10.0, help="links (default: 10 Gbit/s)")
    layers.add_argument("--exchange", default="ring", help="tree, ring, butterfly, one_to_all or parameter_servers")
    layers.add_argument("--servers", type=positive, default=1, help="parameter servers (default: 1)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also write a plot: .png, .pdf or .svg")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer the question; 0, unless the runs are refused."""
    from reuse_algos.commands.predict_plot import check_plot, draw

    if args.plot is not None:
        check_plot(args.plot, args.what)
    found = _QUESTIONS[args.what](args)
    if args.plot is not None:
        draw(args.what, found, args.plot)
    if args.json:
        print_json(found)
        return 0
    for title, rows in found.items():
        if title not in _JSON_ONLY:
            show_table(title, rows)
    return 0


def show_table(title: str, rows: Any) -> None:
    """Print rows, or one record, as a table.

    Args:
        title: Words above it.
        rows: A list of records with the same keys, or one record.
    """
    from rich.table import Table

    rows = [rows] if isinstance(rows, dict) else rows
    table = Table(title=title.replace("_", " "), title_justify="left")
    for name in rows[0] if rows else ():
        table.add_column(name.replace("_", " "), justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_cell, value)) or "-"
    return "-" if value is None else str(value)


def _loss_curve(args: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from reuse_algos.predict import backtest, forecast_run, histories, history_of, summarise
    from reuse_algos.predict.evidence import budget_curve

    archive = open_archive(args)
    if args.run_id is None:
        runs = histories(archive, args.metric, tags=tags_of(args))
        if args.budgets:
            curve = budget_curve(runs)
            points = [{"run": run.run_id, "steps": run.end_step, "loss": float(run.losses()[-1])} for run in runs]
            at = {"at_step": args.end_step, "loss": float(curve.loss(args.end_step))} if args.end_step else {}
            return {"curve_over_budgets": {**asdict(curve), **at}, "runs": points}
        tests = backtest(runs, level=args.level)
        return {
            "errors_of_forecasts": [asdict(row) for row in summarise(tests)],
            "forecasts": [test.to_dict() for test in tests],
        }
    if args.end_step is None:
        raise UsageError("predict loss-curve --run needs --end-step, the step at which the run is to end")
    run = history_of(archive.run(args.run_id), args.metric)
    earlier = histories(archive, args.metric, tags=tags_of(args))
    made = forecast_run(run, args.end_step, earlier, level=args.level)
    rows = [{"step": a, "loss": b} for a, b in zip(run.steps.tolist(), run.losses().tolist(), strict=True)]
    return {"forecast": asdict(made), "rows": rows}


def _size(args: argparse.Namespace) -> dict[str, Any]:
    from reuse_algos.predict import histories, leave_one_size_out, predict_size
    from reuse_algos.predict.evidence import sized_runs

    if args.flops is None or args.end_step is None:
        raise UsageError("predict size needs --flops of the unseen size, and --end-step")
    runs = sized_runs(histories(open_archive(args), args.metric, tags=tags_of(args)))
    hardware = args.hardware or runs[0].hardware
    made = predict_size(runs, args.flops, hardware)
    forecast = {
        "flops": made.flops,
        "hardware": made.hardware,
        "end_step": args.end_step,
        "end_loss": float(made.curve.loss(args.end_step)),
        "step_seconds": made.step_seconds,
        "train_seconds": made.step_seconds * args.end_step,
        "extrapolates": made.extrapolates,
    }
    errors = [
        {"left_out": size, "loss_error": loss, "step_seconds_error": seconds}
        for size, (loss, seconds) in leave_one_size_out(runs).items()
    ]
    return {"forecast": forecast, "errors_when_left_out": errors}


def _speed(args: argparse.Namespace) -> dict[str, Any]:
    from reuse_algos.predict import histories
    from reuse_algos.predict.evidence import finished, speed_of, steps_per_second

    runs = finished(histories(open_archive(args), args.metric, tags=tags_of(args)))
    model = speed_of(runs)
    measured: dict[int, list[float]] = {}
    for one in runs:
        measured.setdefault(one.workers, []).append(steps_per_second(one))
    rows = []
    for count in args.workers:
        speed = float(model.steps_per_second(count))
        seen = sum(measured[count]) / len(measured[count]) if count in measured else None
        seconds = None if args.steps is None else args.steps / speed
        priced = seconds is not None and args.price_per_hour is not None
        rows.append(
            {
                "workers": count,
                "kind": "measured" if seen else "between" if bool(model.measured(count)) else "predicted",
                "steps_per_second": speed,
                "examples_per_second": speed * model.batch,
                "measured_steps_per_second": seen,
                "error": None if seen is None else speed / seen - 1,
                "seconds": seconds,
                "cost": seconds / 3600 * count * args.price_per_hour if priced and seconds is not None else None,
            }
        )
    return {"speed": rows, "fit": {"scheme": model.scheme, "terms": list(model.terms), "error": model.error}}


def _layers(args: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from reuse_algos.predict import layers_of, shares, step_seconds, strong_scaling

    if args.model is None:
        raise UsageError("predict layers needs --model, a name that recipes know, such as resnet50")
    asked = {"name": args.model, "num_classes": args.classes, "image_shape": args.input}
    model, inputs = _build(asked, args.batch)
    layers = layers_of(model, inputs)
    flops = sum(layer.flops for layer in layers)
    found: dict[str, Any] = {
        "total": {"batch": args.batch, "gigaflops": flops / 1e9, "gigabytes": sum(x.bytes for x in layers) / 1e9},
        "share_of_flops": shares(layers),
        "layers": [
            {"name": x.name, "kind": x.kind, "megaflops": x.flops / 1e6, "megabytes": x.bytes / 1e6} for x in layers
        ],
    }
    device = _device(args)
    if device is None:
        return found
    percent, measured = args.percent or 1.0, []
    if args.archive or args.archive_option:
        if args.percent is not None:
            raise UsageError("--percent and an ARCHIVE that calibrates it: give one of them")
        percent, measured = _calibrate(args, device)
    forward, backward = step_seconds(layers, device, percent=percent)
    found["step"] = {
        "percent_of_peak": percent,
        "forward_seconds": forward,
        "backward_seconds": backward,
        "inference_examples_per_second": args.batch / forward,
        "practical_gflops": 3 * flops / (forward + backward) / 1e9,
        "peak_gflops": device.flops / 1e9,
    }
    if measured:
        found["calibration"] = measured
    gradients = float(sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad))
    scaling = strong_scaling(
        (forward + backward) / args.batch,
        args.batch,
        args.steps or 1,
        gradients,
        args.network_gbits * 1e9 / 8,
        workers=[count for count in args.workers if count <= args.batch],
        scheme=args.exchange,
        servers=args.servers,
        price_per_hour=args.price_per_hour,
    )
    return {**found, "strong_scaling": [asdict(row) for row in scaling]}


def _build(config: dict[str, Any], batch: int) -> tuple[Any, Any]:
    """Return the plain module, and a batch of its inputs that takes no memory."""
    import torch

    from reuse_algos.models import outline_model

    return outline_model(config).module, torch.empty(batch, *config["image_shape"], device="meta")


def _device(args: argparse.Namespace) -> Any:
    from reuse_algos.errors import nearest
    from reuse_algos.predict import DEVICES, Device

    if args.device is not None:
        if args.device not in DEVICES:
            raise UsageError(f"unknown device {args.device!r}.{nearest(args.device, DEVICES)} Or give --peak-gflops.")
        return DEVICES[args.device]
    if args.peak_gflops is None and args.bandwidth_gbs is None:
        return None
    if args.peak_gflops is None or args.bandwidth_gbs is None:
        raise UsageError("a device needs both --peak-gflops and --bandwidth-gbs")
    return Device(args.peak_gflops * 1e9, args.bandwidth_gbs * 1e9)


def _calibrate(args: argparse.Namespace, device: Any) -> tuple[float, list[dict[str, Any]]]:
    """Return the share of the peaks that archived one-worker runs reach, and each run predicted beside measured."""
    from reuse_algos.errors import NotEnoughEvidenceError
    from reuse_algos.predict import histories, layers_of, percent_of_peak, step_seconds
    from reuse_algos.predict.evidence import finished, steps_per_second
    from reuse_algos.priors.model import recorded_architecture

    archive = open_archive(args)
    runs = [run for run in finished(histories(archive, args.metric, tags=tags_of(args))) if run.workers == 1]
    names = {run.hardware for run in runs}
    if len(names) != 1:
        raise NotEnoughEvidenceError(
            f"the share of the peaks needs one-worker runs on one kind of hardware, got {sorted(names)}; select (--tag)"
        )
    pairs = []
    for run in runs:
        config = recorded_architecture(archive.run(run.run_id))
        if config is None:
            continue  # a model of the caller's own cannot be built again
        module, inputs = _build(config, round(run.batch))
        predicted = sum(step_seconds(layers_of(module, inputs), device))
        pairs.append((run, predicted, 1 / steps_per_second(run)))
    percent = percent_of_peak([predicted for _, predicted, _ in pairs], [seconds for _, _, seconds in pairs])
    rows = [
        {"run": run.run_id, "predicted_seconds": p / percent, "measured_seconds": m, "error": p / percent / m - 1}
        for run, p, m in pairs
    ]
    return percent, rows


_QUESTIONS = {"loss-curve": _loss_curve, "size": _size, "speed": _speed, "layers": _layers}
