"""The history of a run's metrics: how it is archived, read, and which direction is better.

A history file holds six equally long vectors per metric, named ``<metric>/step`` and so on. They are tensors and not
JSON because NaN and infinity must survive.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reuse_algos.errors import ArchiveCorruptError, SignalNotFoundError, nearest

Mode = Literal["max", "min"]

_FINAL = "final/"
_LARGEST = sys.float_info.max
_NOT_FINITE = {".nan": math.nan, ".inf": math.inf, "-.inf": -math.inf}

_LESS_IS_BETTER = ("loss", "entropy", "error", "perplexity", "mse", "mae")


class MetricHistory(NamedTuple):
    """One metric over a run; each field is a vector with one number per time the metric was recorded.

    Attributes:
        step: Batches trained, int64.
        sample: Examples trained on, int64.
        epoch: Whole epochs trained, int64.
        train_seconds: Wall-clock time spent training, float64.
        eval_seconds: Wall-clock time spent evaluating, float64.
        value: The metric, float64; NaN and infinity as they came.
    """

    step: NDArray[np.int64]
    sample: NDArray[np.int64]
    epoch: NDArray[np.int64]
    train_seconds: NDArray[np.float64]
    eval_seconds: NDArray[np.float64]
    value: NDArray[np.float64]

    def final(self) -> float:
        """Return the last value; NaN if there is none."""
        # The last recorded one even if it is not finite: a run that diverged must not look better than it ended.
        return float(self.value[-1]) if len(self.value) else math.nan

    def best(self, mode: Mode) -> tuple[float, int]:
        """Return the best finite value and its first row; NaN and -1 if there is none."""
        finite = np.flatnonzero(np.isfinite(self.value))
        if len(finite) == 0:
            return math.nan, -1
        values = self.value[finite]
        # The first of equal values: what is asked next is when the best was reached.
        row = int(finite[values.argmax() if mode == "max" else values.argmin()])
        return float(self.value[row]), row


def history_tensors(histories: Mapping[str, MetricHistory]) -> dict[str, Tensor]:
    """Return the tensors of a history file, to be put as kind ``metrics``, name ``history``.

    Args:
        histories: The history of each metric; columns are converted to the fields' types.

    Raises:
        ValueError: The fields of a history differ in length.
    """
    tensors = {}
    for name, history in histories.items():
        for field, column in history._asdict().items():
            dtype = np.int64 if field in ("step", "sample", "epoch") else np.float64
            tensors[f"{name}/{field}"] = torch.from_numpy(np.array(column, dtype=dtype))
        if len({len(column) for column in history}) != 1:
            raise ValueError(f"the columns of the history of {name!r} differ in length")
    return tensors


def read_history(tensors: Mapping[str, Tensor], name: str, where: str) -> MetricHistory:
    """Return one metric of a history file.

    Raises:
        ArchiveCorruptError: The file holds no well-formed history of it.
    """
    columns = []
    for field in MetricHistory._fields:
        dtype = torch.int64 if field in ("step", "sample", "epoch") else torch.float64
        column = tensors.get(f"{name}/{field}")
        if column is None or column.dtype != dtype or column.ndim != 1 or (columns and len(column) != len(columns[0])):
            raise ArchiveCorruptError(f"{where}: the metric {name!r} has no proper column {field!r}")
        # An array of its own: one that lies in a tensor takes 700 bytes more, which is much in 20,000 runs.
        columns.append(column.numpy().copy())
    return MetricHistory(*columns)


def final_meta(tensors: Mapping[str, Tensor]) -> dict[str, float | str]:
    """Return the last value of each metric as facts about the file, so that runs are ordered without opening it.

    A finite number survives JSON bit by bit. NaN and infinity are spelled as in YAML.

    Args:
        tensors: The tensors of the file; a malformed column of values is passed over.
    """
    meta: dict[str, float | str] = {}
    for name in metric_names(tensors):
        column = tensors[f"{name}/value"]
        if column.ndim == 1 and column.dtype == torch.float64:
            meta[_FINAL + name] = spelled(float(column[-1]) if len(column) else math.nan)
    return meta


def spelled(value: float) -> float | str:
    """Return a number as JSON can hold it: NaN and infinity are spelled as in YAML."""
    return value if math.isfinite(value) else ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"


def final_value(value: object) -> float | None:
    """Return the number that :func:`spelled` wrote; None for anything else."""
    if isinstance(value, str):
        # Any other word is damage or a later format, and says nothing.
        return _NOT_FINITE.get(value)
    # A bool is an int in Python, and JSON's true is not a metric.
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
        return None  # JSON may hold an integer of 400 digits, which is not a float
    return float(value)


def final_of(meta: Mapping[str, object], name: str) -> float | None:
    """Return the last value of a metric from the facts about its file; None where they do not say it."""
    return final_value(meta.get(_FINAL + name))


def metric_names(tensor_names: Iterable[str]) -> list[str]:
    """Return the sorted names of the metrics in a history file."""
    return sorted(name.removesuffix("/value") for name in tensor_names if name.endswith("/value"))


_OF_TRAINING = "metrics/train/"
"""Composer's prefix of the metrics of training."""


def meant(names: list[str]) -> list[str]:
    """Return which of the metrics with one short name are meant: those of training only where there are no others."""
    return [name for name in names if not name.startswith(_OF_TRAINING)] or names


def resolve_metric(name: str, known: Iterable[str], owner: str) -> str:
    """Return the full name of a metric, given it or its last part, such as ``"MulticlassAccuracy"``.

    Where training and evaluation have a metric of one name, a last part means that of the evaluation.

    Args:
        name: The name to find.
        known: The full names.
        owner: The beginning of the error message, such as ``"run a has"``.

    Raises:
        SignalNotFoundError: No metric has this name, or several end in it; the message lists them.
    """
    known = list(known)
    if name in known:
        return name
    ending = meant([full for full in known if full.endswith(f"/{name}")])
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise SignalNotFoundError(f"{owner} several metrics {name!r}; say which: {', '.join(ending)}")
    raise SignalNotFoundError(f"{owner} no metric {name!r}.{nearest(name, known)}")


def infer_mode(name: str) -> Mode:
    """Return whether more or less of a metric is better, from its name: losses and errors should be small."""
    return "min" if any(word in name.lower() for word in _LESS_IS_BETTER) else "max"
