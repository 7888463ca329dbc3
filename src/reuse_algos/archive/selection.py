"""Selecting among many runs: one pass over their summaries, which keeps no more of them than are asked for."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from reuse_algos.archive.format.metrics import Mode, infer_mode, resolve_metric
from reuse_algos.archive.index.catalog import Known
from reuse_algos.archive.run import PriorRun
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.checks import DAMAGE
from reuse_algos.errors import ArchiveError, SignalNotFoundError

__all__ = ["Order", "shortlist", "tags_match"]

Order = Literal["best", "latest", "first"]
Warn = Callable[[str, ArchiveError], None]

SPARE = 16
"""So many more runs are kept than asked for, in the place of those that turn out to be damaged."""


class Kept(NamedTuple):
    """A run of a shortlist, with what it is ordered by."""

    key: tuple[Any, str]
    known: Known


def shortlist(
    store: Store, found: Iterable[Known], order: Order, metric: str | None, limit: int | None, warn: Warn
) -> list[Known]:
    """Return the first runs in some order, and some more.

    Args:
        store: The archive's store.
        found: The runs to choose from.
        order: ``"latest"`` or ``"first"`` by the time of the start, or ``"best"`` by the final value of ``metric``.
        metric: The metric of ``"best"``; None for the runs' common monitor.
        limit: The most runs that are wanted; None for all.
        warn: Called with the id of each damaged run and its error.

    Raises:
        SignalNotFoundError: No run has the metric, several metrics have this name, or the monitors differ.
        ArchiveError: A run could not be read, which says nothing of whether it is sound.
    """
    if order == "best":
        return _best_first(store, found, metric, limit, warn)
    kept = _Shortlist(limit)
    for known in found:
        created_at = known.summary.created_at
        kept.offer((_Reversed(created_at) if order == "latest" else created_at, known.summary.run_id), known)
    return kept.runs


class _Reversed(str):
    """A text that sorts the other way round."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str(self) > str(other)


class _Shortlist:
    """The runs with the smallest keys so far."""

    def __init__(self, limit: int | None) -> None:
        self._most = None if limit is None else limit and limit + SPARE
        self._kept: list[Kept] = []

    @property
    def runs(self) -> list[Known]:
        """The runs, smallest key first."""
        return [known for _, known in sorted(self._kept, key=lambda kept: kept.key)]

    def offer(self, key: tuple[Any, str], known: Known) -> None:
        """Keep a run if it is among the first, in place of the last one if need be. Keys are unique."""
        if self._most is None:
            self._kept.append(Kept(key, known))
        elif len(self._kept) < self._most or (self._kept and key < self._kept[-1].key):
            bisect.insort(self._kept, Kept(key, known), key=lambda kept: kept.key)
            del self._kept[self._most :]


def _best_first(store: Store, found: Iterable[Known], metric: str | None, limit: int | None, warn: Warn) -> list[Known]:
    # Which metric a short name means is known only after the last run, so there is a shortlist for each that it may be.
    shortlists: dict[str, _Shortlist] = {}
    monitors: set[tuple[str, Mode]] = set()
    names: set[str] | None = None
    for known in found:
        summary, names = known.summary, set() if names is None else names
        if summary.monitor:
            monitors.add((summary.monitor, summary.monitor_mode))
        names.update(summary.finals)
        wanted = summary.monitor if metric is None else metric
        for name in summary.finals:
            if name != wanted and (metric is None or not name.endswith(f"/{metric}")):
                continue
            try:
                value = read_final(store, known, name)
            except DAMAGE as error:
                warn(summary.run_id, error)
                break
            if math.isfinite(value):
                mode = summary.monitor_mode if name == summary.monitor else infer_mode(name)
                one = shortlists.setdefault(name, _Shortlist(limit))
                one.offer((-value if mode == "max" else value, summary.run_id), known)
    if names is None:
        return []
    if metric is None and len(monitors) > 1:
        listed = ", ".join(sorted(f"{name} ({mode})" for name, mode in monitors))
        raise SignalNotFoundError(f"the runs have different monitors, say by which metric to order them: {listed}")
    if metric is not None:
        chosen = resolve_metric(metric, names, "the runs have")
    else:
        chosen = next(iter(monitors), ("", ""))[0]
    return shortlists[chosen].runs if chosen in shortlists else []


def read_final(store: Store, known: Known, name: str) -> float:
    """Return the last value of a metric that a run has, from its history where its manifest does not say it.

    Raises:
        ArchiveCorruptError: The run is damaged.
    """
    value = known.summary.final(name)
    if value is not None or known.latest is None:
        return math.nan if value is None else value
    return PriorRun(store, known.latest.manifest(), known.latest.final).final_metric(name)


def tags_match(tags: Mapping[str, str], wanted: Mapping[str, object]) -> bool:
    """Return whether tags are as wanted, where a list of values allows any of them."""
    for key, value in wanted.items():
        accepted = value if isinstance(value, list | tuple | set | frozenset) else [value]
        if tags.get(key) not in {str(item) for item in accepted}:
            return False
    return True
