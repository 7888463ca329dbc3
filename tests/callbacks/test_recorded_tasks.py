"""What is recorded of each kind of task: the model's own loss, right axes, ignored targets, and refusals by name."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composer import DataSpec
from composer.models import ComposerClassifier, ComposerModel
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.callbacks.signals.capture import SignalCapture, parse_signals
from reuse_algos.cli import main
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.sampler import Examples
from reuse_algos.data.views import ViewedDataset, ViewPolicy
from reuse_algos.errors import ArchiveWarning, DataError, ReuseAlgosError, TaskError
from reuse_algos.harvest import harvest
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.tasks.recorded_task import task_of
from reuse_algos.training.tasks.task import Task, TaskSettings
from toy import NUM_CLASSES, blobs, mlp, trainer

N, D, T, V, H = 12, 6, 5, 7, 4
ALL = {"logits": {}, "loss": {}, "correct": {}, "logit_margin": {}}


class Net(ComposerModel):
    """A model with a loss of its own, for batches that are pairs or mappings."""

    def __init__(self, net: nn.Module, loss: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.net, self.function = net, loss

    def forward(self, batch: Any) -> torch.Tensor:
        return self.net(batch["x"] if isinstance(batch, dict) else batch[0])

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        del args, kwargs
        return self.function(outputs, batch["labels"] if isinstance(batch, dict) else batch[1])


class Mapped(Dataset):
    """Examples as mappings, as tokenised text comes."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(outputs: int, *then: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(D, outputs), *then)


