"""Which examples are in this batch, without touching the batch.

The train DataLoader is swapped once, when training starts, for one with the same arguments whose batch sampler
records the index list of each batch (:class:`~reuse_algos.data.sampler.TrackedBatchSampler`). Every algorithm and the
recorder keeps an :class:`ExampleIds` of its own as a cursor over that one record: the first to come installs it, the
others find it on the loader.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from composer import Callback, Event, State
from composer.algorithms import SelectiveBackprop
from composer.loggers import Logger
from torch.utils.data import DataLoader, IterableDataset

from reuse_algos.data.examples.held_examples import HeldExamples
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.nested import tensors_at
from reuse_algos.data.sampler import Examples, TrackedBatchSampler
from reuse_algos.data.streams.ids import ID, keys_of_ids
from reuse_algos.data.streams.streaming import StreamIds
from reuse_algos.data.trainer import restore_random_numbers, rows_of
from reuse_algos.data.views import ViewPolicy, declared_views, views_of
from reuse_algos.errors import DataError, ExampleIdError

# What makes the batches of a DataLoader the lists of its batch sampler. A subclass may override all else.
_ITERATION = ("__iter__", "_get_iterator", "_index_sampler", "_auto_collation")


def track_loader(loader: DataLoader) -> DataLoader:
    """Return a copy of the loader whose batch sampler records what it hands out; a loader that has one is returned.

    Raises:
        ExampleIdError: The index lists of the loader cannot be known: it is not a DataLoader over a map-style dataset,
            or its class iterates in a way of its own.
    """
    if isinstance(getattr(loader, "batch_sampler", None), TrackedBatchSampler):
        return loader
    advice = "Use a torch DataLoader over a map-style dataset, or put the ids into the batch and name them by id_key."
    if not isinstance(loader, DataLoader):
        raise ExampleIdError(f"example ids need a torch DataLoader, got {type(loader).__name__}. {advice}")
    overridden = [name for name in _ITERATION if getattr(type(loader), name) is not getattr(DataLoader, name)]
    if overridden:
        raise ExampleIdError(
            f"{type(loader).__name__} has a {overridden[0]} of its own, so its batches may not be the lists that its "
            f"batch sampler yields. {advice}"
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ExampleIdError(
            f"{type(loader.dataset).__name__} is an iterable dataset, which has no example indices. Put the ids into "
            "the batch and name them by id_key."
        )
    if loader.batch_sampler is None:
        raise ExampleIdError(f"the DataLoader does not batch by itself (batch_size=None). {advice}")
    if not getattr(loader, "in_order", True):
        raise ExampleIdError(
            "the DataLoader has in_order=False: its batches come in no known order. Use in_order=True."
        )
    # A copy keeps what others read from a loader: its class, batch_size, drop_last and attributes of its own.
    tracked = copy(loader)
    # DataLoader refuses to set these by assignment, because a running iterator would not notice. None runs here.
    vars(tracked).update(
        batch_sampler=TrackedBatchSampler(loader.batch_sampler, loader.dataset, loader.collate_fn), _iterator=None
    )
    return tracked


def keep_views(state: State) -> None:
    """Make sure at FIT_START that a dataset with seeded views knows the epoch, also where no example ids are needed.

    Raises:
        ExampleIdError: The views are hidden inside another dataset, which would show the first one in every epoch.
    """
    outer = inner = getattr(state.dataloader, "dataset", None)
    if isinstance(outer, IterableDataset):
        place_stream(state)
        return
    if declared_views(outer) is not None:
        _track_train_loader(state)
        return
    while (inner := getattr(inner, "dataset", None)) is not None:
        if declared_views(inner) is not None:
            raise ExampleIdError(
                f"{type(outer).__name__} hides the views of the {type(inner).__name__} inside it, so every epoch would "
                f"show the same one. Wrap it the other way round: ViewedDataset({type(outer).__name__}(...), policy)."
            )


def place_stream(state: State) -> None:
    """Let a stream begin where the training does (FIT_START); every rank must call this."""
    dataset: Any = getattr(state.dataloader, "dataset", None)
    if not isinstance(dataset, StreamIds):
        tell_epoch(state)
        return
    dataset.go_on(int(state.timestamp.epoch), int(state.timestamp.sample_in_epoch))
    # Composer reads a batch of each earlier epoch of a dataset that does not resume by itself. Streaming counts those.
    state.dataset_resumption["train"] = True


def tell_epoch(state: State) -> None:
    """Set the next epoch of a stream, at FIT_START and EPOCH_END.

    Composer sets the epoch of samplers only, and streams have none.
    """
    dataset = getattr(state.dataloader, "dataset", None)
    if isinstance(dataset, IterableDataset) and hasattr(dataset, "set_epoch"):
        dataset.set_epoch(int(state.timestamp.epoch))  # type: ignore[attr-defined]


VIEW_EVENTS = (Event.FIT_START, Event.AFTER_DATALOADER, Event.EPOCH_END)
"""What :func:`follow_views` needs."""


def follow_views(event: Event, state: State) -> None:
    """Keep views, the place in a stream and its random numbers right, where no example ids are needed.

    Args:
        event: One of :data:`VIEW_EVENTS`; every one must be passed on, on every rank.
        state: Of the running Trainer.

    Raises:
        ExampleIdError: The views are hidden inside another dataset (FIT_START).
    """
    if event == Event.FIT_START:
        keep_views(state)
        return
    if event == Event.EPOCH_END:
        tell_epoch(state)
    restore_random_numbers(state)


def read_steered_ids(who: str, state: State, ids: ExampleIds) -> None:
    """Let a cursor read ids from the batches of a stream, and from the sampler otherwise (FIT_START).

    Args:
        who: The algorithm that decides which examples are shown, and when.
        state: Of the running Trainer.
        ids: Its cursor.

    Raises:
        ExampleIdError: The train dataset is iterable and decides its order itself.
    """
    dataset = getattr(state.dataloader, "dataset", None)
    stream = isinstance(dataset, StreamIds)
    if isinstance(dataset, IterableDataset) and not stream:
        raise ExampleIdError(
            f"{who} decides which examples are shown, and {type(dataset).__name__} is a stream, which decides that "
            "itself. Use with_ids(StreamingDataset), a map-style dataset, or the proportions of its streams "
            "(Stream(proportion=...))."
        )
    ids.id_key = ID if stream else None


def swap_train_loader(state: State, loader: DataLoader) -> None:
    """Put another train DataLoader into the state, in the middle of Composer's own use of it."""
    # With the length that Composer counts by: a limit such as train_subset_num_batches stays.
    length = state.dataloader_len
    state.set_dataloader(loader, state.dataloader_label, -1 if length is None else int(length))
    state.train_dataloader = loader


