"""The task of a running Trainer is found at its first microbatch, wherever its batches and loss keep things."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer import Algorithm, Event, State, Trainer
from composer.loggers import Logger
from composer.models import ComposerModel
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from reuse_algos.errors import TaskError
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.first_batch.task_reader import TaskReader, targets_of
from reuse_algos.training.tasks.task import Task, TaskSettings

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class _Net(ComposerModel):
    """Takes the targets out of the batch, as wrappers of other libraries do."""

    def __init__(self, shape: tuple[int, ...], loss: Callable[..., torch.Tensor], metric: Metric | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(6, int(torch.Size(shape).numel())), nn.Unflatten(1, shape))
        self.fn, self.metric = loss, metric

    def forward(self, batch: dict[str, torch.Tensor]) -> Any:  # type: ignore[override]
        self.kept = batch.pop("y") if "y" in batch else batch.pop("labels", None)
        return {"logits": self.net(batch["x"])}

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        del batch, args, kwargs
        return self.fn(outputs["logits"], self.kept)

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        return {} if self.metric is None or is_train else {"metric": self.metric}


class _Reading(Algorithm):
    def __init__(self, reader: TaskReader) -> None:
        self.task_reader = reader
        self.found: list[bool] = []
        self.shapes: list[tuple[int, ...]] = []

    def match(self, event: Event, state: State) -> bool:
        del state
        return event in TaskReader.EVENTS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        del logger
        found = self.task_reader.handle(event, state)
        if event == Event.AFTER_LOSS:
            self.found.append(found)
            if self.task_reader.task is not None:
                self.shapes.append(tuple(self.task_reader.rows(state.outputs).logits_BCX.shape))


def _train(model: _Net, targets: torch.Tensor, *readings: _Reading, name: str = "y") -> None:
    loader = DataLoader([{"x": x, name: y} for x, y in zip(X, targets, strict=True)], batch_size=8)  # type: ignore[arg-type]
    Trainer(
        model=model,
        train_dataloader=loader,
        max_duration="2ba",
        algorithms=list(readings),
        optimizers=torch.optim.SGD(model.parameters(), 0.1),
        device_train_microbatch_size=4,
        progress_bar=False,
        log_to_console=False,
        device="cpu",
    ).fit()


def test_targets_that_the_forward_pass_takes_away_are_read_before_it() -> None:
    """Token logits with classes last; the task is found once, and every microbatch is read by it."""
    reading = _Reading(TaskReader())
    targets = torch.arange(8 * 5).reshape(8, 5) % 3
    targets[:, 3:] = -100
    _train(_Net((5, 3), lambda z, y: F.cross_entropy(z.transpose(1, 2), y)), targets, reading, name="labels")
    assert reading.task_reader.task == Task("token", 3, -1, evidence="its loss is the model's own")
    assert reading.found == [True, False, False, False]
    assert reading.shapes == [(4, 3, 5)] * 4


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(ignore_index=2), functools.partial(F.cross_entropy, ignore_index=2)]
)
def test_class_that_the_loss_ignores_is_known_before_it_is_seen(loss: Any) -> None:
    """The first microbatch has no target of class 2, so its loss cannot show that they do not count."""
    reading = _Reading(TaskReader())
    _train(_Net((3,), loss), torch.tensor([0, 1, 1, 0, 2, 2, 1, 0]), reading)
    assert reading.task_reader.known.ignore_index == 2
    kept = reading.task_reader.rows({"logits": torch.zeros(4, 3)})
    assert kept.counted_BX is not None
    assert kept.counted_BX.tolist() == [False, False, True, True]


def test_metric_that_ignores_a_class_is_believed_only_with_the_loss() -> None:
    """The metric leaves class 0 out as background; the loss counts it."""
    reading = _Reading(TaskReader())
    metric = MulticlassAccuracy(num_classes=3, ignore_index=0)
    _train(_Net((3,), F.cross_entropy, metric), torch.arange(8) % 3, reading)
    assert reading.task_reader.known.ignore_index is None


def test_task_of_an_algorithm_serves_all() -> None:
    """Whoever comes later takes it over, even where the loss has been changed meanwhile."""

    class Weighing(_Reading):
        def apply(self, event: Event, state: State, logger: Logger) -> None:
            super().apply(event, state, logger)
            if event == Event.AFTER_LOSS:
                state.loss = 7 * state.loss  # type: ignore[operator]

    first, second = Weighing(TaskReader()), Weighing(TaskReader())
    targets = (X[:, :3] > 0).float()
    _train(_Net((3,), F.binary_cross_entropy_with_logits), targets, first, second)
    assert first.task_reader.task is second.task_reader.task
    assert first.task_reader.known.kind == "multilabel"


def test_no_task_is_an_error_or_a_refusal() -> None:
    """Whoever needs no task gets the reason instead."""
    optional = _Reading(TaskReader(required=False))
    targets = torch.zeros(8, 9)
    _train(_Net((3,), lambda z, y: z.mean() + 0 * y.sum()), targets, optional)
    assert optional.task_reader.task is None
    assert "no task fits outputs (4, 3), targets (4, 9) float32" in str(optional.task_reader.refusal)
    with pytest.raises(TaskError, match="no task fits"):
        _train(_Net((3,), lambda z, y: z.mean() + 0 * y.sum()), targets, _Reading(TaskReader()))
    with pytest.raises(TaskError, match="no task fits"):
        optional.task_reader.known  # noqa: B018
    with pytest.raises(TaskError, match=r"no targets at keys.target='z': it is a mapping with 'x', 'y'"):
        _train(_Net((3,), F.cross_entropy), torch.arange(8) % 3, _Reading(TaskReader(BatchKeys(target="z"))))


def test_settings_decide_where_the_loss_cannot() -> None:
    """A loss that is not computed from the outputs shows nothing of them, and label smoothing is no plain loss."""
    loss = functools.partial(F.cross_entropy, label_smoothing=0.1)
    targets = torch.arange(8 * 5).reshape(8, 5) % 5
    hidden = _Net((5, 5), lambda z, y: loss(z.detach().transpose(1, 2), y) + 0 * z.sum())
    with pytest.raises(TaskError, match="several tasks fit"):
        _train(hidden, targets, _Reading(TaskReader()))
    for settings in (TaskSettings(), TaskSettings("token", class_dim=-1, shift=False)):
        net = hidden if settings.kind else _Net((5, 5), lambda z, y: loss(z.transpose(1, 2), y))
        reading = _Reading(TaskReader(BatchKeys(task=settings)))
        _train(net, targets, reading)
        assert (reading.task_reader.known.class_dim, reading.task_reader.known.shift) == (-1, False)


@pytest.mark.parametrize("name", ["labels", "label", "targets", "target", "y"])
def test_usual_names_of_targets(name: str) -> None:
    """A mapping has no second entry."""
    assert torch.equal(targets_of({"x": X, name: X[:, 0]}), X[:, 0])
    assert torch.equal(targets_of({"x": X, name: X[:, 0], "other": X}, "other"), X)


def test_targets_within_parts_are_named_with_dots() -> None:
    batch = {"in": X, "out": {"classes": X[:, 0], "boxes": [X[:, 1]]}}
    assert torch.equal(targets_of(batch, "out.classes"), X[:, 0])
    assert torch.equal(targets_of(batch, "out.boxes.0"), X[:, 1])
    assert torch.equal(targets_of({"a.b": X}, "a.b"), X)
    with pytest.raises(TaskError, match="with dots for parts within parts"):
        targets_of(batch, "out.masks")


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(TaskError, match="must be one tensor .* found a list of 1"):
        targets_of((X, [{"captions": X}]))
    with pytest.raises(TaskError, match="not defined for the task detection.*MixTraining"):
        targets_of((X, [{"boxes": X}]))
    with pytest.raises(TaskError, match="the batch has no targets at keys.target=1: it is a list of 1"):
        targets_of([X])