def tokens(padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of T tokens, and their classes, of which the last of some examples do not count."""
    labels = (torch.arange(N)[:, None] + torch.arange(T)) % V
    for row in range(N):
        labels[row, 2 + row % 4 :] = padding
    return numbers(N, T, D), labels


def pixels(ignored: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    masks = (torch.arange(N)[:, None, None] + torch.arange(H)[:, None] + torch.zeros(H, dtype=torch.int64)) % 3
    if ignored is not None:
        masks[:, 0] = ignored
        masks[3] = ignored  # an image in which nothing counts
    return numbers(N, 3, H, H), masks


def shifted(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of causal language models: position t predicts the token at t + 1."""
    return F.cross_entropy(outputs[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def of_tokens(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), ignore_index=-100)


def dense_loss(ignored: int) -> Callable[..., torch.Tensor]:
    return functools.partial(F.cross_entropy, ignore_index=ignored)


@dataclass
class Case:
    """One kind of task, and how its rows are read by hand."""

    net: Callable[[], nn.Module]
    data: tuple[torch.Tensor, torch.Tensor]
    loss: Callable[..., torch.Tensor]
    expected: Task
    classes_last: Callable[[torch.Tensor], torch.Tensor] = lambda outputs: outputs  # ``[B, X, C]`` of the outputs
    mapped: bool = False
    signals: dict[str, Any] = field(default_factory=lambda: ALL)

    def losses(self, outputs: torch.Tensor) -> torch.Tensor:
        """The model's own loss, one example at a time."""
        return torch.stack([self.loss(outputs[row : row + 1], self.data[1][row : row + 1]) for row in range(N)])


_X, _W = numbers(N, D), numbers(D, 5, seed=1)
_DENSE: Callable[[torch.Tensor], torch.Tensor] = lambda outputs: outputs.movedim(1, -1)  # noqa: E731
_BCE, _NUMBERS = F.binary_cross_entropy_with_logits, {"logits": {}, "loss": {}}
CASES = {
    "one logit": Case(lambda: linear(1), (_X, (_X @ _W[:, :1] > 0).float()), _BCE, Task("binary", 1)),
    "one logit without a dimension": Case(
        lambda: linear(1, nn.Flatten(0)), (_X, (_X @ _W[:, 0] > 0).float()), _BCE, Task("binary", 1, 0)
    ),
    "labels": Case(lambda: linear(5), (_X, (_X @ _W > 0).float()), _BCE, Task("multilabel", 5)),
    "one number": Case(lambda: linear(1), (_X, _X @ _W[:, :1]), F.mse_loss, Task("regression", 1), signals=_NUMBERS),
    "three numbers": Case(lambda: linear(3), (_X, _X @ _W[:, :3]), F.mse_loss, Task("regression", 3), signals=_NUMBERS),
    "language model": Case(
        lambda: linear(V), tokens(-100), shifted, Task("token", V, -1, None, True), lambda z: z[:, :-1], True
    ),
    "tagger": Case(lambda: linear(V), tokens(-100), of_tokens, Task("token", V, -1), mapped=True),
    "classes": Case(
        lambda: linear(4), (_X, torch.arange(N) % 4), F.cross_entropy, Task("multiclass", 4), lambda z: z[:, None]
    ),
    **{
        f"pixels, {ignored} ignored": Case(
            lambda: nn.Conv2d(3, 3, 1),
            pixels(ignored),
            dense_loss(-100 if ignored is None else ignored),
            Task("dense", 3),
            _DENSE,
        )
        for ignored in (None, -1, -100, 255)
    },
}


def record(folder: Path, case: Case, **arguments: Any) -> tuple[PriorRun, torch.Tensor]:
    """A run whose weights stay as they are, and the outputs of all examples."""
    model = Net(case.net(), case.loss)
    plain = Mapped(*case.data) if case.mapped else TensorDataset(*case.data)
    info = DatasetInfo("toy", torch.arange(N))
    dataset = ViewedDataset(plain, ViewPolicy(seed=0, num_views=1), info)
    recorder = RunRecorder(folder, run_name="run", signals=case.signals, **arguments)
    # The first batch has every kind of row; batches of 6 in microbatches of 3.
    loader = DataLoader(dataset, batch_size=6, shuffle=True)
    one = trainer(loader, model, lr=0.0, max_duration="1ep", callbacks=[recorder], device_train_microbatch_size=3)  # type: ignore[arg-type]
    one.fit()
    with torch.no_grad():
        return RunArchive(folder).run("run"), model.net(case.data[0])


@pytest.mark.parametrize("name", list(CASES))
def test_the_recorded_rows_are_the_model_s_own(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    run, outputs = record(tmp_path, case)
    task = task_of(run.manifest)
    assert task is not None
    fields = ("kind", "num_classes", "class_dim", "shift")
    assert [getattr(task, one) for one in fields] == [getattr(case.expected, one) for one in fields]
    loss, _ = run.signal("loss").dense(0)
    expected = case.losses(outputs)
    torch.testing.assert_close(loss.float(), expected, atol=1e-6, rtol=1e-6, equal_nan=True)
    stored, _ = run.signal("logits").dense(0)
    layout = case.classes_last(outputs) if task.has_positions or task.kind == "multiclass" else outputs
    if task.has_positions:
        layout = layout.movedim(-1, 1)
    torch.testing.assert_close(stored.float(), layout.reshape(stored.shape), atol=1e-3, rtol=1e-3)
    entry = next(one for one in run.manifest.files if one.name == "logits")
    assert entry.meta["num_classes"] == task.num_classes == stored.shape[1]
    if "correct" in case.signals:
        _check_correct_and_margin(run, case, task, outputs)


def _check_correct_and_margin(run: PriorRun, case: Case, task: Task, outputs: torch.Tensor) -> None:
    """Hold them against a loop over rows, positions and classes."""
    correct, margin = run.signal("correct").dense(0)[0], run.signal("logit_margin").dense(0)[0]
    scores = np.asarray(case.classes_last(outputs)).reshape(N, -1, task.num_classes)
    targets = case.data[1][:, 1:] if task.shift else case.data[1]
    labels = np.asarray(targets).reshape(N, scores.shape[1], -1)
    for row in range(N):
        right, margins = [], []
        for place, truth in zip(scores[row], labels[row], strict=True):
            if task.is_sigmoid:
                right += [(z > 0) == (y == 1) for z, y in zip(place, truth, strict=True)]
                margins += [z if y == 1 else -z for z, y in zip(place, truth, strict=True)]
            elif 0 <= truth[0] < task.num_classes:
                right.append(place.argmax() == truth[0])
                margins.append(place[truth[0]] - np.delete(place, truth[0]).max())
        assert bool(correct[row]) == (bool(right) and all(right))
        assert float(margin[row]) == pytest.approx(np.mean(margins) if margins else np.nan, abs=1e-5, nan_ok=True)


# Refused before the first step ---------------------------------------------------------------------------------------


def refused(folder: Path, case: Case, error: type[ReuseAlgosError], match: str, **arguments: Any) -> None:
    with pytest.raises(error, match=match):
        record(folder, case, **arguments)
    assert not any(entry.kind == "signals" for run in _runs(folder) for entry in run.manifest.files)


def _runs(folder: Path) -> list[PriorRun]:
    return RunArchive(folder).runs(unfinished=True)


@pytest.mark.parametrize("signal", ["correct", "logit_margin"])
@pytest.mark.parametrize("name", ["one number", "three numbers"])
def test_what_regression_has_not_is_refused_by_name(tmp_path: Path, name: str, signal: str) -> None:
    case = Case(**{**vars(CASES[name]), "signals": {signal: {}}})
    refused(tmp_path, case, TaskError, f"the signal '{signal}' is not defined for the task 'regression'")


@pytest.mark.parametrize("name", ["tagger", "pixels, -1 ignored"])
def test_top_k_keeps_the_largest_of_each_position(tmp_path: Path, name: str) -> None:
    """The two largest logits of each token or pixel in float16, and the mass of the others exactly."""
    case = Case(**{**vars(CASES[name]), "signals": {"logits": {"top_k": 2}}})
    run, outputs = record(tmp_path, case)
    signal = run.signal("logits")
    (slot,) = signal.slots
    decoded = signal.dense(slot)[0]
    logits = outputs.movedim(-1, 1) if name == "tagger" else outputs
    assert signal.row_shape == tuple(logits.shape[1:])
    assert signal.kept_classes == 2
    kept, places = logits.topk(2, dim=1)
    torch.testing.assert_close(decoded.gather(1, places), kept.half().float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(decoded.logsumexp(1), logits.logsumexp(1), rtol=1e-3, atol=1e-3)
    assert signal.nbytes == len(logits) * logits[0, 0].numel() * (2 * 2 + 2 * 4 + 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 9}, "signals.logits.top_k: 9 of"),
        ({"size": [2, 2]}, r"signals.logits.size: \[2, 2\] makes maps of pixels smaller"),
    ],
)
def test_logits_that_cannot_be_kept_so_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    case = Case(**{**vars(CASES["tagger"]), "signals": {"logits": settings}})
    refused(tmp_path, case, TaskError, message)


def smoothed(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


@pytest.mark.parametrize("loss", [smoothed, functools.partial(F.multi_margin_loss, p=2)])
def test_a_loss_that_cannot_be_had_per_example_is_refused_with_what_to_set(tmp_path: Path, loss: Any) -> None:
    case = Case(**{**vars(CASES["classes"]), "loss": loss, "signals": {"loss": {}}})
    refused(tmp_path / "own", case, TaskError, r"Set signals.loss: \{of: task\} to record the plain loss")
    plain = Case(**{**vars(case), "signals": {"loss": {"of": "task"}}})
    run, outputs = record(tmp_path / "plain", plain)
    expected = F.cross_entropy(outputs, case.data[1], reduction="none")
    torch.testing.assert_close(run.signal("loss").dense(0)[0].float(), expected)


@pytest.mark.parametrize(
    "function",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        functools.partial(F.cross_entropy, weight=torch.tensor([1.0, 2.0, 3.0, 0.5])),
    ],
)
def test_a_classifier_s_own_loss_function_gives_the_loss_of_each_example(tmp_path: Path, function: Any) -> None:
    model = ComposerClassifier(linear(4), num_classes=4, loss_fn=function)
    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {}})
    targets = torch.arange(N) % 4
    trainer(
        DataLoader(TensorDataset(_X, targets), batch_size=6), model, lr=0.0, max_duration="1ep", callbacks=[recorder]
    ).fit()
    given = {"weight": function.keywords["weight"]} if isinstance(function, functools.partial) else {}
    given |= {"label_smoothing": 0.1} if isinstance(function, nn.Module) else {}
    with torch.no_grad():
        expected = F.cross_entropy(model.module(_X), targets, reduction="none", **given)
    torch.testing.assert_close(RunArchive(tmp_path).run("run").signal("loss").dense(0)[0].float(), expected)


