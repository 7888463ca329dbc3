"""Pixel space: there and back, and which datasets have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from reuse_algos.data import DataConfig, ViewedDataset, ViewPolicy, load_datasets
from reuse_algos.data.datasets.load import IMAGENET_MEAN, IMAGENET_STD
from reuse_algos.data.images.device_loader import DeviceImages, WorkerImages
from reuse_algos.data.images.pixels import PixelSpace, pixel_space_of
from reuse_algos.errors import DataError

SPACE = PixelSpace((0.5, 0.25, 0.0), (0.25, 0.5, 1.0))


def test_numbers_by_hand() -> None:
    pixels = torch.tensor([0.75, 0.5, 1.0]).view(1, 3, 1, 1)
    inputs = torch.tensor([1.0, 0.5, 1.0]).view(1, 3, 1, 1)
    assert torch.equal(SPACE.to_pixels(inputs), pixels)
    assert SPACE.delta_to_inputs(torch.full((1, 3, 1, 1), 0.125)).flatten().tolist() == [0.5, 0.25, 0.125]
    low, high = SPACE.bounds(inputs)
    assert (low.shape, low.flatten().tolist()) == ((3, 1, 1), [-2.0, -0.5, 0.0])
    assert high.flatten().tolist() == [2.0, 1.5, 1.0]
    moved = SPACE.add(inputs, torch.tensor([0.125, -0.75, 0.5]).view(1, 3, 1, 1))
    assert moved.flatten().tolist() == [1.5, -0.5, 1.0]  # the second would be below black, the third above white


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_type_and_memory_format_stay(dtype: torch.dtype) -> None:
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    delta = torch.full_like(x, 0.01, dtype=torch.float32)
    for found in (SPACE.to_pixels(x), SPACE.delta_to_inputs(x), SPACE.add(x, delta)):
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert {limit.dtype for limit in SPACE.bounds(x)} == {dtype}
    assert x.equal(x.clone())


def test_first_used_in_inference_mode_and_then_in_a_gradient() -> None:
    space = PixelSpace((0.125,), (0.375,))
    with torch.inference_mode():
        space.to_pixels(torch.zeros(1, 1, 2, 2))
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    space.to_pixels(x).sum().backward()
    assert x.grad is not None
    assert x.grad.unique().tolist() == [0.375]


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5,), (0.5, 0.5)),
        ((), ()),
        ((0.5,), (0.0,)),
        ((0.5,), (-1.0,)),
        ((float("nan"),), (1.0,)),
        ((0.5,), (1e999,)),
    ],
)
def test_bad_numbers(mean: Any, std: Any) -> None:
    with pytest.raises(DataError, match="one finite number of each per channel, and every std above 0"):
        PixelSpace(mean, std)


@pytest.mark.parametrize("x", [torch.zeros(2, 4, 3, 3), torch.zeros(2, 3), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)])
def test_other_images_are_refused(x: torch.Tensor) -> None:
    for use in (SPACE.to_pixels, SPACE.delta_to_inputs, SPACE.bounds):
        with pytest.raises(DataError, match=r"has 3 channels .*, but these images are torch\..* of shape \(2, "):
            use(x)


def test_lists_make_an_equal_space() -> None:
    assert PixelSpace([0.5, 0.25, 0], [0.25, 0.5, 1]) == SPACE  # type: ignore[arg-type]
    assert hash(PixelSpace([0.5, 0.25, 0], [0.25, 0.5, 1])) == hash(SPACE)  # type: ignore[arg-type]


def test_images_in_memory_have_the_space_of_their_normalisation() -> None:
    raw = torch.randint(256, (6, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = DeviceImages(raw, torch.arange(6), pixels=PixelSpace((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    for data in (images, WorkerImages(images), Subset(images, [1, 2]), Subset(Subset(images, [1, 2]), [0])):
        assert pixel_space_of(data) == PixelSpace((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    x, _ = images.__getitems__(list(range(6)))
    expected = raw.permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(images.pixel_space.to_pixels(x), expected, rtol=0, atol=1e-6)


def test_a_recipe_s_data_have_one(tmp_path: Path) -> None:
    digits = load_datasets(DataConfig(name="digits", device_resident=False))
    for data in (digits.train, digits.eval):
        assert pixel_space_of(data) == PixelSpace(digits.mean, digits.std)
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.full((12, 12, 3), 200, np.uint8)).save(tmp_path / split / name / "1.png")
    files = load_datasets(DataConfig(name="image_folder", root=str(tmp_path), image_size=8, batch_size=2))
    for data in (files.train, files.eval):
        space = pixel_space_of(data)
        assert space == PixelSpace(IMAGENET_MEAN, IMAGENET_STD)
        assert space is not None
        torch.testing.assert_close(space.to_pixels(data[0][0]), torch.full((3, 8, 8), 200 / 255), rtol=0, atol=1e-6)


def test_a_user_s_own_data() -> None:
    plain = TensorDataset(torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64))
    assert pixel_space_of(plain) is None
    assert pixel_space_of(None) is None
    assert pixel_space_of(ViewedDataset(plain, ViewPolicy(0, 1))) is None
    assert pixel_space_of(Subset(ViewedDataset(plain, ViewPolicy(0, 1), pixel_space=SPACE), [0])) == SPACE
    plain.pixel_space = SPACE  # type: ignore[attr-defined]
    assert pixel_space_of(ViewedDataset(plain, ViewPolicy(0, 1))) == SPACE
