"""Selecting among many runs: one pass over them all that keeps no more of them than are asked for."""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar

from reuse_algos.archive.format.generations import Latest, find_sound
from reuse_algos.archive.format.metrics import Mode, infer_mode, resolve_metric
from reuse_algos.archive.format.summary import RunSummary, decode_summary
from reuse_algos.archive.run import PriorRun
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.checks import DAMAGE, refusals_as_damage
from reuse_algos.errors import ArchiveCorruptError, ArchiveError, SignalNotFoundError

__all__ = ["Found", "Order", "SteppedBackError", "scan", "select", "stepped_back", "tags_match"]

Order = Literal["best", "latest", "first"]
Warn = Callable[[str, ArchiveError], None]

_T = TypeVar("_T")
_R = TypeVar("_R")


class SteppedBackError(ArchiveCorruptError):
    """The newest generation of a run is damaged, and an earlier one is read instead."""


class Found(NamedTuple):
    """A run that the scan met: its summary, and its newest generation, not decoded yet."""

    summary: RunSummary
    latest: Latest


def scan(store: Store, run_ids: Iterable[str], warn: Warn) -> Iterator[Found]:
    """Read every committed run, one after the other; a store that takes many requests at once is read ahead.

    Args:
        store: The archive's store.
        run_ids: The runs; those that do not exist are passed over.
        warn: Called with the id of each run that is damaged, or that this user may not read, and its error. An error
            of :class:`SteppedBackError` says that the run is there, with an earlier generation.

    Raises:
        ArchiveError: A run could not be read, which says nothing of whether it is sound.
    """

    def read(run_id: str) -> Found | ArchiveError | None:
        try:
            with refusals_as_damage(store):
                found = find_sound(store, run_id, decode_summary)
            return found and Found(found[1], found[0])
        except DAMAGE as error:
            return error

    for run_id, found in _in_order(read, run_ids, store.concurrency):
        if isinstance(found, ArchiveError):
            warn(run_id, found)
        elif found is not None:
            if found.latest.fault is not None:
                warn(run_id, stepped_back(found.latest))
            yield found


def stepped_back(latest: Latest) -> SteppedBackError:
    """Return the fault of a newer generation, with the one that is read instead."""
    ended = "" if latest.final is not None else ", as a run that has not ended"
    return SteppedBackError(
        f"generation {latest.newest} cannot be used: {latest.fault}; "
        f"generation {latest.generation} is read instead{ended}"
    )


def select(
    store: Store, found: Iterable[Found], order: Order, metric: str | None, limit: int | None, warn: Warn
) -> list[PriorRun]:
    """Return the first runs in some order.

    Args:
        store: The archive's store.
        found: The runs to choose from.
        order: ``"latest"`` or ``"first"`` by the time of the start, or ``"best"`` by the final value of ``metric``.
        metric: The metric of ``"best"``; None for the runs' common monitor.
        limit: The most runs to return; None for all.
        warn: Called with the id of each damaged run and its error.

    Raises:
        SignalNotFoundError: No run has the metric, several metrics have this name, or the monitors differ.
        ArchiveError: A run could not be read, which says nothing of whether it is sound.
    """
    if order == "best":
        return _best_first(store, found, metric, limit, warn)
    shortlist = _Shortlist(store, limit, warn)
    for run in found:
        created_at = run.summary.created_at
        shortlist.offer((_Reversed(created_at) if order == "latest" else created_at, run.summary.run_id), run)
    return shortlist.runs


class _Reversed(str):
    """A text that sorts the other way round."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str(self) > str(other)


class _Shortlist:
    """The runs with the smallest keys so far. Only such a run is decoded in full."""

    def __init__(self, store: Store, limit: int | None, warn: Warn) -> None:
        self._store, self._limit, self._warn = store, limit, warn
        self._kept: list[tuple[tuple[Any, str], PriorRun]] = []

    @property
    def runs(self) -> list[PriorRun]:
        """The runs, smallest key first."""
        return [run for _, run in self._kept]

    def offer(self, key: tuple[Any, str], found: Found) -> None:
        """Keep a run if it is among the first, in place of the last one if need be. Keys are unique."""
        full = self._limit is not None and len(self._kept) >= self._limit
        if full and (not self._kept or self._kept[-1][0] < key):
            return
        try:
            run = PriorRun(self._store, found.latest.manifest(), found.latest.final)
        except DAMAGE as error:
            self._warn(found.summary.run_id, error)
            return
        bisect.insort(self._kept, (key, run), key=lambda item: item[0])
        if full:
            self._kept.pop()


def _best_first(
    store: Store, found: Iterable[Found], metric: str | None, limit: int | None, warn: Warn
) -> list[PriorRun]:
    # Which metric a short name means is known only after the last run, so there is a shortlist for each that it may be.
    shortlists: dict[str, _Shortlist] = {}
    monitors: set[tuple[str, Mode]] = set()
    known: set[str] | None = None
    for run in found:
        summary, known = run.summary, known or set()
        if summary.monitor:
            monitors.add((summary.monitor, summary.monitor_mode))
        try:
            finals = summary.final_values()
            known.update(finals)
            wanted = summary.monitor if metric is None else metric
            for name, final in finals.items():
                if name != wanted and (metric is None or not name.endswith(f"/{metric}")):
                    continue
                value = _read_final_value(store, run, name) if final is None else final
                if math.isfinite(value):
                    mode = summary.monitor_mode if name == summary.monitor else infer_mode(name)
                    shortlist = shortlists.setdefault(name, _Shortlist(store, limit, warn))
                    shortlist.offer((-value if mode == "max" else value, summary.run_id), run)
        except DAMAGE as error:
            warn(summary.run_id, error)
    if known is None:
        return []
    if metric is None and len(monitors) > 1:
        listed = ", ".join(sorted(f"{name} ({mode})" for name, mode in monitors))
        raise SignalNotFoundError(f"the runs have different monitors, say by which metric to order them: {listed}")
    if metric is not None:
        chosen = resolve_metric(metric, known, "the runs have")
    else:
        chosen = next(iter(monitors), ("", ""))[0]
    return shortlists[chosen].runs if chosen in shortlists else []


def _read_final_value(store: Store, found: Found, name: str) -> float:
    """Return the last value of a metric of a run whose manifest does not say it."""
    return PriorRun(store, found.latest.manifest(), found.latest.final).final_metric(name)


def tags_match(tags: Mapping[str, str], wanted: Mapping[str, object]) -> bool:
    """Return whether tags are as wanted, where a list of values allows any of them."""
    for key, value in wanted.items():
        accepted = value if isinstance(value, list | tuple | set | frozenset) else [value]
        if tags.get(key) not in {str(item) for item in accepted}:
            return False
    return True


def _in_order(work: Callable[[_T], _R], items: Iterable[_T], threads: int) -> Iterator[tuple[_T, _R]]:
    """Each item with what was made of it, in order; as many at once as there are threads, and few ahead."""
    if threads <= 1:
        for item in items:
            yield item, work(item)
        return
    pending: deque[tuple[_T, Future[_R]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="archive") as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(work, item)))
                if len(pending) >= 2 * threads:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()
