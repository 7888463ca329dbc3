"""``reuse-algos predict layers``: FLOPs, bytes and time of each layer, and strong scaling."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from reuse_algos.commands.common import UsageError, above_zero, open_archive, positive, tags_of
from reuse_algos.commands.predict.answers import Answer
from reuse_algos.commands.predict.charts import chart, line, points

if TYPE_CHECKING:
    from reuse_algos.predict import History

WORKERS = (1, 2, 4, 8)
"""Numbers of workers where none are given."""

OPTIONS = (
    "model", "input", "vocabulary", "tokens", "width", "depth", "device", "peak_gflops", "bandwidth_gbs", "percent",
)  # fmt: skip
"""What only ``predict layers`` reads, of that which has no default."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``predict layers``."""
    layers = parser.add_argument_group("layers")
    layers.add_argument("--model", metavar="NAME", help="a model that recipes can name")
    layers.add_argument("--classes", type=positive, default=1000, help="its number of classes (default: 1000)")
    layers.add_argument(
        "--input", type=positive, nargs=3, metavar=("C", "H", "W"), help="shape of an image (default: 3 224 224)"
    )
    layers.add_argument("--vocabulary", type=positive, metavar="V", help="words that a model for texts knows")
    layers.add_argument("--tokens", type=positive, metavar="T", help="length of a text, padding included")
    layers.add_argument("--width", type=positive, metavar="N", help="as model.width of a recipe (default: the model's)")
    layers.add_argument("--depth", type=positive, metavar="N", help="as model.depth of a recipe (default: the model's)")
    layers.add_argument("--batch", type=positive, default=1, metavar="B", help="global batch (default: 1)")
    layers.add_argument("--device", metavar="NAME", help="k80, k40 or titan_x, in place of the next two")
    layers.add_argument("--peak-gflops", type=above_zero, metavar="X", help="peak of the device, in GFLOP/s")
    layers.add_argument("--bandwidth-gbs", type=above_zero, metavar="X", help="memory bandwidth, in GB/s")
    layers.add_argument("--percent", type=above_zero, metavar="X", help="share of the peaks that is reached, in (0, 1]")
    layers.add_argument("--network-gbits", type=above_zero, metavar="X", default=10.0, help="links (default: 10)")
    layers.add_argument(
        "--exchange",
        metavar="NAME",
        help="layers: ring (default), tree, butterfly, one_to_all or parameter_servers; speed: all_reduce (default), "
        "or synchronous or asynchronous, with parameter servers",
    )
    layers.add_argument(
        "--servers", type=positive, nargs="+", metavar="N", help="parameter servers; speed takes several (default: 1)"
    )


def chosen_exchange(args: argparse.Namespace, known: Sequence[str], default: str) -> str:
    """Return ``--exchange``, or the default.

    Raises:
        UsageError: It is not one of those that the question knows.
    """
    from reuse_algos.errors import nearest

    if args.exchange is None or args.exchange in known:
        return args.exchange or default
    raise UsageError(f"unknown --exchange {args.exchange!r} for {args.what}.{nearest(args.exchange, known)}")


