"""Small models and data that several tests share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from composer import Algorithm, Callback, Event, Logger, State, Trainer
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.example_ids import ExampleIds
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.sampler import EpochSampler
from reuse_algos.data.views import ExampleView, ViewedDataset, ViewPolicy

NUM_CLASSES = 4
NUM_FEATURES = 6


class EndsProcess(Callback):
    """Ends this process after a batch without finishing anything, as a machine that is switched off."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def batch_end(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.batch) == self.batch:
            os._exit(9)


class Interrupts(Callback):
    """Interrupts the training after a batch: no FIT_END, no close."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def batch_end(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.batch) == self.batch:
            raise KeyboardInterrupt


class Stop(Algorithm):
    """Dies in the middle of a batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BEFORE_FORWARD and int(state.timestamp.batch) == self.batch

    def apply(self, event: Event, state: State, logger: Any) -> None:
        raise KeyboardInterrupt


def finish(one: Trainer) -> None:
    """Train until the end, or until somebody interrupts it, and close."""
    with contextlib.suppress(KeyboardInterrupt):
        one.fit()
    one.close()


def detached(value: Any) -> Any:
    """A copy of a tensor, or of a mapping or tuple of some, without its gradient."""
    if isinstance(value, dict):
        return {key: part.detach().clone() for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(part.detach().clone() for part in value)
    return value.detach().clone()


class NumberedDataset(Dataset):
    """Example i is the tensor [i, ...]: the batch itself says which examples it holds."""

    def __init__(self, length: int, *, as_dict: bool = False) -> None:
        self.length, self.as_dict = length, as_dict

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        x, y = torch.full((NUM_FEATURES,), float(index)), index % NUM_CLASSES
        return {"x": x, "y": y, "id": index} if self.as_dict else (x, y)


def blobs(length: int = 64, seed: int = 0) -> TensorDataset:
    """Gaussian blobs, one for each class, that a linear model learns in a few epochs."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(length) % NUM_CLASSES
    centres = torch.eye(NUM_CLASSES, NUM_FEATURES) * 2
    return TensorDataset(centres[labels] + 0.7 * torch.randn(length, NUM_FEATURES, generator=generator), labels)


def mlp(seed: int = 0, *, hidden: int = 16, num_classes: int = NUM_CLASSES) -> ComposerClassifier:
    """A net with batch norm and dropout, so that train mode shows in outputs, statistics and generators."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(NUM_FEATURES, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )
    return ComposerClassifier(net, num_classes=num_classes)


class DictModel(ComposerClassifier):
    """The same for batches that are dictionaries, with a dictionary loss."""

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"logits": self.module(batch["x"])}

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        del args, kwargs
        loss = nn.functional.cross_entropy(outputs["logits"], batch["y"])
        return {"total": loss, "cross_entropy": loss.detach().clone()}

    def update_metric(self, batch: Any, outputs: Any, metric: Any) -> None:
        metric.update(outputs["logits"], batch["y"])


def keyed(rows: list[Any]) -> dict[str, torch.Tensor]:
    """Collate examples as such a batch."""
    return {"x": torch.stack([x for x, _ in rows]), "y": torch.stack([y for _, y in rows])}


class Spy(Algorithm):
    """Checks at every forward pass that the tracked ids are the examples in the batch."""

    def __init__(self, read: Callable[[Any], torch.Tensor] | None = None, id_key: str | None = None) -> None:
        self.ids = ExampleIds(id_key)
        self.read = read or (lambda batch: batch[0][:, 0])
        self.seen: list[tuple[int, list[int]]] = []
        self.views: list[int] = []

    def match(self, event: Event, state: State) -> bool:
        return event in ExampleIds.EVENTS

    def apply(self, event: Event, state: State, logger: Any) -> None:
        self.ids.handle(event, state)
        if event == Event.BEFORE_FORWARD:
            positions = self.ids.microbatch.positions
            assert torch.equal(positions.float(), self.read(state.batch).float().cpu())
            self.seen.append((int(state.timestamp.batch), positions.tolist()))
            self.views.extend(self.ids.microbatch.views.tolist())


