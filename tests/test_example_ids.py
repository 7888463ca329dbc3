"""Every batch is traced back to its examples: loaders, microbatches, resume, retries, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Algorithm, DataSpec, Event, State
from composer.algorithms import SelectiveBackprop
from composer.models import ComposerModel
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, Subset

from forked_python import launch
from reuse_algos.data.example_ids import ExampleIds, track_loader
from reuse_algos.data.sampler import EpochSampler, TrackedBatchSampler
from reuse_algos.data.trainer import num_rows
from reuse_algos.data.views import ExampleView, ViewedDataset, ViewPolicy
from reuse_algos.errors import ExampleIdError
from toy import DictModel, NumberedDataset, Spy, checkpointed, loader, mlp, trainer


def _epochs(spy: Spy, batches: int) -> list[list[int]]:
    """Ids of each epoch in the order in which they came."""
    epochs: list[list[int]] = []
    for batch, ids in spy.seen:
        while len(epochs) <= batch // batches:
            epochs.append([])
        epochs[batch // batches].extend(ids)
    return epochs


@pytest.mark.parametrize(
    "arguments",
    [
        {"shuffle": True},
        {"shuffle": True, "drop_last": True},
        {"shuffle": True, "num_workers": 2},
        {"shuffle": True, "num_workers": 2, "persistent_workers": True, "prefetch_factor": 4},
        {"sampler": EpochSampler(21, seed=3)},
    ],
    ids=["plain", "drop_last", "workers", "persistent", "epoch_sampler"],
)
@pytest.mark.parametrize("microbatch", [8, 3])
def test_every_row_is_known(arguments: dict[str, Any], microbatch: int) -> None:
    spy = Spy()
    one = trainer(loader(NumberedDataset(21), **arguments), algorithms=[spy], device_train_microbatch_size=microbatch)
    one.fit()
    batches = 2 if arguments.get("drop_last") else 3
    epochs = _epochs(spy, batches)
    assert [len(set(ids)) for ids in epochs] == [16 if arguments.get("drop_last") else 21] * 2
    assert epochs[0] != epochs[1], "both epochs had one order: the epoch did not reach the sampler"


def test_dict_batches_and_own_collate() -> None:
    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}

    spy = Spy(read=lambda batch: batch["x"][:, 0])
    model = DictModel(mlp().module, num_classes=4)
    trainer(loader(NumberedDataset(20, as_dict=True), shuffle=True, collate_fn=collate), model, algorithms=[spy]).fit()
    assert sorted(_epochs(spy, 3)[0]) == list(range(20))


def test_data_spec_with_transforms() -> None:
    spy = Spy(read=lambda batch: batch[0][:, 0] / 10)
    spec = DataSpec(loader(NumberedDataset(16), shuffle=True), batch_transforms=lambda b: (b[0] * 10, b[1]))
    trainer(spec, algorithms=[spy], device_train_microbatch_size=4).fit()
    assert sorted(_epochs(spy, 2)[1]) == list(range(16))


@pytest.mark.parametrize("stop", ["2ba", "5ba"], ids=["in epoch 0", "in epoch 1"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_mid_epoch(tmp_path: Path, stop: str, workers: int) -> None:
    def run(folder: Path, duration: str) -> Spy:
        spy = Spy()
        data = loader(NumberedDataset(24), sampler=EpochSampler(24, seed=5), num_workers=workers)
        trainer(data, algorithms=[spy], **checkpointed(folder, save_interval="1ba", max_duration=duration)).fit()
        return spy

    straight = run(tmp_path / "straight", "3ep")
    first, second = run(tmp_path / "broken", stop), run(tmp_path / "broken", "3ep")
    assert first.seen + second.seen == straight.seen


def test_resume_without_spinning(tmp_path: Path) -> None:
    """spin_dataloaders=False starts the epoch's batches over; the ids must be those of the batches that come."""

    def run(duration: str) -> Spy:
        spy = Spy()
        data = loader(NumberedDataset(24), sampler=EpochSampler(24, seed=5, shuffle=False), num_workers=2)
        settings = checkpointed(tmp_path, save_interval="1ba", max_duration=duration, spin_dataloaders=False)
        trainer(data, algorithms=[spy], **settings).fit()
        return spy

    run("2ba")
    assert [ids[0] for _, ids in run("5ba").seen] == [0, 8, 16]