def _track_train_loader(state: State) -> TrackedBatchSampler:
    """Swap the train DataLoader of the state for a tracked one, unless it is one."""
    loader = state.dataloader
    tracked = track_loader(loader)  # type: ignore[arg-type]  # refuses what is not a DataLoader
    if tracked is not loader:
        swap_train_loader(state, tracked)
    assert isinstance(tracked.batch_sampler, TrackedBatchSampler)
    return tracked.batch_sampler


class ExampleIds:
    """A cursor over the examples of the running batch and microbatch.

    Its owner forwards the events of :attr:`EVENTS` to :meth:`handle` and then reads :attr:`batch` (from
    AFTER_DATALOADER on) and :attr:`microbatch` (from BEFORE_FORWARD on).

    Args:
        id_key: Key of the batch under which the ids lie, B whole numbers or texts, for iterable or streaming datasets.
            Default: None, which takes the index lists of the batch sampler.
        view_key: Key of the batch under which the view numbers lie, int64 ``[B]``. Default: None, which makes all
            views unknown (-1) unless the dataset has one view only.

    Attributes:
        info: The training data. Where it is set, ids from a batch are its keys and become positions; otherwise they
            are handed on as they are.
    """

    EVENTS = (
        Event.FIT_START,
        Event.BEFORE_DATALOADER,
        Event.AFTER_DATALOADER,
        Event.BEFORE_TRAIN_BATCH,
        Event.BEFORE_FORWARD,
        Event.AFTER_TRAIN_BATCH,
        Event.EPOCH_END,
    )

    def __init__(self, id_key: str | int | None = None, view_key: str | int | None = None) -> None:
        self.id_key = id_key
        self.view_key = view_key
        self.view_policy: ViewPolicy | None = None
        self.info: DatasetInfo | None = None
        self._batch: Examples | None = None
        self._microbatch: Examples | None = None
        self._next_row = 0
        self._first = False
        self._whole: Any = None  # the first batch, against which its microbatches are held
        self._fetched = 0  # batches fetched in this pass, those that a resumed run spins through included

    @property
    def batch(self) -> Examples:
        """Return the examples of the whole batch of this rank."""
        return self._known(self._batch)

    @property
    def microbatch(self) -> Examples:
        """Return the examples of the microbatch that is in its forward pass."""
        return self._known(self._microbatch)

    @staticmethod
    def _known(examples: Examples | None) -> Examples:
        if examples is None:
            raise ExampleIdError("no batch is under way")
        return examples

    def handle(self, event: Event, state: State) -> None:
        """Follow one event of the training loop.

        Raises:
            ExampleIdError: Rows and examples cannot be brought together.
        """
        if event == Event.FIT_START:
            self._fetched = 0
            self._install(state)
        elif event == Event.EPOCH_END:
            self._fetched = 0
            follow_views(event, state)
        elif event == Event.BEFORE_DATALOADER:
            # Counted here and not by the timestamp: a resumed run spins through the batches before its checkpoint.
            self._fetched += 1
            if self._fetched == 1 and (held := _held(state)) is not None:
                held.check(int(state.timestamp.epoch))
        elif event == Event.AFTER_DATALOADER:
            follow_views(event, state)
            self._start_batch(state)
        elif event == Event.BEFORE_TRAIN_BATCH:
            # Also runs again when automatic microbatching retries a batch after running out of memory.
            self._next_row = 0
            if self._first:
                self._whole = state.batch
        elif event == Event.BEFORE_FORWARD:
            self._start_microbatch(state)
        elif event == Event.AFTER_TRAIN_BATCH:
            self._first, self._whole = False, None
            self._check_count()

    def _check_count(self) -> None:
        if self._next_row != len(self.batch.positions):
            raise ExampleIdError(
                f"the microbatches held {self._next_row} of the batch's {len(self.batch.positions)} examples. A "
                "DataSpec.split_batch that leaves rows out or reorders them cannot be followed; put the ids into the "
                "batch and name them by id_key."
            )

    def _install(self, state: State) -> None:
        pruning = [type(a).__name__ for a in state.algorithms if isinstance(a, SelectiveBackprop)]
        if pruning:
            raise ExampleIdError(
                f"{pruning[0]} removes rows from the batch, so rows and example ids no longer agree. Remove it; "
                "HistoryCurriculum's pruning decides before the data is loaded and costs no extra forward pass."
            )
        if self.id_key is not None:
            loader = state.dataloader
            self.view_policy = views_of(getattr(loader, "dataset", None), getattr(loader, "collate_fn", None))
            place_stream(state)
            return
        keep_views(state)
        if state.dataset_resumption.get("train"):
            raise ExampleIdError(
                "the train dataset resumes by itself (it has a state_dict), so the batches before the checkpoint are "
                "never handed out again. Put the ids into the batch and name them by id_key."
            )
        self.view_policy = _track_train_loader(state).view_policy
        self._first = True
        _held(state)

    def _start_batch(self, state: State) -> None:
        self._microbatch, self._next_row = None, 0
        if self.id_key is not None:
            self._batch = self._from_batch(state.batch)
            return
        sampler = getattr(state.dataloader, "batch_sampler", None)
        if not isinstance(sampler, TrackedBatchSampler):
            raise ExampleIdError(
                "the train DataLoader was replaced after training started. Replace it before Trainer.fit, or pass it "
                "to Trainer.fit."
            )
        self._batch = sampler.examples(self._fetched - 1)
        expected = len(self._batch.positions)
        self._check_rows(rows_of(state.batch, state, expected), expected)

    def _start_microbatch(self, state: State) -> None:
        if self.id_key is not None:
            self._microbatch = self._from_batch(state.batch)
            self._next_row += len(self._microbatch.positions)
            return
        stop = self._next_row + self._rows_of_microbatch(state)
        if stop > len(self.batch.positions):
            self._check_rows(stop, len(self.batch.positions))
        if self._whole is not None and stop - self._next_row < len(self.batch.positions):
            _check_slice(self._whole, state.batch, self._next_row, stop)
        self._microbatch = self.batch.rows(self._next_row, stop)
        self._next_row = stop

    def _rows_of_microbatch(self, state: State) -> int:
        size, left = state.device_train_microbatch_size, len(self.batch.positions) - self._next_row
        return rows_of(state.batch, state, left if size is None else min(int(size), left))

    def _from_batch(self, batch: Any) -> Examples:
        try:
            positions = keys_of_ids(batch[self.id_key])
            only = self.view_policy is not None and self.view_policy.num_views == 1
            views = torch.full_like(positions, 0 if only else -1)
            if self.view_key is not None:
                views = torch.as_tensor(batch[self.view_key]).detach().to("cpu", torch.int64).reshape(-1)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ExampleIdError(
                f"the batch has no ids (whole numbers or texts) under id_key={self.id_key!r} "
                f"(view_key={self.view_key!r}): {error}"
            ) from error
        if self.info is not None:
            try:
                positions = self.info.positions_of(positions)
            except DataError as error:
                shown = batch[self.id_key]
                raise ExampleIdError(
                    f"the batch has ids under {self.id_key!r} that the training data do not have, such as "
                    f"{shown[0]!r:.80}: {error} Its keys are by {self.info.key_kind}. Name the examples by the same "
                    f"ids: dataset=identify(dataset, key=...), or stream.info = scan_stream(stream) of a stream."
                ) from error
        return Examples(positions, views)

    @staticmethod
    def _check_rows(rows: int, expected: int) -> None:
        if rows != expected:
            raise ExampleIdError(
                f"the batch has {rows} rows but was made from {expected} examples: a collate function, a DataSpec "
                "transform or another algorithm adds or removes rows. Remove it, or put the ids into the batch and "
                "name them by id_key."
            )


