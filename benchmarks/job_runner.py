"""What resumable benchmarks share: runs in processes of their own, and a file of JSON lines that only grows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from reuse_algos.callbacks.provenance import environment

__all__ = ["ResultsFile", "RunQueue", "command_line", "run_apart", "surroundings"]


def run_apart(script: str, job: dict[str, Any], label: str) -> dict[str, Any] | None:
    """Run ``script --one JOB --out FILE`` in a process of its own.

    Args:
        script: the benchmark's file.
        job: what the run needs, as JSON-able data.
        label: its name, for the message where it fails.

    Returns:
        The record that it wrote; None, and the end of its output on the error stream, where it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, script, "--one", json.dumps(job), "--out", str(result)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{label} failed:\n{done.stderr[-2000:]}", file=sys.stderr, flush=True)
            return None
        return json.loads(result.read_text())


class ResultsFile:
    """A file of JSON lines that only grows.

    Args:
        path: where it is, or is to be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def records(self, **wanted: Any) -> list[dict[str, Any]]:
        """All lines that have these values, oldest first."""
        if not self.path.exists():
            return []
        records = [json.loads(line) for line in self.path.read_text().splitlines() if line.strip()]
        return [one for one in records if all(one.get(key) == value for key, value in wanted.items())]

    def append(self, record: dict[str, Any]) -> None:
        """Add a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as lines:
            lines.write(json.dumps(record) + "\n")


class RunQueue:
    """Runs a benchmark's jobs, each in a process of its own, and appends their records to its results file.

    Args:
        script: the benchmark's file, as for :func:`run_apart`.
        out: the results file.
        jobs: how many runs at a time; they share the cores.
        time_limit: seconds after which no further run starts; None for no limit.
        describe: a record in words, for the line that is printed.
    """

    def __init__(
        self,
        script: str,
        out: ResultsFile,
        *,
        jobs: int,
        time_limit: float | None,
        describe: Callable[[dict[str, Any]], str],
    ) -> None:
        self.failed = 0
        self._script = script
        self._out = out
        self._jobs = jobs
        self._until = None if time_limit is None else time.monotonic() + time_limit
        self._describe = describe
        self._lock = threading.Lock()

    def run_all(self, jobs: Sequence[dict[str, Any]]) -> None:
        """Run jobs, each with a ``method`` and a ``seed``, until the time is up; those that fail are counted."""
        with ThreadPoolExecutor(self._jobs) as pool:
            list(pool.map(self._run, jobs))

    def _run(self, job: dict[str, Any]) -> None:
        if self._until is not None and time.monotonic() > self._until:
            return
        name = f"{job['method']:24} seed {job['seed']}"
        threads = max(1, (os.cpu_count() or 1) // self._jobs)
        record = run_apart(self._script, {**job, "threads": threads}, name)
        with self._lock:
            if record is None:
                self.failed += 1
                return
            self._out.append({**record, "command": command_line(self._script)})
            print(f"{name}: {self._describe(record)}", flush=True)


def surroundings() -> dict[str, Any]:
    """What a record says of where and when it was made."""
    where = environment()
    return {
        "hardware": where.hardware,
        "versions": where.versions,
        "commit": where.git_commit,
        "load_average": os.getloadavg()[0],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def command_line(script: str) -> str:
    """How the benchmark was started; where its files lay says nothing about the result."""
    arguments = [re.sub(r"(^|=)[^=]*/", r"\1", one) for one in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(script).name}", *arguments])
