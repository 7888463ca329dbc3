"""Row 19: prior runs of other classes, models or data are refused, or their rows are remapped because one said so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from distilling import fit
from reuse_algos.algorithms import PriorRunDistillation
from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.views import ViewedDataset, ViewPolicy
from reuse_algos.errors import PriorRunMismatchError
from reuse_algos.harvest import harvest
from reuse_algos.priors.choosing import match_examples
from toy import NUM_CLASSES, NoisyDataset, blobs, mlp, record_run, viewed

from .outcome import Outcome, Tally, spread

LENGTH, NAMES = 64, tuple("abcd")


@dataclass(frozen=True)
class Other:
    """A current run that differs from the prior one.

    Attributes:
        data: Its training data.
        allowed: Whether ``mismatch: allow`` makes the prior run usable.
        source: Where its teachers are to come from.
        model: Its model.
    """

    data: Callable[[], Dataset] = viewed
    allowed: bool = False
    source: str = "cached"
    model: Callable[[], Any] = lambda: mlp(5)


def _data(
    order: torch.Tensor,
    *,
    labels: Callable[[torch.Tensor], torch.Tensor] = lambda keys: keys % NUM_CLASSES,
    names: tuple[str, ...] = NAMES,
    offset: int = 0,
    views: tuple[int, str] = (3, "noise(0.3)"),
) -> Dataset:
    """The examples with the given keys, in this order, under labels, keys and views of one's own."""
    # The last numbers that torch draws depend on how many are drawn, so no fewer than the prior run's.
    examples = Subset(blobs(max(LENGTH, int(order.max()) + 1)), order.tolist())
    policy = ViewPolicy(seed=views[0], num_views=2, transform=views[1])
    return ViewedDataset(NoisyDataset(examples), policy, DatasetInfo("blobs", order + offset, labels(order), names))  # type: ignore[arg-type]


SAME = torch.arange(LENGTH)
SHUFFLED = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(0))

OTHERS: dict[str, Other] = {
    "fewer classes in the data": Other(lambda: _data(SAME, labels=lambda keys: keys % 3, names=NAMES[:3])),
    "more classes in the model, live": Other(model=lambda: mlp(5, num_classes=5), source="live"),
    "more classes in the model, cached": Other(model=lambda: mlp(5, num_classes=5)),
    "renamed classes": Other(lambda: _data(SAME, names=("a", "b", "d", "c"))),
    "reordered classes": Other(lambda: _data(SAME, names=NAMES[::-1])),
    "another model": Other(model=lambda: mlp(5, hidden=8), source="live"),
    "shuffled ids": Other(lambda: _data(SHUFFLED), allowed=True),
    "reversed ids": Other(lambda: _data(SAME.flip(0)), allowed=True),
    "other ids": Other(lambda: _data(SAME, offset=1000)),
    "one changed label": Other(
        lambda: _data(SAME, labels=lambda keys: torch.where(keys == 7, 0, keys % NUM_CLASSES)), allowed=True
    ),
    "every label changed": Other(lambda: _data(SAME, labels=lambda keys: (keys + 1) % NUM_CLASSES)),
    "grown data": Other(lambda: _data(torch.arange(LENGTH + 32)), allowed=True),
    "grown data, shuffled": Other(lambda: _data(torch.arange(LENGTH + 32).roll(40)), allowed=True),
    "shrunken data": Other(lambda: _data(torch.arange(0, LENGTH, 2)), allowed=True),
    "another transform": Other(lambda: _data(SAME, views=(3, "noise(0.9)")), allowed=True),
    "another seed of the views": Other(lambda: _data(SAME, views=(4, "noise(0.3)")), allowed=True),
    "unknown views": Other(lambda: viewed(num_views=0), allowed=True),
    "more views": Other(lambda: viewed(num_views=3), allowed=True),
}


def case(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Each difference (``count`` of them, all for None), refused by default and with the choice to allow it."""
    run_id = record_run(folder, epochs=2)
    harvest(folder, run_id, dataset=viewed(), model=mlp, progress=False)
    archive, tally = RunArchive(folder, create=True), Tally()
    run = archive.run(run_id)
    _train(archive, run_id, Other(), "refuse")  # a control: without any difference nothing is refused
    names = list(OTHERS)
    for name in (names[at] for at in spread(len(names), count, seed)):
        tally.tries += 1
        other = OTHERS[name]
        tally.check(_refused(archive, run_id, other, "refuse"), f"{name} was not refused")
        refused = _refused(archive, run_id, other, "allow")
        tally.check(refused != other.allowed, f"{name} was {'' if refused else 'not '}refused where it was allowed")
        if other.allowed:
            _check_rows(run, other.data(), tally, name)
    if any(path.stat().st_mode & 0o222 for path in folder.glob("runs/*/data/*/*")) or not archive.verify().ok:
        tally.tear("the archive was changed")
    return tally.outcome()


def _train(archive: RunArchive, run_id: str, other: Other, mismatch: str) -> None:
    algorithm = PriorRunDistillation(archive, run_id, source=other.source, mismatch=mismatch, when={})
    fit([algorithm], other.model(), data=other.data(), max_duration="1ba")


def _refused(archive: RunArchive, run_id: str, other: Other, mismatch: str) -> bool:
    try:
        _train(archive, run_id, other, mismatch)
    except PriorRunMismatchError as error:
        return run_id in str(error) or "this run" in str(error)
    return False


def _check_rows(run: PriorRun, data: Any, tally: Tally, name: str) -> None:
    """Each row that is taken belongs to the same example with the same label, and none is left out without need."""
    rows = match_examples(run, data.info, "allow")
    place = torch.arange(data.info.num_examples) if rows is None else rows
    prior_keys, prior_labels = run.keys().tolist(), run.labels()
    assert prior_labels is not None
    position_of = {(key, int(prior_labels[at])): at for at, key in enumerate(prior_keys)}
    expected = [
        position_of.get((key, label), -1)
        for key, label in zip(data.info.keys.tolist(), data.info.labels.tolist(), strict=True)
    ]
    if place.tolist() != expected:
        tally.tear(f"{name}: rows of other examples are used")
