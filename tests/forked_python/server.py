"""Imports once what tests need, and forks a job for each client: ``server.py DOOR SESSION COMMAND``."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from client import ANSWER

_POLL_SECONDS = 2.0


def serve(door: str, session: str) -> Mapping[str, Any]:
    """Answer clients until the session has ended; in the fork of a job, return what is asked of it.

    Args:
        door: Path of the socket.
        session: Path of the file that the session's process locks.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(door + ".new")
        listener.listen(64)
        os.rename(door + ".new", door)  # whoever sees it can connect
        listener.settimeout(_POLL_SECONDS)
        while _is_alive(session):
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork():
                connection.close()
                continue
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            connection.settimeout(None)
            return _supervise(connection)
    sys.exit()


def _is_alive(session: str) -> bool:
    try:
        file = os.open(session, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _supervise(connection: socket.socket) -> Mapping[str, Any]:
    """Fork the job, and tell the client how it ended; a client that is gone takes the job with it."""
    head, streams, _, _ = socket.recv_fds(connection, ANSWER, 3)
    left, text = int.from_bytes(head, "big"), b""
    while len(text) < left:
        text += connection.recv(left - len(text))
    job = os.fork()
    if job == 0:
        connection.close()
        os.setpgid(0, 0)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return json.loads(text)
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    ended = os.pidfd_open(job)
    readable, _, _ = select.select([ended, connection], [], [])
    if ended not in readable:
        os.killpg(job, signal.SIGKILL)
    _, status = os.waitpid(job, 0)
    if ended in readable:
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(ANSWER, "big", signed=True))
    os._exit(0)


def become(asked: Mapping[str, Any], command: str) -> None:
    """Do what Python would with these arguments, in this process."""
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.executable = command  # what the job starts is a fork, too
    random.seed()
    arguments = list(asked["arguments"])
    while arguments[0] in ("-u", "-W"):
        if arguments.pop(0) == "-W":
            warnings.simplefilter(arguments.pop(0))  # type: ignore[arg-type]
    path = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [*path, *(place for place in sys.path[1:] if place not in path)]
    kind = arguments[0] if arguments[0] in ("-m", "-c") else "script"
    if kind == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, asked["folder"])
        sys.modules.pop(sys.argv[0], None)  # which runpy would warn of
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(arguments[1], vars(main))
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        runpy.run_path(arguments[0], run_name="__main__")


def _end(job: Callable[[], None]) -> None:
    """Do the job and end the process as Python would, but for taking down its modules, which takes seconds."""
    status = 0
    try:
        job()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # a pipe that is closed
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status & 255)


def _import_what_takes_long() -> None:
    import sklearn.datasets  # noqa: F401
    import torch
    from composer.utils import collect_env

    import reuse_algos.cli
    import reuse_algos.harvest
    import reuse_algos.recipe
    import reuse_algos.sequence
    import reuse_algos.train  # noqa: F401

    torch.set_num_threads(1)
    # The first Trainer of a process starts another Python to ask for the processor, and every Trainer and checkpoint
    # looks for Composer's commit.
    collect_env.get_cpu_model()
    collect_env.get_composer_commit_hash = functools.cache(collect_env.get_composer_commit_hash)
    collect_env.get_composer_commit_hash()
    if threading.active_count() > 1:
        raise RuntimeError(f"forks of a process with threads are not reliable: {threading.enumerate()}")


if __name__ == "__main__":
    _door, _session, _command = sys.argv[1:]
    _import_what_takes_long()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the supervisors
    gc.freeze()  # a collection in a fork would write to, and so copy, every page
    _end(partial(become, serve(_door, _session), _command))
