"""Python for tests that start processes: a fork of one that has imported torch and Composer, which takes ten seconds.

All workers of a session share one server (server.py), which the first that needs it starts. A fork cannot show what
only a process of its own shows: which modules are imported, and hashes of strings that differ between the ranks. Tests
of these start ``sys.executable``.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import filelock

__all__ = ["forked_python", "launch", "prepare", "python"]

_VARIABLE = "REUSE_ALGOS_FORKED_PYTHON"  # folder of the session, which its workers inherit
_session: list[int] = []
_servers: list[subprocess.Popen[bytes]] = []  # kept, as Popen warns of one that is thrown away while it runs
_HERE = Path(__file__).parent
_SECONDS = 300.0  # for ten of imports, on a machine with much else to do


def prepare() -> tempfile.TemporaryDirectory[str] | None:
    """Return the session's folder, to be kept until its end; None in a worker of a session that has one."""
    if _VARIABLE in os.environ:
        return None
    folder = tempfile.TemporaryDirectory(prefix="reuse_algos-python-")
    os.environ[_VARIABLE] = folder.name
    # Held as long as this process lives, however it ends. The number of a process may be that of another one later.
    _session.append(os.open(Path(folder.name) / "session", os.O_CREAT | os.O_RDWR))
    fcntl.flock(_session[0], fcntl.LOCK_EX)
    return folder


def python(*arguments: str, timeout: float = 600, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a fork of Python with these arguments to its end, and keep what it says."""
    return subprocess.run([forked_python(), *arguments], capture_output=True, text=True, timeout=timeout, **options)


def launch(ranks: int, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script with its arguments, or ``-m module``, on several ranks under Composer's launcher."""
    return python("-m", "composer.cli.launcher", "-n", str(ranks), *arguments, **options)


def forked_python() -> str:
    """Return a command that takes Python's arguments: ``-m module``, ``-c code`` or a script, also ``-u`` and ``-W``.

    Environment, working directory and standard streams are the caller's. A job ends when its caller does.
    """
    if sys.platform != "linux":  # elsewhere forks of a process with torch's libraries are not reliable
        return sys.executable
    folder = Path(os.environ[_VARIABLE])
    command, door = folder / "python", folder / "door"
    with filelock.FileLock(folder / "lock"):
        if not command.exists():
            server = [sys.executable, str(_HERE / "server.py"), str(door), str(folder / "session"), str(command)]
            with (folder / "log").open("w") as log:
                _servers.append(subprocess.Popen(server, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
            until = time.monotonic() + _SECONDS
            while not door.exists():
                if _servers[0].poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"the server of Python processes did not start: {(folder / 'log').read_text()}")
                time.sleep(0.05)
            client = shlex.join([sys.executable, "-S", "-E", str(_HERE / "client.py"), str(door)])
            command.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
            command.chmod(0o700)
    return str(command)