def answer(args: argparse.Namespace) -> Answer:
    """Return FLOPs and bytes of each layer; with a device, the time of a step and strong scaling.

    Raises:
        UsageError: No model, an unknown device, or half of one.
        NotEnoughEvidenceError: The runs do not calibrate the share of the peaks.
    """
    from reuse_algos.predict import layers_of, shares, step_seconds, strong_scaling
    from reuse_algos.predict.cost.communication import Exchange

    exchange = chosen_exchange(args, get_args(Exchange), "ring")
    if len(args.servers or [1]) > 1:
        raise UsageError("predict layers: --servers takes one number")
    if args.servers and exchange != "parameter_servers":
        raise UsageError(f"--servers are parameter servers, and --exchange is {exchange}")
    if args.device is not None and (args.peak_gflops is not None or args.bandwidth_gbs is not None):
        raise UsageError("predict layers: --device stands for both --peak-gflops and --bandwidth-gbs; leave these out")
    if args.workers and max(args.workers) > args.batch:
        raise UsageError(
            f"{max(args.workers)} workers cannot share a --batch of {args.batch}: some would have no example"
        )
    if args.percent is not None and args.percent > 1:
        raise UsageError(f"--percent is a share in (0, 1], such as 0.62, not {args.percent:g}")
    if args.model is None:
        raise UsageError("predict layers needs --model, a name that recipes know, such as resnet50")
    # On the device "meta": shapes and counts need neither memory nor time, whatever the size of the model.
    model, inputs = _build(_asked(args), args.batch)
    layers = layers_of(model, *inputs)
    flops = sum(layer.flops for layer in layers)
    rows = [{"name": x.name, "kind": x.kind, "megaflops": x.flops / 1e6, "megabytes": x.bytes / 1e6} for x in layers]
    numbered = [{**row, "place": place} for place, row in enumerate(rows, start=1)]
    found: dict[str, Any] = {
        "total": {"batch": args.batch, "gigaflops": flops / 1e9, "gigabytes": sum(x.bytes for x in layers) / 1e9},
        "share_of_flops": shares(layers),
        "layers": rows,
    }
    charts = [chart("MFLOP of each layer", "layer", "MFLOP", [points("forward pass", numbered, "place", "megaflops")])]
    headline = f"{args.model}: {flops / 1e9:.4g} GFLOP in a forward pass of {args.batch}"
    lead = f"What does each layer of {args.model} compute and move, and how long does a step take?"
    device = _device(args)
    if device is None:
        return Answer(headline, lead, found, charts)
    # Without a share the times are those at the peaks, which no run beats.
    percent, measured, together = args.percent or 1.0, [], []
    if args.archive or args.archive_option:
        # A calibrated share and a given one would contradict each other.
        if args.percent is not None:
            raise UsageError("--percent and an ARCHIVE that calibrates it: give one of them")
        percent, measured, together = _calibrate(args, device)
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
    scaling: list[dict[str, Any]] = [
        asdict(row)
        for row in strong_scaling(
            (forward + backward) / args.batch,
            args.batch,
            args.steps or 1,
            float(sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)),
            args.network_gbits * 1e9 / 8,
            # A worker without an example would have nothing to compute.
            workers=args.workers or [count for count in WORKERS if count <= args.batch],
            scheme=exchange,
            servers=(args.servers or [1])[0],
            price_per_hour=args.price_per_hour,
        )
    ]
    shared = {row["workers"]: reason for row in scaling if (reason := _shared(together, row["workers"]))}
    for row in scaling:
        seen = _measured(together, flops / args.batch, args.batch, row["workers"])
        if row["workers"] in shared:
            # Where the archive shows that workers share hardware, a number would be wrong without a word.
            row |= dict.fromkeys([key for key in row if key not in ("workers", "batch_per_worker")])
        known = row["examples_per_second"]
        row["measured_examples_per_second"] = seen
        row["error"] = None if seen is None or known is None else known / seen - 1
    if shared:
        found["not_predicted"] = [{"workers": count, "why": reason} for count, reason in shared.items()]
    found["strong_scaling_assumes"] = {"each_worker": "hardware of its own, as that of one worker"}
    drawn = [row for row in scaling if row["examples_per_second"] is not None]
    workers = [row["workers"] for row in drawn]
    at_best = [args.batch / row["overlapped_seconds"] for row in drawn]
    charts.append(
        chart(
            "Strong scaling",
            "workers",
            "examples per second",
            [
                line("nothing overlaps", workers, [row["examples_per_second"] for row in drawn], 1, dashed=True),
                line("all overlaps", workers, at_best, 2, dashed=True),
                points("measured", scaling, "workers", "measured_examples_per_second", 3),
            ],
        )
    )
    headline += f"; {forward + backward:.3g} s for a training step"
    return Answer(headline, lead, {**found, "strong_scaling": scaling}, charts)


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """Return the model that the options describe, as a recipe's ``model`` with what the data would say."""
    from reuse_algos.models.text import TEXT_MODELS

    sizes = {key: getattr(args, key) for key in ("width", "depth") if getattr(args, key) is not None}
    asked = {"name": args.model, "num_classes": args.classes, **sizes}
    if args.model not in TEXT_MODELS:
        if args.vocabulary is not None or args.tokens is not None:
            raise UsageError(f"--vocabulary and --tokens are for texts, and {args.model} reads images; give --input")
        return {**asked, "image_shape": args.input or [3, 224, 224]}
    if args.input is not None:
        raise UsageError(f"--input is the shape of an image, and {args.model} reads texts; leave it out")
    if args.vocabulary is None or args.tokens is None:
        raise UsageError(f"{args.model} reads texts: give --vocabulary and --tokens, such as 8192 and 64")
    return {**asked, "vocabulary": args.vocabulary, "max_tokens": args.tokens}