class _Anything(Dataset):
    """Gives some example, whichever it is asked for."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        index = int(torch.randint(0, N, ()))
        return _X[index], torch.tensor(index % 4)


def test_a_dataset_that_chooses_examples_itself_is_named(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {}})
    model = ComposerClassifier(linear(4), num_classes=4)
    with pytest.warns(ArchiveWarning, match="targets are drawn at random whenever an example is read"):
        trainer(DataLoader(_Anything(), batch_size=6), model, max_duration="1ep", callbacks=[recorder]).fit()


class _Grows:
    """Cross entropy with something that comes into it after the first batch."""

    def __init__(self, more: str) -> None:
        self.more, self.calls = more, 0

    def __call__(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.more == "penalty":
            return F.cross_entropy(outputs, labels) + 0.1 * (self.calls - 1) * outputs.square().mean()
        if self.more == "smoothing":
            return F.cross_entropy(outputs, labels, label_smoothing=0.1 * min(self.calls - 1, 1))
        # Examples of a class that the first batch does not have weigh more.
        weights = 1.0 + 2.0 * (labels == 3) * (self.more == "weights")
        return (weights * F.cross_entropy(outputs, labels, reduction="none")).mean()


@pytest.mark.parametrize("more", ["nothing", "penalty", "smoothing", "weights"])
def test_a_loss_that_is_not_the_recorded_one_any_more_is_said(tmp_path: Path, more: str) -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 3, 3, 3, 0, 1, 2])
    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {}})
    model = Net(linear(4), _Grows(more))
    loader = DataLoader(TensorDataset(_X, labels), batch_size=6)
    one = trainer(loader, model, lr=0.0, max_duration="2ep", callbacks=[recorder])  # type: ignore[arg-type]
    if more == "nothing":
        one.fit()
    else:
        with pytest.warns(ArchiveWarning, match="now the model's loss of a batch is") as caught:
            one.fit()
        assert sum("signals.loss" in str(warning.message) for warning in caught) == 1, "once for a run"


def test_the_task_may_be_set_where_nothing_tells(tmp_path: Path) -> None:
    """Outputs as many as positions, and a loss whose gradient is 0: only the setting tells where the classes lie."""
    x, y = numbers(N, T, D), torch.randint(0, T, (N, T), generator=torch.Generator().manual_seed(3))
    case = Case(lambda: linear(T), (x, y), lambda z, t: (z * 0).sum() + 7.0 + 0 * t.sum(), Task("token", T, -1))
    case.signals = {"logits": {}, "correct": {}}
    refused(tmp_path / "one", case, TaskError, "several tasks fit .* Set keys: {task:")
    given = {"kind": "token", "class_dim": -1, "shift": False}
    run, outputs = record(tmp_path / "two", case, keys=BatchKeys(task=TaskSettings(**given)))
    torch.testing.assert_close(run.signal("logits").dense(0)[0].float(), outputs.mT, atol=1e-3, rtol=1e-3)


# The first batch -----------------------------------------------------------------------------------------------------

_Loader = Callable[[Dataset], Any]


def _flip(batch: Any) -> Any:
    return [-batch[0], batch[1]]


def _scaled(batch: Any) -> Any:
    return [2 * batch[0] + 1, batch[1]]


def _mixed(rows: Any) -> Any:
    x, y = default_collate(rows)
    soft = F.one_hot(y, NUM_CLASSES).float()
    return [0.5 * x + 0.5 * x.flip(0), 0.5 * soft + 0.5 * soft.flip(0)]


def _hard_mixed(rows: Any) -> Any:
    """Mixtures that keep the label of one of both."""
    x, y = default_collate(rows)
    return [0.7 * x + 0.3 * x.roll(1, 0), y]


def _viewed(dataset: Dataset) -> Dataset:
    info = DatasetInfo("blobs", torch.arange(64), torch.arange(64) % NUM_CLASSES)
    return ViewedDataset(dataset, ViewPolicy(seed=0, num_views=2), info)


class OwnGenerator(Dataset):
    """Augments from a generator that nobody seeds, as some augmentation libraries do."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng()

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(self.rng.standard_normal(D)).float(), index % NUM_CLASSES


