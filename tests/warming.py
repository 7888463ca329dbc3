"""Helpers of the tests of PriorRunWarmStart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from composer import Callback, State
from composer.loggers import InMemoryLogger
from torch.utils.data import DataLoader, TensorDataset

from reuse_algos.algorithms import PriorRunWarmStart
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.info import DatasetInfo
from reuse_algos.training.outputs import plain_state_dict, unwrap_model
from shorthand import sections
from toy import NUM_CLASSES, Stop, blobs, checkpointed, epoch_loader, finish, mlp, trainer

NAMES = tuple("abcd")


class Named(TensorDataset):
    """Blobs whose classes have names."""

    def __init__(self, length: int = 64, class_names: tuple[str, ...] = NAMES) -> None:
        super().__init__(*blobs(length).tensors)
        self.info = DatasetInfo("blobs", torch.arange(length), torch.arange(length) % NUM_CLASSES, class_names)


class Weights(Callback):
    """Keeps the weights before the first batch and after every batch, rates, and what has a gradient."""

    def __init__(self) -> None:
        self.first: dict[str, torch.Tensor] = {}
        self.later: list[dict[str, torch.Tensor]] = []
        self.rates: list[list[float]] = []
        self.with_gradient: list[set[str]] = []

    def batch_start(self, state: State, logger: Any) -> None:
        if not self.first:
            self.first = _copied(state)

    def after_train_batch(self, state: State, logger: Any) -> None:
        self.rates.append([float(group["lr"]) for group in state.optimizers[0].param_groups])
        named = unwrap_model(state.model).named_parameters()
        self.with_gradient.append({name for name, parameter in named if parameter.grad is not None})

    def batch_end(self, state: State, logger: Any) -> None:
        self.later.append(_copied(state))


def _copied(state: State) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in plain_state_dict(state.model).items()}


def warm(archive: RunArchive, **settings: Any) -> PriorRunWarmStart:
    runs = settings.pop("runs", {"tags": {"method": "baseline"}, "order": "first", "limit": 1})
    return PriorRunWarmStart(archive, runs, **sections("warm", settings))


def fit(
    algorithms: list[Any], model: Any = None, *, data: Any = None, **arguments: Any
) -> tuple[Any, Weights, InMemoryLogger]:
    """Train for two epochs of four batches."""
    weights, log = Weights(), InMemoryLogger()
    one = trainer(
        epoch_loader(data or Named()),
        model or mlp(5),
        algorithms=algorithms,
        callbacks=[weights, *arguments.pop("callbacks", [])],
        loggers=[log],
        **arguments,
    )
    one.fit()
    return one, weights, log


def trainer_with(optimizer: Any, model: Any, algorithms: list[Any], callbacks: list[Any], **arguments: Any) -> Any:
    """A Trainer of two epochs with an evaluation after each."""
    return trainer(
        epoch_loader(Named()),
        model,
        optimizers=optimizer,
        algorithms=algorithms,
        callbacks=callbacks,
        eval_dataloader=DataLoader(blobs(32, seed=9), batch_size=32),
        **arguments,
    )


def resumable(
    algorithm: PriorRunWarmStart, folder: Path, stop: int | None, optimizer: Any = None, **arguments: Any
) -> Weights:
    """Train with checkpoints, until the batch ``stop``; another call with the folder goes on from there.

    Args:
        optimizer: parameters -> the optimizer; None takes SGD with momentum.
    """
    weights, model = Weights(), mlp(5)
    made = None if optimizer is None else optimizer(model.parameters())
    algorithms = [algorithm, *([] if stop is None else [Stop(stop)])]
    finish(trainer_with(made, model, algorithms, [weights], **checkpointed(folder, save_interval="1ba"), **arguments))
    return weights


def record(archive: RunArchive, name: str, algorithms: list[Any] | None = None, **arguments: Any) -> str:
    """A short run in the archive; its id."""
    recorder = RunRecorder(archive, run_name=name, weights=arguments.pop("weights", ("last",)))
    one, _, _ = fit(algorithms or [], arguments.pop("model", None), callbacks=[recorder], **arguments)
    one.close()
    assert recorder.run_id is not None
    return recorder.run_id


def archived(archive: RunArchive, index: int = 0, weights: str = "last") -> dict[str, torch.Tensor]:
    run = archive.runs(tags={"method": "baseline"}, order="first")[index]
    return {name: value.clone() for name, value in run.weights(weights).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
