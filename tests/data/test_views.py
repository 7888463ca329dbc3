import copy
import random

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.seeding import seeded_rng
from reuse_algos.data.views import ExampleView, ViewedDataset, ViewPolicy, declared_views, views_of
from reuse_algos.errors import DataError


class Dice(Dataset):
    """Draws from all three global generators and says which example it is."""

    def __init__(self, length=6, fail=False):
        self.length = length
        self.fail = fail

    def __len__(self):
        return self.length

    def __getitem__(self, position):
        drawn = [position, torch.rand(()).item(), np.random.rand(), random.random()]
        if self.fail:
            raise RuntimeError("broken image")
        return torch.tensor(drawn, dtype=torch.float64)


def viewed(num_views=3, seed=0, dataset=None, info=None):
    return ViewedDataset(Dice() if dataset is None else dataset, ViewPolicy(seed, num_views, "dice"), info)


def rng_states():
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def same_states(a, b):
    numpy_equal = all(np.array_equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    return torch.equal(a[0], b[0]) and numpy_equal and a[2] == b[2]


def test_view_of_epoch():
    assert [ViewPolicy(0, 3, "x").view_of_epoch(epoch) for epoch in range(5)] == [0, 1, 2, 0, 1]
    assert [ViewPolicy(0, 0, "x").view_of_epoch(epoch) for epoch in range(2)] == [-1, -1]
    with pytest.raises(DataError, match="num_views"):
        ViewPolicy(0, -1, "x")


@pytest.mark.parametrize("fail", [False, True])
def test_generators_are_left_as_they_were(fail):
    dataset = viewed(dataset=Dice(fail=fail))
    before = rng_states()
    if fail:
        with pytest.raises(RuntimeError, match="broken image"):
            dataset[ExampleView(1, 2)]
    else:
        dataset[ExampleView(1, 2)]
    assert same_states(before, rng_states())


def test_a_view_is_the_same_after_anything_drawn_before_and_different_from_others():
    dataset = viewed()
    first = dataset[ExampleView(4, 1)]
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    [dataset[ExampleView(position, 0)] for position in (5, 4, 0)]
    assert torch.equal(dataset[ExampleView(4, 1)], first)
    everything = torch.stack([dataset[ExampleView(p, v)] for p in range(6) for v in range(3)])
    # Each of the three generators gives another number for every (example, view).
    assert all(len(everything[:, column].unique()) == 18 for column in (1, 2, 3))
    assert not torch.equal(viewed(seed=1)[ExampleView(4, 1)], first)


def test_a_view_belongs_to_the_key_and_not_to_the_position():
    keys = torch.tensor([50, 40, 30, 20, 10, 0])
    turned = viewed(info=DatasetInfo("dice", keys.flip(0)))
    straight = viewed(info=DatasetInfo("dice", keys))
    assert torch.equal(straight[ExampleView(1, 2)][1:], turned[ExampleView(4, 2)][1:])


def test_a_plain_position_gets_the_view_of_the_epoch():
    dataset = viewed(num_views=3)
    assert torch.equal(dataset[2], dataset[ExampleView(2, 0)])
    dataset.set_epoch(4)
    assert torch.equal(dataset[2], dataset[ExampleView(2, 1)])
    assert torch.equal(dataset[np.int64(2)], dataset[2])


@pytest.mark.parametrize("index", [3, ExampleView(3, -1)])
def test_random_augmentation_is_an_untouched_call_until_an_epoch_is_told(index):
    dataset = viewed(num_views=0)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = Dice()[3]
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    assert torch.equal(dataset[index], expected)
    dataset.set_epoch(0)
    before = rng_states()
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        epochs.append(dataset[index])
    assert same_states(before, rng_states())
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    # The random augmentation of epoch 1 is none of the numbered views.
    assert not torch.equal(epochs[1], dataset[ExampleView(3, 1)])


@pytest.mark.parametrize("num_views", [0, 3])
def test_workers_change_nothing_and_hear_of_epochs(num_views):
    order = [5, 0, 3, 1, 4, 2]

    def epochs(workers, batch_size):
        dataset = viewed(num_views)
        loader = DataLoader(
            dataset,
            batch_size,
            sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0,
            timeout=30 * workers,
        )
        found = []
        for epoch in range(2):
            dataset.set_epoch(epoch)
            found.append(torch.cat(list(loader)))
        return found

    torch.manual_seed(0)
    alone = epochs(0, 1)
    torch.manual_seed(1)
    in_workers = epochs(2, 4)
    assert all(torch.equal(a, b) for a, b in zip(alone, in_workers, strict=True))
    assert not torch.equal(alone[0], alone[1])
    assert torch.equal(alone[0][:, 0], torch.tensor(order, dtype=torch.float64))


def test_a_sampler_may_yield_views():
    wanted = [ExampleView(2, 1), ExampleView(0, 0), ExampleView(2, 2)]
    dataset = viewed()
    batch = next(iter(DataLoader(dataset, 3, sampler=wanted, num_workers=1)))
    assert torch.equal(batch, torch.stack([dataset[index] for index in wanted]))


def test_wrong_indices_and_infos_are_refused():
    with pytest.raises(DataError, match="View -2 of position 1"):
        viewed()[ExampleView(1, -2)]
    with pytest.raises(IndexError, match="Position 6 of a dataset of 6"):
        viewed()[ExampleView(6, 0)]
    with pytest.raises(DataError, match="5 keys"):
        viewed(info=DatasetInfo("dice", torch.arange(5)))
    with pytest.raises(DataError, match="epoch must be 0 or more"):
        viewed().set_epoch(-1)


def test_a_copy_gives_the_same_views():
    dataset = viewed()
    assert torch.equal(copy.deepcopy(dataset)[ExampleView(1, 1)], dataset[ExampleView(1, 1)])


def test_seeds_of_64_bits_reach_all_generators():
    drawn = set()
    for seed in (0, (1 << 40) + 7, -1, -(1 << 63) + 5):
        with seeded_rng(seed):
            drawn.add((torch.rand(()).item(), np.random.rand(), random.random()))
    assert [len(column) for column in map(set, zip(*drawn, strict=True))] == [4, 4, 4]


class Items(Dataset):
    """Examples as a function of the position gives them."""

    def __init__(self, give, length=64):
        self.give, self.length = give, length

    def __len__(self):
        return self.length

    def __getitem__(self, position):
        return self.give(position), position % 3


class Told(Items):
    """Learns the epoch, and may show something else in each."""

    def set_epoch(self, epoch):
        self.epoch = epoch


_OWN = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("dataset", "still"),
    [
        (TensorDataset(torch.randn(8, 3), torch.arange(8)), True),
        (Subset(Items(lambda i: torch.full((3,), float(i))), [5, 1]), True),
        (ConcatDataset([Items(lambda i: {"ids": np.arange(i + 1)}), Items(lambda i: f"text {i}")]), True),
        (Items(lambda i: torch.rand(3)), False),
        (Items(lambda i: np.random.rand(3)), False),
        (Items(lambda i: torch.full((3,), random.random())), False),
        (Items(lambda i: _OWN.random(3)), False),
        (Items(lambda i: torch.arange(4.0).flip(0) if random.random() < 0.5 else torch.arange(4.0)), False),
        (Told(lambda i: torch.full((3,), float(i))), False),
        (Items(lambda i: 1 / 0), False),
        (Items(lambda i: torch.zeros(1), length=0), False),
        (Dice(), False),
    ],
)
def test_data_that_stay_the_same_have_one_view(dataset, still):
    before, own = rng_states(), _OWN.bit_generator.state
    found = views_of(dataset)
    assert found == (ViewPolicy(0, 1, "none") if still else None)
    assert same_states(rng_states(), before)
    assert _OWN.bit_generator.state == own


def test_declared_views_are_taken_at_their_word():
    assert views_of(viewed(num_views=0)) == ViewPolicy(0, 0, "dice")
    assert declared_views(Items(lambda i: torch.zeros(1))) is None
