import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from reuse_algos.data.images.augment import Augmentation
from reuse_algos.data.images.device_loader import DeviceImages, WorkerImages, dataloader_of
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.views import ExampleView
from reuse_algos.errors import DataError

COUNT = 70
IMAGES = torch.randint(0, 256, (COUNT, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(COUNT) % 10
STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}


def make(kind="crop_flip_cutout", num_views=4, images=IMAGES, **options):
    augmentation = Augmentation(kind, padding=2, length=4)
    return DeviceImages(
        images, LABELS, augmentation=augmentation, num_views=num_views, pixels=PixelSpace(**STATISTICS), **options
    )


def rng_states():
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


@pytest.mark.parametrize("kind", ["none", "crop", "crop_flip", "crop_flip_cutout"])
def test_an_image_does_not_depend_on_what_else_is_in_its_batch(kind):
    dataset = make(kind)
    indices = [ExampleView(position, position % 4) for position in range(64)]
    images, labels = dataset.__getitems__(indices)
    assert images.shape == (64, 3, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert labels.tolist() == [position % 10 for position in range(64)]
    torch.manual_seed(8), np.random.seed(8), random.seed(8)
    before = rng_states()
    ones = [dataset[index] for index in indices]
    backwards, _ = dataset.__getitems__(indices[::-1])
    after = rng_states()
    assert torch.equal(torch.stack([image for image, _ in ones]), images)
    assert torch.equal(backwards.flip(0), images)
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1][1], after[1][1])
    assert before[2] == after[2]


def test_a_view_is_the_drawn_crop_flip_and_cutout_of_the_image():
    dataset = make()
    augmentation = Augmentation("crop_flip_cutout", padding=2, length=4)
    for position, view in [(0, 0), (13, 3), (69, 1)]:
        top, left, flip, row, column = augmentation.draw(
            0, torch.tensor([position]), torch.tensor([view]), 8, 8
        ).flatten()
        padded = np.pad(IMAGES[position].numpy(), ((2, 2), (2, 2), (0, 0)))[top : top + 8, left : left + 8]
        padded = padded[:, ::-1] if flip else padded
        expected = (padded / 255 - STATISTICS["mean"]) / STATISTICS["std"]
        y1, y2, x1, x2 = max(row - 2, 0), row + 2, max(column - 2, 0), column + 2
        expected[y1:y2, x1:x2] = 0
        found = dataset[ExampleView(position, view)][0].permute(1, 2, 0).double().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_no_augmentation_has_one_view():
    dataset = make("none", num_views=9)
    assert dataset.view_policy.num_views == 1
    assert dataset.view_policy.transform == "none"
    assert torch.equal(dataset[ExampleView(3, 5)][0], dataset[3][0])


def test_views_belong_to_keys():
    keys = torch.arange(COUNT).flip(0) * 11
    turned = make(images=IMAGES.flip(0), info=DatasetInfo("set", keys.flip(0), LABELS))
    straight = make(info=DatasetInfo("set", keys, LABELS))
    assert torch.equal(straight[ExampleView(5, 2)][0], turned[ExampleView(COUNT - 6, 2)][0])
    assert not torch.equal(straight[ExampleView(5, 2)][0], make()[ExampleView(5, 2)][0])
    assert not torch.equal(straight[ExampleView(5, 2)][0], make(view_seed=1)[ExampleView(5, 2)][0])


@pytest.mark.parametrize("index", [7, ExampleView(7, -1)])
def test_random_augmentation_varies_by_epoch_and_by_nothing_else(index):
    dataset = make(num_views=0)
    seen = []
    for epoch in range(6):
        dataset.set_epoch(epoch)
        torch.manual_seed(epoch)
        seen.append(dataset[index][0])
    assert len({tuple(image.flatten().tolist()) for image in seen}) > 3
    resumed = make(num_views=0)
    resumed.set_epoch(4)
    torch.manual_seed(123)
    assert torch.equal(resumed[index][0], seen[4])


def test_a_plain_position_gets_the_view_of_the_epoch():
    dataset = make(num_views=4)
    dataset.set_epoch(6)
    assert torch.equal(dataset[9][0], dataset[ExampleView(9, 2)][0])
    mixed, _ = dataset.__getitems__([9, ExampleView(9, 2), ExampleView(9, 0)])
    assert torch.equal(mixed[0], mixed[1])
    assert not torch.equal(mixed[0], mixed[2])


