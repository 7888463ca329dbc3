"""A quick check: newest generations, the sizes of their files, and what the index says. Nothing is hashed."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable

from reuse_algos.archive.format.envelope import MAX_SEALED_BYTES
from reuse_algos.archive.format.generations import find_sound
from reuse_algos.archive.format.names import INDEX, changed_run, manifest_path, run_prefix, shard_runs
from reuse_algos.archive.format.summary import RunSummary, decode_head, summarise
from reuse_algos.archive.index.host import open_host
from reuse_algos.archive.index.shards import decode_shard
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.checks import DAMAGE, reading
from reuse_algos.archive.upkeep.problems import Problem, VerifyReport


def verify_quickly(
    store: Store, archive_id: str | None, run_ids: list[str], records: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Check runs without hashing their files, and then every shard of the index against them.

    This host does not believe a false shard any more.

    Args:
        store: The archive's store.
        archive_id: Its identity; None where that cannot be read.
        run_ids: The runs.
        records: Called with the number of runs looked at and the number of runs. Default: None.

    Raises:
        ArchiveError: The store is out of reach as a whole.
    """
    report = VerifyReport()
    summaries: dict[str, RunSummary] = {}
    for number, run_id in enumerate(run_ids, start=1):
        try:
            with reading(store):
                if (summary := _look(store, run_id, report)) is not None:
                    summaries[run_id] = summary
        except DAMAGE as error:
            report.problems.append(Problem(run_id, run_prefix(run_id), str(error)))
        if records is not None:
            records(number, len(run_ids))
    if archive_id is not None:
        _check_index(store, archive_id, summaries, report)
    return report


def _look(store: Store, run_id: str, report: VerifyReport) -> RunSummary | None:
    found = find_sound(store, run_id, decode_head)
    if found is None:
        return None
    latest, head = found
    report.runs += 1
    if latest.fault is not None:
        report.problems.append(Problem(run_id, manifest_path(run_id, latest.newest), str(latest.fault)))
    # One listing instead of a request for each file.
    there = {item.path: item.size for item in store.walk(f"{run_prefix(run_id)}/data")}
    for entry in head.files:
        path = f"{run_prefix(run_id)}/{entry.path}"
        report.files += 1
        report.bytes += entry.bytes
        if there.get(path) != entry.bytes:
            what = f"has {there[path]} bytes, the manifest says {entry.bytes}" if path in there else "is missing"
            report.problems.append(Problem(run_id, path, f"{store.location}/{path} {what}"))
    return summarise(head, latest.final)


def _check_index(store: Store, archive_id: str, summaries: dict[str, RunSummary], report: VerifyReport) -> None:
    paths = [item.path for item in store.walk(INDEX)]
    changed = {changed_run(path) for path in paths}
    for path in filter(shard_runs, paths):
        try:
            with reading(store):
                shard = decode_shard(path, store.get(path, MAX_SEALED_BYTES) or b"", archive_id)
        except DAMAGE as error:
            report.problems.append(Problem("", path, f"{error}; it may be deleted"))
            continue
        for said in shard.runs:
            summary = summaries.get(said.run_id)
            # Readers do not trust these entries either: a note says that the run changed, or an old manifest lacks
            # values.
            if summary is None or said.run_id in changed or None in summary.finals.values():
                continue
            if not summary.says_the_same(said):
                what = f"it says something else of run {said.run_id} than the run itself; delete it"
                report.problems.append(Problem("", path, what))
                with contextlib.suppress(sqlite3.Error), open_host(store.location, archive_id) as host:
                    host.keep_shard(path, None)  # selections on this host need not find it out again
                break