def test_views_hidden_in_a_subset_are_refused() -> None:
    hidden = Subset(ViewedDataset(NumberedDataset(16), ViewPolicy(seed=1, num_views=2, transform="none")), range(8))
    one = trainer(loader(hidden), algorithms=[Spy()])
    with pytest.raises(ExampleIdError, match="Subset hides the views of the ViewedDataset"):
        one.fit()


def test_retry_of_automatic_microbatching() -> None:
    class Fails(Algorithm):
        """Runs out of memory in the second microbatch of the second batch, once."""

        count = 0

        def match(self, event: Event, state: Any) -> bool:
            return event == Event.AFTER_FORWARD

        def apply(self, event: Event, state: Any, logger: Any) -> None:
            self.count += 1
            if self.count == 4:
                raise RuntimeError("CUDA out of memory")

    spy = Spy()
    one = trainer(loader(NumberedDataset(16)), algorithms=[spy, Fails()], device_train_microbatch_size=4)
    one.state.auto_microbatching = True
    with pytest.warns(RuntimeWarning, match="microbatch size will be decreased from 4 -> 2"):
        one.fit()
    second = [ids for batch, ids in spy.seen if batch == 1]
    assert second == [[8, 9, 10, 11], [12, 13, 14, 15], [8, 9], [10, 11], [12, 13], [14, 15]]


def test_ids_in_the_batch_for_iterable_data() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(NumberedDataset(16, as_dict=True)[i] for i in reversed(range(16)))

    spy = Spy(read=lambda batch: batch["x"][:, 0], id_key="id")
    model = DictModel(mlp().module, num_classes=4)
    trainer(DataLoader(Stream(), batch_size=8), model, algorithms=[spy], max_duration="2ba").fit()
    assert [ids for _, ids in spy.seen] == [[15, 14, 13, 12, 11, 10, 9, 8], [7, 6, 5, 4, 3, 2, 1, 0]]


def test_views_follow_the_epoch() -> None:
    spy = Spy()
    data = ViewedDataset(NumberedDataset(16), ViewPolicy(seed=1, num_views=2, transform="none"))
    trainer(loader(data, shuffle=True, num_workers=2), algorithms=[spy], max_duration="3ep").fit()
    assert spy.views == [0] * 16 + [1] * 16 + [0] * 16


def test_one_tracker_serves_all() -> None:
    first, second = Spy(), Spy()
    one = trainer(loader(NumberedDataset(16), shuffle=True), algorithms=[first, second])
    one.fit()
    assert first.seen == second.seen
    assert isinstance(one.state.train_dataloader.batch_sampler, TrackedBatchSampler)
    assert track_loader(one.state.train_dataloader) is one.state.train_dataloader


def test_tracking_changes_neither_order_nor_weights() -> None:
    def weights(algorithms: list[Algorithm]) -> dict[str, torch.Tensor]:
        one = trainer(loader(NumberedDataset(20), shuffle=True), algorithms=algorithms, lr=1e-3)
        one.fit()
        return one.state.model.state_dict()

    plain, tracked = weights([]), weights([Spy()])
    assert all(torch.equal(plain[name], tracked[name]) for name in plain)


class _OwnLoader(DataLoader):
    def __iter__(self) -> Any:
        return iter(list(super().__iter__())[::-1])


