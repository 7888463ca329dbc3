"""Images that were chosen from an unlabelled pool, with labels that are not the dataset's.

Legend: N images of the pool, M chosen pairs of image and class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reuse_algos.data.hashing import view_hash
from reuse_algos.data.info import DatasetInfo

_SEED, _SALT_PAIR = 0x9A12, 49  # fixed: the keys of repeated images are in archives


@dataclass(frozen=True)
class PseudoLabels:
    """The section ``data.pseudo_labels``: which images of a labelled pool are trained on, and as what.

    Attributes:
        run: Id or unique name of the pool's run (``reuse-algos label``).
        per_class: K, how many images each class takes at most; at least 1.
        per_image: P, how many classes each image proposes; at least 1. An image that serves several classes is one
            training example for each. Default: 1.
    """

    run: str
    per_class: int
    per_image: int = 1

    def __post_init__(self) -> None:
        for name in ("per_class", "per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Chosen:
    """Which examples are trained on, and under which labels.

    Attributes:
        positions: int64 ``[M]``, positions in the pool; a position may come several times with different labels.
        labels: int64 ``[M]``.
    """

    positions: Tensor
    labels: Tensor


def chosen_info(pool: DatasetInfo, chosen: Chosen) -> DatasetInfo:
    """Return the identity of the chosen examples.

    An image keeps its key where it comes first. Each further time it is another example, and its key is a hash of the
    image's key and the class: keys of a dataset differ.

    Args:
        pool: The identity of the pool's images.
        chosen: What was chosen of it.
    """
    keys_M = pool.keys[chosen.positions]
    first_M = torch.zeros(len(keys_M), dtype=torch.bool)
    # Stable: of the pairs of one image the first stays the first.
    by_position = torch.argsort(chosen.positions, stable=True)
    ordered = chosen.positions[by_position]
    new = torch.ones(len(ordered), dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first_M[by_position] = new
    other_M = view_hash(_SEED, keys_M, chosen.labels, _SALT_PAIR)
    return replace(
        pool,
        keys=torch.where(first_M, keys_M, other_M),
        labels=chosen.labels,
        content=None if pool.content is None else pool.content.subset(chosen.positions),
    )


def shared_examples(pool: DatasetInfo, held_out: DatasetInfo) -> Tensor:
    """Return the positions in the pool of the examples that held-out data has, too: int64, ascending.

    Equal content is the same example, whatever its key. Equal keys are the same example where the content of one of
    the two cannot be read, and where it is equal: many datasets number both of their parts from 0.

    Args:
        pool: The identity of the pool.
        held_out: The identity of the data that is evaluated on.
    """
    mine, theirs = pool.content, held_out.content
    everything, others = torch.arange(pool.num_examples), torch.arange(held_out.num_examples)
    if mine is not None and theirs is not None and mine.cheap and theirs.cheap:
        return everything[torch.isin(mine.hashes(everything), theirs.hashes(others))]
    # Positions do not say which example is there, so equal ones show nothing.
    if "position" in (pool.key_kind, held_out.key_kind):
        return everything[:0]
    known = everything[torch.isin(pool.keys, held_out.keys)]
    if mine is None or theirs is None or not len(known):
        return known
    return known[mine.hashes(known) == theirs.hashes(held_out.positions_of(pool.keys[known]))]