def _fit(folder: Path, loader: Any, **arguments: Any) -> RunRecorder:
    recorder = RunRecorder(folder, run_name="run", signals={"logits": {}}, **arguments)
    trainer(loader, mlp(1), callbacks=[recorder], max_duration="1ep").fit()
    return recorder


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: DataSpec(DataLoader(_viewed(blobs()), 16), batch_transforms=_flip), "they are inverted"),
        (lambda: DataSpec(DataLoader(_viewed(blobs()), 16), batch_transforms=_scaled), None),
        (lambda: DataLoader(_viewed(OwnGenerator()), 16), "was read twice and was not the same"),
        (lambda: DataLoader(_viewed(blobs()), 16, collate_fn=_hard_mixed), "inputs"),
        (lambda: DataLoader(_viewed(blobs()), 16, collate_fn=_mixed), "targets"),
        (lambda: DataLoader(blobs(), 16, collate_fn=_mixed), "targets"),
        (lambda: DataSpec(DataLoader(blobs(), 16), microbatch_transforms=lambda b: [b[0], b[1].flip(0)]), "targets"),
    ],
)
def test_rows_that_are_not_the_examples_are_refused(tmp_path: Path, make: Any, match: str | None) -> None:
    if match is None:
        # A scale and a shift that are the same for every row (a normalisation) are no difference.
        assert "are the examples that they are said to be" in (_fit(tmp_path, make()).watch.report or "")
        return
    with pytest.raises(DataError, match=match):
        _fit(tmp_path, make())
    assert all(run.manifest.progress.batch == 0 or not run.signal_names for run in _runs(tmp_path))


