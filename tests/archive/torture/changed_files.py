"""Row 5: truncated, extended, swapped and deleted files, and manifests in each other's places."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from reuse_algos.archive import RunArchive
from reuse_algos.errors import ArchiveError, ArchiveWarning

from ..small_runs import files_below, manifest_of, put_files, rewrite, use_everything
from .outcome import Outcome, Tally, spread
from .survival import traced

Change = Callable[[bytes], bytes]

CHANGES: dict[str, Change] = {
    "emptied": lambda _: b"",
    "one byte longer": lambda data: data + b"\0",
    "newline added": lambda data: data + b"\n",
    "doubled": lambda data: data * 2,
    "a MiB longer": lambda data: data + bytes(1 << 20),
    "zeroed": lambda data: bytes(len(data)),
    "reversed": lambda data: data[::-1],
    "first byte gone": lambda data: data[1:],
    "last 4 KiB zeroed": lambda data: data[:-4096] + bytes(min(4096, len(data))),
}


def case(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Every change of every file of two runs of two generations.

    Args:
        folder: Where to work.
        count: How many of the lengths to which each file is truncated, and of the pairs that are swapped; None for all.
        seed: Of the choice.
    """
    with traced():
        archive = RunArchive(folder, create=True)
        run_ids = []
        for run in range(2):
            writer = archive.start_run("toy")
            for epoch in range(2):
                values = [0.1 * (run + 1)] * (epoch + 1)
                writer.commit(manifest_of(put_files(writer, values, epoch=epoch + 2 * run)))
            writer.finish()
            run_ids.append(writer.run_id)
    tally = Tally()
    contents = {path: path.read_bytes() for path in files_below(folder / "runs").values()}
    owners = {path: path.relative_to(folder / "runs").parts[0] for path in contents}
    newest = {path: _is_newest(archive, owners[path], path) for path in contents}

    def attempt(path: Path, what: str) -> None:
        tally.tries += 1
        name, run_id = str(path.relative_to(folder)), owners[path]
        problems = RunArchive(folder).verify().problems
        named = [(problem.run_id, problem.path) for problem in problems] == [(run_id, name)]
        tally.check(named and Path(name).name in problems[0].what, f"{name} {what} by verify: {problems}")
        if newest[path]:
            _check_use(folder, run_id, name, tally, f"{name} {what}")

    unnoticeable = 0
    for path in contents:
        whole = contents[path]
        truncations = {f"cut to {size}": size for size in spread(len(whole), count, seed) if size}
        changes: dict[str, Change] = dict(CHANGES)
        for what, size in truncations.items():
            changes[what] = lambda data, size=size: data[:size]
        changes["one byte short"] = lambda data: data[:-1]
        for what, change in changes.items():
            if change(whole) != whole:
                rewrite(path, lambda _, change=change, whole=whole: change(whole))
                attempt(path, what)
        rewrite(path, lambda _, whole=whole: whole)
        if path.name == "final.json":  # without it the run is one that has not ended
            unnoticeable += 1
        else:
            path.unlink()
            attempt(path, "deleted")
            path.write_bytes(whole)
    pairs = [(one, other) for one in contents for other in contents if contents[one] != contents[other]]
    for one, other in (pairs[at] for at in spread(len(pairs), None if count is None else 10 * count, seed)):
        rewrite(one, lambda _, other=other: contents[other])
        attempt(one, f"replaced by {other.name}")
        rewrite(one, lambda _, one=one: contents[one])
    tally.notes["deletions left out"] = (
        f"{unnoticeable}: each run's final.json, without which it is a run that has not ended. Nor can the deletion of "
        "the newest manifest be noticed in a run without final.json, of which there is none here"
    )
    for problem in archive.verify().problems:
        tally.tear(f"a false alarm: {problem}")
    for run_id in run_ids:
        use_everything(archive, run_id)
    return tally.outcome()


def _is_newest(archive: RunArchive, run_id: str, path: Path) -> bool:
    """Whether readers of the newest generation need this file."""
    run = archive.run(run_id)
    names = {Path(entry.path).name for entry in run.manifest.files} | {"final.json"}
    return path.name in names or path.name == f"g{run.manifest.generation:06d}.json"


def _check_use(folder: Path, run_id: str, name: str, tally: Tally, what: str) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            use_everything(RunArchive(folder), run_id)
        except ArchiveError as error:
            tally.check(run_id in str(error) and Path(name).name in str(error), f"{what} is not named: {error!r}")
            return
        except Exception as error:
            tally.miss(f"{what}: {error!r}")
            return
    # A reader may step back to the generation before, and must then name the run, the generation and the file.
    named = [str(one.message) for one in said if issubclass(one.category, ArchiveWarning)]
    stepped = len(named) == 1 and all(part in named[0] for part in (run_id, Path(name).name, "generation 2 cannot be"))
    tally.check(stepped and "/manifests/" in name, f"{what} by use: {named}")
