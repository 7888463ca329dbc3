"""``reuse-algos show``: everything an archive knows of one run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from reuse_algos.commands.common import (
    Subparsers,
    UsageError,
    add_archive,
    add_command,
    add_json,
    console,
    open_archive,
    print_json,
    printable_lines,
    readable_bytes,
)
from reuse_algos.commands.show.instrument_panel import add_options, show_inside

if TYPE_CHECKING:
    from rich.console import Console

    from reuse_algos.archive import PriorRun

_MOST_SLOTS = 8


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "show",
        "show one run: recipe, data, model, cost, metrics, weights, signals, prior runs",
        "Of the recipe it shows what differs from the defaults. --recipe prints all of it, as YAML that\n"
        "`reuse-algos train` trains again: the same numbers, on the same machine and versions.",
        """
        reuse-algos show ./archive resnet56-17-0123abcdef
        reuse-algos show ./archive resnet56-17 --json
        reuse-algos show ./archive resnet56-17 --recipe
        reuse-algos show ./archive resnet56-17,resnet56-18 --instruments
        reuse-algos show ./archive resnet56-17 --lazy
        """,
    )
    add_archive(parser)
    parser.add_argument("run_id", metavar="RUN", help="id of the run, or its name if only one run has it")
    parser.add_argument("--recipe", action="store_true", help="print the recipe alone, as YAML that trains again")
    add_options(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show one run, and return 0."""
    if args.instruments or args.lazy:
        return show_inside(args)
    prior = open_archive(args).run(args.run_id)
    if args.recipe:
        _print_recipe(prior)
        return 0
    facts = summary(prior)
    if args.json:
        print_json(facts)
    else:
        _print(facts, console())
    return 0


def _print_recipe(prior: PriorRun) -> None:
    """Print the recipe as YAML.

    Raises:
        UsageError: The run was not trained by a recipe.
    """
    from reuse_algos.recipe.shown import yaml_text

    if not prior.manifest.recipe:
        raise UsageError(
            f"run {prior.id} has no recipe: it was trained by a script of its own (RunRecorder(..., recipe={{...}}) "
            "records what should be known of one)"
        )
    print(printable_lines(yaml_text(prior.manifest.recipe)))


def summary(prior: PriorRun) -> dict[str, Any]:
    """Return everything that ``show`` says, as plain data; floats may be NaN."""
    import msgspec

    manifest = prior.manifest
    plain: dict[str, Any] = msgspec.to_builtins(manifest)
    model = plain["model"]
    if model is not None:
        # Hundreds of names and shapes: that is what the manifest file itself is for.
        model = {**model, "parameters": len(model["parameters"])}
    return {
        "run_id": prior.id,
        "run_name": prior.run_name,
        "finished": prior.finished,
        "health": prior.health,
        "generation": manifest.generation,
        "attempt": manifest.attempt,
        "created_at": manifest.created_at,
        "committed_at": manifest.committed_at,
        "seed": manifest.seed,
        "tags": plain["tags"],
        "progress": plain["progress"],
        "cost": plain["cost"],
        "monitor": manifest.monitor,
        "monitor_mode": manifest.monitor_mode,
        "metrics": {name: _metric(prior, name) for name in prior.metric_names},
        "weights": {entry.name: entry.bytes for entry in manifest.files if entry.kind == "weights"},
        "signals": {name: _signal(prior, name) for name in prior.signal_names},
        "dataset": plain["dataset"],
        "task": plain["task"],
        "model": model,
        "environment": plain["environment"],
        "prior_runs": plain["prior_runs"],
        "harvests": plain["harvests"],
        "recipe": plain["recipe"],
    }


def _metric(prior: PriorRun, name: str) -> dict[str, float]:
    best, _ = prior.best_metric(name)
    return {"final": prior.final_metric(name), "best": best}


