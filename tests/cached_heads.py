"""Helpers of the tests of archived features: prior runs on digits, in views, and heads trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from composer import Callback, State, Trainer

from reuse_algos.algorithms import PriorRunWarmStart
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.example_ids import TrackExamples
from reuse_algos.recipe import build_trainer, load_recipe
from reuse_algos.training.outputs import plain_state_dict
from shorthand import sections
from toy import checkpointed, epoch_loader, finish, mlp, trainer, viewed

DIGITS = Path(__file__).parents[1] / "yamls" / "digits" / "baseline.yaml"
DATA = [
    "data.train_examples=160",
    "data.augment=crop_flip",
    "data.num_views=3",
    "max_duration=3ep",
    "optimizer.weight_decay=0.001",
    "optimizer.lr=0.2",
    "save_folder=null",
    "callbacks.run_recorder.signals=null",
    "progress_bar=false",
]


class Steps(Callback):
    """Loss and inputs of every microbatch, and weights after every batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.shapes: list[tuple[int, ...]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def before_backward(self, state: State, logger: Any) -> None:
        loss = state.loss["total"] if isinstance(state.loss, dict) else state.loss
        self.losses.append(float(loss))

    def after_forward(self, state: State, logger: Any) -> None:
        self.shapes.append(tuple(state.batch_get_item(0).shape))

    def batch_end(self, state: State, logger: Any) -> None:
        self.weights.append({name: value.clone() for name, value in plain_state_dict(state.model).items()})


def digits(archive: Path, name: str, algorithms: str = "{}", *overrides: str) -> tuple[Trainer, Steps]:
    """A trainer of the digits recipe, in three views of each image."""
    lines = [f"archive={archive}", f"run_name={name}", f"algorithms={algorithms}", *DATA, *overrides]
    one, steps = build_trainer(load_recipe(DIGITS, lines)), Steps()
    one.state.callbacks.append(steps)
    return one, steps


def head_of_blobs(
    archive: RunArchive, *others: Any, run: str = "baseline-1", model: Any = None, data: Any = None, **arguments: Any
) -> tuple[Trainer, Steps]:
    """The head of the toy network, trained on cached features unless otherwise asked."""
    settings = {"source": "cached", "freeze": "backbone", "head": "reset", **arguments.pop("settings", {})}
    steps = Steps()
    one = trainer(
        epoch_loader(data or viewed()),
        model or mlp(5),
        algorithms=[PriorRunWarmStart(archive, run, **sections("warm", settings)), *others],
        callbacks=[steps, TrackExamples(), *arguments.pop("callbacks", [])],
        **arguments,
    )
    return one, steps


def interrupted(archive: RunArchive, folder: Path, *others: Any, **arguments: Any) -> Steps:
    """The same with checkpoints and a record, going on where an earlier call stopped."""
    recorder = RunRecorder(archive, run_name="resumable", signals={"logits": {}})
    one, steps = head_of_blobs(
        archive, *others, callbacks=[recorder], **checkpointed(folder, save_interval="1ba", **arguments)
    )
    finish(one)
    return steps
