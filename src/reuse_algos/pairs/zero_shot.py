"""Classes that are given by texts only, found for images that no text belongs to.

Legend: A anchors, N images that are classified, T classes, D and E sizes of the image and the text features.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reuse_algos.archive import PriorRun
from reuse_algos.errors import DataError
from reuse_algos.pairs.relative_space import Decision, RelativeSpace, archived_features


@dataclass(frozen=True, eq=False)
class Prompts:
    """What stands for the classes.

    Attributes:
        names: T names, each once.
        features: Float ``[T, E]``, by the encoder of the texts' run.
        keys: int64, keys of archived texts that stand for a class. They are not anchors. Empty where the features came
            from a file.
    """

    names: tuple[str, ...]
    features: Tensor
    keys: Tensor


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """What the images were taken for.

    Attributes:
        space: The anchors.
        prompts: The classes.
        keys: int64 ``[N]``, the images that were classified.
        images: Float ``[N, D]``, their features.
        scores: Float ``[N, T]``, how well each class fits, from 0 to 1.
        labels: int64 ``[N]``, their classes among the names; -1 where the images' run does not know, or knows others.
    """

    space: RelativeSpace
    prompts: Prompts
    keys: Tensor
    images: Tensor
    scores: Tensor
    labels: Tensor

    @property
    def classes(self) -> Tensor:
        """The best class of each image, int64 ``[N]``; -1 where none fits at all."""
        best_N = self.scores.max(1)
        return torch.where(best_N.values > 0, best_N.indices, -1)

    @property
    def accuracy(self) -> float | None:
        """Share of the images with a known class that are taken for it; None where none is known."""
        known_N = self.labels >= 0
        if not bool(known_N.any()):
            return None
        return float((self.classes[known_N] == self.labels[known_N]).double().mean())

    def decided_by(self, key: int, count: int = 5) -> list[Decision]:
        """Return the pairs that decided what an image was taken for, see :meth:`RelativeSpace.decided_by`.

        Args:
            key: The image's key.
            count: How many pairs at most. Default: 5.

        Raises:
            DataError: The image was not classified.
        """
        places = (self.keys == key).nonzero().flatten().tolist()
        if not places:
            raise DataError(f"image {key} is not among the {len(self.keys)} that were classified")
        best = int(self.scores[places[0]].argmax())
        return self.space.decided_by(self.images[places[0]], self.prompts.features[best], count)


def read_prompts(path: str | Path, texts: PriorRun) -> Prompts:
    """Read what stands for each class.

    A text file has one class a line: its name, a tab, and the keys of archived texts that stand for it, with commas
    between; their unit features are averaged. An ``.npz`` file has ``names``, strings ``[T]``, and ``features``, floats
    ``[T, E]`` that the encoder of the texts made.

    Raises:
        DataError: The file cannot be read, a name comes twice, or a key has no archived features.
    """
    path = Path(path)
    if path.suffix == ".npz":
        names, features = _from_npz(path)
        keys = torch.zeros(0, dtype=torch.int64)
    else:
        names, features, keys = _from_text(path, texts)
    if len(set(names)) < len(names) or len(names) < 2:
        raise DataError(f"{path}: there must be at least two classes, each named once, not {list(names)[:10]}")
    return Prompts(tuple(names), features, keys)


def _from_npz(path: Path) -> tuple[list[str], Tensor]:
    try:
        # No pickle: a file of features must not be able to run code.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            names, features = file["names"], file["features"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an .npz file with names and features: {error}") from error
    if names.ndim != 1 or names.dtype.kind != "U" or features.ndim != 2 or features.dtype.kind != "f":
        raise DataError(
            f"{path}: names must be strings [T] and features floats [T, E], not {names.dtype} {names.shape} and "
            f"{features.dtype} {features.shape}"
        )
    if not np.isfinite(features).all():
        raise DataError(f"{path}: features hold NaN or infinite numbers, which fit no image")
    if len(names) != len(features):
        raise DataError(f"{path}: {len(names)} names come with {len(features)} rows of features")
    return [str(name) for name in names], torch.from_numpy(features).float()


def _from_text(path: Path, texts: PriorRun) -> tuple[list[str], Tensor, Tensor]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error
    keys_N, features_NE = archived_features(texts)
    place = {int(key): row for row, key in enumerate(keys_N.tolist())}
    names, rows, used = [], [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, tab, listed = line.partition("\t")
        try:
            own = [int(text) for text in listed.split(",")] if tab else []
        except ValueError:
            own = []
        if not own or not name.strip():
            raise DataError(f"{path}, line {number}: write a name, a tab, and keys with commas between, not {line!r}")
        missing = [key for key in own if key not in place]
        if missing:
            raise DataError(f"{path}, line {number}: run {texts.id} has no features of key {missing[0]}")
        own_ME = features_NE[[place[key] for key in own]]
        # Of unit norm first, so that a long text does not outweigh the other wordings.
        rows.append(torch.nn.functional.normalize(own_ME, dim=1).mean(0))
        names.append(name.strip())
        used += own
    if not rows:
        raise DataError(f"{path} names no class")
    return names, torch.stack(rows), torch.tensor(used, dtype=torch.int64)


def zero_shot(
    images: PriorRun,
    texts: PriorRun,
    prompts: Prompts,
    *,
    k: int = 800,
    power: float = 8.0,
    without: Sequence[int] = (),
) -> ZeroShot:
    """Classify the images that have no text, by the pairs of the others (Norelli et al. 2023).

    Args:
        images: A run with archived features of images.
        texts: A run with archived features of texts, under the keys of their images.
        prompts: The classes. Texts that stand for a class are not anchors, and their images are classified.
        k: How many anchors describe an example. Default: 800.
        power: Exponent of the similarities. Default: 8.
        without: Keys of pairs that must not decide. Default: none.

    Raises:
        SignalNotFoundError: A run has no features.
        DataError: The runs have no key in common or only positions, k is larger than the anchors, the prompts' features
            are of another size, or every image has a text.
    """
    space = RelativeSpace.of_runs(images, texts, k=k, power=power)
    paired = space.keys
    # A text that stands for a class would decide for itself if it were an anchor as well.
    aside = torch.cat([prompts.keys, torch.tensor(list(without), dtype=torch.int64)])
    unknown = aside[~torch.isin(aside, torch.cat([paired, prompts.keys]))]
    if len(unknown):
        raise DataError(f"key {int(unknown[0])} is left out, and is none of the {len(paired)} pairs")
    space.remove(aside[torch.isin(aside, paired)].unique())
    size = archived_features(texts)[1].shape[1]
    if prompts.features.shape[1] != size:
        raise DataError(f"the prompts have {prompts.features.shape[1]} features and run {texts.id} has {size}")
    keys_N, images_ND = archived_features(images)
    # Texts that stand for a class are not pairs any more, so their images are classified as well.
    alone_N = ~torch.isin(keys_N, paired) | torch.isin(keys_N, prompts.keys)
    if not bool(alone_N.any()):
        raise DataError(
            f"each of the {len(keys_N)} images of run {images.id} has a text in run {texts.id}, so no image is left to "
            "classify. Harvest features of further images, or take texts out of the texts' run."
        )
    keys, chosen = keys_N[alone_N], images_ND[alone_N]
    return ZeroShot(
        space, prompts, keys, chosen, space.similarity(chosen, prompts.features), _labels_of(images, keys, prompts)
    )


def _labels_of(run: PriorRun, keys_N: Tensor, prompts: Prompts) -> Tensor:
    """Return the images' classes as numbers of the prompts, by name; -1 where they are not known."""
    record, labels = run.manifest.dataset, run.labels()
    if labels is None or record is None or record.class_names is None:
        return torch.full_like(keys_N, -1)
    numbers = {name: number for number, name in enumerate(prompts.names)}
    table = torch.tensor([numbers.get(name, -1) for name in record.class_names], dtype=torch.int64)
    order = run.keys().argsort()
    place_N = order[torch.searchsorted(run.keys()[order], keys_N)]
    numbers_N = labels[place_N]
    # Archives are not trusted: a label below 0 would read the last class.
    known_N = (numbers_N >= 0) & (numbers_N < len(table))
    return torch.where(known_N, table[numbers_N.clamp(0, len(table) - 1)], -1)
