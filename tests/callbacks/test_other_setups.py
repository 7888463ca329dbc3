"""The recorder in the Trainers of others: nothing is changed by it, and nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback, Evaluator, State
from composer.algorithms import SAM, SWA, SeqLengthWarmup
from composer.callbacks import EarlyStopper
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassHammingDistance

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.callbacks.recorder.monitor import Monitor
from reuse_algos.data.info import infer_info
from reuse_algos.errors import (
    ArchiveError,
    ArchiveWarning,
    DataError,
    ExampleIdError,
    ModelError,
    ReuseAlgosError,
    TaskError,
)
from reuse_algos.training.batch_keys import BatchKeys
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


class Twice(torch.optim.SGD):
    """Asks for the loss twice in a step, at other weights the second time, as line searches do."""

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        super().step()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(1.0)
        closure()
        return loss


def test_an_optimizer_that_runs_a_batch_again_is_recorded_once(tmp_path: Path) -> None:
    data, model = blobs(), mlp(1)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model.module(data.tensors[0]), data.tensors[1], reduction="none")
    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {}})
    one = trainer(
        DataLoader(data, batch_size=64),
        model,
        callbacks=[recorder],
        optimizers=Twice(model.parameters(), lr=0.1),
        max_duration="1ba",
    )
    one.fit()
    torch.testing.assert_close(RunArchive(tmp_path).run("run").signal("loss").dense(0)[0].float(), expected)


class TwoHeads(ComposerClassifier):
    """Gives the outputs of both heads in training and their mean in evaluation, as distilled DeiT models do."""

    def __init__(self) -> None:
        super().__init__(mlp(1).module, num_classes=NUM_CLASSES)
        self.second = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def forward(self, batch: Any) -> Any:
        both = self.module(batch[0]), self.second(batch[0])
        return both if self.training else (both[0] + both[1]) / 2

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        outputs = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        return sum(nn.functional.cross_entropy(one, batch[1]) for one in outputs)  # type: ignore[return-value]

    def eval_forward(self, batch: Any, outputs: Any = None) -> torch.Tensor:
        return self.forward(batch) if outputs is None else outputs[0]


def test_two_heads_are_refused_until_one_is_named_and_their_loss_is_not_taken_for_one_of_them(tmp_path: Path) -> None:
    with pytest.raises(ReuseAlgosError, match="found in outputs of type tuple of 2; name their place by"):
        _fit(RunRecorder(tmp_path / "none", signals={"logits": {}}), TwoHeads(), max_duration="1ba")
    keys = BatchKeys(output=0)
    with pytest.raises(TaskError, match=r"is not the plain one .* Set signals.loss: \{of: task\}"):
        _fit(RunRecorder(tmp_path / "own", signals={"loss": {}}, keys=keys), TwoHeads(), max_duration="1ba")
    recorder = RunRecorder(tmp_path / "head", run_name="run", signals={"logits": {}, "correct": {}}, keys=keys)
    model, data = TwoHeads(), blobs()
    _fit(recorder, model, DataLoader(data, batch_size=64), lr=0.0, max_duration="1ep")
    run = RunArchive(tmp_path / "head").run("run")
    expected = model.module(data.tensors[0]).detach()
    torch.testing.assert_close(run.signal("logits").dense(0)[0].float(), expected, atol=1e-2, rtol=1e-2)
    assert torch.equal(run.signal("correct").dense(0)[0].bool(), expected.argmax(1) == data.tensors[1])


class Adapters(ComposerClassifier):
    """Keeps the weights of its base out of the state dict, as adapters do."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "module.0" not in name}


def test_weights_that_a_state_dict_hides_are_refused_before_the_first_batch(tmp_path: Path) -> None:
    model = Adapters(mlp(1).module, num_classes=NUM_CLASSES)
    with pytest.raises(ModelError, match=r"leaves out 2 of its 6 parameters, first module.0.weight.*should_save_peft"):
        _fit(RunRecorder(tmp_path, run_name="run"), model)
    _fit(RunRecorder(tmp_path, run_name="without", weights=[]), model, max_duration="1ba")
    assert [run.run_name for run in RunArchive(tmp_path).runs(unfinished=True)] == ["without"]


@pytest.mark.filterwarnings("ignore:SWA has known issues:UserWarning")
@pytest.mark.parametrize("end", ["0.5dur", "1dur"])
def test_beside_swa_the_last_weights_are_those_that_are_evaluated(tmp_path: Path, end: str) -> None:
    model = mlp(1)
    average = SWA(swa_start="0.25dur", swa_end=end, update_interval="1ep", schedule_swa_lr=False)
    _fit(RunRecorder(tmp_path, run_name="run"), model, algorithms=[average], max_duration="4ep")
    weights, averaged = RunArchive(tmp_path).run("run").weights("last"), average.swa_model.module.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    # An average that ends with the training is the model; one that ends before it is trained further.
    assert torch.equal(weights["module.0.weight"], averaged["module.0.weight"]) == (end == "1dur")