@pytest.mark.parametrize("kind", ["batch_transforms", "microbatch_transforms"])
def test_random_transforms_of_a_data_spec_are_refused(tmp_path: Path, kind: str) -> None:
    def augment(batch: Any) -> Any:
        sign = torch.tensor([1.0, -1.0]).repeat(len(batch[0]))[: len(batch[0]), None]
        return [batch[0] * sign, batch[1]]

    given: dict[str, Any] = {kind: augment}
    with pytest.raises(DataError, match="the inputs at \\[0\\] are not the examples'"):
        _fit(tmp_path, DataSpec(DataLoader(_viewed(blobs()), 16, shuffle=True), **given))


def test_one_line_says_what_was_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="reuse_algos.callbacks.signals.watch"):
        _fit(tmp_path, DataLoader(_viewed(blobs()), 16))
    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("signals.watch")]
    assert line == (
        "RunRecorder: task multiclass of 4 (its loss is the model's own); loss is not recorded; 4 views are the same "
        "when read twice; 4 rows of the first batch are the examples that they are said to be"
    )


# Values, harvest and show --------------------------------------------------------------------------------------------


def test_masked_classes_stay_masked(tmp_path: Path) -> None:
    capture = SignalCapture(parse_signals({"logits": {}}), 3, None)
    logits = torch.tensor([[-torch.inf, 1e6, 0.5], [torch.nan, -1e6, 2.0], [torch.inf, 1.0, -torch.inf]])
    capture.record(0, Examples(torch.arange(3), torch.zeros(3, dtype=torch.int64)), {"logits": logits})
    (segment,) = capture.segments()
    largest = torch.finfo(torch.float16).max
    expected = torch.tensor([[-torch.inf, largest, 0.5], [torch.nan, -largest, 2.0], [torch.inf, 1.0, -torch.inf]])
    torch.testing.assert_close(segment.tensors["values"].float(), expected, equal_nan=True)


