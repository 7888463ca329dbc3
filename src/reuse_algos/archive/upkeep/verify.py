"""Checking whole runs for damage."""

from __future__ import annotations

from collections.abc import Callable

from reuse_algos.archive.format.generations import list_generations, list_runs, read_final, read_identity, read_manifest
from reuse_algos.archive.format.names import IDENTITY, final_path, manifest_path, run_prefix
from reuse_algos.archive.format.records import FileEntry
from reuse_algos.archive.format.tensors import verify_file
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.checks import DAMAGE, reading
from reuse_algos.archive.upkeep.leases import read_markers
from reuse_algos.archive.upkeep.problems import Problem, VerifyReport
from reuse_algos.archive.upkeep.quick import verify_quickly
from reuse_algos.archive.upkeep.thinning import first_generation
from reuse_algos.errors import ArchiveCorruptError


def verify_archive(
    store: Store,
    run_id: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    records: Callable[[int, int], None] | None = None,
    *,
    quick: bool = False,
) -> VerifyReport:
    """Check an archive. Even ``archive.json`` may be damaged.

    Args:
        store: The archive's store.
        run_id: The run to check. Default: all.
        progress: Called with the bytes hashed so far and the bytes to hash in all. Default: None.
        records: Called before that, with the number of runs whose manifests were read and the number of runs.
            Default: None.
        quick: Read the newest generation of each run only, look at the sizes of its files and hash nothing, and hold
            what the index says against the runs. Default: False.

    Returns:
        What was found. Damage is never raised.

    Raises:
        ArchiveError: The store is out of reach as a whole.
    """
    problems = []
    found = None
    try:
        with reading(store):
            found = read_identity(store)
        if found is None:
            raise ArchiveCorruptError(f"{store.location}/{IDENTITY} is missing: the archive is damaged")
    except DAMAGE as error:
        problems.append(Problem("", IDENTITY, str(error)))
    run_ids = []
    try:
        with reading(store):
            run_ids = list_runs(store) if run_id is None else [run_id]
    except DAMAGE as error:
        problems.append(Problem("", "runs", str(error)))
    if quick:
        report = verify_quickly(store, found, run_ids, records)
    else:
        report = _verify_runs(store, run_ids, progress, records)
    # First, as what is wrong with the archive itself explains much of what follows.
    report.problems[:0] = problems
    return report


def _verify_runs(
    store: Store,
    run_ids: list[str],
    progress: Callable[[int, int], None] | None,
    records: Callable[[int, int], None] | None,
) -> VerifyReport:
    """Check every generation of runs, and hash every file that a generation lists."""
    report = VerifyReport()
    files: dict[tuple[str, str], FileEntry] = {}
    for number, run_id in enumerate(run_ids, start=1):
        files.update(_verify_records(store, run_id, report))
        if records is not None:
            records(number, len(run_ids))
    report.files = len(files)
    report.bytes = sum(entry.bytes for entry in files.values())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, report.bytes)

    for (run_id, path), entry in files.items():
        try:
            with reading(store):
                verify_file(store, path, entry, advance)
        except DAMAGE as error:
            report.problems.append(Problem(run_id, path, str(error)))
    return report


def _verify_records(store: Store, run_id: str, report: VerifyReport) -> dict[tuple[str, str], FileEntry]:
    """Check a run's JSON files; return the data files that they list."""
    files: dict[tuple[str, str], FileEntry] = {}

    def attempt(path: str, action: Callable[[], object]) -> None:
        try:
            with reading(store):
                action()
        except DAMAGE as error:
            report.problems.append(Problem(run_id, path, str(error)))

    def read(generation: int) -> None:
        for entry in read_manifest(store, run_id, generation).files:
            path = f"{run_prefix(run_id)}/{entry.path}"
            # Generations share files: each is hashed once, so the entries must agree on what it is.
            known = files.setdefault((run_id, path), entry)
            if (entry.bytes, entry.sha256, entry.tensors) != (known.bytes, known.sha256, known.tensors):
                raise ArchiveCorruptError(f"{manifest_path(run_id, generation)} contradicts another entry about {path}")

    final, generations = None, []
    try:
        with reading(store):
            markers = read_markers(store, run_id)
        for path, marker in markers.items():
            if marker.everything:
                what = "the run is being removed, or was when its removal was interrupted: if so, remove it again"
                report.problems.append(Problem(run_id, path, what))
                return files
    except DAMAGE as error:
        report.problems.append(Problem(run_id, f"{run_prefix(run_id)}/gc", str(error)))
    try:
        with reading(store):
            final = read_final(store, run_id)
    except DAMAGE as error:
        report.problems.append(Problem(run_id, final_path(run_id), str(error)))
    try:
        with reading(store):
            generations = list_generations(store, run_id)
    except DAMAGE as error:
        report.problems.append(Problem(run_id, f"{run_prefix(run_id)}/manifests", str(error)))
    # The record of the end names the last generation: if that one is missing, the listing cannot tell.
    highest = max([*generations, final.generation if final else 0])
    report.runs += highest > 0
    first = 1
    try:
        with reading(store):
            first = first_generation(store, run_id)
    except DAMAGE as error:  # what cannot be read may be there all the same
        report.problems.append(Problem(run_id, f"{run_prefix(run_id)}/manifests", str(error)))
    for generation in range(first, highest + 1):  # a gap is damage: reading it says so
        attempt(manifest_path(run_id, generation), lambda generation=generation: read(generation))
    return files
