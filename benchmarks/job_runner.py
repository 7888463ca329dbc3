"""What resumable benchmarks share: runs in processes of their own, and a file of JSON lines that only grows."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from reuse_algos.callbacks.recorder.facts.provenance import environment
from reuse_algos.errors import ReuseAlgosError

__all__ = ["ResultsFile", "ResultsFileError", "RunQueue", "command_line", "run_apart", "surroundings", "without_places"]

ROOT = Path(__file__).resolve().parents[1]


class ResultsFileError(ReuseAlgosError, ValueError):
    """A results file is damaged, or is not one for these results."""


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
    """A file of JSON lines that only grows; every record is an object.

    A last line that has no newline and is not a whole record was torn by the end of its writer. It is left out when the
    file is read, with a warning, and cut off by the next :meth:`append`.

    Args:
        path: where it is, or is to be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._warned = False

    def records(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return all lines that have these values, oldest first.

        Raises:
            ResultsFileError: a line other than a torn last one is not a record.
        """
        if not self.path.exists():
            return []
        *lines, tail = self.path.read_bytes().split(b"\n")
        records = [self._record(line, number) for number, line in enumerate(lines, start=1) if line.strip()]
        if tail.strip() and (last := _parsed(tail)) is not None:
            records.append(last)
        elif tail.strip() and not self._warned:
            self._warned = True
            print(f"warning: {self.path} ends in a torn line of {len(tail)} bytes; left out", file=sys.stderr)
        return [one for one in records if all(one.get(key) == value for key, value in wanted.items())]

    def append(self, record: dict[str, Any]) -> None:
        """Add a line, in place of a torn last one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b", buffering=0) as lines:
            fcntl.flock(lines, fcntl.LOCK_EX)  # what looks torn may be what another process is writing
            lines.seek(0)
            data = lines.read()
            tail = data.rpartition(b"\n")[2]
            whole = not tail.strip() or _parsed(tail) is not None
            if not whole:
                lines.truncate(len(data) - len(tail))
            newline = b"\n" if tail and whole else b""
            lines.write(newline + json.dumps(record).encode() + b"\n")

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        record = _parsed(line)
        if record is None:
            raise ResultsFileError(
                f"{self.path}, line {number}: no JSON object, but {line[:60]!r}. Repair the line, or take it out"
            )
        return record


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line; None where it is not a JSON object."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


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
    """Return what a record says of where and when it was made."""
    where = environment()
    return {
        "hardware": where.hardware,
        "versions": where.versions,
        "commit": where.git_commit,
        "load_average": os.getloadavg()[0],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def seeds_parser(description: str | None, out: Path) -> argparse.ArgumentParser:
    """Return the options of a benchmark that measures ten seeds and prints a summary.

    Args:
        description: The benchmark's docstring.
        out: Its raw file, the default of ``--out``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--summary", action="store_true")
    return parser


def command_line(script: str) -> str:
    """Return how the benchmark was started, as it can be started again from the root of the repository.

    Paths inside the repository are written relative to its root. Of those outside, only the last part is kept, since
    where files lie on a machine says nothing about the result.
    """
    arguments = [without_places(one) for one in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *arguments])


_ABSOLUTE = re.compile(r"(?:~[^/]*|[A-Za-z][\w+.-]*:/)?/")  # beginning of a path or a URL
_KEY_AND_VALUE = re.compile(r"([^/=]*=)?(.*)", re.DOTALL)
_PARTS = re.compile(r"""("[^"]*"|'[^']*')|((?!\w+:/)[^\s,\[\]{}()='"/:]*:)?([^\s,\[\]{}()='"]+)""")


def without_places(argument: str) -> str:
    """Return an argument of a command, the paths in it as :func:`command_line` writes them.

    A path may be the whole argument, the value of ``key=value``, or part of a list or a mapping there.
    """
    found = _KEY_AND_VALUE.fullmatch(argument)
    assert found is not None
    key, value = found[1] or "", found[2]
    return key + (_without_place(value) if _is_path(value) else _PARTS.sub(_part_without_place, value))


def _part_without_place(found: re.Match[str]) -> str:
    quoted, key, text = found.groups()
    if quoted:
        return quoted[0] + _without_place(quoted[1:-1]) + quoted[0]
    return (key or "") + _without_place(text)


def _without_place(text: str) -> str:
    if not _is_path(text):
        return text
    if "://" not in text and not text.startswith("~"):
        for path in (Path(os.path.abspath(text)), Path(os.path.realpath(text))):
            if path.is_relative_to(ROOT):
                return str(path.relative_to(ROOT))
    return Path(text).name if _ABSOLUTE.match(text) or ".." in Path(text).parts else text


def _is_path(text: str) -> bool:
    """Return whether it is absolute, or names what is there or a file of a folder that is there."""
    if _ABSOLUTE.match(text) or ".." in Path(text).parts:
        return True
    try:
        return bool(text) and (Path(text).exists() or _could_be_made(Path(text)))
    except (OSError, ValueError):  # too long for a path, or a character that none has
        return False


def _could_be_made(path: Path) -> bool:
    return len(path.parts) > 1 and bool(path.suffix) and path.parent.is_dir()