def test_examples_of_different_lengths_are_refused_where_logits_are_kept() -> None:
    capture = SignalCapture(parse_signals({"logits": {}}), 4, None)
    views = torch.zeros(2, dtype=torch.int64)
    capture.record(0, Examples(torch.tensor([0, 1]), views), {"logits": torch.zeros(2, 3, 5)})
    with pytest.raises(DataError, match=r"shape \(3, 4\) cannot be kept beside those of shape \(3, 5\)"):
        capture.record(0, Examples(torch.tensor([2, 3]), views), {"logits": torch.zeros(2, 3, 4)})


def test_a_harvest_has_the_layout_of_the_captured_logits(tmp_path: Path) -> None:
    for name in ("language model", "one logit without a dimension"):
        case, folder = CASES[name], tmp_path / name
        run, _ = record(folder, case)
        captured, _ = run.signal("logits").dense(0)
        plain = Mapped(*case.data) if case.mapped else TensorDataset(*case.data)
        dataset = ViewedDataset(plain, ViewPolicy(seed=0, num_views=1), DatasetInfo("toy", torch.arange(N)))
        harvest(folder, run.id, dataset=dataset, model=Net(case.net(), case.loss), replace=True, progress=False)
        harvested, _ = RunArchive(folder).run("run").signal("logits").dense(0)
        assert captured.shape == harvested.shape
        torch.testing.assert_close(harvested, captured, atol=1e-3, rtol=1e-3)
        with pytest.raises(TaskError, match="the score 'el2n' is not defined for the task"):
            harvest(folder, run.id, signals=["el2n"], dataset=dataset, model=Net(case.net(), case.loss), progress=False)


def test_show_names_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, CASES["language model"])
    assert main(["show", str(tmp_path), "run"]) == 0
    assert "token of 7, shifted by one" in capsys.readouterr().out


def test_targets_of_mappings_may_have_another_name(tmp_path: Path) -> None:
    class Renamed(Mapped):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"x": self.x[index], "labels": self.y[index], "other": self.y[index].clone()}

    model = Net(linear(V), of_tokens)
    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {}}, keys=BatchKeys(target="other"))
    plain = Renamed(*tokens(-100))
    data = ViewedDataset(plain, ViewPolicy(seed=0, num_views=1), DatasetInfo("t", torch.arange(N)))
    trainer(DataLoader(data, 6), model, lr=0.0, max_duration="1ep", callbacks=[recorder]).fit()  # type: ignore[arg-type]
    with torch.no_grad():
        outputs = model.net(plain.x)
    expected = torch.stack([of_tokens(outputs[row, None], plain.y[row, None]) for row in range(N)])
    torch.testing.assert_close(RunArchive(tmp_path).run("run").signal("loss").dense(0)[0].float(), expected)


# What a mask of the batch leaves out, and outputs of other forms -----------------------------------------------------


