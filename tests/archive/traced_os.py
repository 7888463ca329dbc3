"""The ``os`` module as the local store sees it, with every change of the disk counted, and optionally recorded, failed
or fatal. It is put in the store's place for ``os``, so that the code under test knows nothing of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

CHANGES = ("mkdir", "create", "write", "fsync", "link", "unlink")


class Operation(NamedTuple):
    """One change: the call's kind, the path, and for a write its data, for a link its source, for a sync nothing."""

    kind: str
    path: str
    detail: Any = None


@dataclass
class TracedOS:
    """Delegates to ``os``; calls ``before(index, kind)`` ahead of each change and records the change afterwards."""

    before: Callable[[int, str], None] = lambda index, kind: None
    operations: list[Operation] = field(default_factory=list)
    count: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _about_to(self, kind: str) -> None:
        index, self.count = self.count, self.count + 1
        self.before(index, kind)

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._about_to("mkdir")
        os.mkdir(path, mode, dir_fd=dir_fd)
        self.operations.append(Operation("mkdir", _path(path, dir_fd)))

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT:
            self._about_to("create")
        descriptor = os.open(path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT:
            self.operations.append(Operation("create", _path(path, dir_fd)))
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        self._about_to("write")
        short = len(data) // 2 if len(data) > 512 else len(data)  # short writes are legal, so make them common
        written = os.write(descriptor, data[:short])
        self.operations.append(Operation("write", _path_of(descriptor), bytes(data[:written])))
        return written

    def fsync(self, descriptor: int) -> None:
        self._about_to("fsync")  # and not really, which would take most of the time and cannot be tested like this
        self.operations.append(Operation("fsync", _path_of(descriptor)))

    def link(self, source: Any, target: Any, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool) -> None:
        self._about_to("link")
        os.link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)
        self.operations.append(Operation("link", _path(target, dst_dir_fd), _path(source, src_dir_fd)))

    def unlink(self, path: Any, *, dir_fd: int) -> None:
        self._about_to("unlink")
        os.unlink(path, dir_fd=dir_fd)
        self.operations.append(Operation("unlink", _path(path, dir_fd)))


def fail_at(target: int, error: Callable[[], BaseException]) -> Callable[[int, str], None]:
    """A ``before`` that raises at one operation."""

    def before(index: int, kind: str) -> None:
        if index == target:
            raise error()

    return before


def die_at(target: int) -> Callable[[int, str], None]:
    """A ``before`` that kills this process at one operation."""

    def before(index: int, kind: str) -> None:
        if index == target:
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _path(path: Any, dir_fd: int | None) -> str:
    return str(path) if dir_fd is None else str(Path(_path_of(dir_fd), path))
