"""The one door to the summaries of an archive's runs.

The listing of ``runs/`` says which runs exist. What a shard of the index says of an ended run spares reading it; a run
that no shard knows is read by itself. A shard is a hint of whoever wrote it, so some of its runs are compared with
their own records each time, and one difference is enough not to believe it any more. In an archive of few runs, reading
them costs no more than comparing them, and no shard is used.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import msgspec

from reuse_algos.archive.format.envelope import MAX_SEALED_BYTES, Expanded
from reuse_algos.archive.format.generations import Latest
from reuse_algos.archive.format.metrics import spelled
from reuse_algos.archive.format.names import INDEX, changed_run, shard_runs
from reuse_algos.archive.format.summary import RunSummary
from reuse_algos.archive.index.host import HostIndex, open_host
from reuse_algos.archive.index.reading import Found, scan
from reuse_algos.archive.index.shards import MAX_SUMMARY_BYTES, Shard, decode_shard, encode_summary
from reuse_algos.archive.run import PriorRun
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.checks import DAMAGE
from reuse_algos.errors import ArchiveError

__all__ = ["Catalog", "Known"]

FEW_RUNS = 256
"""Up to so many runs are simply read, on a local disk; a tenth of it where each request waits for a network."""

COMPARED = 100
"""So many runs of shards are compared with their own records at each use, on a local disk: 30 ms. Those that were are
remembered, so that after enough uses all of them were."""

_BATCH = 500
Warn = Callable[[str, ArchiveError], None]


class Known(NamedTuple):
    """A run as the catalog gives it: its summary, and its newest generation where that was read just now."""

    summary: RunSummary
    latest: Latest | None = None


class Catalog:
    """What is known of the runs of an archive.

    Args:
        store: The archive's store.
        archive_id: Its identity.
        unbelieved: Runs that turned out to be others than the index says: neither what this host remembers of them nor
            any shard that knows them is believed. Default: none.
    """

    def __init__(self, store: Store, archive_id: str, unbelieved: AbstractSet[str] = frozenset()) -> None:
        self._store, self._archive_id, self._unbelieved = store, archive_id, unbelieved

    def runs(self, run_ids: list[str], warn: Warn, fits: Callable[[RunSummary], bool]) -> Iterator[Known]:
        """Give every committed run that fits once, in any order.

        Args:
            run_ids: What the listing of ``runs/`` says.
            warn: Called with the id of each run that is damaged, or that this user may not read, and its error.
            fits: Says of the summary of a run whether to give it.

        Raises:
            ArchiveError: A run could not be read, which says nothing of whether it is sound.
        """
        if len(run_ids) <= (FEW_RUNS if self._store.concurrency == 1 else FEW_RUNS // 10):
            for found in scan(self._store, run_ids, warn):
                if fits(found.summary):
                    yield Known(*found)
            return
        waiting = set(run_ids)
        for in_memory in (False, True):
            try:
                with open_host(self._store.location, self._archive_id, in_memory=in_memory) as host:
                    yield from self._through(host, run_ids, waiting, warn, fits)
                return
            except sqlite3.Error:  # a damaged file: go on without it
                if in_memory:
                    raise

    def _through(
        self, host: HostIndex, run_ids: list[str], waiting: set[str], warn: Warn, fits: Callable[[RunSummary], bool]
    ) -> Iterator[Known]:
        """Give the runs that are waiting, and take them off the set."""
        for runs in self._indexed(host, waiting, warn):
            waiting.difference_update([run.run_id for run in runs])
            for run in runs:
                if fits(run):
                    yield Known(run)
            del runs
        fresh: list[RunSummary] = []
        try:
            # In the order of the listing, as warnings are, and so that a store may read ahead.
            for found in scan(self._store, [run_id for run_id in run_ids if run_id in waiting], warn):
                waiting.discard(found.summary.run_id)
                if summary := self._lasting(found):
                    fresh.append(summary)
                if len(fresh) >= _BATCH:
                    host.keep(fresh)
                    fresh = []
                if fits(found.summary):
                    yield Known(*found)
        finally:
            host.keep(fresh)

    def lasting(self, run_ids: list[str]) -> Iterator[RunSummary]:
        """Read runs by themselves, and give the summaries of those that will not change any more."""
        for found in scan(self._store, run_ids, lambda run_id, error: None):
            if summary := self._lasting(found):
                yield summary

    def _indexed(self, host: HostIndex, waiting: set[str], warn: Warn) -> Iterator[list[RunSummary]]:
        """Give summaries that need no reading, some at a time, of runs that are waiting."""
        paths = self.reconcile(host)
        host.forget(self._unbelieved)
        for summaries in host.own():
            yield [run for run in summaries if run.run_id in waiting]
        # No set of the ids of 100,000 summaries is kept: each of them would keep alive the block of memory that its
        # summary lay in (150 MiB in all). The ids that wait are those of the listing.
        unbelieved = host.doubted()
        budget = COMPARED if host.shards() else max(COMPARED, FEW_RUNS)
        if self._store.concurrency > 1:  # three requests for each
            budget = COMPARED // 25
        # The largest first: it may say that others need not be read.
        replaced: set[str] = set()
        for path in sorted(paths, reverse=True):
            if path in replaced or (shard := self.shard(host, path)) is None:
                continue
            if self._unbelieved and any(run.run_id in self._unbelieved for run in shard.runs):
                host.keep_shard(path, b"")  # who says one thing that is false may say others
                continue
            replaced.update(shard.replaces)
            runs = [run for run in shard.runs if run.run_id in waiting]
            if unbelieved:
                runs = [run for run in runs if run.run_id not in unbelieved]
            compared = self._compared(host, runs, budget, warn)
            budget -= len(compared)
            if _contradict(runs, compared):
                host.keep_shard(path, b"")
                runs = list(compared.values())
            yield runs
            del shard, runs  # two shards at a time would double what a selection takes

    def reconcile(self, host: HostIndex) -> set[str]:
        """Return the paths of the shards in the archive, once the host heeds what the archive's notes say."""
        found = {item.path for item in self._store.walk(INDEX)}
        shards = {path for path in found if shard_runs(path) is not None}
        notes = {path: run_id for path in found if (run_id := changed_run(path)) is not None}
        if gone := host.shards() - shards:
            known = [shard for path in shards if (shard := self.shard(host, path))]
            replaced = {old for shard in known for old in shard.replaces}
            host.forget_shards(gone & replaced)
            gone -= replaced
        if gone or host.notes() - notes.keys():
            host.clear()  # somebody deleted the index, and with it notes that this host may not have seen
        if new := notes.keys() - host.notes():
            host.doubt({notes[path] for path in new})
            host.keep_notes(new)
        return shards

    def shard(self, host: HostIndex, path: str) -> Shard | None:
        """Return a shard; None if it is damaged, false or gone. That costs time only."""
        data = host.shard(path)
        is_new = data is None
        try:
            if is_new and (data := self._store.get(path, MAX_SEALED_BYTES)) is None:
                return None
            # What this host fetched was within bounds then, and the hash says that it is the same.
            known = data if is_new or not data else Expanded(data)
            shard = decode_shard(path, known, self._archive_id) if known else None
        except ArchiveError:
            shard = None
        if is_new and shard is not None and self._is_contradicted(host, shard):
            shard = None
        if is_new or (shard is None and data):
            host.keep_shard(path, data if shard and data else b"")
        return shard

    def _is_contradicted(self, host: HostIndex, shard: Shard) -> bool:
        """Return whether a new shard says something else of a run than the run itself did to this host.

        Where it differs only from a shard that it replaces, one of the two is false: such runs are read by themselves.
        """
        says = {run.run_id: run for run in shard.runs}
        if any(_contradict(own, says) for own in host.own()):
            return True
        for path in shard.replaces:
            if host.shard(path) and (replaced := self.shard(host, path)):
                host.doubt(run.run_id for run in replaced.runs if _contradict([run], says))
        return False

    def is_true(self, host: HostIndex, shard: Shard) -> bool:
        """Return whether all that a shard says is what the runs say that can be read. It reads each of them."""
        compared = self._compared(host, shard.runs, len(shard.runs), lambda run_id, error: None)
        return not _contradict(shard.runs, compared)

    def _compared(self, host: HostIndex, runs: list[RunSummary], budget: int, warn: Warn) -> dict[str, RunSummary]:
        """Return some of these runs as their own records say, and remember them."""
        chosen = random.SystemRandom().sample(runs, min(budget, len(runs)))
        found = list(scan(self._store, sorted(run.run_id for run in chosen), warn))
        lasting = {one.summary.run_id: summary for one in found if (summary := self._lasting(one)) is not None}
        host.keep(lasting.values())
        return {one.summary.run_id: one.summary for one in found} | lasting

    def _lasting(self, found: Found) -> RunSummary | None:
        """The summary of a run that will not change any more, with everything that it should say; None for others."""
        summary = found.summary
        if not summary.finished or found.latest.fault is not None:
            return None
        if None in summary.finals.values():
            try:
                run = PriorRun(self._store, found.latest.manifest(), found.latest.final)
                finals = {name: run.final_metric(name) for name in summary.finals}
            except DAMAGE:
                return None
            summary = msgspec.structs.replace(summary, finals={name: spelled(value) for name, value in finals.items()})
        return summary if len(encode_summary(summary)) <= MAX_SUMMARY_BYTES else None


def _contradict(runs: Iterable[RunSummary], others: Mapping[str, RunSummary]) -> bool:
    """Return whether one of these summaries differs from the other of its run, if there is one."""
    return any(
        other != run and not other.says_the_same(run) for run in runs if (other := others.get(run.run_id)) is not None
    )