class Masked(Mapped):
    """Examples with a mask of their tokens, labels of class 0 where it is 0, and segments that look like a mask."""

    def __init__(self, lengths: list[int], *, inverted: bool) -> None:
        labels = 1 + (torch.arange(N)[:, None] + torch.arange(T)) % (V - 1)
        self.kept = torch.arange(T) < torch.tensor(lengths)[:, None]
        super().__init__(numbers(N, T, D), labels * self.kept)
        self.inverted = inverted

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        mask = self.kept[index] != self.inverted
        return {**super().__getitem__(index), "mask": mask, "segments": torch.arange(T) % 2}


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_targets_that_a_mask_leaves_out_do_not_count(tmp_path: Path, late: bool, inverted: bool, shift: bool) -> None:
    """Also where the first batch has no padding, so that its loss cannot show what the mask means."""
    lengths = [T] * (6 if late else 1) + [2 + row % 4 for row in range(6 if late else 1, N)]
    dataset, begin = Masked(lengths, inverted=inverted), int(shift)

    def loss(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        kept = (batch["mask"] != inverted)[:, begin:]
        values = F.cross_entropy(outputs[:, : T - begin].transpose(1, 2), batch["labels"][:, begin:], reduction="none")
        return (values * kept).sum() / kept.sum()

    class Net2(Net):
        def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
            return loss(outputs, batch)

    model = Net2(linear(V), loss)
    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {}, "correct": {}})
    trainer(DataLoader(dataset, batch_size=6), model, lr=0.0, max_duration="1ep", callbacks=[recorder]).fit()  # type: ignore[arg-type]
    run = RunArchive(tmp_path).run("run")
    with torch.no_grad():
        outputs = model.net(dataset.x)
    kept = dataset.kept[:, begin:]
    scores, labels = outputs[:, : T - begin], dataset.y[:, begin:]
    expected = [F.cross_entropy(scores[row][kept[row]], labels[row][kept[row]]) for row in range(N)]
    torch.testing.assert_close(run.signal("loss").dense(0)[0].float(), torch.stack(expected), atol=1e-6, rtol=1e-6)
    right = ((scores.argmax(-1) == labels) | ~kept).all(1)
    assert run.signal("correct").dense(0)[0].tolist() == right.tolist()


@dataclass
class Found:
    hidden: torch.Tensor
    scores: torch.Tensor


def test_outputs_with_attributes_are_named_by_them(tmp_path: Path) -> None:
    class Attributes(Net):
        def forward(self, batch: Any) -> Any:
            return Found(batch[0], self.net(batch[0]))

    model = Attributes(linear(4), lambda outputs, targets: F.cross_entropy(outputs.scores, targets))
    data = TensorDataset(*CASES["classes"].data)
    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {}}, keys=BatchKeys(output="scores"))
    trainer(DataLoader(data, batch_size=6), model, lr=0.0, max_duration="1ep", callbacks=[recorder]).fit()  # type: ignore[arg-type]
    with torch.no_grad():
        expected = F.cross_entropy(model.net(data.tensors[0]), data.tensors[1], reduction="none")
    loss, _ = RunArchive(tmp_path).run("run").signal("loss").dense(0)
    torch.testing.assert_close(loss.float(), expected, atol=1e-6, rtol=1e-6)
    unnamed = RunRecorder(tmp_path, signals={"loss": {}})
    with pytest.raises(TaskError, match=r"outputs of type Found with 'hidden', 'scores'; name their place by keys"):
        trainer(DataLoader(data, batch_size=6), model, callbacks=[unnamed]).fit()  # type: ignore[arg-type]


def test_a_last_batch_of_one_row_may_be_squeezed_to_a_number(tmp_path: Path) -> None:
    x, y = CASES["one logit without a dimension"].data
    model = Net(linear(1), lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, targets.squeeze()))
    model.forward = lambda batch: model.net(batch[0]).squeeze()  # type: ignore[method-assign]
    data = DataLoader(TensorDataset(x[:7], y[:7]), batch_size=3)
    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {}})
    trainer(data, model, lr=0.0, max_duration="1ep", callbacks=[recorder]).fit()  # type: ignore[arg-type]
    with torch.no_grad():
        expected = F.binary_cross_entropy_with_logits(model.net(x[:7])[:, 0], y[:7], reduction="none")
    loss, _ = RunArchive(tmp_path).run("run").signal("loss").dense(0)
    torch.testing.assert_close(loss.float(), expected, atol=1e-6, rtol=1e-6)