class _Named(DataLoader):
    """Iterates as a DataLoader does, and has a name."""

    def __init__(self, *arguments: Any, name: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.name = name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tracked_loader_is_the_loader_but_for_its_batch_sampler(workers: int) -> None:
    loader = _Named(NumberedDataset(18), batch_size=4, num_workers=workers, drop_last=True, name="train")
    tracked = track_loader(loader)
    assert isinstance(tracked, _Named)
    assert (tracked.name, tracked.batch_size, tracked.drop_last, len(tracked)) == ("train", 4, True, 4)
    assert [batch[0][:, 0].tolist() for batch in tracked] == [batch[0][:, 0].tolist() for batch in loader]
    sampler = tracked.batch_sampler
    assert isinstance(sampler, TrackedBatchSampler)
    assert [sampler.examples(i).positions.tolist() for i in range(4)] == [list(range(i, i + 4)) for i in (0, 4, 8, 12)]


class _Shuffled(Sampler):
    def __init__(self) -> None:
        self.inner = RandomSampler(range(16))

    def __iter__(self) -> Any:
        return iter(self.inner)

    def __len__(self) -> int:
        return 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _OwnLoader(NumberedDataset(16), batch_size=8), "_OwnLoader has a __iter__ of its own"),
        (lambda: DataLoader(NumberedDataset(16), batch_size=None, sampler=_Shuffled()), "batch_size=None"),
        (lambda: [(torch.zeros(8, 6), torch.zeros(8).long())], "need a torch DataLoader, got list"),
    ],
    ids=["own loader", "no batching", "no loader"],
)
def test_refuses_loaders_without_ids(make: Any, message: str) -> None:
    with pytest.raises(ExampleIdError, match=message):
        track_loader(make())


def test_refuses_iterable_data_without_key() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ExampleIdError, match="Stream is an iterable dataset"):
        track_loader(DataLoader(Stream(), batch_size=8))


def test_refuses_selective_backprop() -> None:
    one = trainer(loader(NumberedDataset(16)), algorithms=[Spy(), SelectiveBackprop()])
    with pytest.raises(ExampleIdError, match="SelectiveBackprop removes rows"):
        one.fit()


def test_refuses_a_collate_function_that_adds_rows() -> None:
    def twice(rows: list[Any]) -> Any:
        batch = torch.utils.data.default_collate(rows)
        return batch[0].repeat(2, 1), batch[1].repeat(2)

    one = trainer(loader(NumberedDataset(16), collate_fn=twice), algorithms=[Spy()])
    with pytest.raises(ExampleIdError, match="the batch has 16 rows but was made from 8 examples"):
        one.fit()


def test_num_rows() -> None:
    assert num_rows({"a": torch.zeros(3, 2), "b": [1, 2, 3]}) == 3
    assert num_rows([torch.zeros(5, 2), {"mask": torch.zeros(5)}]) == 5
    assert num_rows({"x": torch.zeros(4, 2), "temperature": torch.tensor(0.5)}) == 4
    with pytest.raises(ExampleIdError, match=r"parts of \[2, 3\] rows"):
        num_rows((torch.zeros(3), torch.zeros(2)))
    with pytest.raises(ExampleIdError, match="no tensors"):
        num_rows({"temperature": torch.tensor(0.5)})


def test_epoch_sampler_is_a_function_of_seed_and_epoch() -> None:
    sampler = EpochSampler(10, seed=1, num_replicas=1, rank=0)
    torch.rand(3)
    sampler.set_epoch(4)
    fourth = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) != fourth
    sampler.set_epoch(4)
    assert list(sampler) == fourth
    assert sorted(fourth) == list(range(10))
    other = EpochSampler(10, seed=4, num_replicas=1, rank=0)
    other.set_epoch(1)
    assert list(other) != fourth, "seed and epoch must not be added up"


