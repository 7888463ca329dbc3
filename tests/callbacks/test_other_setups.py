"""The recorder in the Trainers of others: nothing is changed by it, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, Evaluator, State
from composer.algorithms import SAM
from composer.callbacks import EarlyStopper
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassHammingDistance

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.callbacks.recorder.monitor import Monitor
from reuse_algos.errors import ArchiveError
from toy import NUM_CLASSES, NUM_FEATURES, NumberedDataset, blobs, epoch_loader, mlp, trainer, viewed


def _fit(recorder: RunRecorder, model: Any = None, loader: Any = None, **arguments: Any) -> Any:
    one = trainer(loader or epoch_loader(blobs()), model or mlp(1), callbacks=[recorder], **arguments)
    one.fit()
    one.close()
    return one


# Several Trainers ----------------------------------------------------------------------------------------------------


def test_one_recorder_keeps_a_run_for_each_trainer(tmp_path: Path) -> None:
    recorder, models = RunRecorder(tmp_path), [mlp(seed) for seed in range(3)]
    evaluation = DataLoader(blobs(16), batch_size=16)

    def build(number: int) -> Any:
        return trainer(
            epoch_loader(blobs()),
            models[number],
            callbacks=[recorder],
            run_name=f"run-{number}",
            max_duration=f"{number + 1}ep",
            eval_dataloader=evaluation,
        )

    for number in range(3):
        one = build(number)
        one.fit()
        one.close()
    for number, run in enumerate(RunArchive(tmp_path).runs(order="first")):
        assert (run.run_name, run.manifest.progress.epoch, run.finished) == (f"run-{number}", number + 1, True)
        assert len(run.metric("metrics/eval/MulticlassAccuracy").step) == number + 1
        weights = run.weights("last")
        assert all(torch.equal(weights[name], value) for name, value in models[number].state_dict().items())
    assert len(RunArchive(tmp_path).runs()) == 3


# The user's model ----------------------------------------------------------------------------------------------------


class Pops(ComposerClassifier):
    """Takes its labels out of the batch and counts its forward passes, as many models of others do."""

    def __init__(self) -> None:
        super().__init__(mlp(1).module, num_classes=NUM_CLASSES)
        self.register_buffer("calls", torch.zeros(()))
        self.noise: list[float] = []

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        labels = batch.pop("y")
        self.calls += 1
        self.noise.append(float(torch.rand(())))
        logits = self.module(batch["x"])
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        return outputs["loss"]

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        return {}


@pytest.mark.parametrize("record", [False, True])
def test_a_forward_that_pops_counts_and_draws_is_left_alone(tmp_path: Path, record: bool) -> None:
    loader = DataLoader(NumberedDataset(16, as_dict=True), batch_size=8)
    model = Pops()
    one = trainer(loader, model, callbacks=[RunRecorder(tmp_path, run_name="run")] if record else [])
    one.fit()
    one.close()
    batches = int(one.state.timestamp.batch)
    assert float(model.calls) == batches == len(model.noise)
    torch.manual_seed(one.state.rank_zero_seed)
    if record:
        plain = Pops()
        other = trainer(loader, plain)
        other.fit()
        assert plain.noise == model.noise
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())
        run = RunArchive(tmp_path).run("run")
        assert run.manifest.model is not None
        # The two layers of the net: 2 * (6 * 16 + 16 * 4) for one example.
        assert run.manifest.model.flops_per_example == 2 * (NUM_FEATURES * 16 + 16 * NUM_CLASSES)


@pytest.mark.filterwarnings("ignore:SAM has known issues:UserWarning")
def test_beside_sam_the_rows_are_those_of_the_weights_and_not_of_the_perturbed_ones(tmp_path: Path) -> None:
    data = blobs()
    x, y = data.tensors
    model = ComposerClassifier(nn.Linear(NUM_FEATURES, NUM_CLASSES), num_classes=NUM_CLASSES)
    losses: list[torch.Tensor] = []

    class Watch(Callback):
        def batch_start(self, state: State, logger: Any) -> None:
            with torch.no_grad():
                losses.append(nn.functional.cross_entropy(model.module(x), y, reduction="none"))

    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {}})
    one = trainer(
        DataLoader(data, batch_size=64), model, callbacks=[recorder, Watch()], algorithms=[SAM(rho=0.5)], lr=0.5
    )
    one.fit()
    signal = RunArchive(tmp_path).run("run").signal("loss")
    assert len(losses) == len(signal.slots)
    for epoch, expected in enumerate(losses):
        assert torch.allclose(signal.dense(epoch)[0].float(), expected, atol=1e-6)


# What ends before its time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2])
def test_an_early_stop_keeps_the_last_epochs(tmp_path: Path, window: int) -> None:
    stopper = EarlyStopper(monitor="MulticlassAccuracy", dataloader_label="eval", patience="1ep")
    signals = {"loss": {"last_epochs": window}, "logits": {"last_epochs": window}, "correct": {}}
    one = trainer(
        epoch_loader(viewed()),
        mlp(1),
        lr=0.0,
        callbacks=[stopper, RunRecorder(tmp_path, run_name="run", signals=signals)],
        eval_dataloader=DataLoader(blobs(16), batch_size=16),
        max_duration="30ep",
    )
    one.fit()
    last = int(one.state.timestamp.epoch)
    assert window < last < 30
    run = RunArchive(tmp_path).run("run")
    assert run.finished
    assert list(run.signal("loss").slots) == list(range(last - window, last))
    assert list(run.signal("correct").slots) == list(range(last))
    epochs = {int(entry.meta["epoch"]) for entry in run.manifest.files if entry.name == "logits"}
    assert epochs == set(range(last - window, last))


class Bang(Callback):
    def batch_end(self, state: State, logger: Any) -> None:
        if int(state.timestamp.batch) == 6:
            raise RuntimeError("bang")


def test_an_interrupted_run_without_checkpoints_is_kept_as_unfinished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {}})
    one = trainer(DataLoader(blobs(), batch_size=16), mlp(1), callbacks=[recorder, Bang()], max_duration="4ep")
    with pytest.raises(RuntimeError, match="bang"):
        one.fit()
    one.close()
    (run,) = RunArchive(tmp_path).runs(unfinished=True)
    assert not run.finished
    assert list(run.signal("loss").slots) == [0, 1]
    assert int(run.signal("loss").seen(0).sum()) == 64
    assert "last" in run.weight_names
    said = capsys.readouterr().err
    assert f"run {run.id} was stopped in epoch 1 after batch 5" in said or "after batch 6" in said
    assert "no checkpoints are saved: set save_folder next time" in said


def test_a_finished_run_says_what_it_has_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fit(RunRecorder(tmp_path, run_name="bare", weights=[]))
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("reuse_algos:")]
    assert line.startswith("reuse_algos: archived run bare-")
    assert line.count(" (") == 3
    assert "Missing: tags (" in line
    assert "; logits (" in line
    assert "; weights (no live teachers" in line
    assert "labels" not in line
    _fit(RunRecorder(tmp_path, run_name="full", tags={"a": "b"}, signals={"logits": {}}))
    assert "Missing" not in capsys.readouterr().err


# Weights -------------------------------------------------------------------------------------------------------------


def _wide(names: int) -> ComposerClassifier:
    net = nn.Sequential(nn.Linear(NUM_FEATURES, NUM_CLASSES))
    for number in range(names):
        net[0].register_buffer("a_long_name_of_a_buffer_" * 4 + str(number), torch.tensor([float(number)]))
    return ComposerClassifier(net, num_classes=NUM_CLASSES)


@pytest.mark.parametrize("names", [10, 4000])
def test_weights_of_very_many_tensors_come_back(tmp_path: Path, names: int) -> None:
    model = _wide(names)
    _fit(RunRecorder(tmp_path, run_name="run", weights=["last", "best"]), model, max_duration="1ep")
    run = RunArchive(tmp_path).run("run")
    files = [entry for entry in run.manifest.files if (entry.kind, entry.name) == ("weights", "last")]
    assert (len(files) > 1) == (names > 1000)
    weights, expected = run.weights("last"), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("odd", [torch.zeros(3, dtype=torch.complex128), torch.eye(3).to_sparse()])
def test_what_cannot_be_archived_stops_before_the_first_batch(tmp_path: Path, odd: torch.Tensor) -> None:
    model = mlp(1)
    model.register_buffer("odd", odd)
    recorder = RunRecorder(tmp_path, run_name="run")
    one = trainer(epoch_loader(blobs()), model, callbacks=[recorder])
    with pytest.raises(ArchiveError, match="tensor 'odd' .* cannot be archived"):
        one.fit()
    assert int(one.state.timestamp.batch) == 0


# The monitor ---------------------------------------------------------------------------------------------------------


class Misses(Metric):
    """Says nothing of its direction."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("wrong", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.wrong += (outputs.argmax(1) != targets).sum()

    def compute(self) -> torch.Tensor:
        return self.wrong


