"""Trainers with and without a recorder, for ``archive_cost.py``: whole epochs, or step by step in turn."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from composer import Callback, State, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.info import DatasetInfo
from reuse_algos.models import build_model

CLASSES = 100


class Images(Dataset):
    """Random images of CIFAR's shape; a batch is one indexing, so that loading hides nothing of the recorder."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, 32, 32, generator=generator)
        self.labels = torch.randint(0, CLASSES, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


class StepClock(Callback):
    """Times each step, up to the start of the next one of the same epoch, and lets another trainer make its step then.

    Two trainers run in a thread each and hand a baton to and fro, so that whatever else the machine does meets both.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.baton = threading.Semaphore(0)
        self.other: StepClock | None = None
        self._began: float | None = None

    def epoch_start(self, state: State, logger: Any) -> None:
        """The first step of an epoch has no predecessor in it."""
        del state, logger
        self._began = None

    def batch_start(self, state: State, logger: Any) -> None:
        """End of one step, start of the next."""
        del state, logger
        now = time.perf_counter()
        if self._began is not None:
            self.seconds.append(now - self._began)
        if self.other is not None:
            self.other.baton.release()
            self.baton.acquire()
        self._began = time.perf_counter()


class Training:
    """A trainer that goes on by one epoch at a time, with or without a recorder."""

    def __init__(self, dataset: Images, archive: Path | None) -> None:
        torch.manual_seed(0)
        self.clock = StepClock()
        labels = dataset.labels
        self.recorder = archive and RunRecorder(
            archive, signals={"logits": {}}, dataset=DatasetInfo("random", torch.arange(len(labels)), labels)
        )
        model = build_model({"name": "resnet_small"}, num_classes=CLASSES, image_shape=(3, 32, 32))
        self.trainer = Trainer(
            model=model,
            train_dataloader=DataLoader(dataset, batch_size=128, shuffle=True, collate_fn=_as_it_is),
            optimizers=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
            max_duration="0ep",
            device="gpu" if torch.cuda.is_available() else "cpu",
            callbacks=[self.clock, self.recorder] if self.recorder else [self.clock],
            progress_bar=False,
            auto_log_hparams=False,
        )

    def epoch(self) -> None:
        """Train one more epoch, and let the recorder write it, commit it and mark the run as ended."""
        self.trainer.fit(duration="1ep")

    def epoch_by_turns(self, other: Training, steps: int) -> None:
        """The same in a thread of its own, step by step in turn with another trainer."""
        self.clock.other = other.clock
        self.clock.baton.acquire()
        try:
            self.epoch()
        finally:
            self.clock.other = None
            other.clock.baton.release(2 * steps)  # it may go on without waiting


def _as_it_is(batch: Any) -> Any:
    return batch


def steps_by_turns(on: Training, off: Training, epochs: int, steps: int) -> list[tuple[float, float]]:
    """Seconds of the steps of both, made one after the other; which comes first changes with the epoch."""
    pairs: list[tuple[float, float]] = []
    with ThreadPoolExecutor(2) as threads:
        for number in range(epochs):
            for training in (on, off):
                training.clock.seconds.clear()
                training.clock.baton = threading.Semaphore(0)
            first, second = (on, off) if number % 2 else (off, on)
            order = ((first, second), (second, first))
            ends = [threads.submit(training.epoch_by_turns, other, steps) for training, other in order]
            first.clock.baton.release()
            for end in ends:
                end.result()
            pairs += zip(on.clock.seconds, off.clock.seconds, strict=True)
    return pairs
