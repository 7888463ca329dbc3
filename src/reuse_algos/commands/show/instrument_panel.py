"""``reuse-algos show RUN --instruments`` and ``--lazy``: what was read inside runs, drawn and in words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from reuse_algos.commands.common import (
    UsageError,
    add_data,
    console,
    data_of,
    open_archive,
    print_json,
    printable,
)
from reuse_algos.errors import ReuseAlgosError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reuse_algos.archive import PriorRun
    from reuse_algos.compare.inside import SizeMap

# These may be negative: their axis is linear, with a line at 0.
_SIGNED = {"alpha", "early_stopping", "trace"}
_COLUMNS = 4

Readings = dict[str, list[tuple[int, float]]]

T = TypeVar("T")


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
        help="compute from the weights init and last how lazily the run learned, or several runs with commas between; "
        "loads model and data",
    )
    add_data(parser)


def show_inside(args: argparse.Namespace) -> int:
    """Show readings or laziness of the runs that are named, and return 0; 1 where some of several were left out.

    Raises:
        UsageError: Two of ``--instruments``, ``--lazy`` and ``--recipe`` are asked for.
        ReuseAlgosError: The only run that is named cannot be shown: it is missing, or has no readings or weights.
    """
    if args.instruments + args.lazy + args.recipe > 1:
        raise UsageError("--instruments, --lazy and --recipe are shown one at a time")
    archive, data = open_archive(args), data_of(args.data)

    def inside(name: str) -> tuple[PriorRun, Any]:
        run = archive.run(name)
        return run, _lazy(run, data, args.trust_data) if args.lazy else readings_of_run(run)

    names = args.run_id.split(",")
    found = [inside(names[0])] if len(names) == 1 else _those_that_can(inside, names)
    if not found:
        return 2
    facts = [one for _, one in found] if args.lazy else _instruments({run.id: one for run, one in found}, args.picture)
    if args.json:
        print_json(facts)
    else:
        for one in facts:
            _print(one)
        if args.instruments:
            console().print(f"picture: {args.picture}", soft_wrap=True)
    return 0 if len(found) == len(names) else 1


def _those_that_can(function: Callable[[str], T], names: Sequence[str]) -> list[T]:
    """Call a function for each name, and say on stderr for which it fails: one run must not cost the others."""
    found = []
    for name in names:
        try:
            found.append(function(name))
        except ReuseAlgosError as error:
            print(f"reuse-algos: left out {printable(name)}: {printable(str(error))}", file=sys.stderr)
    return found


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
    """Draw every reading over the steps, one colour for each run, and a map of the sizes of gradients for each run.

    Args:
        runs: Label -> readings; at least one.
    """
    from matplotlib.figure import Figure

    from reuse_algos.compare.inside import SIZES, size_map
    from reuse_algos.compare.show.figures import plain_text

    names = [name for name in dict.fromkeys(name for one in runs.values() for name in one) if SIZES not in name]
    maps = {label: found for label, one in runs.items() if (found := size_map(one))}
    count = len(names) + len(maps)
    rows = -(-count // _COLUMNS)
    # Figure by itself, not pyplot: that keeps figures alive, and may open a window.
    figure = Figure(figsize=(3.4 * _COLUMNS, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten().tolist()
    for axis, name in zip(axes, names, strict=False):
        _draw_reading(axis, name, runs)
    for axis, (label, found) in zip(axes[len(names) :], maps.items(), strict=False):
        _draw_sizes(axis, found)
        axis.set_title(plain_text(f"sizes of gradients, {label}"), fontsize="small")
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis in axes:
        axis.tick_params(labelsize=6, which="both")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.suptitle("Readings over the steps; a gap is a reading that is not a finite number", fontsize="small")
    figure.legend(handles, list(map(plain_text, labels)), loc="outside lower center", fontsize="small")
    return figure


def _draw_reading(axis: Any, name: str, runs: Mapping[str, Readings]) -> None:
    values = [value for one in runs.values() for _, value in one.get(name, ())]
    for label, one in runs.items():
        rows = one.get(name, [])
        # With dots: a line alone shows no reading that has a gap on both sides.
        axis.plot([step for step, _ in rows], [value for _, value in rows], ".-", ms=2.5, lw=1.0, label=label)
    # Gradient norms fall by decades; what may be negative stays linear.
    if name not in _SIGNED and values and all(value > 0 for value in values) and max(values) > 20 * min(values):
        axis.set_yscale("log")
    if name in _SIGNED:
        axis.axhline(0, color="black", lw=0.5)
    axis.set_title(name.replace("_", " "), fontsize="small")


def _draw_sizes(axis: Any, sizes: SizeMap) -> None:
    """Draw which share of the gradients' elements has which size, over the steps."""
    extent = (sizes.steps[0], sizes.steps[-1] + 1, -0.5, len(sizes.sizes) - 0.5)
    axis.imshow(sizes.shares, aspect="auto", origin="lower", cmap="Blues", extent=extent)
    axis.set_yticks(range(len(sizes.sizes)), sizes.sizes)


def _instruments(read: Mapping[str, Readings], picture: str) -> list[dict[str, Any]]:
    from reuse_algos.compare.show.files import PLOTS, write_file
    from reuse_algos.training.instruments.diagnosis import diagnose

    # First, since the picture can fail and the findings cannot.
    write_file(Path(picture), PLOTS, lambda where: panel(read).savefig(where, dpi=150))
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


def _lazy(run: PriorRun, data: Mapping[str, Any], trust_data: bool) -> dict[str, Any]:
    from reuse_algos.harvest.laziness import laziness_of_run
    from reuse_algos.training.instruments.diagnosis import diagnose

    found = laziness_of_run(run, data=data, trust_data=trust_data)
    step = run.manifest.progress.batch
    findings = diagnose({name: [(step, value)] for name, value in found.items()})
    return {
        "run_id": run.id,
        "readings": {name: {"count": 1, "first": v, "last": v, "last_step": step} for name, v in found.items()},
        "findings": [{"name": one.name, "words": one.words, "evidence": one.evidence} for one in findings],
    }


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from reuse_algos.compare.inside import SIZES

    out = console()
    table = Table(box=None, pad_edge=False, padding=(0, 1), title=facts["run_id"], title_justify="left")
    for name in ("reading", "times read", "first", "last", "at step"):
        table.add_column(name, justify="left" if name == "reading" else "right")
    for name, row in facts["readings"].items():
        if SIZES not in name:
            numbers = (str(row["count"]), f"{row['first']:.4g}", f"{row['last']:.4g}", str(row["last_step"]))
            table.add_row(name, *numbers)
    out.print(table)
    for finding in facts["findings"]:
        out.print(f"{finding['words']} {finding['evidence']}")
    if not facts["findings"]:
        out.print("Nothing stands out in these readings.")
