"""Row 4: one flipped bit anywhere is found by verify and by use."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from reuse_algos.archive import RunArchive
from reuse_algos.errors import ArchiveError

from ..small_runs import files_below, manifest_of, put_files, use_everything
from .outcome import Outcome, Tally, spread
from .survival import traced

LARGE_FILES, LARGE_FILE_BYTES = 16, 4 << 20


class OpenFile:
    """A file whose bits are flipped in place."""

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        self._times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        path.chmod(0o644)
        self._descriptor = os.open(path, os.O_RDWR)

    @contextmanager
    def flipped(self, bit: int, *, restore_time: bool) -> Iterator[None]:
        """Flip a bit, and back in the end; with ``restore_time`` the file then looks as old as it did."""
        original = os.pread(self._descriptor, 1, bit // 8)
        os.pwrite(self._descriptor, bytes([original[0] ^ 1 << bit % 8]), bit // 8)
        if restore_time:  # as decay of the medium does; only the time of change tells
            os.utime(self._descriptor, ns=self._times)
        try:
            yield
        finally:
            os.pwrite(self._descriptor, original, bit // 8)

    def close(self) -> None:
        os.close(self._descriptor)


def small(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Bits of every file of a small finished run, and of the archive's identity.

    Args:
        folder: Where to work.
        count: Bits of each file, half of them at its beginning; None for every bit.
        seed: Of the choice.
    """
    with traced():
        archive = RunArchive(folder, create=True)
        writer = archive.start_run("toy")
        writer.commit(manifest_of(put_files(writer)))
        writer.finish()
    run_id, tally, draw = writer.run_id, Tally(), random.Random(seed)
    for name, path in files_below(folder).items():
        file = OpenFile(path)
        bits = list(range(8 * file.size))
        if count is not None:
            head = range(0, min(8 * 24, len(bits)))
            bits = sorted({*(head[at] for at in spread(len(head), count // 2)), *draw.sample(bits, count - count // 2)})
        for bit in bits:
            tally.tries += 1
            with file.flipped(bit, restore_time=bit % 2 == 0):
                problems = archive.verify(run_id).problems
                found = [(problem.run_id, problem.path) for problem in problems]
                owner = run_id if name.startswith("runs/") else ""
                named = found == [(owner, name)] and Path(name).name in problems[0].what
                tally.check(named, f"bit {bit} of {name} by verify: {problems}")
                _check_use(folder, run_id, name, tally, f"bit {bit} of {name}")
        file.close()
    _check_whole(folder, run_id, tally)
    tally.notes["bytes"] = sum(path.stat().st_size for path in files_below(folder).values())
    return tally.outcome()


def large(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Random bits of the data of a run of 64 MiB; 10,000 for None.

    One bit is flipped in each of 16 files at once. Each is found by itself, since files are checked one by one.
    """
    archive = RunArchive(folder, create=True)
    generator = torch.Generator().manual_seed(seed)
    with traced():
        writer = archive.start_run("large")
        numbers = LARGE_FILE_BYTES // 4
        entries = [
            writer.put("weights", f"ep{epoch:04d}", {"w": torch.randn(numbers, generator=generator)})
            for epoch in range(LARGE_FILES)
        ]
        writer.commit(manifest_of(entries))
        writer.finish()
    run_id, tally, draw = writer.run_id, Tally(), random.Random(seed)
    prefix = f"runs/{run_id}"
    files = {entry.name: OpenFile(folder / prefix / entry.path) for entry in entries}
    paths = {f"{prefix}/{entry.path}": entry.name for entry in entries}
    remaining = 10_000 if count is None else count
    while remaining > 0:
        names = list(files)[:remaining]
        remaining -= len(names)
        flips = {name: files[name].flipped(draw.randrange(8 * files[name].size), restore_time=True) for name in names}
        for flip in flips.values():
            flip.__enter__()
        found = {paths.get(problem.path) for problem in archive.verify(run_id).problems}
        run = archive.run(run_id)
        for name in names:
            tally.tries += 1
            tally.check(name in found, f"a flip in {name} by verify")
            try:
                run.weights(name)
            except ArchiveError as error:
                tally.check(name in str(error), f"a flip in {name}: {error!r}")
            else:
                tally.miss(f"a flip in {name} by use")
        tally.check(found == set(names), f"verify found {sorted(map(str, found))}, not {names}")
        for flip in flips.values():
            flip.__exit__(None, None, None)
    for file in files.values():
        file.close()
    if problems := archive.verify().problems:
        raise RuntimeError(f"the files were not put back: {problems}")
    tally.notes["bytes"] = LARGE_FILES * LARGE_FILE_BYTES
    return tally.outcome()


def _check_use(folder: Path, run_id: str, name: str, tally: Tally, what: str) -> None:
    try:
        use_everything(RunArchive(folder), run_id)
    except ArchiveError as error:
        named = re.search(re.escape(Path(name).name), str(error)) and (run_id in str(error) or "/" not in name)
        tally.check(bool(named), f"{what} is not named: {error!r}")
    except Exception as error:
        tally.miss(f"{what}: {error!r}")
    else:
        tally.miss(f"{what} by use")


def _check_whole(folder: Path, run_id: str, tally: Tally) -> None:
    """The damage was put back, so nothing may be found any more."""
    archive = RunArchive(folder, create=True)
    for problem in archive.verify().problems:
        tally.tear(f"a false alarm: {problem}")
    use_everything(archive, run_id)
