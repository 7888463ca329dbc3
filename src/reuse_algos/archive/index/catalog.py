"""The one door to the summaries of an archive's runs.

The listing of ``runs/`` says which runs exist. What a shard of the index says of an ended run spares reading it; a run
that no shard knows is read by itself. A shard is a hint of whoever wrote it, so some of its runs are compared with
their own records each time, and one difference is enough not to believe it any more. In an archive of few runs, reading
them costs no more than comparing them, and no shard is used.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import random
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import msgspec

from reuse_algos.archive.asked import Asked
from reuse_algos.archive.format.envelope import MAX_SEALED_BYTES
from reuse_algos.archive.format.generations import Latest
from reuse_algos.archive.format.metrics import spelled
from reuse_algos.archive.format.names import INDEX, changed_run, shard_runs
from reuse_algos.archive.format.summary import RunSummary
from reuse_algos.archive.index.host import HostIndex, KnownShard, open_host
from reuse_algos.archive.index.reading import Found, scan
from reuse_algos.archive.index.shards import MAX_SUMMARY_BYTES, Shard, decode_shard, decode_summaries, encode_summary
from reuse_algos.archive.run import PriorRun
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.checks import DAMAGE
from reuse_algos.errors import ArchiveError

FEW_RUNS = 256
"""Up to so many runs are simply read, on a local disk; a tenth of it where each request waits for a network."""

COMPARED = 100
"""So many runs of shards are compared with their own records at each use, on a local disk: 30 ms. The first time on a
host it is ten times as many. Those that were are remembered, so that after enough uses all of them were."""

_BATCH = 500  # summaries that are decoded at a time
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

    def runs(self, run_ids: list[str], warn: Warn, asked: Asked) -> Iterator[Known]:
        """Give every committed run that fits once, in any order.

        Args:
            run_ids: What the listing of ``runs/`` says.
            warn: Called with the id of each run that is damaged, or that this user may not read, and its error.
            asked: Which runs to give.

        Raises:
            ArchiveError: A run could not be read, which says nothing of whether it is sound.
        """
        if len(run_ids) <= (FEW_RUNS if self._store.concurrency == 1 else FEW_RUNS // 10):
            for found in scan(self._store, run_ids, warn):
                if asked.fits(found.summary):
                    yield Known(*found)
            return
        waiting = set(run_ids)
        for in_memory in (False, True):
            # The second time without the file.
            try:
                with open_host(self._store.location, self._archive_id, in_memory=in_memory) as host:
                    yield from self._through(host, run_ids, waiting, warn, asked)
                return
            except sqlite3.Error:  # a damaged file: go on without it
                if in_memory:
                    raise

    def _through(
        self, host: HostIndex, run_ids: list[str], waiting: set[str], warn: Warn, asked: Asked
    ) -> Iterator[Known]:
        """Give the runs that are waiting, and take them off the set."""
        for ids, lines in self._indexed(host, waiting, warn):
            waiting.difference_update(ids)
            # A line is looked through in a twentieth of the time that decoding it takes.
            wanted = asked.likely(lines)
            for start in range(0, len(wanted), _BATCH):
                yield from map(Known, filter(asked.fits, _decoded(wanted[start : start + _BATCH])))
            del ids, lines, wanted
        fresh: list[RunSummary] = []
        try:
            # In the order of the listing, as warnings are, and so that a store may read ahead.
            unknown = [run_id for run_id in run_ids if run_id in waiting] if waiting else []
            for found in scan(self._store, unknown, warn):
                waiting.discard(found.summary.run_id)
                if summary := self._lasting(found):
                    fresh.append(summary)
                if len(fresh) >= _BATCH:
                    host.keep(fresh)
                    fresh = []
                if asked.fits(found.summary):
                    yield Known(*found)
        finally:
            host.keep(fresh)

    def lasting(self, run_ids: list[str]) -> Iterator[RunSummary]:
        """Read runs by themselves, and give the summaries of those that will not change any more."""
        for found in scan(self._store, run_ids, lambda run_id, error: None):
            if summary := self._lasting(found):
                yield summary

    def _indexed(self, host: HostIndex, waiting: set[str], warn: Warn) -> Iterator[tuple[list[str], list[bytes]]]:
        """Give summaries that need no reading, as JSON, some at a time, with the runs that they are of.

        No run is given that does not wait.
        """
        paths = self.reconcile(host)
        host.forget(self._unbelieved)
        for ids, lines in host.own():
            yield _those_in(waiting, ids, lines)
        budget = COMPARED if host.shards() else 10 * COMPARED
        if self._store.concurrency > 1:  # three requests for each
            budget = COMPARED // 25
        plan = self._plan(host, paths, waiting)
        if doubted := host.doubted():
            waiting = waiting - doubted
        for path, share in zip(plan, _shares(budget, list(plan.values())), strict=True):
            if (shard := self.shard(host, path)) is None:  # another process has found it to be false
                continue
            ids, lines = _those_in(waiting, shard.ids, shard.lines)
            chosen = random.SystemRandom().sample(range(len(ids)), min(share, len(ids)))
            true = self._as_they_say([ids[at] for at in chosen], warn)
            host.keep(summary for summary, lasts in true.values() if lasts)
            if _contradict([lines[at] for at in chosen], true):
                host.keep_shard(path, None)
                continue
            yield ids, lines
            if doubted:
                waiting.difference_update(ids)
            del shard, ids, lines  # two shards at a time would double what a selection takes

    def _plan(self, host: HostIndex, paths: set[str], waiting: set[str]) -> dict[str, int]:
        """Return the shards to read, and how many of the waiting runs each one is the first to know.

        The host keeps the shards that are new to it. Where two shards differ, the runs are doubted.
        """
        unseen, shared = set(waiting), set[str]()
        new = paths - host.shards()
        plan: dict[str, int] = {}
        replaced: set[str] = set()
        for path in sorted(paths, reverse=True):  # the largest first: it may say that others need not be read
            if path in replaced or (path in new and not self._fetch(host, path)):
                continue
            ids, replaces = host.names(path)
            if not ids:
                continue
            if not self._unbelieved.isdisjoint(ids):
                host.keep_shard(path, None)  # who says one thing that is false may say others
                continue
            replaced.update(replaces)
            if new:
                shared.update(run_id for run_id in ids if run_id in waiting and run_id not in unseen)
            before = len(unseen)
            unseen.difference_update(ids)
            plan[path] = before - len(unseen)
        if shared:
            self._doubt_where_they_differ(host, plan, shared)
        return plan

    def _doubt_where_they_differ(self, host: HostIndex, paths: Iterable[str], run_ids: set[str]) -> None:
        """Doubt the runs of which two shards say different things: one of the two is false."""
        said: dict[str, bytes] = {}
        differ: set[str] = set()
        for path in paths:
            if (shard := self.shard(host, path)) is None:
                continue
            for run in _decoded(_those_in(run_ids, shard.ids, shard.lines)[1]):
                # Its hash, not the summary: a false shard may share all of its runs with a true one.
                digest = hashlib.blake2b(encode_summary(run.lasting_part()), digest_size=16).digest()
                if said.setdefault(run.run_id, digest) != digest:
                    differ.add(run.run_id)
        host.doubt(differ - host.doubted())  # what was doubted before may have been read since then

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

    def shard(self, host: HostIndex, path: str) -> KnownShard | None:
        """Return a shard; None if it is damaged, false or gone. That costs time only."""
        known = host.shard(path) or (self._fetch(host, path) and host.shard(path))
        return known if known and known.ids else None

    def _fetch(self, host: HostIndex, path: str) -> bool:
        """Keep what a shard in the archive says, or that it is not to be believed; return False if it is gone."""
        if (data := self._store.get(path, MAX_SEALED_BYTES)) is None:
            return False
        try:
            shard = decode_shard(path, data, self._archive_id)
        except ArchiveError:
            shard = None
        host.keep_shard(path, None if shard is None or self._is_contradicted(host, shard) else shard)
        return True

    def _is_contradicted(self, host: HostIndex, shard: Shard) -> bool:
        """Return whether a new shard says something else of a run than the run itself did to this host.

        Where it differs only from a shard that it replaces, one of the two is false: such runs are read by themselves.
        """
        says = {run.run_id: (run, True) for run in shard.runs}
        if any(_contradict(lines, says) for _, lines in host.own()):
            return True
        for path in shard.replaces:
            if replaced := host.shard(path):
                host.doubt(run_id for run_id, line in zip(*replaced[:2], strict=True) if _contradict([line], says))
        return False

    def is_true(self, shard: KnownShard) -> bool:
        """Return whether all that a shard says is what the runs say that can be read. It reads each of them."""
        return not _contradict(shard.lines, self._as_they_say(shard.ids, lambda run_id, error: None))

    def _as_they_say(self, run_ids: list[str], warn: Warn) -> dict[str, tuple[RunSummary, bool]]:
        """Return the summaries of runs by their own records, and of each whether it will not change any more."""
        found = scan(self._store, sorted(run_ids), warn)
        return {
            one.summary.run_id: (one.summary, False) if (lasting := self._lasting(one)) is None else (lasting, True)
            for one in found
        }

    def _lasting(self, found: Found) -> RunSummary | None:
        """The summary of a run that will not change any more, with everything that it should say; None for others."""
        summary = found.summary
        if not summary.finished or found.latest.fault is not None:
            return None
        # Manifests of older versions do not say the last values.
        if None in summary.finals.values():
            try:
                run = PriorRun(self._store, found.latest.manifest(), found.latest.final)
                finals = {name: run.final_metric(name) for name in summary.finals}
            except DAMAGE:
                return None
            summary = msgspec.structs.replace(summary, finals={name: spelled(value) for name, value in finals.items()})
        return summary if len(encode_summary(summary)) <= MAX_SUMMARY_BYTES else None


def _shares(budget: int, sizes: Sequence[int]) -> list[int]:
    """Return how many runs of each shard are compared, so that each run is as likely to be as any other."""
    ends = list(itertools.accumulate(sizes))
    shares = [0] * len(sizes)
    total = ends[-1] if ends else 0
    # Nobody who writes a shard can foresee which runs are compared.
    for at in random.SystemRandom().sample(range(total), min(budget, total)):
        shares[bisect.bisect_right(ends, at)] += 1
    return shares


def _those_in(waiting: set[str], ids: list[str], lines: list[bytes]) -> tuple[list[str], list[bytes]]:
    if waiting.issuperset(ids):
        return ids, lines
    mask = list(map(waiting.__contains__, ids))
    return list(itertools.compress(ids, mask)), list(itertools.compress(lines, mask))


def _decoded(lines: list[bytes]) -> list[RunSummary]:
    try:
        return decode_summaries(lines)
    except (TypeError, ValueError) as error:
        # As an error of the database: the caller then goes on without the file.
        raise sqlite3.DatabaseError(f"a row is not what it should be: {error}") from error


def _contradict(lines: list[bytes], others: Mapping[str, tuple[RunSummary, bool]]) -> bool:
    """Return whether one of these summaries differs from the other of its run, if there is one."""
    return any(
        other[0] != run and not other[0].says_the_same(run)
        for run in _decoded(lines)
        if (other := others.get(run.run_id)) is not None
    )
