"""Replayable augmentation: view ``v`` of an example is a function of (view seed, key, v) and of nothing else.

A cache of logits made from an augmented example is only true for that augmentation. With views, a later run can show
the example in exactly the same way again, on any worker, rank or batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from reuse_algos.data.examples.content import example_bytes
from reuse_algos.data.hashing import view_hash
from reuse_algos.data.images.pixels import PixelSpace, pixel_space_of
from reuse_algos.data.info import DatasetInfo, infer_info
from reuse_algos.data.seeding import seeded_rng, undisturbed
from reuse_algos.errors import DataError

UNKNOWN_VIEW = -1
"""View number of an ordinary random augmentation, which cannot be asked for again."""

# Salts keep the purposes of view_hash apart. 0 to 15 belong to augment.py, these to the seeding of user transforms.
_SALT_VIEW, _SALT_EPOCH = 16, 17


class ExampleView(NamedTuple):
    """What a sampler may yield instead of a plain position: which example, and in which view.

    Attributes:
        position: Index into the dataset.
        view: View number, or :data:`UNKNOWN_VIEW` for an ordinary random augmentation.
    """

    position: int
    view: int


@dataclass(frozen=True)
class ViewPolicy:
    """Which views a run shows.

    Attributes:
        seed: Seed of the views. Kept apart from the seed of the run, so that runs with different seeds share views.
        num_views: How many different views of each example there are; 0 for ordinary random augmentation without end.
        transform: Stable description of the augmentation, such as ``"crop_flip(padding=4)"``. Views of equal seed and
            number are the same images exactly when this is equal too.

    Raises:
        DataError: If ``num_views`` is negative.
    """

    seed: int
    num_views: int
    transform: str = "unknown"

    def __post_init__(self) -> None:
        if self.num_views < 0:
            raise DataError(f"num_views must be 0 (random augmentation) or more, not {self.num_views}.")

    def view_of_epoch(self, epoch: int) -> int:
        """Return the view in which every example is shown in ``epoch`` (from 0), or -1 with ``num_views`` 0."""
        return epoch % self.num_views if self.num_views else UNKNOWN_VIEW


_LOOKED_AT = 32
"""Examples that are read twice: a flip of every second image stays unseen once in 4 billion times."""


def declared_views(dataset: Any) -> ViewPolicy | None:
    """Return the views that a dataset says it has; it then takes :class:`ExampleView` indices."""
    policy = getattr(dataset, "view_policy", None)
    return policy if isinstance(policy, ViewPolicy) else None


def views_of(dataset: Any, collate: Callable[[list[Any]], Any] | None = None) -> ViewPolicy | None:
    """Return the views that a dataset declares or shows: data without augmentation have one view and need not say so.

    A few examples are read and collated twice under different random numbers. Where all of them stay the same, there is
    one view; a ``collate_fn`` that masks tokens or adds noise augments as a transform does. A dataset that is told the
    epoch (``set_epoch``) may show other views later, and a stream has no positions: both must declare their views.

    Args:
        dataset: Of a DataLoader.
        collate: Its ``collate_fn``. Default: None, which is not looked at.

    Returns:
        The views; None for random augmentation whose views cannot be asked for again.
    """
    declared = declared_views(dataset)
    if declared is not None or hasattr(dataset, "set_epoch") or not hasattr(dataset, "__getitem__"):
        return declared
    size = len(dataset) if isinstance(dataset, Sized) else 0
    positions = sorted({number * size // _LOOKED_AT for number in range(_LOOKED_AT)}) if size else []
    with undisturbed(dataset, collate):  # around all readings: a generator of its own must show itself
        try:
            still = all(_read(dataset, position, 0) == _read(dataset, position, 1) for position in positions)
        except Exception:  # what cannot be read or compared is for training to say; it has no known view
            return None
        still = still and _collated_alike(dataset, positions[:_COLLATED], collate)
    return ViewPolicy(0, 1, "none") if positions and still else None


_COLLATED = 4


def _collated_alike(dataset: Any, positions: list[int], collate: Callable[[list[Any]], Any] | None) -> bool:
    """Return whether a ``collate_fn`` gives the same batch under different random numbers, as far as it can be told."""
    if collate is None:
        return True
    batches = []
    try:
        for seed in (0, 1):
            with seeded_rng(seed):
                batches.append(example_bytes(collate([dataset[position] for position in positions])))
    except Exception:  # it may need more rows, or give what cannot be compared; the first batch is looked at later
        return True
    return batches[0] == batches[1]


def _read(dataset: Any, position: int, seed: int) -> bytes:
    with seeded_rng(seed):
        return example_bytes(dataset[position])


class EpochCell:
    """The number of the current epoch, in memory that DataLoader workers share."""

    def __init__(self) -> None:
        # Persistent workers keep the copy of the dataset they were started with: a plain attribute would never change
        # there.
        self._epoch = torch.full((), -1, dtype=torch.int64).share_memory_()

    @property
    def value(self) -> int | None:
        """The epoch last set, from 0, or None before the first."""
        epoch = int(self._epoch)
        return epoch if epoch >= 0 else None

    def set(self, epoch: int) -> None:
        """Set the epoch.

        Raises:
            DataError: If it is negative.
        """
        if epoch < 0:
            raise DataError(f"The epoch must be 0 or more, not {epoch}.")
        self._epoch.fill_(epoch)


class ViewedDataset(Dataset[Any]):
    """Any map-style dataset whose random transforms become replayable views.

    ``dataset[ExampleView(position, view)]`` runs the wrapped dataset's ``__getitem__`` with the global generators of
    torch, numpy and random seeded from (policy seed, key, view), and puts their states back afterwards. Transforms
    with generators of their own cannot be steered this way.

    What an index means:

    * a view of 0 or more: exactly that view;
    * a plain position: the view of the current epoch, ``policy.view_of_epoch`` (epoch 0 before :meth:`set_epoch`);
    * view -1, or a plain position with ``num_views=0``: ordinary random augmentation. Before :meth:`set_epoch` that is
      an untouched call of the wrapped dataset. After it, the generators are seeded from (seed, key, epoch), so that a
      resumed run continues with the same augmentations; the view is still reported as unknown.

    Args:
        dataset: A map-style dataset; it gets plain positions.
        policy: The views.
        info: Keys of the examples; found by :func:`~reuse_algos.data.info.infer_info` if not given.
        pixel_space: How the images that it gives were normalised; that of the wrapped dataset if not given.

    Raises:
        DataError: If ``info`` does not have one key per example.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        policy: ViewPolicy,
        info: DatasetInfo | None = None,
        pixel_space: PixelSpace | None = None,
    ) -> None:
        self.info = infer_info(dataset) if info is None else info.with_content_of(dataset)
        if not isinstance(dataset, Sized) or len(dataset) != self.info.num_examples:
            raise DataError(f"The info has {self.info.num_examples} keys, but that is not the length of the dataset.")
        self.dataset = dataset
        self.view_policy = policy
        self.pixel_space = pixel_space_of(dataset) if pixel_space is None else pixel_space
        self._epoch = EpochCell()

    def __len__(self) -> int:
        return self.info.num_examples

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that comes next; reaches running workers, too."""
        self._epoch.set(epoch)

    def __getitem__(self, index: ExampleView | int) -> Any:
        epoch = self._epoch.value
        if isinstance(index, tuple):
            position, view = index
        else:
            position, view = int(index), self.view_policy.view_of_epoch(epoch or 0)
        if view < UNKNOWN_VIEW:
            raise DataError(f"View {view} of position {position}: views are numbered from 0, and -1 means random.")
        # No epoch was set: a plain DataLoader of a user, whose random numbers are left alone.
        if view == UNKNOWN_VIEW and epoch is None:
            return self.dataset[position]
        if not -len(self) <= position < len(self):
            raise IndexError(f"Position {position} of a dataset of {len(self)} examples.")
        # Two salts: random augmentation of epoch 3 must not repeat view 3.
        number, salt = (epoch, _SALT_EPOCH) if view == UNKNOWN_VIEW else (view, _SALT_VIEW)
        seed = view_hash(self.view_policy.seed, self.info.keys[position], torch.tensor(number), salt)
        with seeded_rng(int(seed)):
            return self.dataset[position]
