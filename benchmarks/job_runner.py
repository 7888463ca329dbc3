"""What resumable benchmarks share: runs in processes of their own, and a file of JSON lines that only grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["ResultsFile", "append", "command_line", "run_apart"]


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
        append(self.path, record)


def append(out: Path, record: dict[str, Any]) -> None:
    """Add a line to a results file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as lines:
        lines.write(json.dumps(record) + "\n")


def command_line(script: str) -> str:
    """How the benchmark was started; where its files lay says nothing about the result."""
    arguments = [Path(one).name if os.sep in one else one for one in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(script).name}", *arguments])