class OwnNoise(Dataset):
    """Adds noise from generators of its own to the inputs: numpy's, torch's and one in a closure."""

    def __init__(self) -> None:
        self.blobs, self.rng = blobs(), np.random.default_rng(3)
        generator = torch.Generator().manual_seed(5)
        self.transforms = [lambda x: x + torch.randn(x.shape, generator=generator)]

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, index: int) -> Any:
        x, y = self.blobs[index]
        return self.transforms[0](x + float(self.rng.standard_normal())), y


@pytest.mark.parametrize("signals", [{}, {"loss": {}}])
def test_generators_that_a_dataset_owns_do_not_move(tmp_path: Path, signals: dict[str, Any]) -> None:
    models = [mlp(1), mlp(1)]
    for model, callbacks in zip(models, ([RunRecorder(tmp_path, signals=signals)], []), strict=True):
        trainer(DataLoader(OwnNoise(), batch_size=16), model, callbacks=callbacks, max_duration="2ep").fit()
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


# Labels --------------------------------------------------------------------------------------------------------------


def _renumbered(rows: Any) -> Any:
    x, y = default_collate(rows)
    return x, (y + 1) % NUM_CLASSES


def test_labels_that_a_collate_function_changes_are_not_recorded_as_the_dataset_has_them(tmp_path: Path) -> None:
    loader = DataLoader(blobs(), batch_size=16, collate_fn=_renumbered)
    with pytest.warns(ArchiveWarning, match=r"example \d+ has label \d in the dataset and \d in a batch, so labels"):
        _fit(RunRecorder(tmp_path, run_name="run"), loader=loader, max_duration="1ba")
    run = RunArchive(tmp_path).run("run")
    assert run.manifest.dataset is not None
    assert (run.manifest.dataset.labels_known, run.manifest.dataset.class_names) == (False, None)
    with pytest.raises(DataError, match="RunRecorder dataset: the labels of the dataset are not those of its batches"):
        _fit(RunRecorder(tmp_path, dataset=infer_info(blobs())), loader=loader, max_duration="1ba")
    true = replace(infer_info(blobs()), labels=(blobs().tensors[1] + 1) % NUM_CLASSES)
    _fit(RunRecorder(tmp_path, run_name="given", dataset=true), loader=loader, max_duration="1ba")
    assert torch.equal(RunArchive(tmp_path).run("given").labels(), true.labels)  # type: ignore[arg-type]


# What ends before its time -------------------------------------------------------------------------------------------


class Enough(Callback):
    """Stops in an epoch of its choice, as callbacks of users do."""

    def epoch_end(self, state: State, logger: Any) -> None:
        if int(state.timestamp.epoch) == 3:
            state.stop_training()


class Shorter(Callback):
    """Ends the training in a way that nobody can see beforehand."""

    def epoch_end(self, state: State, logger: Any) -> None:
        if int(state.timestamp.epoch) == 3:
            state.max_duration = "3ep"


def test_any_callback_that_stops_the_training_is_seen(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {"last_epochs": 2}})
    trainer(epoch_loader(viewed()), mlp(1), callbacks=[Enough(), recorder], max_duration="30ep").fit()
    assert list(RunArchive(tmp_path).run("run").signal("loss").slots) == [1, 2]


def test_a_window_that_was_never_reached_is_said(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="run", signals={"loss": {"last_epochs": 2}, "correct": {}})
    one = trainer(epoch_loader(viewed()), mlp(1), callbacks=[Shorter(), recorder], max_duration="30ep")
    with pytest.warns(ArchiveWarning, match="training ended in epoch 3 of 30, before the last_epochs of loss began"):
        one.fit()
    assert RunArchive(tmp_path).run("run").signal_names == ["correct"]


class Cuts(SeqLengthWarmup):
    """Beside a model that is not of Hugging Face."""

    def match(self, event: Any, state: State) -> bool:
        return False


def test_signals_of_cut_sequences_are_refused(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, signals={"loss": {}})
    with pytest.raises(ExampleIdError, match="SeqLengthWarmup cuts the examples of early batches"):
        _fit(recorder, algorithms=[Cuts()])


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


def test_a_monitor_that_was_never_evaluated_is_said_at_the_end(tmp_path: Path) -> None:
    # As an error, which is how some take all warnings: the run has ended all the same.
    with pytest.raises(ArchiveWarning, match="no evaluation of the whole training had 'PGDAccuracy'"):
        _fit(RunRecorder(tmp_path, run_name="run", monitor="PGDAccuracy"), mlp(1))
    (run,) = RunArchive(tmp_path).runs(run_name="run")
    assert run.manifest.monitor is None
