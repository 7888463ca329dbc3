"""A run as later runs read it. :mod:`reuse_algos.archive.run_writer` writes it."""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor

from reuse_algos.archive.format.manifest import Manifest
from reuse_algos.archive.format.metrics import (
    MetricHistory,
    Mode,
    final_of,
    infer_mode,
    metric_names,
    read_history,
    resolve_metric,
)
from reuse_algos.archive.format.names import run_prefix
from reuse_algos.archive.format.records import FileEntry, FinalRecord
from reuse_algos.archive.format.tensors import open_tensors, tensor_parts
from reuse_algos.archive.signals.segments import Segment
from reuse_algos.archive.signals.signal import Signal
from reuse_algos.archive.stores.base import Store
from reuse_algos.errors import ArchiveCorruptError, SignalNotFoundError, nearest

MAX_EXAMPLES_WITHOUT_KEYS = 1 << 24
_EPOCH_ALIAS = re.compile(r"([0-9]{1,9})ep", re.ASCII)


def weights_name(name: str) -> str:
    """Return the name under which weights are archived: ``"5ep"`` becomes ``"ep0005"``, others stay."""
    alias = _EPOCH_ALIAS.fullmatch(name)
    return f"ep{int(alias[1]):04d}" if alias else name


_HOW_TO_HAVE = {
    "signals": " RunRecorder(signals=...) records signals while training, reuse-algos harvest afterwards.",
    "weights": " RunRecorder(weights=...) keeps them.",
}


