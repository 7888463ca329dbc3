"""Row 2: the power fails; of what was not synced, the disk keeps all, nothing or a part."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Literal

from ..traced_os import Operation
from .outcome import Outcome, Tally
from .survival import Commit, check_survivors, traced, write_run

Forgotten = Literal["files", "directories"]


def case(folder: Path, count: int | None = None, seed: int = 3, forgotten: Forgotten | None = None) -> Outcome:
    """Random states of the disk after random operations.

    Args:
        folder: Where to work.
        count: Number of states; 2,000 for None.
        seed: Of the states.
        forgotten: A control: as if the store did not sync its files, or its directories, and the power failed after
            the last operation. Then the note ``broken states`` must not be 0.
    """
    commits: list[tuple[int, Commit]] = []
    root = folder / "disk" / "archive"
    root.parent.mkdir()
    with traced() as trace:
        write_run(root, lambda *commit: commits.append((len(trace.operations), commit)))
    operations = trace.operations
    if forgotten is not None:
        operations = [
            operation
            for operation in operations
            if operation.kind != "fsync" or Path(operation.path).name.startswith(".tmp-") == (forgotten != "files")
        ]
    draw = random.Random(seed)
    total, broken = Tally(), 0
    for state in range(2000 if count is None else count):
        end = len(operations) if forgotten is not None else draw.randrange(len(operations) + 1)
        disk = disk_after_power_loss(operations[:end], root, draw)
        shutil.rmtree(root.parent)
        for path, content in sorted(disk.items()):
            path.mkdir() if content is None else path.write_bytes(content)
        total.tries += 1
        before = (total.lost, total.torn)
        acknowledged = [commit for at, commit in commits if at <= end or forgotten is not None]
        check_survivors(root, acknowledged, total, f"state {state} after operation {end}")
        broken += (total.lost, total.torn) != before
    total.notes.update({"operations": len(operations), "broken states": broken})
    return total.outcome()


def disk_after_power_loss(operations: list[Operation], root: Path, draw: random.Random) -> dict[Path, bytes | None]:
    """A state of the disk that POSIX allows after these operations: what was not synced is kept, dropped or torn.

    Returns:
        Content of files by path; None for directories.
    """
    contents: dict[str, bytearray] = {}  # by the file's first name
    synced_bytes: dict[str, int] = {}
    entries: list[tuple[int, Operation, str]] = []  # changes of directories
    synced_at: dict[str, int] = {}  # by directory
    inode_of: dict[str, str] = {}
    for index, operation in enumerate(operations):
        kind, path, detail = operation
        if kind == "create":
            contents[path], synced_bytes[path], inode_of[path] = bytearray(), 0, path
        elif kind == "write":
            contents[inode_of[path]] += detail
        elif kind == "fsync" and path in inode_of:
            synced_bytes[inode_of[path]] = len(contents[inode_of[path]])
        elif kind == "fsync":
            synced_at[path] = index
        elif kind == "link":
            inode_of[path] = inode_of[detail]
        if kind in ("create", "link", "unlink", "mkdir"):
            entries.append((index, operation, os.path.dirname(path)))
    disk: dict[Path, bytes | None] = {root.parent: None}
    torn = {}
    for inode, content in contents.items():
        end = draw.choice((synced_bytes[inode], len(content), draw.randint(synced_bytes[inode], len(content))))
        tail = bytes(end - synced_bytes[inode]) if draw.random() < 0.3 else bytes(content[synced_bytes[inode] : end])
        torn[inode] = bytes(content[: synced_bytes[inode]]) + tail
    for index, (kind, path, _), directory in entries:
        durable = index < synced_at.get(directory, -1)
        if (durable or draw.random() < 0.5) and Path(directory) in disk:
            if kind == "unlink":
                disk.pop(Path(path), None)
            else:
                disk[Path(path)] = None if kind == "mkdir" else torn[inode_of[path]]
    return disk
