"""Two encoders of different modalities made one classifier, without training, by pairs that both have encoded.

ASIF (Norelli et al. 2023, https://arxiv.org/abs/2210.01738): an image is described by its similarities to the images of
many known pairs, a text by its similarities to their texts, and the two descriptions can be compared.

Legend: A anchors (known pairs), B images, T texts, D and E sizes of the image and the text features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from reuse_algos.archive import PriorRun
from reuse_algos.errors import DataError, SignalNotFoundError
from reuse_algos.priors.choosing import identity_of_run


class Decision(NamedTuple):
    """An anchor's part in a similarity.

    Attributes:
        key: The anchor's key.
        share: Its summand of the similarity.
    """

    key: int
    share: float


def relative_rows(features_BD: Tensor, anchors_AD: Tensor, k: int, power: float) -> Tensor:
    """Return relative representations: cosines to the anchors, the k largest kept, to a power, of unit norm.

    Args:
        features_BD: Features of any scale.
        anchors_AD: The anchors' features, of unit norm.
        k: How many similarities are kept, from 1 to A. Of equal ones the earlier anchor's is kept.
        power: Exponent, above 0. Negative cosines count as 0.

    Returns:
        ``[B, A]`` in the type of the features; rows without a positive cosine are 0.
    """
    cosines_BA = _unit(features_BD) @ anchors_AD.T
    # Stable, unlike topk: of equal cosines the same ones are kept on every machine.
    order_BA = cosines_BA.sort(dim=1, descending=True, stable=True)
    # Clamped, as a power would turn or lose the sign of a negative cosine.
    values_Bk = order_BA.values[:, :k].clamp(min=0) ** power
    rows_BA = torch.zeros_like(cosines_BA).scatter_(1, order_BA.indices[:, :k], values_Bk)
    return _unit(rows_BA)


class RelativeSpace:
    """The anchors, and similarities of images and texts by them.

    Removing pairs and adding them again gives the same numbers bit for bit.

    Args:
        k: How many anchors describe an example, from 1. Default: 800.
        power: Exponent of the cosines, above 0. Default: 8.
    """

    def __init__(self, k: int = 800, power: float = 8.0) -> None:
        if k < 1 or not 0 < power < math.inf:
            raise ValueError(f"RelativeSpace needs k from 1 and a finite power above 0, got {k} and {power}")
        self.k, self.power = k, power
        self._keys_A = torch.zeros(0, dtype=torch.int64)
        self._images_AD: Tensor | None = None
        self._texts_AE: Tensor | None = None

    @classmethod
    def of_runs(cls, images: PriorRun, texts: PriorRun, *, k: int = 800, power: float = 8.0) -> RelativeSpace:
        """Return a space whose anchors are the examples that both runs have archived ``features`` of.

        Args:
            images: A run with the signal ``features`` of images.
            texts: A run with the signal ``features`` of texts, whose keys are those of their images.
            k: See the class.
            power: See the class.

        Raises:
            SignalNotFoundError: A run has no features, or no keys.
            DataError: The runs have no key in common, or the keys of one are only positions.
        """
        (image_keys_N, image_rows_ND), (text_keys_N, text_rows_NE) = map(archived_features, (images, texts))
        for run in (images, texts):
            # Example 7 of one dataset and example 7 of another would be a pair by accident.
            if identity_of_run(run).positional:
                raise DataError(
                    f"run {run.id} knows its examples by their positions only, which pair them with any others. Give "
                    "both datasets the keys of the pairs: keys_train in an .npz file, or in Python dataset.info = "
                    "reuse_algos.data.identify(dataset, key=...), and record the runs again."
                )
        places = {int(key): place for place, key in enumerate(text_keys_N.tolist())}
        common = [(place, places[key]) for place, key in enumerate(image_keys_N.tolist()) if key in places]
        if not common:
            raise DataError(
                f"runs {images.id} ({len(image_keys_N)} examples) and {texts.id} ({len(text_keys_N)}) have no key in "
                "common, so no image is paired with a text. Train both on the same pairs, with the same keys."
            )
        left, right = (torch.tensor(column) for column in zip(*common, strict=True))
        space = cls(k, power)
        space.add(image_keys_N[left], image_rows_ND[left], text_rows_NE[right])
        return space

    @property
    def keys(self) -> Tensor:
        """Keys of the anchors, int64 ``[A]``, ascending."""
        return self._keys_A

    def add(self, keys_A: Tensor, images_AD: Tensor, texts_AE: Tensor) -> None:
        """Add anchors.

        Args:
            keys_A: Int64, each once and none of them there.
            images_AD: Float features of the images, in the order of the keys.
            texts_AE: Float features of the texts, in the order of the keys.

        Raises:
            DataError: Keys repeat, or numbers and sizes do not fit.
        """
        if not len(keys_A) == len(images_AD) == len(texts_AE):
            raise DataError(
                f"{len(keys_A)} keys come with {len(images_AD)} images and {len(texts_AE)} texts; give one of each"
            )
        keys = torch.cat([self._keys_A, keys_A.to(torch.int64).cpu()])
        if len(keys.unique()) != len(keys):
            raise DataError("anchors are added once: a key is given twice, or is there already. Remove it first.")
        for known, given in ((self._images_AD, images_AD), (self._texts_AE, texts_AE)):
            if known is not None and known.shape[1:] != given.shape[1:]:
                raise DataError(f"features of size {tuple(given.shape[1:])} do not fit those of {known.shape[1]} there")
        # In the order of the keys: what was added when must not change the order of a sum.
        order_A = keys.argsort()
        images, texts = _unit(images_AD), _unit(texts_AE)
        self._keys_A = keys[order_A]
        self._images_AD = (images if self._images_AD is None else torch.cat([self._images_AD, images]))[order_A]
        self._texts_AE = (texts if self._texts_AE is None else torch.cat([self._texts_AE, texts]))[order_A]

    def remove(self, keys: Tensor) -> None:
        """Remove anchors: nothing of their features stays.

        Args:
            keys: Int64, all of them there.

        Raises:
            DataError: A key is not there.
        """
        gone_A = torch.isin(self._keys_A, keys.to(torch.int64).cpu())
        # Before anything is removed: a call that fails leaves the space as it was.
        if int(gone_A.sum()) != len(keys.unique()):
            raise DataError(f"{len(keys.unique()) - int(gone_A.sum())} of {len(keys)} keys to remove are not anchors")
        assert self._images_AD is not None
        assert self._texts_AE is not None
        self._keys_A = self._keys_A[~gone_A]
        self._images_AD, self._texts_AE = self._images_AD[~gone_A], self._texts_AE[~gone_A]

    def similarity(self, images_BD: Tensor, texts_TE: Tensor) -> Tensor:
        """Return how well images and texts fit, ``[B, T]`` from 0 to 1: the product of their relative representations.

        Raises:
            DataError: There are fewer anchors than k.
        """
        images_BA, texts_TA = self._relative(images_BD, texts_TE)
        return images_BA @ texts_TA.T

    def decided_by(self, image_D: Tensor, text_E: Tensor, count: int = 5) -> list[Decision]:
        """Return the anchors that contribute most to a similarity, the largest first; all shares add up to it.

        Args:
            image_D: Features of one image.
            text_E: Features of one text.
            count: How many at most; those without a share are left out. Default: 5.
        """
        images_1A, texts_1A = self._relative(image_D[None], text_E[None])
        shares_A = (images_1A * texts_1A)[0]
        order = shares_A.sort(descending=True, stable=True).indices[:count].tolist()
        return [Decision(int(self._keys_A[at]), float(shares_A[at])) for at in order if shares_A[at] > 0]

    def _relative(self, images_BD: Tensor, texts_TE: Tensor) -> tuple[Tensor, Tensor]:
        count = len(self._keys_A)
        if self.k > count:
            raise DataError(f"k={self.k} is larger than the {count} anchors. Add pairs, or choose a smaller k.")
        assert self._images_AD is not None
        assert self._texts_AE is not None
        return (
            relative_rows(images_BD, self._images_AD, self.k, self.power),
            relative_rows(texts_TE, self._texts_AE, self.k, self.power),
        )


def archived_features(run: PriorRun) -> tuple[Tensor, Tensor]:
    """Return keys ``[N]`` and features ``[N, D]`` of the examples whose features a run has archived, of its first view.

    Raises:
        SignalNotFoundError: The run has no features, or no keys.
    """
    if "features" not in run.signal_names:
        raise SignalNotFoundError(
            f"run {run.id} has no archived features. Harvest them: reuse-algos harvest ARCHIVE {run.id} --signals "
            "features --plain"
        )
    signal = run.signal("features")
    values_ND, seen_N = signal.dense(signal.slots[0])
    return run.keys()[seen_N], values_ND[seen_N].flatten(1).float()


def _unit(rows: Tensor) -> Tensor:
    """Return rows of unit norm; rows of zeros stay zeros."""
    norms = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, torch.ones_like(norms))
