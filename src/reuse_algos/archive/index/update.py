"""Writing the index: by who ends a run, when enough runs are in no shard yet, and by a garbage collection."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from itertools import islice

from reuse_algos.archive.format.envelope import seal
from reuse_algos.archive.format.generations import list_runs
from reuse_algos.archive.format.names import INDEX, change_path, shard_runs
from reuse_algos.archive.format.records import ChangeRecord
from reuse_algos.archive.format.summary import RunSummary
from reuse_algos.archive.index.catalog import Catalog
from reuse_algos.archive.index.host import HostIndex, open_host
from reuse_algos.archive.index.shards import SHARD_RUNS, decode_summaries, encode_shard, fitting
from reuse_algos.archive.stores.base import Store
from reuse_algos.errors import ArchiveConflictError, ArchiveError

ENOUGH_RUNS = 256
"""So many ended runs in no shard are worth one."""

READ_AT_AN_END = 512
"""The most runs that the end of a run reads for the index: the rest waits for the next end."""

_SMALL_SHARDS = 8  # so many are put together


def note_change(store: Store, run_id: str, token: str, number: int) -> None:
    """Put a note that an ended run is not what it was, so that nobody believes what was known of it.

    Args:
        store: The archive's store.
        run_id: The run.
        token: 16 hex digits that no other writer has.
        number: A number that this writer has not used yet.

    Raises:
        ArchiveError: It could not be written.
    """
    path = change_path(run_id, token, number)
    store.put_if_absent(path, [seal(ChangeRecord(run_id=run_id), path)])


def update_index(store: Store, archive_id: str, *, everything: bool = False) -> int:
    """Put summaries of ended runs that are in no shard into shards, and small shards together into larger ones.

    The index is a cache: what goes wrong here is not an error.

    Args:
        store: The archive's store.
        archive_id: Its identity.
        everything: Read every run, hold every shard against them, and write also a small shard. Default: False, a
            bounded number of runs, and only if enough are found.

    Returns:
        How many shards were written.
    """
    with contextlib.suppress(ArchiveError, sqlite3.Error):
        run_ids = list_runs(store)
        # So few runs are read by themselves, and no shard is looked at.
        if len(run_ids) >= ENOUGH_RUNS:
            with open_host(store.location, archive_id) as host:
                return _update(store, archive_id, host, run_ids, everything)
    return 0


def _update(store: Store, archive_id: str, host: HostIndex, run_ids: list[str], everything: bool) -> int:
    catalog = Catalog(store, archive_id)
    paths = catalog.reconcile(host)
    doubted = host.doubted()
    there: set[str] = set()
    small: dict[str, list[RunSummary]] = {}
    replaced: set[str] = set()
    for path in sorted(paths, reverse=True):
        if path in replaced or (shard := catalog.shard(host, path)) is None:
            continue
        if everything and not catalog.is_true(shard):
            host.keep_shard(path, None)
            continue
        replaced.update(shard.replaces)
        there.update(shard.ids)
        # Two larger ones would not fit into one.
        if (shard_runs(path) or 0) < SHARD_RUNS // 2:
            small[path] = shard.runs()
    listed = set(run_ids)
    wanted = listed - there - doubted
    lines = [line for ids, part in host.own() for run_id, line in zip(ids, part, strict=True) if run_id in wanted]
    own = {run.run_id: run for run in decode_summaries(lines)}
    unread = [run_id for run_id in run_ids if run_id in wanted and run_id not in own]
    for summary in catalog.lasting(unread if everything else list(islice(unread, READ_AT_AN_END))):
        own[summary.run_id] = summary
        host.keep([summary])
    if len(own) < (1 if everything else ENOUGH_RUNS):
        return 0
    merged = dict(own)
    replaces = list(small) if len(small) >= (2 if everything else _SMALL_SHARDS) else []
    # Each shard is believed by itself until it is found to be false, so a merged one vouches for none that is doubted.
    merged |= {run.run_id: run for path in replaces for run in small[path] if run.run_id in listed}
    runs = [run for run_id, run in sorted(merged.items()) if run_id not in doubted]
    written = 0
    while runs:
        count = fitting(runs)
        part, runs = runs[:count], runs[count:]
        path, data = encode_shard(archive_id, part, () if runs else replaces)  # the last one, when all are there
        with contextlib.suppress(ArchiveConflictError):  # it is there: another process found the same
            store.put_if_absent(path, [data])
        written += 1
    return written


def sweep_index(store: Store, archive_id: str, min_age_seconds: float) -> Iterator[tuple[str, int]]:
    """Delete shards that another one replaces or that are not to be believed, and give the path and size of each.

    Args:
        store: The archive's store.
        archive_id: Its identity.
        min_age_seconds: Younger ones are left, as somebody may be reading them.

    Raises:
        ArchiveError: The store cannot delete, or be read.
    """
    catalog = Catalog(store, archive_id)
    with open_host(store.location, archive_id) as host:
        shards = {path: catalog.shard(host, path) for path in catalog.reconcile(host)}
    replaced = {old for shard in shards.values() if shard is not None for old in shard.replaces}
    for item in list(store.walk(INDEX)):
        useless = item.path in replaced or (item.path in shards and shards[item.path] is None)
        if useless and time.time() - item.modified >= min_age_seconds:
            store.delete(item.path)
            yield item.path, item.size
