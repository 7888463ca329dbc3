"""What the archive costs, as ratios measured side by side in one process.

    python benchmarks/archive_cost.py --output benchmarks/results/archive_cost.jsonl

Prints one JSON line that says where it ran, then one for each measurement. Two things are compared by turns, A B B A,
and each turn gives one ratio; the median of the ratios is reported with quartiles and every raw number. Memory is
measured in fresh processes. ``--quick`` takes a minute and shows that it works; its numbers mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from archive_cost_runs import make_runs
from archive_cost_steps import CLASSES, Images, Training, steps_by_turns
from torch import Tensor

from reuse_algos.archive import (
    DatasetRecord,
    Manifest,
    RunArchive,
    Signal,
    encode_top_k,
)
from reuse_algos.callbacks.recorder.facts.provenance import environment

BATCH = 256
EXAMPLES = 50_000
FLAT_MIB = 8.0  # what the allocator's slack may be; the data in question are over ten times as large
FAULT_MIB = BATCH * 64 / 1024  # Linux maps 64 KiB of the page cache around each row that is touched
Emit = Callable[[dict[str, Any]], None]


def main() -> None:
    """Run every measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the lines to this file")
    parser.add_argument("--quick", action="store_true", help="small sizes and few turns")
    parser.add_argument("--only", choices=tuple(CASES), action="append", help="only this; may be given several times")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child[0]](args.child[1])))
        return
    lines: list[str] = []

    def emit(result: dict[str, Any]) -> None:
        lines.append(json.dumps(result))
        print(lines[-1], flush=True)
        if args.output:
            args.output.write_text("".join(f"{line}\n" for line in lines))

    emit(header())
    for name in args.only or CASES:
        with tempfile.TemporaryDirectory(prefix="archive-cost-") as folder:
            os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
            CASES[name](Path(folder), args.quick, emit)


def header() -> dict[str, Any]:
    """Return where and on what this ran."""
    where = environment()
    return {
        "name": "header",
        "command": " ".join(["python", *sys.argv]),
        "commit": where.git_commit,
        "versions": where.versions,
        "hardware": where.hardware,
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


# Turns and ratios ----------------------------------------------------------------------------------------------------


def turns(ours: Callable[[], object], theirs: Callable[[], object], count: int) -> list[tuple[float, float]]:
    """Return seconds of both, by turns: first one first, then the other."""
    return [turn(ours, theirs, number) for number in range(count + 1)][1:]  # the first turn warms the caches


def turn(ours: Callable[[], object], theirs: Callable[[], object], number: int) -> tuple[float, float]:
    """Return seconds of both; which comes first changes with the number."""
    seconds = {}
    for work in (ours, theirs) if number % 2 else (theirs, ours):
        began = time.perf_counter()
        work()
        seconds[work] = time.perf_counter() - began
    return seconds[ours], seconds[theirs]


def ratios(name: str, pairs: Sequence[tuple[float, float]], goal: float | None, **more: Any) -> dict[str, Any]:
    """Return one line of the result: the median of ours / theirs and how it scatters."""
    values = [ours / theirs for ours, theirs in pairs]
    ratio = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4)
    return {
        "name": name,
        "ratio": ratio,
        "quartiles": [low, high],
        "range": [min(values), max(values)],
        "n": len(values),
        "goal": goal,
        "met": None if goal is None else ratio <= goal,
        **more,
        "raw": {"seconds": [ours for ours, _ in pairs], "reference_seconds": [theirs for _, theirs in pairs]},
    }


