"""Which example is which: keys, the content behind them, and the match of two datasets.

Shapes: N examples now, P examples of a prior run, S of them with a known content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from reuse_algos.data.examples.content import SAMPLE, content_of
from reuse_algos.data.info import DatasetInfo, infer_info, key_of_path
from reuse_algos.errors import DataError, nearest


@dataclass(frozen=True, eq=False)
class Identity:
    """What a run records of its examples, so that another run can recognise them.

    Attributes:
        keys: int64 ``[P]``.
        key_kind: ``id``, ``path`` or ``position``; None where it is not known (runs of older versions).
        rows: int64 ``[S]``: positions of the examples whose content is known; empty where none is.
        hashes: int64 ``[S]``: their content hashes.
    """

    keys: Tensor
    key_kind: str | None
    rows: Tensor
    hashes: Tensor

    @property
    def positional(self) -> bool:
        """Whether the keys are positions, which say nothing of which example is there."""
        if self.key_kind is not None:
            return self.key_kind == "position"
        return torch.equal(self.keys, torch.arange(len(self.keys)))

    @property
    def whole(self) -> bool:
        """Whether the content of every example is known."""
        return 0 < len(self.rows) == len(self.keys)


@dataclass(frozen=True, eq=False)
class Match:
    """How the examples of a prior run and of the current data belong together.

    Attributes:
        rows: int64 ``[N]``: prior position of each current example, or -1.
        checked: How many examples were compared by content.
        differing: How many of those have another content under the same key.
        problem: Why the match cannot be trusted, or an empty text.
    """

    rows: Tensor
    checked: int
    differing: int
    problem: str = ""


def identify(
    dataset: Dataset[Any],
    *,
    key: str | Callable[[int], int | str] | None = None,
    fingerprint: int | str = SAMPLE,
    labels: Tensor | None = None,
    class_names: tuple[str, ...] | None = None,
    name: str | None = None,
) -> DatasetInfo:
    """Say what the examples of a dataset are, where they cannot be recognised by themselves.

    Set the result as ``dataset.info``, or give it to recorder and algorithms as ``dataset=``.

    Args:
        dataset: A map-style dataset.
        key: The key of an example: a function of its position, or the name of a column of a Hugging Face dataset or
            of a list attribute. Keys are whole numbers or texts. Default: paths where the dataset lists files, else
            positions.
        fingerprint: ``full`` to compare the content of all examples at the start; otherwise a seeded sample of 64 is
            compared. Data in memory up to 256 MiB are always compared whole. Default: 64.
        labels: int64 ``[N]``. Default: what the dataset says.
        class_names: Name of each class. Default: what the dataset says.
        name: Name of the dataset. Default: that of its class.

    Raises:
        DataError: The dataset is iterable, a key occurs twice, or the setting of ``fingerprint`` is unknown.
    """
    if fingerprint not in (SAMPLE, "full"):
        raise DataError(f"fingerprint must be 'full' or {SAMPLE}, not {fingerprint!r}")
    info = infer_info(dataset)
    content = info.content or content_of(dataset)
    if content is not None and fingerprint == "full":
        content = replace(content, cheap=True)
    changes: dict[str, Any] = {"content": content}
    if key is not None:
        changes |= {"keys": _keys(dataset, key, info.num_examples), "key_kind": "id"}
    for field, value in (("labels", labels), ("class_names", class_names), ("name", name)):
        if value is not None:
            changes[field] = value
    return replace(info, **changes)


def identity_of(info: DatasetInfo) -> Identity:
    """Return what a run records: the content of every example where that is cheap or asked for, else of a sample."""
    return Identity(info.keys, info.key_kind, *info.known_content)


def same_data(info: DatasetInfo, fingerprint: str, key_fingerprint: str | None) -> bool:
    """Return whether the current data are those of a record, by all that both sides know.

    Args:
        info: The current data.
        fingerprint: Fingerprint of the record.
        key_fingerprint: Its fingerprint without content; None where the record has no content.
    """
    # Where one side has no content, both are compared without it: older archives have keys and labels only.
    if key_fingerprint is not None and info.content is not None:
        return fingerprint == info.fingerprint
    return (key_fingerprint or fingerprint) == info.key_fingerprint


def match_keys(prior: Identity, info: DatasetInfo) -> Match:
    """Match the examples of a prior run and the current ones by key and content, never by position alone.

    Keys that mean something (ids, paths) match where the content of those that were compared agrees. Positions match
    only where the content of every example of the prior run is known: an example is then found by its content.
    """
    positional = prior.positional or info.key_kind == "position"
    if prior.whole and info.content is not None and (positional or info.content.cheap):
        everything = torch.arange(info.num_examples)
        hashes_N = info.known_content[1] if info.content.cheap else info.content.hashes(everything)
        by_key_N = _places(prior.keys, info.keys)
        if positional:
            # Hashes of equal content are equal, so any of the examples with this content is the right one.
            rows_N = _places(prior.hashes, hashes_N)
            return Match(rows_N, info.num_examples, int((by_key_N >= 0).sum() - (rows_N >= 0).sum()))
        at_N = torch.empty_like(prior.hashes).scatter_(0, prior.rows, prior.hashes)
        agree_N = (by_key_N >= 0) & (at_N[by_key_N.clamp_min(0)] == hashes_N)
        differing = int(((by_key_N >= 0) & ~agree_N).sum())
        return Match(torch.where(agree_N, by_key_N, -1), int((by_key_N >= 0).sum()), differing)
    rows_N = _places(prior.keys, info.keys)
    checked, differing = _compare(prior, info, rows_N)
    return Match(rows_N, checked, differing, _problem(prior, info, positional, checked, differing))


def _compare(prior: Identity, info: DatasetInfo, rows_N: Tensor) -> tuple[int, int]:
    """Return how many of the matched examples were compared by content, and how many of them differ."""
    if info.content is None or not len(prior.rows):
        return 0, 0
    hash_P = torch.zeros(len(prior.keys), dtype=torch.int64)
    known_P = torch.zeros(len(prior.keys), dtype=torch.bool)
    hash_P[prior.rows], known_P[prior.rows] = prior.hashes, True
    # At most twice the sample is read: each may be a file on a slow disk.
    here_M = ((rows_N >= 0) & known_P[rows_N.clamp_min(0)]).nonzero().flatten()[: 2 * SAMPLE]
    differing = info.content.hashes(here_M) != hash_P[rows_N[here_M]]
    return len(here_M), int(differing.sum())


def _problem(prior: Identity, info: DatasetInfo, positional: bool, checked: int, differing: int) -> str:
    if positional:
        return (
            "the examples are known by their positions only, which name other examples once one is added or removed. "
            "Give keys (dataset.info = reuse_algos.data.identify(dataset, key=...)) or record with "
            'fingerprint="full", so that examples are matched by content'
        )
    if differing:
        return (
            f"{differing} of {checked} examples that were compared have another content under the same key. Choose a "
            'run on the same data, or record and train with identify(dataset, fingerprint="full"), which leaves out '
            "the examples that changed"
        )
    return ""


def _places(known_P: Tensor, wanted_N: Tensor) -> Tensor:
    """Return where each wanted value stands among the known ones, int64 ``[N]``; -1 where it is missing."""
    if not len(known_P):
        return torch.full_like(wanted_N, -1)
    # Stable: of equal hashes the first example is taken, the same one on every machine.
    order = torch.argsort(known_P, stable=True)
    place = torch.searchsorted(known_P[order], wanted_N).clamp_(max=len(order) - 1)
    rows = order[place]
    return torch.where(known_P[rows] == wanted_N, rows, -1)


def _keys(dataset: Any, key: str | Callable[[int], int | str], count: int) -> Tensor:
    if isinstance(key, str):
        table = getattr(dataset, "column_names", None)
        known = vars(dataset) if table is None else table
        if key not in known and not (table is None and hasattr(dataset, key)):
            raise DataError(f"key={key!r} is not a column or list of {type(dataset).__name__}.{nearest(key, known)}")
        values = list(getattr(dataset, key) if table is None else dataset[key])
        if len(values) != count:
            raise DataError(f"key={key!r} has {len(values)} values for {count} examples")
    else:
        values = [key(position) for position in range(count)]
    numbers = []
    for value in values:
        if isinstance(value, str):
            numbers.append(key_of_path(value))
        elif isinstance(value, int | np.integer) or (isinstance(value, Tensor) and not value.is_floating_point()):
            numbers.append(int(value))
        else:
            raise DataError(f"a key must be a whole number or a text, not {value!r}")
    return torch.tensor(numbers, dtype=torch.int64)