def test_layouts_and_grey_images():
    nchw = make(images=IMAGES.permute(0, 3, 1, 2).contiguous(), layout="NCHW")
    assert torch.equal(nchw[ExampleView(3, 1)][0], make()[ExampleView(3, 1)][0])
    assert make(images=IMAGES.numpy()).image_shape == (3, 8, 8)
    grey = DeviceImages(IMAGES[..., 0], LABELS.tolist(), pixels=PixelSpace((0.5,), (0.5,)))
    torch.testing.assert_close(grey[2][0][0], IMAGES[2, :, :, 0] / 255 * 2 - 1)
    assert grey.image_shape == (1, 8, 8)
    assert grey.nbytes == COUNT * (64 + 8)


def test_channels_last():
    dataset = make(memory_format=torch.channels_last)
    indices = [ExampleView(position, 0) for position in range(8)]
    images, _ = dataset.__getitems__(indices)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, make().__getitems__(indices)[0])


def test_dataloader_gives_whole_batches_and_draws_no_global_numbers():
    dataset = make()
    wanted = [ExampleView(position, 1) for position in (5, 3, 60, 2, 8)]
    before = torch.get_rng_state()
    batches = list(dataloader_of(dataset, 2, wanted, drop_last=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(labels) for _, labels in batches] == [2, 2]
    assert torch.equal(batches[1][0], dataset.__getitems__(wanted[2:4])[0])
    by_list = list(dataloader_of(dataset, batch_sampler=[wanted[:3], wanted[3:]]))
    assert [len(labels) for _, labels in by_list] == [3, 2]
    assert len(list(dataloader_of(dataset, 32))) == 3


@pytest.mark.parametrize("num_views", [0, 4])
def test_workers_make_the_same_bits_as_the_device(num_views):
    on_device, for_workers = make(num_views=num_views), WorkerImages(make(num_views=num_views))
    assert for_workers.view_policy == on_device.view_policy
    assert for_workers.image_shape == on_device.image_shape
    order = list(range(COUNT))[::-1]
    loaders = [
        dataloader_of(on_device, 16, order),
        DataLoader(for_workers, 7, sampler=order, num_workers=0),
        DataLoader(for_workers, 16, sampler=order, num_workers=2, persistent_workers=True, timeout=60),
    ]
    for epoch in (0, 3):
        on_device.set_epoch(epoch)
        for_workers.set_epoch(epoch)
        epochs = [[torch.cat(parts) for parts in zip(*loader, strict=True)] for loader in loaders]
        for images, labels in epochs[1:]:
            assert torch.equal(images, epochs[0][0])
            assert torch.equal(labels, epochs[0][1])


def test_worker_images_one_by_one_and_in_lists():
    for_workers = WorkerImages(make())
    indices = [ExampleView(1, 1), ExampleView(2, 3)]
    images, labels = default_collate([for_workers[index] for index in indices])
    expected = make().__getitems__(indices)
    assert torch.equal(images, expected[0])
    assert torch.equal(labels, expected[1])
    assert len(for_workers) == COUNT


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: make()[ExampleView(COUNT, 0)], IndexError, "Position 70 of a dataset of 70"),
        (lambda: make()[-1], IndexError, "Position -1"),
        (lambda: make()[ExampleView(0, -2)], DataError, "View -2"),
        (lambda: make(images=IMAGES.float()), DataError, "must be uint8"),
        (lambda: make(images=IMAGES[0, 0]), DataError, r"\[N, H, W\]"),
        (lambda: make(layout="CHWN"), DataError, "Layout 'CHWN'"),
        (lambda: make(images=IMAGES[:9]), DataError, "Labels must be 9 whole numbers"),
        (lambda: make(images=IMAGES[..., :1]), DataError, "1 channels, but there are 3 means"),
        (lambda: make(info=DatasetInfo("set", torch.arange(5))), DataError, "70 images, but the info has 5 keys"),
        (
            lambda: DeviceImages(IMAGES, LABELS.float(), pixels=PixelSpace(**STATISTICS)),
            DataError,
            "Labels must be 70 whole numbers",
        ),
        (lambda: WorkerImages(make(device="meta")), DataError, "on the CPU, not on meta"),
    ],
)
def test_what_cannot_be_is_refused(act, error, message):
    with pytest.raises(error, match=message):
        act()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["none", "crop", "crop_flip", "crop_flip_cutout"])
@pytest.mark.parametrize("num_views", [0, 4])
def test_a_gpu_gives_the_same_bits(kind, num_views):
    on_cpu, on_gpu = make(kind, num_views), make(kind, num_views, device="cuda")
    for epoch in (0, 5):
        on_cpu.set_epoch(epoch)
        on_gpu.set_epoch(epoch)
        indices = [*range(40), ExampleView(41, 2), ExampleView(42, -1)]
        images, labels = on_gpu.__getitems__(indices)
        assert images.is_cuda
        assert torch.equal(images.cpu(), on_cpu.__getitems__(indices)[0])
        assert torch.equal(labels.cpu(), on_cpu.__getitems__(indices)[1])
