"""``reuse-algos show RUN --instruments`` and ``--lazy``: what was read inside runs, drawn and in words."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reuse_algos.commands.common import UsageError, add_trust, console, open_archive, print_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reuse_algos.archive import PriorRun

_HISTOGRAM = "gradient_sizes/"
# These may be negative: their axis is linear, with a line at 0.
_SIGNED = {"alpha", "early_stopping", "trace"}
_COLUMNS = 4

Readings = dict[str, list[tuple[int, float]]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to ``show``."""
    parser.add_argument(
        "--instruments",
        action="store_true",
        help="draw what TrainingInstruments read, and say what it means; RUN may be several with commas between",
    )
    parser.add_argument(
        "--picture", metavar="FILE", default="instruments.png", help="of --instruments (default: instruments.png)"
    )
    parser.add_argument(
        "--lazy",
        action="store_true",
        help="compute from the weights init and last how lazily the run learned; loads model and data",
    )
    add_trust(parser)


def show_inside(args: argparse.Namespace) -> int:
    """Show readings or laziness of the runs that are named, and return 0.

    Raises:
        UsageError: Both are asked for.
        SignalNotFoundError: A run has no readings, or not the weights.
    """
    if args.instruments and args.lazy:
        raise UsageError("--instruments and --lazy are shown one at a time")
    archive = open_archive(args)
    runs = [archive.run(name) for name in args.run_id.split(",")]
    facts = [_lazy(run, args.trust_data) for run in runs] if args.lazy else _instruments(runs, args)
    if args.json:
        print_json(facts)
        return 0
    for one in facts:
        _print(one)
    if args.instruments:
        console().print(f"picture: {args.picture}", soft_wrap=True)
    return 0


def readings_of_run(run: PriorRun) -> Readings:
    """Return name -> (step, value) of a run's readings, without their prefix.

    Raises:
        SignalNotFoundError: It has none.
    """
    from reuse_algos.compare.reading import INSTRUMENTS, readings_of
    from reuse_algos.errors import SignalNotFoundError

    found = {name.removeprefix(INSTRUMENTS): rows for name, rows in readings_of(run, (INSTRUMENTS,)).items()}
    if not found:
        raise SignalNotFoundError(
            f"run {run.id} was trained without instruments. Add the callback training_instruments (TrainingInstruments "
            "in Python) beside the recorder."
        )
    return found


def panel(runs: Mapping[str, Readings]) -> Figure:
    """Draw every reading over the steps, one colour for each run, and the first run's sizes of gradients as a map.

    Args:
        runs: Label -> readings; at least one.
    """
    import numpy as np
    from matplotlib.figure import Figure

    from reuse_algos.compare.show.figures import plain_text
    from reuse_algos.training.instruments.single.blocks import DECADES

    names = [name for name in dict.fromkeys(name for one in runs.values() for name in one) if _HISTOGRAM not in name]
    first = next(iter(runs.values()))
    bins = [_HISTOGRAM + edge for edge in ("below", *(f"1e{power}" for power in DECADES))]
    sizes = {name: first[name] for name in bins if name in first}
    count = len(names) + bool(sizes)
    rows = -(-count // _COLUMNS)
    # Figure by itself, not pyplot: that keeps figures alive, and may open a window.
    figure = Figure(figsize=(3.4 * _COLUMNS, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten().tolist()
    for axis, name in zip(axes, names, strict=False):
        values = [value for one in runs.values() for _, value in one.get(name, ())]
        for label, one in runs.items():
            steps_values = one.get(name, [])
            axis.plot([step for step, _ in steps_values], [value for _, value in steps_values], lw=1.0, label=label)
        # Gradient norms fall by decades; what may be negative stays linear.
        if name not in _SIGNED and values and all(value > 0 for value in values) and max(values) > 20 * min(values):
            axis.set_yscale("log")
        if name in _SIGNED:
            axis.axhline(0, color="black", lw=0.5)
        axis.set_title(name.replace("_", " "), fontsize="small")
        axis.tick_params(labelsize=6)
    if sizes:
        axis, grid = axes[len(names)], np.array([[value for _, value in one] for one in sizes.values()])
        steps = [step for step, _ in next(iter(sizes.values()))]
        axis.imshow(
            grid, aspect="auto", origin="lower", cmap="Blues", extent=(steps[0], steps[-1] + 1, -0.5, len(grid) - 0.5)
        )
        axis.set_yticks(range(len(grid)), [name.removeprefix(_HISTOGRAM) for name in sizes], fontsize=5)
        axis.set_title(plain_text(f"sizes of gradients, {next(iter(runs))}"), fontsize="small")
    for axis in axes[count:]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, list(map(plain_text, labels)), loc="outside lower center", fontsize="small")
    return figure


def _instruments(runs: Sequence[PriorRun], args: argparse.Namespace) -> list[dict[str, Any]]:
    from reuse_algos.compare.show.files import PLOTS, write_file
    from reuse_algos.training.instruments.diagnosis import diagnose

    read = {run.id: readings_of_run(run) for run in runs}
    # First, since the picture can fail and the findings cannot.
    write_file(Path(args.picture), PLOTS, lambda where: panel(read).savefig(where, dpi=150))
    return [
        {
            "run_id": name,
            "readings": {
                key: {"count": len(rows), "first": rows[0][1], "last": rows[-1][1], "last_step": rows[-1][0]}
                for key, rows in one.items()
            },
            "findings": [
                {"name": finding.name, "words": finding.words, "evidence": finding.evidence}
                for finding in diagnose(one)
            ],
        }
        for name, one in read.items()
    ]


def _lazy(run: PriorRun, trust_data: bool) -> dict[str, Any]:
    from reuse_algos.harvest.laziness import laziness_of_run
    from reuse_algos.training.instruments.diagnosis import diagnose

    found = laziness_of_run(run, trust_data=trust_data)
    step = run.manifest.progress.batch
    findings = diagnose({name: [(step, value)] for name, value in found.items()})
    return {
        "run_id": run.id,
        "readings": {name: {"count": 1, "first": v, "last": v, "last_step": step} for name, v in found.items()},
        "findings": [{"name": one.name, "words": one.words, "evidence": one.evidence} for one in findings],
    }


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    out = console()
    table = Table(box=None, pad_edge=False, padding=(0, 1), title=facts["run_id"], title_justify="left")
    for name in ("reading", "times read", "first", "last", "at step"):
        table.add_column(name, justify="left" if name == "reading" else "right")
    for name, row in facts["readings"].items():
        if _HISTOGRAM not in name:
            numbers = (str(row["count"]), f"{row['first']:.4g}", f"{row['last']:.4g}", str(row["last_step"]))
            table.add_row(name, *numbers)
    out.print(table)
    for finding in facts["findings"]:
        out.print(f"{finding['words']} {finding['evidence']}")
    if not facts["findings"]:
        out.print("Nothing stands out in these readings.")
