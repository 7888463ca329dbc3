import numpy as np
import pytest
import torch
from scipy import stats

from reuse_algos.data.images.augment import Augmentation, Normalisation, crop_flip, cutout
from reuse_algos.errors import DataError


def reference_crop_flip(image_HWC, top, left, flip, padding):
    """One image at a time, with numpy."""
    height, width, _ = image_HWC.shape
    padded = np.pad(image_HWC, ((padding, padding), (padding, padding), (0, 0)))
    window = padded[top : top + height, left : left + width]
    return window[:, ::-1] if flip else window


def draw_images(count, height, width, channels, seed=0):
    return torch.randint(
        0, 256, (count, height, width, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("size", [(8, 8), (5, 9)])
def test_crop_flip_equals_one_image_at_a_time(channels, padding, size):
    offsets = [(top, left) for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
    cases = [(*offset, flip) for offset in offsets for flip in (0, 1)]
    images = draw_images(len(cases), *size, channels)
    top, left, flip = torch.tensor(cases).T
    found = crop_flip(images, top, left, flip > 0, padding)
    expected = np.stack(
        [reference_crop_flip(image, *case, padding) for image, case in zip(images.numpy(), cases, strict=True)]
    )
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), expected)


def test_crop_flip_of_nothing():
    nothing = torch.empty(0, dtype=torch.int64)
    assert crop_flip(draw_images(0, 4, 4, 3), nothing, nothing, nothing > 0, 1).shape == (0, 4, 4, 3)


@pytest.mark.parametrize("length", [2, 8, 16])
def test_cutout_equals_the_published_code(length):
    images = torch.rand(64, 3, 16, 12, generator=torch.Generator().manual_seed(0)) + 1
    row = torch.arange(64) % 16
    column = torch.arange(64) % 12
    found = cutout(images, row, column, length)
    for image, y, x, result in zip(images, row.tolist(), column.tolist(), found, strict=True):
        # uoguelph-mlrg/Cutout: y1 = clip(y - length // 2, 0, h), y2 = clip(y + length // 2, 0, h), and x likewise
        mask = np.ones((16, 12), np.float32)
        y1, y2 = np.clip([y - length // 2, y + length // 2], 0, 16)
        x1, x2 = np.clip([x - length // 2, x + length // 2], 0, 12)
        mask[y1:y2, x1:x2] = 0
        assert torch.equal(result, image * torch.from_numpy(mask))


def test_draws_are_uniform_over_all_crops_flips_and_centres():
    keys = torch.arange(20_000)
    draws = Augmentation("crop_flip_cutout", padding=4, length=8).draw(0, keys, torch.zeros_like(keys), 32, 32)
    top, left, flip, row, column = draws
    crops = torch.bincount((top * 9 + left) * 2 + flip, minlength=162).numpy()
    assert len(crops) == 162
    assert stats.chisquare(crops).pvalue > 0.001
    centres = torch.bincount((row // 2) * 16 + column // 2, minlength=256).numpy()
    assert len(centres) == 256
    assert stats.chisquare(centres).pvalue > 0.001
    crop_against_centre = torch.bincount(top * 32 + row, minlength=288).numpy()
    assert stats.chisquare(crop_against_centre).pvalue > 0.001


def test_another_key_view_or_seed_gives_another_crop_as_often_as_chance():
    augmentation = Augmentation("crop_flip", padding=4)
    keys, zero = torch.arange(20_000), torch.zeros(20_000, dtype=torch.int64)
    first = augmentation.draw(0, keys, zero, 32, 32)
    others = [
        augmentation.draw(0, keys, zero + 1, 32, 32),
        augmentation.draw(0, keys + 20_000, zero, 32, 32),
        augmentation.draw(1, keys, zero, 32, 32),
    ]
    for other in others:
        same = int((first == other).all(0).sum())
        assert stats.binomtest(same, 20_000, 1 / 162).pvalue > 0.001


def test_cutout_does_not_change_the_crops():
    keys = torch.arange(100)
    plain, with_cutout = (Augmentation(kind).draw(3, keys, keys, 32, 32) for kind in ("crop_flip", "crop_flip_cutout"))
    assert torch.equal(plain, with_cutout[:3])


def test_descriptions_tell_augmentations_apart():
    assert Augmentation("none").description == "none"
    assert Augmentation("crop_flip", padding=2).description == "crop_flip(padding=2)"
    assert Augmentation("crop_flip_cutout").description == "crop_flip_cutout(padding=4,length=8)"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalisation(memory_format):
    images = draw_images(5, 6, 7, 3)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    found = Normalisation(mean, std, memory_format=memory_format)(images)
    expected = (images.permute(0, 3, 1, 2).double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Augmentation("crop_flap"), "Did you mean 'crop_flip'"),
        (lambda: Augmentation("crop_flip", padding=-1), "padding"),
        (lambda: Augmentation("crop_flip_cutout", length=7), "even number"),
        (lambda: Normalisation((0.5,), (0.2, 0.2)), "one of each per channel"),
        (lambda: Normalisation((0.5,), (0.0,)), "every std above 0"),
    ],
)
def test_wrong_measures_are_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_crop_is_crop_flip_without_the_mirror():
    images, keys = draw_images(50, 8, 8, 1), torch.arange(50)
    crop, crop_flip_ = Augmentation("crop", padding=1), Augmentation("crop_flip", padding=1)
    draws = crop.draw(5, keys, keys, 8, 8)
    assert torch.equal(draws, crop_flip_.draw(5, keys, keys, 8, 8)[:2])
    normalisation = Normalisation([0.5], [0.25])
    expected = [
        reference_crop_flip(image, int(top), int(left), False, 1)
        for image, top, left in zip(images.numpy(), draws[0], draws[1], strict=True)
    ]
    assert torch.equal(crop.apply(images, draws, normalisation), normalisation(torch.from_numpy(np.stack(expected))))
    assert crop.description == "crop(padding=1)"
