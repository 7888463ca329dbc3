"""Tries to break the archive, in full: one JSON line for each case of the table of what must be shown.

The cases are those of the test suite, imported from the repository's ``tests`` folder, which is put on the path; there
they run with small counts, here with the full ones. Run it from a checkout::

    python benchmarks/archive_torture.py --jobs 2 --output benchmarks/results/archive_torture.jsonl

The first line says on what and when. Each other one has the number of the row, the case, how often it tried
(``tries``), how often acknowledged work was ``lost``, wrong data was readable (``torn``), damage or an attack was
``undetected``, how many ``seconds`` it took, and ``notes``: measurements, and the first faults in words. The exit code
is 1 if anything was lost, torn or undetected, or a case could not be run.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("reuse-algos", "torch", "mosaicml", "msgspec", "safetensors", "obstore", "hypothesis", "moto")
CASE_SECONDS = 3600.0
NOTHING = {"tries": 0, "lost": None, "torn": None, "undetected": None}


@dataclass(frozen=True)
class Case:
    """One line of the results.

    Attributes:
        row: Of the table.
        name: What is tried.
        function: Module below ``archive.torture``, and the function there.
        full: The full count; None for all that there is.
        about: How many that is, roughly; only for other scales than 1.
    """

    row: int
    name: str
    function: str
    full: int | None = None
    about: int = 100

    def count(self, scale: float) -> int | None:
        """Return the count at a scale; None for all."""
        if scale == 1 or (self.full is None and scale > 1):
            return self.full
        return max(1, round((self.full or self.about) * scale))


CASES = (
    Case(1, "SIGKILL at every change of the disk", "kills.case", about=230),
    Case(1, "exception at every change of the disk", "kills.stops", about=230),
    Case(2, "power loss", "power_loss.case", 2000),
    Case(3, "error at every call", "disk_errors.case", about=300),
    Case(4, "every bit of a small run flipped", "bit_flips.small", about=5000),
    Case(4, "random bits of a run of 64 MiB flipped", "bit_flips.large", 10_000),
    Case(5, "files truncated, extended, swapped, deleted", "changed_files.case", about=300),
    Case(6, "fuzzed manifests", "fuzzing.manifests", 10_000),
    Case(6, "fuzzed tensor headers", "fuzzing.headers", 10_000),
    Case(7, "hostile archives under an audit hook", "hostile_archives.code", about=115),
    Case(8, "path attacks", "path_attacks.case", about=120),
    Case(9, "large promises", "hostile_archives.cost", about=55),
    Case(10, "8 processes write, others read", "processes.crowd", 50),
    Case(11, "8 attempts at one generation", "processes.race", 200),
    Case(12, "random operations against a dictionary", "model.case", 500),
    Case(13, "conformance suite of every store", "conformance.case"),
    Case(14, "faults of an object store", "object_store_faults.case"),
    Case(15, "garbage collection against writers", "gc_interleavings.case", 1000),
    Case(16, "one of several ranks fails", "trainings.failing_ranks", 12),
    Case(17, "training killed ten times and resumed", "trainings.resumed", 5),
    Case(18, "diverged and empty runs", "unhealthy.case", about=5),
    Case(19, "prior runs that do not fit", "mismatches.case", about=18),
    Case(20, "archives of released formats", "formats.case", about=3),
    Case(21, "the disk goes away while writing", "lost_disks.unmounted", about=60),
    Case(22, "a suspended writer's files are collected", "lost_disks.suspended", about=8),
    Case(23, "one odd run in a shared archive", "neighbours.case", about=26),
    Case(24, "models and data that a record claims", "claims.case", about=28),
    Case(25, "the index is damaged, false, old or lost", "indexes.case", about=29),
    Case(25, "four processes write the index", "indexes.crowd", 100),
    Case(26, "the clock is set while a run trains", "clocks.case", about=16),
)


def header(arguments: argparse.Namespace, name: str = "archive_torture") -> dict[str, Any]:
    """On what, of what and when."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    changed = subprocess.run(["git", "status", "--porcelain", "src", "tests"], capture_output=True, text=True, cwd=ROOT)
    return {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", f"benchmarks/{name}.py", *sys.argv[1:]]),
        "commit": done.stdout.strip() or None,
        "uncommitted_changes": bool(changed.stdout.strip()),
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": versions,
        "scale": arguments.scale,
        "seed": arguments.seed,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def run_case(case: Case, scale: float, seed: int) -> dict[str, Any]:
    """Run a case in this process, in a temporary folder with a cache of its own."""
    sys.path.insert(0, str(ROOT / "tests"))
    began = time.perf_counter()
    result: dict[str, Any] = {"row": case.row, "case": case.name}
    with tempfile.TemporaryDirectory(prefix="archive_torture-") as folder:
        os.environ.update({"XDG_CACHE_HOME": f"{folder}/cache", "WANDB_MODE": "offline"})
        work = Path(folder, "work")
        work.mkdir()
        module, _, name = case.function.partition(".")
        try:
            function = getattr(importlib.import_module(f"archive.torture.{module}"), name)
            result |= asdict(function(work, case.count(scale), seed))
        except Exception:
            result |= {**NOTHING, "error": traceback.format_exc()[-2000:]}
    notes = result.pop("notes", {})
    return {**result, "seconds": round(time.perf_counter() - began, 1), "notes": notes}


def run_in_process(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a case in a process of its own: some leave hooks behind, some measure memory, some are killed."""
    command = [sys.executable, "-W", "ignore", __file__, "--case", case.name]
    command += ["--scale", str(arguments.scale), "--seed", str(arguments.seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=CASE_SECONDS)
    except subprocess.TimeoutExpired:
        fault = f"it did not end within {CASE_SECONDS:.0f} seconds"
    else:
        try:
            return json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            fault = f"exit code {done.returncode}: {done.stdout[-1000:]}\n{done.stderr[-2000:]}"
    return {"row": case.row, "case": case.name, **NOTHING, "seconds": 0, "notes": {}, "error": fault}


def is_good(result: dict[str, Any]) -> bool:
    """Return whether a case ran and found nothing."""
    return "error" not in result and not (result["lost"] or result["torn"] or result["undetected"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="rows of the table, such as 1,2,5; all by default")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all counts; default 1.0")
    parser.add_argument("--jobs", type=int, default=1, help="cases at the same time, each in a process; default 1")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices; default 0")
    parser.add_argument("--output", type=Path, help="also append the lines to this file")
    parser.add_argument("--case", choices=[case.name for case in CASES], help="run one case in this process")
    arguments = parser.parse_args()
    if arguments.case:
        (case,) = [case for case in CASES if case.name == arguments.case]
        result = run_case(case, arguments.scale, arguments.seed)
        print(json.dumps(result), flush=True)
        return 0 if is_good(result) else 1
    rows = {int(row) for row in arguments.rows.split(",")} if arguments.rows else {case.row for case in CASES}
    if unknown := rows - {case.row for case in CASES}:
        parser.error(f"there are no rows {sorted(unknown)}")

    def say(line: dict[str, Any]) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        if arguments.output is not None:
            with arguments.output.open("a") as output:
                output.write(text + "\n")

    say(header(arguments))
    good = True
    with ThreadPoolExecutor(max_workers=arguments.jobs) as pool:
        chosen = [case for case in CASES if case.row in rows]
        for result in pool.map(lambda case: run_in_process(case, arguments), chosen):
            say(result)
            good = good and is_good(result)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