@pytest.mark.parametrize("drop_last", [True, False])
def test_epoch_sampler_splits_by_rank(drop_last: bool) -> None:
    samplers = [EpochSampler(11, seed=1, drop_last=drop_last, num_replicas=2, rank=rank) for rank in range(2)]
    order = samplers[0].order(0).tolist()
    expected = order[:10] if drop_last else [*order, order[0]]
    parts = [list(sampler) for sampler in samplers]
    assert [x for pair in zip(*parts, strict=True) for x in pair] == expected
    assert [len(sampler) for sampler in samplers] == [len(part) for part in parts]


def test_epoch_sampler_can_be_steered() -> None:
    sampler = EpochSampler(10, seed=1, num_replicas=1, rank=0)
    sampler.steer(lambda epoch: [epoch, 5, 5])
    sampler.set_epoch(2)
    assert list(sampler) == [2, 5, 5]
    assert len(sampler) == 3
    sampler.steer(lambda epoch: [10])
    with pytest.raises(ValueError, match="outside"):
        list(sampler)


def test_batch_sampler_may_choose_views_itself() -> None:
    class Views(Dataset):
        def __getitem__(self, index: Any) -> Any:
            return index.position, index.view

    batches = [[ExampleView(3, 1), ExampleView(0, 2)]]
    tracked = track_loader(DataLoader(Views(), batch_sampler=batches))
    assert [t.tolist() for t in next(iter(tracked))] == [[3, 0], [1, 2]]
    examples = tracked.batch_sampler.examples(0)  # type: ignore[union-attr]
    assert (examples.positions.tolist(), examples.views.tolist()) == ([3, 0], [1, 2])


def test_no_batch_no_ids() -> None:
    with pytest.raises(ExampleIdError, match="no batch is under way"):
        _ = ExampleIds().batch


@pytest.mark.ranks
def test_two_ranks_see_the_batches_of_one(tmp_path: Path) -> None:
    script = Path(__file__).parent / "ranks" / "record_ids.py"
    results = {}
    for ranks in (1, 2):
        launch(ranks, str(script), str(tmp_path), check=True)
        parts = [json.loads((tmp_path / f"{ranks}-{rank}.json").read_text()) for rank in range(ranks)]
        results[ranks] = [sorted(i for part in parts for i in part[b]) for b in range(len(parts[0]))]
    assert results[1] == results[2]
    assert len(results[1]) == 6


class Boxes(Dataset):
    """Images of several sizes with several boxes each; three channels, as three rows to whoever looks at shapes."""

    def __init__(self, sizes: int) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return torch.full((3, 4 + index % self.sizes, 4), float(index)), {"boxes": torch.ones(1 + index % 4, 4)}


class Detector(ComposerModel):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 4, 1)

    def forward(self, batch: Any) -> Any:
        return [self.net(image[None]).mean() for image in batch[0]]

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return torch.stack(outputs).mean()


@pytest.mark.parametrize("sizes", [1, 3])
@pytest.mark.parametrize("microbatch", [3, 2])
def test_batches_of_lists_are_counted_as_the_data_spec_counts_them(sizes: int, microbatch: int) -> None:
    """Three boxes, three channels and three examples: what tensors show is three in one case, and not in others."""

    class Rows(Algorithm):
        def __init__(self) -> None:
            self.ids = ExampleIds()
            self.seen: list[tuple[list[int], list[int]]] = []

        def match(self, event: Event, state: State) -> bool:
            return event in ExampleIds.EVENTS

        def apply(self, event: Event, state: State, logger: Any) -> None:
            self.ids.handle(event, state)
            if event == Event.BEFORE_FORWARD:
                self.seen.append(
                    (self.ids.microbatch.positions.tolist(), [int(x.flatten()[0]) for x in state.batch[0]])
                )

    def collate(rows: Any) -> Any:
        return tuple(zip(*rows, strict=True))

    def split(batch: Any, size: int) -> Any:
        return [tuple(part[at : at + size] for part in batch) for at in range(0, len(batch[0]), size)]

    spec = DataSpec(
        DataLoader(Boxes(sizes), batch_size=3, collate_fn=collate, shuffle=True),
        get_num_samples_in_batch=lambda batch: len(batch[0]),
        split_batch=split,
    )
    rows = Rows()
    trainer(spec, Detector(), algorithms=[rows], device_train_microbatch_size=microbatch, max_duration="1ep").fit()
    assert len(rows.seen) == 4 * (2 if microbatch == 2 else 1)
    assert all(positions == held for positions, held in rows.seen)


