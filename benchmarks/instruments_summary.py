"""What the raw lines of ``results/instruments.jsonl`` say: rates, stopping, laziness and costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from reuse_algos.compare.estimates.interval import mean_interval
from reuse_algos.training.instruments.diagnosis import diagnose

__all__ = ["BATCH", "findings", "runs", "text", "told_apart"]

READINGS = ("loss", "alpha", "norm_test", "gradient_norm", "update_size", "noise_scale")
WINDOW = 5
GOAL = 1.02  # of a step
BATCH = {"digits": 20, "cifar100_small": 50}  # of the runs of all rates; it divides their numbers of images

Record = dict[str, Any]
Rows = Sequence[Sequence[float]]


def runs(records: Sequence[Record], data: str) -> list[Record]:
    """Return the trained runs of a dataset; the first twelve lines were written before others than digits were read."""
    old = {"what": "rates", "data": "digits"}
    trained = [{**old, **one} for one in records if "readings" in one]
    return [one for one in trained if one["data"] == data]


def medians(rows: Rows) -> dict[int, float]:
    """Return step -> median of the last readings up to it; what is not a number counts as infinite."""
    values = [value if value == value else math.inf for _, value in rows]
    return {
        int(rows[at][0]): statistics.median(values[at - WINDOW + 1 : at + 1]) for at in range(WINDOW - 1, len(rows))
    }


def told_apart(rows: Rows, good: Sequence[Rows]) -> int | None:
    """Return the step from which on a run is outside the range of the good ones for so many readings; None: never."""
    references, own, outside = [medians(one) for one in good], medians(rows), 0
    for step, value in own.items():
        low, high = (pick(one[step] for one in references) for pick in (min, max))
        slack = 0.5 * (high - low) + 0.05 * abs(high + low) / 2
        outside = outside + 1 if not low - slack <= value <= high + slack else 0
        if outside == WINDOW:
            return step
    return None


def findings(record: Record) -> list[str]:
    """Return the names of what is found in a run's raw readings."""
    readings = {name: [(int(step), value) for step, value in rows] for name, rows in record["readings"].items()}
    sizes = [(step, float(BATCH[record["data"]])) for step, _ in readings.get("noise_scale", [])]
    return [one.name for one in diagnose({**readings, "batch_size": sizes})]


def text(records: Sequence[Record]) -> str:
    """Return all sections that the records have."""
    parts = []
    for data in ("digits", "cifar100_small"):
        own = runs(records, data)
        for what, section in (("rates", _rates), ("stopping", _stopping)):
            some = sorted((one for one in own if one["what"] == what), key=lambda one: (one["lr"], one["seed"]))
            if some:
                parts.append("\n".join([f"{data}, {what}, {len(some)} runs", *section(some)]))
    for what, section in (("laziness", _laziness), ("cost", _costs)):
        if some := [one for one in records if one.get("what") == what]:
            parts.append("\n".join(section(some)))
    return "\n\n".join(parts)


def _rates(records: Sequence[Record]) -> Iterator[str]:
    """Yield a line for each run: the step at which each reading tells it apart, and what is said of it.

    The findings are those of today's rules for the raw readings. One of the good runs is judged by the others, so its
    numbers say how often a reading cries wolf.
    """
    good = [one for one in records if one["rate"] == "good"]
    first = good[0]["readings"]["loss"][2 * WINDOW - 2][0] if good else 0
    yield f"step at which a reading tells a run apart from those of the good rate (earliest: {first}; -: never)"
    yield f"{'rate':13} {'lr':>6} seed {'ends at':>8}  " + "  ".join(READINGS) + "  findings"
    ahead: dict[str, list[str]] = {}
    for one in records:
        others = [other for other in good if other is not one]
        steps = {
            key: told_apart(one["readings"][key], [other["readings"][key] for other in others]) for key in READINGS
        }
        shown = "  ".join(("-" if step is None else str(step)).rjust(len(key)) for key, step in steps.items())
        words = ", ".join(findings(one)) or "none"
        yield f"{one['rate']:13} {one['lr']:>6g} {one['seed']:4} {one['accuracy'][1][-1]:8.3f}  {shown}  {words}"
        if one["rate"] != "good":
            ahead.setdefault(one["rate"], []).append("/".join(_lead(steps, key) for key in ("alpha", "norm_test")))
    for rate, leads in ahead.items():
        yield f"{rate}: alpha/norm test earlier than the loss by {', '.join(leads)} steps"
    for rate in dict.fromkeys(one["rate"] for one in records):
        each = [_finite(records, rate, key) for key in ("alpha", "norm_test")]
        if all(each):
            yield f"{rate}: median alpha {statistics.median(each[0]):.3f}, norm test {statistics.median(each[1]):.3g}"


