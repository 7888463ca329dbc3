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


class Plan(NamedTuple):
    """Which shards are read.

    Attributes:
        sizes: Of each, how many runs it is the first to know that were not compared yet.
        overlap: Whether runs may be in several of them.
    """

    sizes: dict[str, int]
    overlap: bool


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
        given: set[str] = set()
        for in_memory in (False, True):
            # The second time without the file.
            try:
                with open_host(self._store.location, self._archive_id, in_memory=in_memory) as host:
                    yield from self._through(host, run_ids, given, warn, asked)
                return
            except sqlite3.Error:  # a damaged file: go on without it
                if in_memory:
                    raise

    def _through(
        self, host: HostIndex, run_ids: list[str], given: set[str], warn: Warn, asked: Asked
    ) -> Iterator[Known]:
        """Give the runs that fit and were not given yet."""
        listed = set(run_ids)
        unknown: set[str] = set()
        for lines, told in self._indexed(host, listed, unknown, warn, asked):
            for start in range(0, len(lines), _BATCH):
                for summary in filter(asked.fits, _decoded(lines[start : start + _BATCH])):
                    # Looked up last: most of many runs do not fit.
                    if (run_id := summary.run_id) in listed and run_id not in told and run_id not in given:
                        given.add(run_id)
                        yield Known(summary)
            del lines
        unknown -= given
        fresh: list[RunSummary] = []
        try:
            # In the order of the listing, as warnings are, and so that a store may read ahead.
            unread = [run_id for run_id in run_ids if run_id in unknown] if unknown else []
            for found in scan(self._store, unread, warn):
                if summary := _lasting(self._store, found):
                    fresh.append(summary)
                if len(fresh) >= _BATCH:
                    host.keep(fresh)
                    fresh = []
                if asked.fits(found.summary):
                    given.add(found.summary.run_id)
                    yield Known(*found)
        finally:
            host.keep(fresh)

    def lasting(self, run_ids: list[str]) -> Iterator[RunSummary]:
        """Read runs by themselves, and give the summaries of those that will not change any more."""
        for found in scan(self._store, run_ids, lambda run_id, error: None):
            if summary := _lasting(self._store, found):
                yield summary

    def _indexed(
        self, host: HostIndex, listed: set[str], unknown: set[str], warn: Warn, asked: Asked
    ) -> Iterator[tuple[list[bytes], set[str]]]:
        """Give summaries that need no reading, as JSON, where the runs may fit; and runs that are not to be given so.

        In the end, the runs that have to be read are in ``unknown``.
        """
        paths = self.reconcile(host)
        host.forget(self._unbelieved)
        own: set[str] = set()
        for ids, lines in host.own():
            yield asked.likely(b"\n".join(lines)), set()
            own.update(ids)
        budget = COMPARED if host.shards() else 10 * COMPARED
        if self._store.concurrency > 1:  # three requests for each
            budget = COMPARED // 25
        plan, left = self._plan(host, paths, listed)
        doubted = host.doubted()
        # What the runs themselves said to this host comes before what a shard says of them.
        told = own | doubted
        believed: list[str] = []
        for path, share in zip(plan.sizes, _shares(budget, list(plan.sizes.values())), strict=True):
            if (shard := self.shard(host, path)) is None:  # another process has found it to be false
                continue
            if not self._agrees(host, path, shard, share, listed, told, warn):
                host.keep_shard(path, None)
                continue
            believed.append(path)
            yield asked.likely(shard.text), told
            if plan.overlap:
                told.update(shard.ids)
            del shard  # two shards at a time would double what a selection takes
        if len(believed) < len(plan.sizes):
            left = listed.difference(*(host.names(path)[0] for path in believed))
        unknown |= left | (doubted & listed)
        unknown -= own

    def _agrees(
        self, host: HostIndex, path: str, shard: KnownShard, share: int, listed: set[str], told: set[str], warn: Warn
    ) -> bool:
        """Return whether a shard says of some runs what they say themselves. The host remembers which they were."""
        compared = host.compared(path)
        if len(compared) != len(shard.ids):  # another process has replaced one of the two
            compared = bytearray(len(shard.ids))
        chosen = _to_compare(shard.ids, compared, share, listed, told)
        true = self._as_they_say([shard.ids[at] for at in chosen], warn)
        if _contradict([shard.line(at) for at in chosen], true):
            return False
        for at in chosen:
            compared[at] = shard.ids[at] in true and true[shard.ids[at]][1]
        host.keep_compared(path, compared)
        return True

    def _plan(self, host: HostIndex, paths: set[str], listed: set[str]) -> tuple[Plan, set[str]]:
        """Return which shards to read, and the runs that none of them knows.

        The host keeps the shards that are new to it. Where two shards differ, the runs are doubted.
        """
        unseen, shared = set(listed), set[str]()
        new = paths - host.shards()
        sizes: dict[str, int] = {}
        replaced: set[str] = set()
        overlap = False
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
                shared.update(run_id for run_id in ids if run_id in listed and run_id not in unseen)
            before = len(unseen)
            unseen.difference_update(ids)
            gained = before - len(unseen)
            overlap |= gained < len(ids)  # or some of them were removed, which costs a little time only
            sizes[path] = max(0, gained - host.compared(path).count(1))
        if shared:
            self._doubt_where_they_differ(host, sizes, shared)
        return Plan(sizes, overlap), unseen

    def _doubt_where_they_differ(self, host: HostIndex, paths: Iterable[str], run_ids: set[str]) -> None:
        """Doubt the runs of which two shards say different things: one of the two is false."""
        said: dict[str, bytes] = {}
        differ: set[str] = set()
        for path in paths:
            if (shard := self.shard(host, path)) is None:
                continue
            for run in _decoded(shard.lines(run_ids)):
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
        """Return whether a new shard says something else of a run than the run itself has said to this host.

        Where it differs only from a shard that it replaces, one of the two is false: such runs are read by themselves.
        """
        says = {run.run_id: (run, True) for run in shard.runs}
        if any(_contradict(lines, says) for _, lines in host.own()):
            return True
        for path in host.shards():
            if any(compared := host.compared(path)) and (other := host.shard(path)):
                sure = {
                    run_id for run_id, is_sure in zip(other.ids, compared, strict=True) if is_sure and run_id in says
                }
                if sure and _contradict(other.lines(sure), says):
                    return True
        for path in shard.replaces:
            if replaced := host.shard(path):
                lines = replaced.lines(says.keys())
                host.doubt(run.run_id for run in _decoded(lines) if not says[run.run_id][0].says_the_same(run))
        return False

    def is_true(self, shard: KnownShard) -> bool:
        """Return whether all that a shard says is what the runs say that can be read. It reads each of them."""
        return not _contradict(shard.lines(), self._as_they_say(shard.ids, lambda run_id, error: None))

    def _as_they_say(self, run_ids: list[str], warn: Warn) -> dict[str, tuple[RunSummary, bool]]:
        """Return the summaries of runs by their own records, and of each whether it will not change any more."""
        found = scan(self._store, sorted(run_ids), warn)
        return {
            one.summary.run_id: (one.summary, False)
            if (lasting := _lasting(self._store, one)) is None
            else (lasting, True)
            for one in found
        }