class PriorRun:
    """One generation of a committed run, read-only.

    It is a snapshot: to see what was committed since, ask the archive again. Tensors come memory mapped from files that
    were checked against the manifest; writing to one changes this process's copy only, so clone before training on it.

    Args:
        store: The archive's store.
        manifest: The record of the generation.
        final: The record that the run ended; None while it has not.
    """

    def __init__(self, store: Store, manifest: Manifest, final: FinalRecord | None) -> None:
        self._store = store
        self._manifest = manifest
        self._final = final
        self._histories: dict[str, MetricHistory] = {}
        self._signals: dict[str, Signal] = {}  # validating one reads all of its ids, so it is done once

    def __repr__(self) -> str:
        return f"PriorRun({self.id!r}, generation={self.manifest.generation}, archive={self._store.location!r})"

    @property
    def archive(self) -> str:
        """Where its archive is, for messages and command lines."""
        return self._store.location

    @property
    def id(self) -> str:
        """Unique within the archive."""
        return self._manifest.run_id

    @property
    def run_name(self) -> str:
        """The name its user gave it."""
        return self._manifest.run_name

    @property
    def manifest(self) -> Manifest:
        """Everything that the run says about itself."""
        return self._manifest

    @property
    def tags(self) -> dict[str, str]:
        """Words to select it by."""
        return dict(self._manifest.tags)

    @property
    def finished(self) -> bool:
        """Whether it ended by itself; if not it is still running, or died."""
        return self._final is not None

    @property
    def health(self) -> str:
        """``"ok"``, ``"diverged"`` or ``"empty"``."""
        return self._manifest.health

    @property
    def metric_names(self) -> list[str]:
        """Full names of the recorded metrics, sorted."""
        entry = self._newest("metrics", "history")
        return metric_names(entry.tensors) if entry is not None else []

    def metric(self, name: str) -> MetricHistory:
        """Return the history of a metric.

        Args:
            name: The full name, or its last part if only one metric ends in it.

        Raises:
            SignalNotFoundError: There is no such metric, or several; the message lists them.
            ArchiveCorruptError: Its file is damaged.
        """
        full = resolve_metric(name, self.metric_names, f"run {self.id} has")
        if full not in self._histories:
            entry = self._require("metrics", "history")
            self._histories[full] = read_history(self.read(entry), full, self._path(entry))
        return self._histories[full]

    def final_metric(self, name: str | None = None) -> float:
        """Return the last value of a metric, by default of the run's monitor; NaN if none was recorded.

        The manifest says it, so the history is not opened; only where an older manifest does not.

        Raises:
            SignalNotFoundError: There is no such metric, or no monitor.
            ArchiveCorruptError: The history had to be opened, and its file is damaged.
        """
        full = resolve_metric(name or self._monitor(), self.metric_names, f"run {self.id} has")
        value = final_of(self._require("metrics", "history").meta, full)
        return self.metric(full).final() if value is None else value

    def best_metric(self, name: str | None = None, mode: Mode | None = None) -> tuple[float, int]:
        """Return the best finite value of a metric and its row in the history; NaN and -1 if there is none.

        Args:
            name: The metric. Default: the run's monitor.
            mode: ``"max"`` or ``"min"``, whichever is better. Default: what :meth:`metric_mode` says.

        Raises:
            SignalNotFoundError: There is no such metric, or no monitor.
        """
        name = name or self._monitor()
        return self.metric(name).best(mode or self.metric_mode(name))

    def metric_mode(self, name: str | None = None) -> Mode:
        """Return whether more (``"max"``) or less (``"min"``) of a metric is better.

        The manifest says so for the run's monitor; any other metric is judged by its name.
        """
        full = resolve_metric(name or self._monitor(), self.metric_names, f"run {self.id} has")
        return self._manifest.monitor_mode if full == self._manifest.monitor else infer_mode(full)

    @property
    def weight_names(self) -> list[str]:
        """Names of the archived weights, such as ``"last"``, ``"best"`` or ``"ep0005"``, sorted."""
        return self._names("weights")

    def weights(self, name: str = "last") -> dict[str, Tensor]:
        """Return a state dict, memory mapped.

        Args:
            name: One of :attr:`weight_names`, or a number of epochs such as ``"5ep"``. Default: ``"last"``.

        Raises:
            SignalNotFoundError: There are no such weights.
            ArchiveCorruptError: Their file is damaged.
        """
        newest = self._require("weights", weights_name(name))
        # Only weights that were split up carry a slot.
        if newest.meta.get("slot") is None:
            return self.read(newest)
        # The header of one file is bounded, so a model of very many tensors lies in several.
        parts = {
            entry.meta.get("slot"): entry
            for entry in self._manifest.files
            if (entry.kind, entry.name) == ("weights", newest.name)
        }
        return {key: value for entry in parts.values() for key, value in self.read(entry).items()}

    @property
    def signal_names(self) -> list[str]:
        """Names of the archived signals, sorted."""
        return self._names("signals")

    def signal(self, name: str) -> Signal:
        """Return one array with a row per training example and slot. It is opened and validated once.

        Raises:
            SignalNotFoundError: There is no such signal.
            ArchiveCorruptError: One of its files is damaged.
        """
        if name not in self._signals:
            self._require("signals", name)
            segments = [
                Segment(path, entry.meta, self.read(entry), partial(tensor_parts, self._store, path, entry))
                for entry in self._manifest.files
                if (entry.kind, entry.name) == ("signals", name) and (path := self._path(entry))
            ]
            self._signals[name] = Signal(name, segments, self._num_examples())
        return self._signals[name]

    def keys(self) -> Tensor:
        """Return the identity of each training example: int64 [N].

        Raises:
            SignalNotFoundError: The run recorded no dataset.
        """
        keys_N = self._examples_column("keys")
        if keys_N is None:
            raise SignalNotFoundError(f"run {self.id} recorded no keys of its examples")
        return keys_N

    def labels(self) -> Tensor | None:
        """Return the class of each training example, int64 [N]; None where the run did not know them.

        Raises:
            SignalNotFoundError: The run recorded no dataset.
        """
        return self._examples_column("labels")

    def content(self) -> tuple[Tensor, Tensor]:
        """Return which training examples have a known content, and its hashes: two int64 [S], empty where none has.

        Raises:
            ArchiveCorruptError: The columns do not fit each other or the number of examples.
            SignalNotFoundError: The run recorded no dataset.
        """
        tensors = self.read(self._require("dataset", "examples"))
        empty = torch.empty(0, dtype=torch.int64)
        rows_S, hashes_S = tensors.get("content_rows", empty), tensors.get("content_hashes", empty)
        # The hash of the file shows damage, not that its writer kept to the rules.
        sound = all(one.dtype == torch.int64 and one.dim() == 1 for one in (rows_S, hashes_S))
        if not sound or len(rows_S) != len(hashes_S) or (rows_S < 0).any() or (rows_S >= self._num_examples()).any():
            raise ArchiveCorruptError(f"run {self.id} has no proper content hashes of its examples")
        return rows_S, hashes_S

    def read(self, entry: FileEntry) -> dict[str, Tensor]:
        """Return the tensors of one of the manifest's files, memory mapped.

        Raises:
            ArchiveCorruptError: The file is damaged.
        """
        return open_tensors(self._store, self._path(entry), entry)

    def _examples_column(self, column: str) -> Tensor | None:
        entry = self._require("dataset", "examples")
        tensor_N = self.read(entry).get(column)
        # Rows are found by position, so a column of another length would belong to other examples.
        if tensor_N is not None and (tensor_N.dtype != torch.int64 or tensor_N.shape != (self._num_examples(),)):
            raise ArchiveCorruptError(f"{self._path(entry)} has no proper {column} for {self._num_examples()} examples")
        return tensor_N

    def _num_examples(self) -> int:
        if self._manifest.dataset is None:
            raise SignalNotFoundError(f"run {self.id} recorded no dataset, so it has no rows per example")
        num_examples = self._manifest.dataset.num_examples
        # Memory is taken by this number, so it must be more than a claim.
        examples = self._newest("dataset", "examples")
        keys = None if examples is None else examples.tensors.get("keys")
        if num_examples > MAX_EXAMPLES_WITHOUT_KEYS if keys is None else keys.shape != (num_examples,):
            raise ArchiveCorruptError(f"run {self.id} says that it has {num_examples} examples, but has not their keys")
        return num_examples

    def _monitor(self) -> str:
        if self._manifest.monitor is None:
            known = ", ".join(self.metric_names) or "none"
            raise SignalNotFoundError(f"run {self.id} has no monitor: name a metric (it has: {known})")
        return self._manifest.monitor

    def _names(self, kind: str) -> list[str]:
        return sorted({entry.name for entry in self._manifest.files if entry.kind == kind})

    def _newest(self, kind: str, name: str) -> FileEntry | None:
        entries = (entry for entry in reversed(self._manifest.files) if (entry.kind, entry.name) == (kind, name))
        return next(entries, None)

    def _require(self, kind: str, name: str) -> FileEntry:
        entry = self._newest(kind, name)
        if entry is None:
            known = self._names(kind)
            what = kind if kind == "weights" else kind.removesuffix("s")
            how = "" if known else f" It has no {kind} at all.{_HOW_TO_HAVE.get(kind, '')}"
            raise SignalNotFoundError(f"run {self.id} has no {what} {name!r}.{nearest(name, known)}{how}")
        return entry

    def _path(self, entry: FileEntry) -> str:
        return f"{run_prefix(self.id)}/{entry.path}"