def _signal(prior: PriorRun, name: str) -> dict[str, Any]:
    from reuse_algos.archive.signals.success import success_rates
    from reuse_algos.errors import ArchiveVersionError

    # Sizes come from the manifest: a signal that cannot be read is still listed.
    stored = [entry for entry in prior.manifest.files if entry.kind == "signals" and entry.name == name]
    size = sum(entry.bytes for entry in stored)
    try:
        signal = prior.signal(name)
    except ArchiveVersionError:  # all else of the run can be shown
        return {"encoding": str(stored[-1].meta.get("encoding")), "bytes": size, "readable": False}
    slots = {str(slot): int(signal.seen(slot).sum()) / max(signal.num_examples, 1) for slot in signal.slots}
    facts: dict[str, Any] = {
        "encoding": signal.encoding,
        "num_examples": signal.num_examples,
        "bytes": size,
        "coverage_of_slots": slots,
        "captured_in_epoch": {
            str(slot): meta["epoch"]
            for slot in signal.slots
            if (meta := signal.slot_meta(slot)).get("source") == "capture" and "epoch" in meta
        },
    }
    if signal.encoding == "packed":
        facts |= {"bits": signal.row_format.bits, "row_shape": list(signal.row_shape)}
        facts["made_by"] = stored[-1].meta.get("attack_settings")
        metas = [signal.slot_meta(slot) for slot in signal.slots]
        facts |= success_rates(metas)
        seconds = [value for meta in metas if isinstance(value := meta.get("seconds"), float)]
        # A sum over some of the slots would look like the cost of all.
        facts["harvest_seconds"] = sum(seconds) if len(seconds) == len(metas) else None
    return facts


def _print(facts: dict[str, Any], out: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, *lines: str) -> None:
        if lines:
            table.add_row(name, Text("\n".join(lines)))

    state = "finished" if facts["finished"] else "unfinished"
    cost, progress = facts["cost"], facts["progress"]
    row("run", facts["run_id"])
    row("name", facts["run_name"])
    row("state", f"{state}, {facts['health']}; generation {facts['generation']}, attempt {facts['attempt']}")
    row("committed", facts["committed_at"])
    row("seed", str(facts["seed"]))
    row("tags", *(f"{key}={value}" for key, value in sorted(facts["tags"].items())))
    row("progress", f"{progress['epoch']} epochs, {progress['batch']} batches, {progress['sample']} examples")
    row("cost", ", ".join(_cost_words(cost)))
    row("metrics", *_metric_lines(facts))
    row("weights", *(f"{name}  {readable_bytes(size)}" for name, size in facts["weights"].items()))
    row("signals", *_signal_lines(facts["signals"]))
    if facts["dataset"]:
        data = facts["dataset"]
        views = f"{data['num_views']} views of seed {data['view_seed']}" if data["num_views"] else "random augmentation"
        classes = "" if data["num_classes"] is None else f", {data['num_classes']} classes"
        row("data", f"{data['name']}: {data['num_examples']} examples{classes}; {data['transform']}, {views}")
        row("", f"fingerprint {data['fingerprint']}")
    if facts["task"]:
        row("task", _task_words(facts["task"]))
    if facts["model"]:
        model = facts["model"]
        flops = model["flops_per_example"]
        per_example = "" if flops is None else f", {flops / 1e6:.4g} MFLOPs forward per example"
        row("model", f"{model['name']}: {model['num_parameters']} parameters{per_example}")
    if facts["environment"]:
        environment = facts["environment"]
        row("hardware", ", ".join(f"{key} {value}" for key, value in environment["hardware"].items()))
        row("versions", ", ".join(f"{key} {value}" for key, value in environment["versions"].items()))
        row("commit", str(environment["git_commit"]))
    row("prior runs", *(_use_line(use) for use in facts["prior_runs"]))
    row("harvests", *(_harvest_line(harvest) for harvest in facts["harvests"]))
    row("recipe", *_recipe_lines(facts["recipe"]))
    out.print(table)


def _task_words(task: dict[str, Any]) -> str:
    """Return words such as ``token of 50257, ignoring -100, shifted by one``."""
    ignored = "" if task["ignore_index"] is None else f", ignoring {task['ignore_index']}"
    return f"{task['kind']} of {task['num_classes']}{ignored}{', shifted by one' if task['shift'] else ''}"


