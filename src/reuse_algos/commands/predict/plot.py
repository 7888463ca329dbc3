"""Plots of ``reuse-algos predict`` and ``reuse-algos sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reuse_algos.commands.common import UsageError

__all__ = ["check_plot", "draw"]

FILE_TYPES = (".png", ".pdf", ".svg")


def check_plot(path: Path, what: str) -> None:
    """Refuse a file type that cannot be written, and a question that has no plot, before any work is done.

    Args:
        path: Of the plot.
        what: The question, such as ``speed``.

    Raises:
        UsageError: One of the two.
    """
    if path.suffix.lower() not in FILE_TYPES:
        raise UsageError(f"a plot cannot be written as {path.name!r}: end the name in {', '.join(FILE_TYPES)}")
    if what == "size":
        raise UsageError("predict size has no plot: its answer is one row")


def draw(what: str, found: dict[str, Any], path: Path) -> None:
    """Draw an answer and write it to a file.

    Args:
        what: The question.
        found: Its answer, as ``--json`` prints it.
        path: Of the plot; its suffix is the type.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    {"loss-curve": _loss_curve, "speed": _speed, "layers": _layers, "batch-size": _batch, "strength": _strength}[what](
        axes, found
    )
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UsageError(f"the plot cannot be written to {path}: {error.strerror or error}") from error


def _loss_curve(axes: Any, found: dict[str, Any]) -> None:
    if "forecast" in found:
        made, rows = found["forecast"], found["rows"]
        steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
        axes.plot(steps, losses, label="so far")
        axes.plot([steps[-1], made["end_step"]], [losses[-1], made["value"]], "--", color="C1", label="predicted")
        if made["low"] == made["low"]:
            bars = [[made["value"] - made["low"]], [made["high"] - made["value"]]]
            axes.errorbar([made["end_step"]], [made["value"]], yerr=bars, color="C1", capsize=4)
        axes.set(xlabel="steps", ylabel="loss")
        return
    if "runs" in found:
        axes.plot([row["steps"] for row in found["runs"]], [row["loss"] for row in found["runs"]], "o")
        axes.set(xlabel="steps of the run", ylabel="loss at its end")
        return
    for fraction in sorted({row["fraction"] for row in found["errors_of_forecasts"]}):
        tests = [row for row in found["forecasts"] if abs(row["fraction"] - fraction) < 0.1]
        axes.plot([t["measured"] for t in tests], [t["value"] for t in tests], "o", ms=4, label=f"after {fraction:.0%}")
    axes.axline((0, 0), slope=1, color="grey", lw=1)
    axes.set(xlabel="measured end value", ylabel="predicted end value")


def _speed(axes: Any, found: dict[str, Any]) -> None:
    rows = found["speed"]
    workers, speeds = [row["workers"] for row in rows], [row["steps_per_second"] for row in rows]
    inside = [row["kind"] != "predicted" for row in rows]
    axes.plot(workers, speeds, "--", color="C0", label="predicted")
    axes.plot(
        [w for w, ok in zip(workers, inside, strict=True) if ok],
        [s for s, ok in zip(speeds, inside, strict=True) if ok],
        color="C0",
        label="within what was measured",
    )
    seen = [row for row in rows if row["measured_steps_per_second"] is not None]
    axes.plot([r["workers"] for r in seen], [r["measured_steps_per_second"] for r in seen], "o", label="measured")
    axes.set(xlabel="workers", ylabel="steps per second")


def _layers(axes: Any, found: dict[str, Any]) -> None:
    axes.bar(range(len(found["layers"])), [row["megaflops"] for row in found["layers"]])
    axes.set(xlabel="layer", ylabel="MFLOP of the forward pass")


def _batch(axes: Any, found: dict[str, Any]) -> None:
    points = [row for row in found["steps_to_result"] if row["steps"] is not None and row["steps"] < float("inf")]
    batches = [row["batch"] for row in points]
    axes.loglog(batches, [row["steps"] for row in points], "o-", label="steps to the goal")
    axes.loglog(batches, [row["perfect"] for row in points], "--", color="grey", label="perfect scaling")
    axes.set(xlabel="batch size", ylabel="steps")


def _strength(axes: Any, found: dict[str, Any]) -> None:
    rows = found["points"]
    axes.plot([row["value"] for row in rows], [row["metric"] for row in rows], "o")
    for name in ("start", "stop"):
        if found["transition"]["shown"]:
            axes.axvline(found["transition"][name], color="grey", ls="--")
    axes.set(xlabel="strength", ylabel="metric")