def in_child(what: str, path: Path) -> dict[str, float]:
    """Measure memory in a fresh process."""
    command = [sys.executable, os.path.abspath(__file__), "--child", what, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory_mib() -> dict[str, float]:
    """Memory of this process now, in MiB: its own, of mapped files (given back when needed), and the peak of both."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile", "VmHWM")}


def growth(before: dict[str, float], after: dict[str, float], prefix: str = "") -> dict[str, float]:
    """Mebibytes that were added."""
    return {f"{prefix}{name}_mib": after[name] - before[name] for name in before}


# Gathering rows ------------------------------------------------------------------------------------------------------


def measure_gather(folder: Path, quick: bool, emit: Emit) -> None:
    """Measure 256 random rows of a 50,000 x 100 signal against ``index_select`` on the same tensor in RAM."""
    generator = torch.Generator().manual_seed(0)
    ram = torch.randn(EXAMPLES, CLASSES, generator=generator).half()
    archive = RunArchive(folder / "archive", create=True)
    whole = signal_of(archive, {0: {"values": ram}, 1: {"values": ram.flip(0)}})
    top_k = signal_of(archive, {0: encode_top_k(ram, 16)}, encoding="top_k", num_classes=CLASSES)
    order = torch.randperm(EXAMPLES, generator=generator)
    batches = [order[begin : begin + BATCH].clone() for begin in range(0, EXAMPLES - BATCH, BATCH)]
    one = torch.zeros(BATCH, dtype=torch.int64)
    mixed = torch.randint(0, 2, (BATCH,), generator=generator)

    def epoch_of(gather: Callable[[Tensor, Tensor], object], slots: Tensor) -> Callable[[], None]:
        def run() -> None:
            for positions in batches:
                gather(positions, slots)

        return run

    def reference() -> None:
        for positions in batches:
            ram.index_select(0, positions)

    cases: list[tuple[str, Callable[[Tensor, Tensor], object], Tensor, float | None]] = [
        ("gather, one whole slot", whole.gather, one, 1.5),
        ("gather, two slots mixed", whole.gather, mixed, None),
        ("gather, top 16 of 100 decoded", top_k.gather, one, None),
        ("gather, resident on the CPU", whole.resident("cpu").gather, one, None),
    ]
    for name, gather, slots, goal in cases:
        pairs = turns(epoch_of(gather, slots), reference, 7 if quick else 101)
        emit(ratios(name, pairs, goal, rows=BATCH, look_ups_per_turn=len(batches)))


def signal_of(archive: RunArchive, slots: dict[int, dict[str, Tensor]], **meta: Any) -> Signal:
    """Archive whole slots and open them again."""
    writer = archive.start_run("signals")
    meta = {"source": "capture", "encoding": "dense", "num_classes": None, **meta}
    entries, count = [], 0
    for slot, columns in slots.items():
        count = len(columns["values"])
        entries.append(writer.put("signals", "logits", {"ids": torch.arange(count), **columns}, {**meta, "slot": slot}))
    dataset = DatasetRecord(name="random", num_examples=count, fingerprint="f" * 64)
    writer.commit(Manifest(dataset=dataset, files=entries))
    return archive.run(writer.run_id).signal("logits")


# Step time -----------------------------------------------------------------------------------------------------------


def measure_steps(folder: Path, quick: bool, emit: Emit) -> None:
    """Measure steps of a small ResNet with the recorder on, all logits captured, against off."""
    steps, epochs = (8, 2) if quick else (20, 10)
    images = Images(128 * steps)
    on, off = Training(images, folder / "archive"), Training(images, None)
    epoch_pairs = turns(on.epoch, off.epoch, epochs)
    step_pairs = steps_by_turns(on, off, epochs)
    where = {"model": "resnet_small", "batch": 128, "steps_per_epoch": steps, "image": [3, 32, 32], "classes": CLASSES}
    emit(ratios("step, recorder on / off", step_pairs, 1.02, **where))
    name = f"fit of one epoch of {steps} steps with signals written, weights, commit and end, on / off"
    emit(ratios(name, epoch_pairs, None, **where))


# Many runs -----------------------------------------------------------------------------------------------------------


def measure_listing(folder: Path, quick: bool, emit: Emit) -> None:
    """Measure selecting five of 10,000 runs against five of 100."""
    few, many = 100, 1_000 if quick else 10_000
    small, large = folder / "small", folder / "large"
    made = {path: make_runs(path, count) for path, count in ((small, few), (large, many))}
    few_archive, many_archive = RunArchive(small, create=True), RunArchive(large, create=True)
    for name, select in SELECTIONS.items():

        def ten_times(select: Callable[[RunArchive], object] = select) -> None:
            for _ in range(10):
                select(few_archive)

        pairs = turns(lambda select=select: select(many_archive), ten_times, 3 if quick else 9)
        per_call = [(ours, theirs / 10) for ours, theirs in pairs]
        emit(ratios(f"{name} of {many} runs / of {few}", per_call, many / few, manifest_bytes=made[large]))
    before, after = in_child("select", small), in_child("select", large)
    extra = after["VmHWM_mib"] - before["VmHWM_mib"]
    emit(memory_line(f"memory of selecting among {many} runs / {few}", extra, FLAT_MIB, small=before, large=after))


def memory_line(name: str, extra_mib: float, goal_mib: float, **raw: Any) -> dict[str, Any]:
    """Return one line of the result: by how much more memory grew with the large case than with the small one."""
    return {"name": name, "extra_mib": extra_mib, "goal_mib": goal_mib, "met": extra_mib <= goal_mib, "raw": raw}


SELECTIONS: dict[str, Callable[[RunArchive], object]] = {
    "the latest five": lambda archive: archive.runs(order="latest", limit=5),
    "the best five of a tag": lambda archive: archive.runs(tags={"method": "m1"}, order="best", limit=5),
}


def select_in_child(path: str) -> dict[str, float]:
    """Memory that selecting takes."""
    archive, before = RunArchive(path, create=True), memory_mib()
    for select in SELECTIONS.values():
        select(archive)
    return growth(before, memory_mib())


# Many rows -----------------------------------------------------------------------------------------------------------


def measure_rows(folder: Path, quick: bool, emit: Emit) -> None:
    """Measure opening a signal of 10^7 rows against one of 1,000: the first time (which hashes it), and again."""
    few, many = 1_000, 10**6 if quick else 10**7
    measured: dict[str, list[dict[str, float]]] = {}
    for count in (few, many):
        path = folder / str(count)
        values = torch.randint(0, 100, (count, 10), generator=torch.Generator().manual_seed(0)).half()
        signal_of(RunArchive(path), {0: {"values": values}})
        del values
        os.environ["XDG_CACHE_HOME"] = str(folder / f"cache-{count}")
        measured[str(count)] = [in_child("rows", path), in_child("rows", path)]
    small, large = measured.values()
    for index, when in enumerate(("the first time, with hashing", "again")):
        for stage, goal in (("opening", FLAT_MIB), ("opening and gathering 256 rows from", FLAT_MIB + FAULT_MIB)):
            key = "open_VmHWM_mib" if stage == "opening" else "VmHWM_mib"
            extra = large[index][key] - small[index][key]
            name = f"memory of {stage} a signal of {many} rows / {few}, {when}"
            emit(memory_line(name, extra, goal, small=small[index], large=large[index]))


def rows_in_child(path: str) -> dict[str, float]:
    """Memory and time that opening a signal takes, and gathering from it."""
    before, began = memory_mib(), time.perf_counter()
    archive = RunArchive(path, create=True)
    run = archive.run(archive.run_ids()[0])
    signal = run.signal("logits")
    seconds, opened = time.perf_counter() - began, memory_mib()
    positions = torch.randint(0, signal.num_examples, (BATCH,), generator=torch.Generator().manual_seed(1))
    signal.gather(positions, torch.zeros(BATCH, dtype=torch.int64))
    return {"open_seconds": seconds, **growth(before, opened, "open_"), **growth(before, memory_mib())}


CASES: dict[str, Callable[[Path, bool, Emit], None]] = {
    "gather": measure_gather,
    "steps": measure_steps,
    "listing": measure_listing,
    "rows": measure_rows,
}
CHILDREN: dict[str, Callable[[str], dict[str, float]]] = {"select": select_in_child, "rows": rows_in_child}

if __name__ == "__main__":
    main()