def test_outputs_with_other_rows_than_examples_are_refused(tmp_path: Path) -> None:
    """Two crops of each image in one forward pass: without a task, only the number of rows shows it."""

    class Crops(Net):
        def forward(self, batch: Any) -> torch.Tensor:
            return self.net(torch.cat([batch[0], batch[0] + 0.1]))

    model = Crops(linear(4), lambda outputs, targets: F.cross_entropy(outputs, targets.repeat(2)))
    data = DataLoader(TensorDataset(*CASES["classes"].data), batch_size=6)
    with pytest.raises(DataError, match="outputs have 12 rows for 6 examples"):
        trainer(data, model, callbacks=[RunRecorder(tmp_path, signals={"logits": {}})]).fit()  # type: ignore[arg-type]


class Rounded(nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.bfloat16()


def test_a_loss_in_bfloat16_is_the_model_s_own_to_its_two_digits(tmp_path: Path) -> None:
    x, y = tokens(-100)
    model = Net(linear(V, Rounded()), shifted)
    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {}})
    data = DataLoader(TensorDataset(x, y), batch_size=6)
    trainer(data, model, lr=0.0, max_duration="1ep", callbacks=[recorder]).fit()  # type: ignore[arg-type]
    with torch.no_grad():
        expected = [shifted(model.net(x[row : row + 1]).float(), y[row : row + 1]) for row in range(N)]
    recorded, _ = RunArchive(tmp_path).run("run").signal("loss").dense(0)
    torch.testing.assert_close(recorded.float(), torch.stack(expected), atol=1e-6, rtol=1e-6)


# Collate functions that draw at random -------------------------------------------------------------------------------


def _noisy(items: list[Any]) -> Any:
    x, y = default_collate(items)
    return x + 0.1 * torch.randn(x.shape), y


def _masking(items: list[Any]) -> Any:
    """Random positions become targets, as for masked language models."""
    x, y = default_collate(items)
    hidden = torch.rand(y.shape) < 0.5
    hidden[:, 0] = True
    return x.masked_fill(hidden[..., None], 0.0), y.masked_fill(~hidden, -100)


def _mixing(items: list[Any]) -> Any:
    """MixUp that leaves the targets as they are."""
    x, y = default_collate(items)
    share = 0.5 + 0.5 * torch.rand(())
    return share * x + (1 - share) * x[torch.randperm(len(x))], y


@pytest.mark.parametrize("collate", [_noisy, _masking])
def test_a_collate_function_that_augments_each_row_has_views_that_are_not_known(tmp_path: Path, collate: Any) -> None:
    x, labels = tokens(3)
    kept: list[torch.Tensor] = []

    class Watched(Net):
        def forward(self, batch: Any) -> torch.Tensor:
            kept.append(of_tokens(outputs := self.net(batch[0]), batch[1]).detach())
            return outputs

    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {}, "logits": {}})
    data = DataLoader(TensorDataset(x, labels), batch_size=1, collate_fn=collate)
    trainer(data, Watched(linear(V), of_tokens), lr=0.0, max_duration="1ep", callbacks=[recorder]).fit()  # type: ignore[arg-type]
    run = RunArchive(tmp_path).run("run")
    losses, _ = run.signal("loss").dense(0)
    assert torch.allclose(losses.float(), torch.stack(kept[-N:]), atol=1e-6)
    (entry,) = [one for one in run.manifest.files if one.name == "logits"]
    assert entry.meta["view"] == -1
    assert run.manifest.dataset is not None
    assert run.manifest.dataset.num_views == 0


def test_a_collate_function_that_mixes_rows_is_refused_whatever_the_targets(tmp_path: Path) -> None:
    class Augmented(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            x, y = super().__getitem__(index)
            return x + 0.1 * torch.randn(x.shape), y

    for kind in (TensorDataset, Augmented):
        model = Net(linear(4), F.cross_entropy)
        data = DataLoader(kind(*CASES["classes"].data), batch_size=6, collate_fn=_mixing)
        with pytest.raises(DataError, match="the collate_fn makes rows out of several examples at .0."):
            trainer(data, model, callbacks=[RunRecorder(tmp_path, signals={"logits": {}})]).fit()  # type: ignore[arg-type]
