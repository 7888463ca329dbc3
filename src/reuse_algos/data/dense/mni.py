"""Slices of the MNI152 brain template: its T1 picture, with grey and white matter (Fonov et al. 2011).

The three volumes are read from NIfTI files without a further package: a header of 352 bytes, then uint8.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_algos.errors import DataError

MNI_CLASSES = ("other", "grey matter", "white matter")

_FILES = {kind: f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")}
_HEADER, _UINT8 = 352, 2  # of NIfTI-1: where the voxels begin, and the code of their type
_MOST_VOXELS = 1 << 28  # a damaged header must not ask for all memory
_HEIGHT, _WIDTH = 112, 96
# Every second slice from the lowest to the highest with much brain: neighbours show nearly the same.
_FIRST, _LAST, _STEP = 20, 160, 2
_BLOCK, _EVERY, _GAP = 14, 5, 3


def read_slices(root: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """Read axial slices at half the resolution.

    Args:
        root: Folder with the three files, such as ``nilearn/datasets/data`` of an unpacked wheel of nilearn. None: that
            of the installed package, which is not imported.

    Returns:
        Images uint8 ``[N, 112, 96]``, masks uint8 of the same shape (0 other, 1 grey, 2 white: the likeliest), and the
        numbers of the slices, int64 ``[N]``.

    Raises:
        DataError: A file is missing or not what it should be.
    """
    folder = _folder() if root is None else Path(root)
    t1, grey, white = (_volume(folder / _FILES[kind]) for kind in ("t1", "gm", "wm"))
    if not t1.shape == grey.shape == white.shape:
        raise DataError(f"data.root: the volumes in {folder} have the shapes {t1.shape}, {grey.shape}, {white.shape}.")
    numbers = torch.arange(_FIRST, min(_LAST, len(t1)), _STEP)
    picture, p_grey, p_white = (_halved(volume[numbers]) for volume in (t1, grey, white))
    chances = torch.stack([255 - p_grey - p_white, p_grey, p_white])
    return picture.round().to(torch.uint8), chances.argmax(0).to(torch.uint8), numbers


def split_slices(numbers_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows for training and for evaluation, both int64: blocks of slices are held out, with a gap of 3.

    Args:
        numbers_N: int64, numbers of slices.
    """
    block_N = (numbers_N - _FIRST) // _BLOCK
    held_N = block_N % _EVERY == _EVERY - 1
    held = numbers_N[held_N]
    near_N = ((numbers_N[:, None] - held[None]).abs() <= _GAP).any(1) if len(held) else held_N
    return (~near_N).nonzero().flatten(), held_N.nonzero().flatten()


def _folder() -> Path:
    found = importlib.util.find_spec("nilearn")
    if found is None or not found.submodule_search_locations:
        raise DataError(
            "data.root: mni152 reads three files of the package nilearn, which is not installed. Unpack its wheel "
            "(pip download --no-deps nilearn==0.14.1; python -m zipfile -e nilearn-*.whl FOLDER) and give "
            "data.root: FOLDER/nilearn/datasets/data."
        )
    return Path(found.submodule_search_locations[0]) / "datasets" / "data"


def _volume(path: Path) -> Tensor:
    """Read a volume: uint8 ``[z, y, x]``."""
    try:
        with gzip.open(path) as file:
            header = file.read(_HEADER)
            if len(header) < _HEADER or header[344:347] != b"n+1":
                raise DataError(f"{path} is not a NIfTI file")
            # NIfTI-1: the sizes begin at byte 40, the type of the voxels stands at byte 70; x runs fastest.
            sizes = np.frombuffer(header, "<i2", 8, 40)
            kind, shape = int(np.frombuffer(header, "<i2", 1, 70)[0]), tuple(int(size) for size in sizes[1:4])
            if kind != _UINT8 or int(sizes[0]) != 3 or min(shape) < 1 or int(np.prod(shape)) > _MOST_VOXELS:
                raise DataError(f"{path} holds voxels of kind {kind} and shape {tuple(sizes[1:])}, not uint8 in 3-D")
            data = file.read(int(np.prod(shape)))
    except (OSError, EOFError) as error:
        raise DataError(f"data.root: {path} cannot be read: {error}") from error
    if len(data) != int(np.prod(shape)):
        raise DataError(f"{path} ends after {len(data)} of {int(np.prod(shape))} voxels")
    # A copy, as torch warns of the read-only memory of bytes.
    return torch.from_numpy(np.frombuffer(data, np.uint8).reshape(shape[::-1]).copy())


def _halved(volume_NHW: Tensor) -> Tensor:
    """Return the middle of each slice at half the resolution: float32 ``[N, 112, 96]``."""
    height, width = volume_NHW.shape[1:]
    top, left = (height - 2 * _HEIGHT) // 2, (width - 2 * _WIDTH) // 2
    middle = volume_NHW[:, top : top + 2 * _HEIGHT, left : left + 2 * _WIDTH].float()
    return F.avg_pool2d(middle[:, None], 2)[:, 0]