def _cost_words(cost: dict[str, float | None]) -> list[str]:
    """Return words such as ``train 12 s`` for each kind of seconds, and the FLOPs where they are known."""
    from reuse_algos.compare.show.words import format_seconds

    seconds = [(name, value) for name, value in cost.items() if name.endswith("_seconds") and value is not None]
    words = [f"{name.removesuffix('_seconds')} {format_seconds(value)}" for name, value in seconds]
    flops = cost["train_flops"]
    return words if flops is None else [*words, f"{flops:.3g} FLOPs of training"]


def _metric_lines(facts: dict[str, Any]) -> list[str]:
    return [
        f"{name}  final {values['final']:.6g}, best {values['best']:.6g}"
        + (f"  (monitor, {facts['monitor_mode']})" if name == facts["monitor"] else "")
        for name, values in facts["metrics"].items()
    ]


def _signal_lines(signals: dict[str, Any]) -> list[str]:
    lines = []
    for name, signal in signals.items():
        if not signal.get("readable", True):
            size = f"{signal['encoding']}, {readable_bytes(signal['bytes'])}"
            lines.append(f"{name}  {size}: written by a newer version, which can read it")
            continue
        coverage = signal["coverage_of_slots"]
        # Hundreds of slots are common; only those with gaps are listed.
        full = sum(value == 1.0 for value in coverage.values())
        partial = [f"{slot}: {100 * value:.3g} %" for slot, value in coverage.items() if value != 1.0]
        shown = f"; {', '.join(partial[:_MOST_SLOTS])}{', ...' * (len(partial) > _MOST_SLOTS)}" if partial else ""
        size = f"{signal['encoding']}, {readable_bytes(signal['bytes'])}"
        if "bits" in signal:
            size = f"{signal['encoding']} in {signal['bits']} bits, {readable_bytes(signal['bytes'])}"
        lines.append(f"{name}  {size}, {len(coverage)} slots, {full} of them complete{shown}")
        lines += _captured_lines(signal["captured_in_epoch"])
        if signal.get("success") is not None:
            exact, kept = 100 * signal["success"], 100 * signal["success_quantized"]
            lines.append(f"  {signal['made_by']}: {exact:.3g} % fool the model, {kept:.3g} % as they are kept")
    return lines


def _captured_lines(epochs: dict[str, int]) -> list[str]:
    """Return when a signal was captured."""
    # What a model said in an early epoch is not what it says at the end.
    if not epochs:
        return []
    if all(int(slot) == epoch for slot, epoch in epochs.items()):
        return [f"  captured in the epochs {_ranges(list(epochs.values()))} (from 0), a slot for each"]
    said = [f"{slot}: {epoch}" for slot, epoch in epochs.items()]
    more = f", ... {said[-1]}" if len(said) > _MOST_SLOTS else ""
    return [f"  captured, slot: epoch (from 0)  {', '.join(said[:_MOST_SLOTS])}{more}"]


def _ranges(numbers: list[int]) -> str:
    """Return ``0 to 29``, or the numbers one by one where some between are missing."""
    if numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _use_line(use: dict[str, Any]) -> str:
    what = [f"weights {', '.join(use['weights'])}"] if use["weights"] else []
    what += [f"signals {', '.join(use['signals'])}"] if use["signals"] else []
    return f"{use['run_id']}  {use['algorithm']}: {'; '.join(what) or '-'}; harvest {use['harvest_seconds']:.3g} s"


def _harvest_line(harvest: dict[str, Any]) -> str:
    return (
        f"{harvest['signal']}  {len(harvest['views'])} views with weights {harvest['weights']}: "
        f"{harvest['seconds']:.3g} s on {harvest['hardware']}"
    )


def _recipe_lines(recipe: dict[str, Any] | None) -> list[str]:
    """Return what differs from the defaults as YAML, and how to see the rest."""
    if not recipe:
        return []
    from reuse_algos.recipe.shown import without_defaults, yaml_text

    return [*yaml_text(without_defaults(recipe)).splitlines(), "(--recipe prints all of it)"]