def _lasting(store: Store, found: Found) -> RunSummary | None:
    """Return the summary of a run that will not change any more, with all that it should say; None for others."""
    summary = found.summary
    if not summary.finished or found.latest.fault is not None:
        return None
    # Manifests of older versions do not say the last values.
    if None in summary.finals.values():
        try:
            run = PriorRun(store, found.latest.manifest(), found.latest.final)
            finals = {name: run.final_metric(name) for name in summary.finals}
        except DAMAGE:
            return None
        summary = msgspec.structs.replace(summary, finals={name: spelled(value) for name, value in finals.items()})
    return summary if len(encode_summary(summary)) <= MAX_SUMMARY_BYTES else None


def _to_compare(ids: list[str], compared: bytearray, share: int, listed: set[str], told: set[str]) -> list[int]:
    """Choose runs of a shard of which only it speaks; return their places in it."""
    # Nobody who writes a shard can foresee which runs are compared.
    dice = random.SystemRandom()
    # A few more than enough, as a look at all takes longer.
    for places in (dice.sample(range(len(ids)), min(len(ids), 4 * share)), range(len(ids))):
        chosen = [at for at in places if not compared[at] and ids[at] in listed and ids[at] not in told]
        if len(chosen) >= share:
            break
    return dice.sample(chosen, min(share, len(chosen)))


def _shares(budget: int, sizes: Sequence[int]) -> list[int]:
    """Return how many runs of each shard are compared, so that each run is as likely to be as any other."""
    ends = list(itertools.accumulate(sizes))
    shares = [0] * len(sizes)
    total = ends[-1] if ends else 0
    for at in random.SystemRandom().sample(range(total), min(budget, total)):
        shares[bisect.bisect_right(ends, at)] += 1
    return shares


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