def _build(config: dict[str, Any], batch: int) -> tuple[Any, tuple[Any, ...]]:
    """Return the plain module, and a batch of its inputs that takes no memory."""
    import torch

    from reuse_algos.models import outline_model
    from reuse_algos.models.detection import DETECTION_MODELS
    from reuse_algos.models.text import TEXT_MODELS

    if config["name"] in DETECTION_MODELS:
        raise UsageError(
            f"the layers of {config['name']} cannot be counted ahead: a detector chooses boxes by their scores, so how "
            "much it computes depends on the picture. Runs record the FLOPs of their forward pass: reuse-algos show."
        )
    model: Any = outline_model(config)
    if config["name"] not in TEXT_MODELS:
        return model.module, (torch.empty(batch, *config["image_shape"], device="meta"),)
    length = config["max_tokens"]
    ids = torch.empty(batch, length, dtype=torch.int64, device="meta")
    # BERT looks at the values of a mask with one row for each text, and takes one with a row for each token as it is.
    mask = (torch.empty(batch, length, length, device="meta"),) if config["name"] == "tiny_bert" else ()
    return model.model, (ids, *mask)


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


def _shared(runs: Sequence[History], workers: int) -> str | None:
    from reuse_algos.predict.evidence import shared_hardware

    return shared_hardware(runs, workers) if workers > 1 else None


def _measured(runs: Sequence[History], flops_per_example: float, batch: int, workers: int) -> float | None:
    """Return the mean examples per second of the archived runs of a model, known by its FLOPs; None without one."""
    from reuse_algos.predict.evidence import steps_per_second

    alike = [
        run
        for run in runs
        if run.workers == workers
        and round(run.batch) == batch
        and math.isclose(run.flops_per_example or 0, flops_per_example, rel_tol=0.01)
    ]
    return sum(steps_per_second(run) * run.batch for run in alike) / len(alike) if alike else None


def _calibrate(args: argparse.Namespace, device: Any) -> tuple[float, list[dict[str, Any]], list[History]]:
    """Return the share of the peaks that one-worker runs reach, each predicted beside measured, and all runs."""
    from reuse_algos.errors import NotEnoughEvidenceError
    from reuse_algos.models.detection import DETECTION_MODELS
    from reuse_algos.predict import histories, layers_of, percent_of_peak, step_seconds
    from reuse_algos.predict.evidence import finished, steps_per_second
    from reuse_algos.priors.model import recorded_architecture

    archive = open_archive(args)
    # With several workers, exchange would be counted as computation.
    everything = finished(histories(archive, args.metric, tags=tags_of(args)))
    runs = [run for run in everything if run.workers == 1]
    names = {run.hardware for run in runs}
    if len(names) != 1:
        raise NotEnoughEvidenceError(
            f"the share of the peaks needs one-worker runs on one kind of hardware, got {sorted(names)}; select (--tag)"
        )
    pairs = []
    for run in runs:
        config = recorded_architecture(archive.run(run.run_id))
        if config is None or not ("image_shape" in config or "max_tokens" in config):
            continue  # a model of the caller's own cannot be built again
        if config["name"] in DETECTION_MODELS:
            continue
        module, inputs = _build(config, round(run.batch))
        pairs.append((run, sum(step_seconds(layers_of(module, *inputs), device)), 1 / steps_per_second(run)))
    percent = percent_of_peak([predicted for _, predicted, _ in pairs], [seconds for _, _, seconds in pairs])
    rows = [
        {"run": run.run_id, "predicted_seconds": p / percent, "measured_seconds": m, "error": p / percent / m - 1}
        for run, p, m in pairs
    ]
    return percent, rows, [run for run in everything if run.hardware in names]
