"""Steering: who shows what, in which view, and which samplers can be taken over."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler, SubsetRandomSampler

from reuse_algos.data.sampler import EpochSampler, TrackedBatchSampler
from reuse_algos.data.views import ExampleView
from reuse_algos.errors import ExampleIdError
from toy import NumberedDataset, viewed


def test_a_known_length_saves_asking_the_plan() -> None:
    asked: list[int] = []

    def plan(epoch: int) -> Sequence[int]:
        asked.append(epoch)
        return [epoch, 5, 5]

    sampler = EpochSampler(10, seed=1, num_replicas=1, rank=0)
    sampler.steer(plan, length=3)
    sampler.set_epoch(2)
    assert len(sampler) == 3
    assert asked == []
    assert list(sampler) == [2, 5, 5]
    sampler.steer(plan, length=4)
    with pytest.raises(ValueError, match="the plan of epoch 2 has 3 positions, not 4"):
        list(sampler)


@pytest.mark.parametrize("ranks", [1, 2])
def test_repeats_come_in_the_next_view_on_whatever_rank(ranks: int) -> None:
    samplers = [EpochSampler(10, seed=1, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    for sampler in samplers:
        sampler.steer(lambda epoch: [4, 7, 4, 4, 7, 1], num_views=3)
        sampler.set_epoch(2)
    parts = [list(sampler) for sampler in samplers]
    together = [pair for pairs in zip(*parts, strict=True) for pair in pairs]
    assert together == [ExampleView(*p) for p in [(4, 2), (7, 2), (4, 0), (4, 1), (7, 0), (1, 2)]]


def test_standard_samplers_are_replaced_and_batches_keep_their_size() -> None:
    data = NumberedDataset(10)
    for inner in (RandomSampler(data), SequentialSampler(data), EpochSampler(10, seed=3)):
        tracked = TrackedBatchSampler(BatchSampler(inner, 4, False), data)
        assert tracked.steer(lambda epoch: [epoch, 8, 7, 6, 5], num_examples=10, length=5, seed=0) == 4
        tracked.set_epoch(3)
        assert list(tracked) == [[3, 8, 7, 6], [5]]
        assert len(tracked) == 2
        assert tracked.examples(0).positions.tolist() == [3, 8, 7, 6]


def test_views_reach_the_dataset() -> None:
    data = viewed(8, num_views=2)
    tracked = TrackedBatchSampler(BatchSampler(SequentialSampler(data), 3, False), data)  # type: ignore[arg-type]
    tracked.steer(lambda epoch: [1, 1, 2], num_examples=8, length=3, seed=0)
    tracked.set_epoch(1)
    assert list(tracked) == [[ExampleView(1, 1), ExampleView(1, 0), ExampleView(2, 1)]]
    assert tracked.examples(0).views.tolist() == [1, 0, 1]


def test_other_samplers_are_refused() -> None:
    data = NumberedDataset(10)
    for inner, message in (
        (SubsetRandomSampler(range(5)), "decided by a SubsetRandomSampler, which cannot be steered"),
        (RandomSampler(data, num_samples=20), "with replacement or another number"),
    ):
        tracked = TrackedBatchSampler(BatchSampler(inner, 4, False), data)
        with pytest.raises(ExampleIdError, match=message):
            tracked.steer(lambda epoch: [0], num_examples=10, length=1, seed=0)
    whole = TrackedBatchSampler(BatchSampler(SequentialSampler(data), 4, True), data)
    with pytest.raises(ExampleIdError, match="an epoch of 3 examples on each of 1 ranks has no full batch of 4"):
        whole.steer(lambda epoch: [0, 1, 2], num_examples=10, length=3, seed=0)
