"""Trainers with and without a recorder, for ``archive_cost.py``: whole epochs, or step by step in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from step_clock import StepClock, epoch_by_turns
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


def _as_it_is(batch: Any) -> Any:
    return batch


def steps_by_turns(on: Training, off: Training, epochs: int) -> list[tuple[float, float]]:
    """Return seconds of the steps of both, made one after the other; which comes first changes with the epoch."""
    pairs: list[tuple[float, float]] = []
    for number in range(epochs):
        order = {"on": on, "off": off} if number % 2 else {"off": off, "on": on}
        seconds = epoch_by_turns(order)
        pairs += zip(seconds["on"], seconds["off"], strict=True)
    return pairs