def _lead(steps: dict[str, int | None], key: str) -> str:
    """Return by how many steps a reading is ahead of the loss."""
    own, loss = steps[key], steps["loss"]
    if own is None:
        return "never"
    return "only it" if loss is None else str(loss - own)


def _finite(records: Sequence[Record], rate: str, key: str) -> list[float]:
    rows = (row for one in records if one["rate"] == rate for row in one["readings"][key])
    return [value for _, value in rows if math.isfinite(value)]


def _stopping(records: Sequence[Record]) -> Iterator[str]:
    """Yield where the criterion stops each run, where its validation loss is least, and what the difference costs."""
    for one in records:
        steps, losses = one["entropy"]
        best = min(range(len(losses)), key=lambda at: losses[at])
        above = medians(one["readings"]["early_stopping"])
        last = max(above)
        stop = next((at for at in above if all(value > 0 for step, value in above.items() if step >= at)), None)
        single = next((int(step) for step, value in one["readings"]["early_stopping"] if value > 0), None)
        accuracies = one["accuracy"][1]
        line = (
            f"seed {one['seed']}: validation loss least at step {steps[best]} ({losses[best]:.3f}), at the end "
            f"({steps[-1]}) {losses[-1]:.3f}; accuracy {max(accuracies):.3f} at best, {accuracies[-1]:.3f} at the end; "
            f"criterion first above 0 at {single or 'none'}, for good from {stop or 'none'} of {last}"
        )
        if stop is not None:
            there = max((at for at in range(len(steps)) if steps[at] <= stop), default=0)
            line += f": stopping there gives {losses[there]:.3f}"
        yield line


def _laziness(records: Sequence[Record]) -> Iterator[str]:
    """Yield means over the seeds for each way of starting and each width."""
    names = ("relative_distance", "kernel_distance", "accuracy", "linearised_accuracy")
    yield "laziness: means over seeds, 95 % intervals in brackets"
    for key in dict.fromkeys((one["data"], one["start"], one["width"]) for one in records):
        own = [one for one in records if (one["data"], one["start"], one["width"]) == key]
        parts = []
        for name in names:
            found = mean_interval([one["lazy"][name] for one in own])
            spread = f" [{found.low:.3f}, {found.high:.3f}]" if len(own) > 1 else ""
            parts.append(f"{name} {found.estimate:.3f}{spread}")
        yield f"{key[0]}, {key[1]}, width {key[2]}, n = {len(own)}: " + ", ".join(parts)


def _costs(records: Sequence[Record]) -> Iterator[str]:
    """Yield what a reading costs in steps, and what that makes of an epoch."""
    yield "cost of TrainingInstruments(every: 1ep), set economy, in CPU seconds of one thread"
    for one in records:
        step = statistics.median(one["plain_steps"])
        reading = statistics.median(one["hooks"])
        inside, outside = reading / step, statistics.median(one["extra"]) / step
        spread = f"({min(one['hooks']) / step:.2f} to {max(one['hooks']) / step:.2f})"
        ratio, length = 1 + inside / one["epoch"], math.ceil(inside / (GOAL - 1))
        yield (
            f"{one['model']}, batch {one['batch']}, {one['examples']} examples read: a step {step:.3f} s, a reading "
            f"{reading:.3f} s = {inside:.2f} steps {spread} (epochs with and without, in turn: {outside:.2f}), "
            f"{len(one['hooks'])} readings; an epoch of {one['epoch']} steps ({one['of']}): {ratio:.4f}, goal {GOAL}: "
            f"{'met' if ratio <= GOAL else 'NOT met'}; met from {length} steps on"
        )