def _held(state: State) -> HeldExamples | None:
    """Return the examples by which it is known that the train dataset stays what it is; None without a tracked loader.

    All cursors share one memory of them.
    """
    loader: Any = state.dataloader
    sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(sampler, TrackedBatchSampler):
        return None
    if sampler.held is None:
        sampler.held = HeldExamples(loader.dataset, int(state.timestamp.epoch))
    return sampler.held


def _check_slice(whole: Any, part: Any, start: int, stop: int) -> None:
    """Refuse a microbatch whose rows are others of the batch than the next ones.

    Raises:
        ExampleIdError: A tensor of it holds rows of other places of the batch.
    """
    given, tensors = dict(tensors_at(part)), dict(tensors_at(whole))
    wide = {place: rows for place, rows in tensors.items() if rows.dim() > 1}  # numbers alone are alike by chance
    for place, rows in (wide or tensors).items():
        mine = given.get(place)
        if mine is None or mine.shape[1:] != rows.shape[1:] or not mine.dim() or len(mine) != stop - start:
            continue
        # The second row shows a stride, the first a reversed order; an algorithm may have changed the rows themselves.
        for row in {0, min(1, len(mine) - 1)}:
            same = (rows == mine[row]).flatten(1).all(1) if rows.dim() > 1 else rows == mine[row]
            if bool(same.any()) and not bool(same[start + row]):
                raise ExampleIdError(
                    f"row {row} of a microbatch is row {int(same.nonzero()[0])} of the batch and not row {start + row}"
                    ": a DataSpec.split_batch that reorders rows cannot be followed. Let it give the rows in their "
                    "order, or put the ids into the batch and name them by id_key."
                )


class TrackExamples(Callback):
    """Keep seeded views in force where no algorithm and no recorder does."""

    def fit_start(self, state: State, logger: Logger) -> None:
        """Swap the train DataLoader where its dataset has views (a no-op where it has been swapped)."""
        follow_views(Event.FIT_START, state)

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Restore the random numbers of a checkpoint of mid-epoch, once, on a stream."""
        follow_views(Event.AFTER_DATALOADER, state)

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Set the next epoch of a stream."""
        follow_views(Event.EPOCH_END, state)