@pytest.mark.parametrize(
    ("metric", "mode", "expected"),
    [
        (MulticlassHammingDistance(num_classes=NUM_CLASSES), None, "min"),
        (MulticlassAccuracy(num_classes=NUM_CLASSES), None, "max"),
        (Misses(), "min", "min"),
        (MulticlassAccuracy(num_classes=NUM_CLASSES), "min", "min"),
    ],
)
def test_the_direction_is_the_metric_s_own(tmp_path: Path, metric: Metric, mode: str | None, expected: str) -> None:
    name = type(metric).__name__
    evaluator = Evaluator(label="eval", dataloader=DataLoader(blobs(16), batch_size=16), metric_names=[name])
    model = mlp(1)
    model.val_metrics = MetricCollection({name: metric})
    recorder = RunRecorder(tmp_path, run_name="run", monitor=Monitor(name, mode), weights=["best"])
    _fit(recorder, model, eval_dataloader=evaluator)
    run = RunArchive(tmp_path).run("run")
    assert (run.manifest.monitor, run.manifest.monitor_mode) == (f"metrics/eval/{name}", expected)
    values = run.metric(f"metrics/eval/{name}").value
    assert run.best_metric()[0] == (values.min() if expected == "min" else values.max())


def test_an_unknown_monitor_is_refused_at_the_first_evaluation(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="run", monitor="MulticlasAccuracy")
    evaluation = DataLoader(TensorDataset(*blobs(16).tensors), batch_size=16)
    one = trainer(epoch_loader(blobs()), mlp(1), callbacks=[recorder], eval_dataloader=evaluation, max_duration="3ep")
    with pytest.raises(
        ValueError, match="no evaluation has a metric 'MulticlasAccuracy'. Did you mean 'metrics/eval/Mu"
    ):
        one.fit()
    assert int(one.state.timestamp.epoch) == 1
    one.close()
