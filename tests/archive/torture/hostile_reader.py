"""A process that reads hostile runs and reports what that took and what ran. Started by the cases of rows 7 and 9.

It reads a request as JSON from standard input, and writes one JSON object to standard output.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from reuse_algos.archive import RunArchive
from reuse_algos.errors import ArchiveError, ExampleIdError, RunNotFoundError, SignalNotFoundError

from .fuzzing import questions

REFUSALS = (ArchiveError, RunNotFoundError, SignalNotFoundError, ExampleIdError)
WATCHED = (
    "pickle.", "marshal.", "exec", "compile", "code.", "import", "subprocess.", "os.system", "os.exec", "os.fork",
    "os.posix_spawn", "os.spawn", "pty.", "socket.", "ctypes.", "shutil.", "urllib.", "http.", "ftplib.", "webbrowser.",
)  # fmt: skip

_events: list[str] | None = None


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Run this module in a process of its own.

    Args:
        request: ``mode`` ("audit" or "measure"), ``root``, ``run_ids``, and ``warm_root``, an archive of harmless runs,
            whose reading imports and builds whatever is on first use.
    """
    tests = str(Path(__file__).parents[2])
    paths = [tests, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "archive.torture.hostile_reader"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=1800,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "131072",  # so that what was freed is not in the next one's measure
        },
    )
    if done.returncode:
        raise RuntimeError(f"the reader failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _read(archive: RunArchive, run_id: str) -> str:
    """Ask everything of a run; returns "" where it was refused, else what came instead."""
    try:
        run = archive.run(run_id)
    except REFUSALS:
        return ""
    except Exception as error:
        return repr(error)
    refused = False
    for question in questions(run):
        try:
            question()
        except REFUSALS:
            refused = True
        except Exception as error:
            return repr(error)
    return "" if refused else "everything was read"


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _events is not None and event.startswith(WATCHED):
        _events.append(f"{event} {arguments!r}"[:200])


def _warm_up(root: str) -> None:
    archive = RunArchive(root, create=True)
    for run_id in archive.run_ids():
        _read(archive, run_id)
    archive.verify()


def _audited(request: dict[str, Any]) -> dict[str, Any]:
    global _events
    archive = RunArchive(request["root"], create=True)
    sys.addaudithook(_audit)
    events, wrong = {}, {}
    for run_id in request["run_ids"]:
        _events = []
        found = _read(archive, run_id)
        with suppress(*REFUSALS):
            archive.verify(run_id)
        seen, _events = _events, None
        if seen:
            events[run_id] = seen
        if found:
            wrong[run_id] = found
    return {"events": events, "wrong": wrong}


def _kibibytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"this system does not tell {name}")


def _measured(request: dict[str, Any]) -> dict[str, Any]:
    archive = RunArchive(request["root"], create=True)
    results = {}
    for run_id in request["run_ids"]:
        seconds, processor, mebibytes, found = [], [], [], ""
        gc.collect()
        for _ in range(3):  # the fastest counts, since other processes disturb the others
            Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
            before, began, worked = _kibibytes("VmRSS"), time.perf_counter(), time.process_time()
            found = found or _read(archive, run_id)
            processor.append(time.process_time() - worked)
            seconds.append(time.perf_counter() - began)
            mebibytes.append((_kibibytes("VmHWM") - before) / 1024)
        results[run_id] = {
            "seconds": min(seconds),
            "processor": min(processor),
            "mebibytes": max(mebibytes),
            "wrong": found,
        }
    return results


def main() -> None:
    request = json.load(sys.stdin)
    _warm_up(request["warm_root"])
    print(json.dumps(_audited(request) if request["mode"] == "audit" else _measured(request)))


if __name__ == "__main__":
    main()
