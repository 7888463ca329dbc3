"""Selecting among many runs: one pass over their summaries, which keeps no more of them than are asked for."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from reuse_algos.archive.format.metrics import Mode, infer_mode, resolve_metric
from reuse_algos.archive.format.summary import RunSummary
from reuse_algos.archive.index.catalog import Known
from reuse_algos.archive.run import PriorRun
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.checks import DAMAGE
from reuse_algos.errors import ArchiveError, SignalNotFoundError

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
        self.worst: Any = math.inf
        """The first part of the key that a run must not exceed, where keys begin with a number."""

    @property
    def runs(self) -> list[Known]:
        """The runs, smallest key first."""
        return [known for _, known in sorted(self._kept, key=lambda kept: kept.key)]

    def offer(self, key: tuple[Any, str], known: Known) -> None:
        """Keep a run if it is among the first, in place of the last one if need be. Keys are unique."""
        if self._most is None:
            self._kept.append(Kept(key, known))
        elif len(self._kept) < self._most or (self._kept and key < self._kept[-1][0]):
            bisect.insort(self._kept, Kept(key, known), key=lambda kept: kept.key)
            del self._kept[self._most :]
            if len(self._kept) == self._most:
                self.worst = self._kept[-1].key[0]


def _best_first(store: Store, found: Iterable[Known], metric: str | None, limit: int | None, warn: Warn) -> list[Known]:
    # Which metric a short name means is known only after the last run, so there is a shortlist for each that it may be.
    shortlists: dict[str, _Shortlist] = {}
    # Runs with the same metrics and the same monitor are many, so what follows from these is found out once.
    kinds: dict[tuple[Any, ...], list[tuple[str, Mode]]] = {}
    # A local name is found faster, and this is called for every run.
    isfinite = math.isfinite
    for known in found:
        summary = known.summary
        kind = (summary.monitor, summary.monitor_mode, *summary.finals)
        if (candidates := kinds.get(kind)) is None:
            candidates = kinds[kind] = _candidates(summary, metric)
        for name, mode in candidates:
            value = summary.finals[name]
            if type(value) is not float:  # most are; the others are spelled, or have to be looked up
                try:
                    value = read_final(store, known, name)
                except DAMAGE as error:
                    warn(summary.run_id, error)
                    break
            if isfinite(value):
                if (one := shortlists.get(name)) is None:
                    one = shortlists[name] = _Shortlist(limit)
                key = -value if mode == "max" else value
                if key <= one.worst:  # most runs are none of the first, and a call for each takes its time
                    one.offer((key, summary.run_id), known)
    if not kinds:
        return []
    if metric is not None:
        chosen = resolve_metric(metric, {name for kind in kinds for name in kind[2:]}, "the runs have")
    else:
        monitors = {(name, mode) for name, mode, *_ in kinds if name}
        if len(monitors) > 1:
            listed = ", ".join(sorted(f"{name} ({mode})" for name, mode in monitors))
            raise SignalNotFoundError(f"the runs have different monitors, say by which metric to order them: {listed}")
        chosen = next(iter(monitors), ("", ""))[0]
    return shortlists[chosen].runs if chosen in shortlists else []


def _candidates(summary: RunSummary, metric: str | None) -> list[tuple[str, Mode]]:
    """Return the metrics of a run that may be the one that orders runs, each with whether more or less is better."""
    wanted = summary.monitor if metric is None else metric
    return [
        (name, summary.monitor_mode if name == summary.monitor else infer_mode(name))
        for name in summary.finals
        if name == wanted or (metric is not None and name.endswith(f"/{metric}"))
    ]


def read_final(store: Store, known: Known, name: str) -> float:
    """Return the last value of a metric that a run has, from its history where its manifest does not say it.

    Raises:
        ArchiveCorruptError: The run is damaged.
    """
    value = known.summary.final(name)
    if value is not None or known.latest is None:
        return math.nan if value is None else value
    return PriorRun(store, known.latest.manifest(), known.latest.final).final_metric(name)