def trainer(
    loader: Any,
    model: ComposerClassifier | None = None,
    *,
    max_duration: str = "2ep",
    lr: float = 0.1,
    seed: int = 17,
    **arguments: Any,
) -> Trainer:
    """A Composer Trainer on the CPU without bars and banners."""
    model = model or mlp()
    optimizer = arguments.pop("optimizers", None) or torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return Trainer(
        model=model,
        train_dataloader=loader,
        optimizers=optimizer,
        max_duration=max_duration,
        device="cpu",
        seed=seed,
        progress_bar=False,
        auto_log_hparams=False,
        **arguments,
    )


def loader(dataset: Dataset, batch_size: int = 8, **arguments: Any) -> DataLoader:
    """A DataLoader whose shuffling has a generator of its own."""
    return DataLoader(dataset, batch_size=batch_size, **arguments)


def checkpointed(folder: Path, **arguments: Any) -> dict[str, Any]:
    """Trainer arguments that save a checkpoint in a folder and find it again."""
    return {
        "save_folder": str(folder),
        "save_filename": "ba{batch}.pt",
        "save_latest_filename": "latest.pt",
        "save_overwrite": True,
        "run_name": "resumable",
        "autoresume": True,
        **arguments,
    }


def viewed(length: int = 64, num_views: int = 2, *, seed: int = 0) -> Dataset:
    """Blobs with seeded noise as augmentation: every view of every example differs."""
    data = KeptViews(
        NoisyDataset(blobs(length, seed)),
        ViewPolicy(seed=3, num_views=num_views, transform="noise(0.3)"),
        DatasetInfo("blobs", torch.arange(length), torch.arange(length) % NUM_CLASSES, tuple("abcd")),
    )
    data.kept = _KEPT.setdefault((length, seed), {})
    return data


_KEPT: dict[tuple[int, int], dict[ExampleView, Any]] = {}


class KeptViews(ViewedDataset):
    """Makes each view once: seeding generators for every example would take half the time of a small training."""

    kept: dict[ExampleView, Any]

    def __getitem__(self, index: ExampleView | int) -> Any:
        if not isinstance(index, tuple):
            index = ExampleView(int(index), self.view_policy.view_of_epoch(self._epoch.value or 0))
        if index[1] < 0:
            return super().__getitem__(index)
        if index not in self.kept:
            self.kept[index] = super().__getitem__(index)
        return self.kept[index]


class NoisyDataset(Dataset):
    """Adds noise from torch's global generator, as torchvision's transforms do."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.dataset[index]
        return x + 0.3 * torch.randn(NUM_FEATURES), y


def epoch_loader(dataset: Dataset, batch_size: int = 16, *, seed: int = 11, **arguments: Any) -> DataLoader:
    """A loader whose order is a function of seed and epoch; batch_size is that of all ranks together."""
    sampler = EpochSampler(len(dataset), seed=seed)  # type: ignore[arg-type]
    return DataLoader(dataset, batch_size=batch_size // dist.get_world_size(), sampler=sampler, **arguments)


def record_run(archive: Path | str, *, seed: int = 1, epochs: int = 4, num_views: int = 2, **settings: Any) -> str:
    """Train a baseline on blobs, archive it, and return its run id."""
    recorder = RunRecorder(
        archive,
        run_name=settings.pop("run_name", f"baseline-{seed}"),
        tags=settings.pop("tags", {"method": "baseline"}),
        **{"signals": {"logits": {"last_epochs": num_views}, "loss": {}, "correct": {}}, **settings},
    )
    one = trainer(
        epoch_loader(viewed(num_views=num_views), seed=seed),
        mlp(seed),
        callbacks=[recorder],
        eval_dataloader=DataLoader(blobs(32, seed=9), batch_size=32),
        max_duration=f"{epochs}ep",
        seed=seed,
    )
    one.fit()
    one.close()
    assert recorder.run_id is not None
    return recorder.run_id
