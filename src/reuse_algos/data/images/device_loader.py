"""A whole image dataset as one tensor on a device, augmented there batch by batch.

On small images the usual route (one Python call per example, worker processes, a copy to the GPU per batch) costs more
than the training step. Here a batch is a few tensor operations.

Legend: N examples of the dataset, B of the batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from reuse_algos.data.examples.content import rows_content
from reuse_algos.data.images.augment import Augmentation, Normalisation
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.views import UNKNOWN_VIEW, EpochCell, ExampleView, ViewPolicy
from reuse_algos.errors import DataError


class DeviceImages(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels on a device; :meth:`__getitems__` makes a whole batch there.

    Every random number is a hash of (view seed, key, view), so a batch has the same bits on CPU and GPU and does not
    depend on what else is in it, on the order, on workers or on any generator. With ``num_views=0`` the epoch that
    :meth:`set_epoch` told (0 before) takes the place of the view: the augmentation varies from epoch to epoch without
    end and a resumed run goes on with the same ones.

    What an index means: an ``ExampleView`` with view 0 or more is exactly that view; view -1 is the random augmentation
    of this epoch; a plain position is the policy's view of this epoch.

    Args:
        images: uint8, ``[N, H, W, C]`` or ``[N, C, H, W]`` as ``layout`` says, or ``[N, H, W]`` for one channel.
        labels: Whole numbers ``[N]``.
        pixels: How they are normalised.
        augmentation: What to do to training images.
        view_seed: Seed of the views.
        num_views: Views per example; 0 for random augmentation. Without augmentation there is one view only.
        info: Keys and names; positions are the keys if not given.
        layout: ``"NHWC"`` or ``"NCHW"``.
        device: Where the images are held and batches are made.
        memory_format: Of the batches: ``torch.contiguous_format`` or ``torch.channels_last``.

    Attributes:
        pixel_space: ``pixels``, with which inputs become pixels again.

    Raises:
        DataError: If the arrays have other dtypes or shapes, or do not fit each other or ``info``.
    """

    def __init__(
        self,
        images: Tensor | np.ndarray,
        labels: Tensor | np.ndarray | Sequence[int],
        *,
        pixels: PixelSpace,
        augmentation: Augmentation | None = None,
        view_seed: int = 0,
        num_views: int = 0,
        info: DatasetInfo | None = None,
        layout: str = "NHWC",
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.device = torch.device(device)
        images_NHWC = _as_nhwc(torch.as_tensor(images), layout)
        count, self._height, self._width, channels = images_NHWC.shape
        if len(pixels.mean) != channels:
            raise DataError(f"The images have {channels} channels, but there are {len(pixels.mean)} means.")
        labels_N = _as_labels(labels, count)
        self.info = DatasetInfo("DeviceImages", torch.arange(count), labels_N) if info is None else info
        if self.info.content is None and images_NHWC.device.type == "cpu":
            about = f"mean {list(pixels.mean)} std {list(pixels.std)}"
            self.info = replace(self.info, content=rows_content(images_NHWC, about))
        if self.info.num_examples != count:
            raise DataError(f"There are {count} images, but the info has {self.info.num_examples} keys.")
        self._augmentation = Augmentation("none") if augmentation is None else augmentation
        # Without augmentation every view is the same image, and teachers' logits of one serve all.
        views = num_views if self._augmentation.kind != "none" else 1
        self.view_policy = ViewPolicy(view_seed, views, self._augmentation.description)
        # One row of bytes per image: index_select then copies whole rows, 18 times faster on CPU than a 4-D one.
        self._images_NP = images_NHWC.contiguous().view(count, -1).to(self.device)
        self._labels_N = labels_N.to(self.device)
        self._normalisation = Normalisation(pixels.mean, pixels.std, self.device, memory_format)
        self.pixel_space = pixels
        self._epoch = EpochCell()

    def __len__(self) -> int:
        return self.info.num_examples

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels = self._images_NP.shape[1] // (self._height * self._width)
        return channels, self._height, self._width

    @property
    def nbytes(self) -> int:
        """Bytes that images and labels take on the device."""
        return self._images_NP.nbytes + self._labels_N.nbytes

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that comes next."""
        self._epoch.set(epoch)

    def __getitem__(self, index: ExampleView | int) -> tuple[Tensor, Tensor]:
        """Return one image (float32 ``[C, H, W]``) and its label (int64, no dimension), on the device."""
        images_BCHW, labels_B = self.__getitems__([index])
        return images_BCHW[0], labels_B[0]

    def __getitems__(self, indices: Sequence[ExampleView | int]) -> tuple[Tensor, Tensor]:
        """Return a batch: images (float32 ``[B, C, H, W]``) and labels (int64 ``[B]``), on the device.

        Raises:
            IndexError: If a position is outside the dataset.
            DataError: If a view number is below -1.
        """
        positions_B, numbers_B = self._resolve(indices)
        # Drawn on the CPU: some dozens of tiny operations are quicker there than as many kernel launches.
        draws_KB = self._augmentation.draw(
            self.view_policy.seed, self.info.keys[positions_B], numbers_B, self._height, self._width
        )
        # In one tensor: positions and draws take one copy to the device.
        plan = torch.cat([positions_B[None], draws_KB]).to(self.device, non_blocking=True)
        images_BHWC = self._images_NP.index_select(0, plan[0]).view(len(indices), self._height, self._width, -1)
        labels_B = self._labels_N.index_select(0, plan[0])
        return self._augmentation.apply(images_BHWC, plan[1:], self._normalisation), labels_B

    def _resolve(self, indices: Sequence[ExampleView | int]) -> tuple[Tensor, Tensor]:
        """Return positions and numbers of the augmentation, both int64 ``[B]`` on the CPU."""
        epoch = self._epoch.value or 0
        plain = self.view_policy.view_of_epoch(epoch)
        pairs = [index if isinstance(index, tuple) else (int(index), plain) for index in indices]
        pairs_B2 = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        positions_B, views_B = pairs_B2[:, 0], pairs_B2[:, 1]
        if len(pairs) and not (positions_B.min() >= 0 and positions_B.max() < len(self)):
            wrong = positions_B[(positions_B < 0) | (positions_B >= len(self))][0]
            raise IndexError(f"Position {wrong} of a dataset of {len(self)} examples.")
        if len(pairs) and views_B.min() < UNKNOWN_VIEW:
            raise DataError(f"View {views_B.min()}: views are numbered from 0, and -1 means random.")
        # A random augmentation is drawn by the epoch, so that a resumed run draws the same.
        numbers_B = np.where(views_B == UNKNOWN_VIEW, epoch, views_B)
        return torch.from_numpy(positions_B.copy()), torch.from_numpy(numbers_B)


class WorkerImages(Dataset[tuple[Tensor, Tensor]]):
    """Images of a :class:`DeviceImages` on the CPU, read example by example by DataLoader workers.

    Bit for bit the images that ``DeviceImages`` makes on a device, so runs of either kind share views. Goes with
    torch's default collate function.

    Args:
        images: The images, on the CPU.

    Raises:
        DataError: If they are on another device: worker processes cannot share one.
    """

    def __init__(self, images: DeviceImages) -> None:
        if images.device.type != "cpu":
            raise DataError(f"Worker processes need images on the CPU, not on {images.device}.")
        self._images = images
        self.info = images.info
        self.view_policy = images.view_policy
        self.pixel_space = images.pixel_space

    def __len__(self) -> int:
        return len(self._images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self._images.image_shape

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that comes next; reaches running workers, too."""
        self._images.set_epoch(epoch)

    def __getitem__(self, index: ExampleView | int) -> tuple[Tensor, Tensor]:
        """Return one image (float32 ``[C, H, W]``) and its label (int64, no dimension)."""
        return self._images[index]

    def __getitems__(self, indices: Sequence[ExampleView | int]) -> list[tuple[Tensor, Tensor]]:
        """Return a batch as a list of examples, made in one go, for a collate function."""
        images_BCHW, labels_B = self._images.__getitems__(indices)
        return list(zip(images_BCHW.unbind(), labels_B.unbind(), strict=True))


def device_collate(batch: Any) -> Any:
    """Return what :class:`DeviceImages` gives: a batch already."""
    return batch


def dataloader_of(
    dataset: Dataset[Any],
    batch_size: int = 1,
    sampler: Sampler[Any] | Iterable[Any] | None = None,
    drop_last: bool = False,
    **options: Any,
) -> DataLoader[Any]:
    """Return a DataLoader with the dataset's own ``collate_fn``, if it has one, that leaves torch's generator alone.

    Args:
        dataset: Map-style. :class:`DeviceImages` make whole batches on their device, so they get no worker processes.
        batch_size: Examples per batch (of this rank). Default: 1.
        sampler: Yields positions or ``ExampleView``. Default: None, in order.
        drop_last: Leave out a last batch that is not full. Default: False.
        options: Further arguments of the DataLoader, such as ``batch_sampler`` instead of the three before.
    """
    if isinstance(dataset, DeviceImages):
        options |= {"collate_fn": device_collate, "num_workers": 0, "pin_memory": False, "persistent_workers": False}
    else:
        options.setdefault("collate_fn", getattr(dataset, "collate_fn", None) or _collate)
    # The loader draws a seed for workers even where there are none; a generator of its own keeps torch's untouched.
    options["generator"] = torch.Generator().manual_seed(0)
    return DataLoader(dataset, batch_size, sampler=sampler, drop_last=drop_last, **options)


def _collate(examples: list[Any]) -> Any:
    try:
        return default_collate(examples)
    except (TypeError, RuntimeError, KeyError) as error:
        raise DataError(
            f"the examples do not make a batch by torch's default_collate ({str(error).splitlines()[0]}). Pass the "
            "collate_fn of your own loader, or give the dataset a method of that name."
        ) from error


def _as_nhwc(images: Tensor, layout: str) -> Tensor:
    if layout not in ("NHWC", "NCHW"):
        raise DataError(f"Layout {layout!r}: images are 'NHWC' or 'NCHW'.")
    if images.dtype != torch.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"Images must be uint8 of shape [N, H, W] or {list(layout)}, not {images.dtype} of {tuple(images.shape)}."
        )
    if images.ndim == 3:
        return images[..., None]
    return images if layout == "NHWC" else images.permute(0, 2, 3, 1)


def _as_labels(labels: Tensor | np.ndarray | Sequence[int], count: int) -> Tensor:
    labels_N = torch.as_tensor(labels)
    if labels_N.dtype.is_floating_point or labels_N.dtype == torch.bool or labels_N.shape != (count,):
        raise DataError(
            f"Labels must be {count} whole numbers, one per image, not {labels_N.dtype} of {tuple(labels_N.shape)}."
        )
    return labels_N.to("cpu", torch.int64)
