"""Reading runs by themselves: one pass that keeps none of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from reuse_algos.archive.format.generations import Latest, find_sound
from reuse_algos.archive.format.summary import RunSummary, decode_head, summarise
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.checks import DAMAGE, refusals_as_damage
from reuse_algos.errors import ArchiveCorruptError, ArchiveError

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
                found = find_sound(store, run_id, decode_head)
            return found and Found(summarise(found[1], found[0].final), found[0])
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


def _in_order(work: Callable[[_T], _R], items: Iterable[_T], threads: int) -> Iterator[tuple[_T, _R]]:
    """Give each item with what was made of it, in order; as many at once as there are threads, and few ahead."""
    if threads <= 1:
        for item in items:
            yield item, work(item)
        return
    pending: deque[tuple[_T, Future[_R]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="archive") as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(work, item)))
                # More than the threads, which then have work while the first result is waited for.
                if len(pending) >= 2 * threads:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            # A caller who stops early does not wait for what it will not read.
            for _, future in pending:
                future.cancel()