class _Reordered(NumberedDataset):
    """Keeps an order of its own, which changes with the epoch or when somebody asks for it."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.order = list(range(length))

    def reorder(self, epoch: int) -> None:
        self.order = torch.randperm(self.length, generator=torch.Generator().manual_seed(epoch)).tolist()

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(self.order[index])


class _ReorderedByEpoch(_Reordered):
    def set_epoch(self, epoch: int) -> None:
        self.reorder(epoch)


class _Augmented(NumberedDataset):
    """Augments more from epoch to epoch, with a generator of its own: the examples stay what they are."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.strength, self.generator = 0, torch.Generator().manual_seed(0)

    def set_epoch(self, epoch: int) -> None:
        self.strength = epoch

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + self.strength * torch.rand((), generator=self.generator), y


class _At(Algorithm):
    """Changes a dataset at the end of the first epoch."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def match(self, event: Event, state: State) -> bool:
        return event == Event.EPOCH_END and int(state.timestamp.epoch) == 1

    def apply(self, event: Event, state: State, logger: Any) -> None:
        self.change()


class _Ids(Spy):
    """Follows the ids without a look at the batch."""

    def apply(self, event: Event, state: State, logger: Any) -> None:
        self.ids.handle(event, state)
        if event == Event.AFTER_TRAIN_BATCH:
            self.seen.append((int(state.timestamp.batch), self.ids.batch.positions.tolist()))


def test_a_dataset_that_shuffles_itself_by_the_epoch_is_refused_before_the_first_step() -> None:
    spy = _Ids()
    with pytest.raises(ExampleIdError, match="_ReorderedByEpoch gives another example at position .* in epoch 1 than"):
        trainer(loader(_ReorderedByEpoch(32)), algorithms=[spy]).fit()
    assert not spy.seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.reorder(5), "_Reordered gives another example at position"),
        (lambda data: setattr(data, "length", 16), "_Reordered had 32 examples in epoch 0 and has 16 in epoch 1"),
    ],
    ids=["order", "length"],
)
def test_a_dataset_that_changes_between_epochs_is_refused_when_it_does(change: Any, message: str) -> None:
    data, spy = _Reordered(32), _Ids()
    with pytest.raises(ExampleIdError, match=message):
        trainer(loader(data), algorithms=[spy, _At(lambda: change(data))]).fit()
    assert len(spy.seen) == 4  # the batches of the first epoch


def test_augmentation_that_grows_by_the_epoch_is_no_change_of_the_examples() -> None:
    spy = _Ids()
    trainer(loader(_Augmented(32)), algorithms=[spy]).fit()
    shown = [sorted(id for _, ids in spy.seen[start : start + 4] for id in ids) for start in (0, 4)]
    assert shown == [list(range(32))] * 2


@pytest.mark.parametrize("order", ["stride", "reversed"])
def test_microbatches_of_rows_in_another_order_are_refused(order: str) -> None:
    def split(batch: Any, size: Any) -> list[Any]:
        parts = len(batch[0]) // int(size)
        rows = [slice(n, None, parts) for n in range(parts)]
        if order == "reversed":
            rows = [slice(n * int(size), (n + 1) * int(size)) for n in reversed(range(parts))]
        return [tuple(tensor[some] for tensor in batch) for some in rows]

    spec = DataSpec(loader(NumberedDataset(32)), split_batch=split)
    with pytest.raises(ExampleIdError, match="row . of a microbatch is row . of the batch and not row"):
        trainer(spec, algorithms=[_Ids()], device_train_microbatch_size=4).fit()
