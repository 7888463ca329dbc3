"""Training with instruments is bit for bit the training without them, and what they read arrives."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, State
from composer.algorithms import EMA, MixUp
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import Tensor, nn

from forked_python import launch
from ranks.instruments import history
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder, TrainingInstruments
from reuse_algos.errors import ModelError, TaskError
from reuse_algos.training.instruments.reading import SETS
from toy import DictModel, NumberedDataset, blobs, checkpointed, loader, mlp, trainer

ALL = {"sets": list(SETS), "every": "2ba", "examples": 6, "hessian": {"probes": 3, "iterations": 4}}


def dropout_net() -> ComposerClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))
    return ComposerClassifier(net, num_classes=4)


def train(*callbacks: Callback, model: Any = None, data: Any = None, **arguments: Any) -> State:
    one = trainer(
        loader(data or blobs(32)), model or dropout_net(), callbacks=list(callbacks), **{"lr": 0.05, **arguments}
    )
    one.fit()
    one.close()
    return one.state


class Gradients(Callback):
    """Keeps what each step left behind: gradients, generator, modes."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def batch_start(self, state: State, logger: Any) -> None:
        self.keep(state)

    def batch_checkpoint(self, state: State, logger: Any) -> None:
        self.keep(state)

    def keep(self, state: State) -> None:
        grads = [None if p.grad is None else p.grad.clone() for p in state.model.parameters()]
        modes = [module.training for module in state.model.modules()]
        self.seen.append((grads, torch.get_rng_state(), modes))


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    return left == right


SITUATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "microbatches": {"device_train_microbatch_size": 4},
    "algorithms": {"algorithms": lambda: [MixUp(alpha=0.2), EMA(half_life="4ba", update_interval="1ba")]},
    "compiled": {"compile_config": {"backend": "eager"}},
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_training_is_bit_equal_with_and_without(situation: str) -> None:
    def states(*callbacks: Callback) -> tuple[State, Gradients]:
        given = {key: value() if callable(value) else value for key, value in SITUATIONS[situation].items()}
        spy = Gradients()
        return train(*callbacks, spy, **given), spy

    (plain, plain_spy), (read, read_spy) = states(), states(TrainingInstruments(**ALL))
    theirs, ours = plain.model.state_dict(), read.model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert equal(read_spy.seen, plain_spy.seen)


def test_a_resumed_run_is_bit_equal_and_reads_the_same(tmp_path: Path) -> None:
    def one(folder: str, max_duration: str) -> State:
        callbacks = [TrainingInstruments(**ALL), RunRecorder(tmp_path / folder, weights=["init", "last"])]
        saving = checkpointed(tmp_path / f"checkpoints-{folder}", save_interval="1ba")
        return train(*callbacks, max_duration=max_duration, **saving)

    straight = one("straight", "9ba")
    crash = Crash(5)
    saving = checkpointed(tmp_path / "checkpoints-crashed", save_interval="1ba")
    callbacks = [TrainingInstruments(**ALL), RunRecorder(tmp_path / "crashed", weights=["init", "last"])]
    with pytest.raises(RuntimeError, match="crash"):
        train(*callbacks, crash, max_duration="9ba", **saving)
    resumed = one_again(tmp_path, saving)
    assert all(torch.equal(resumed.model.state_dict()[k], v) for k, v in straight.model.state_dict().items())
    ours, theirs = (RunArchive(tmp_path / name).run("resumable") for name in ("crashed", "straight"))
    names = [name for name in theirs.metric_names if name.startswith("instruments/")]
    assert {"instruments/alpha", "instruments/distance", "instruments/trace"} <= set(names)
    for name in names:
        assert ours.metric(name).step.tolist() == theirs.metric(name).step.tolist() == [1, 3, 5, 7, 9]
        assert ours.metric(name).value.tolist() == theirs.metric(name).value.tolist(), name
    assert all(torch.equal(ours.weights("init")[k], v) for k, v in theirs.weights("init").items())


class Crash(Callback):
    """Ends training before the batch of this number."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def batch_start(self, state: State, logger: Any) -> None:
        if int(state.timestamp.batch) == self.batch:
            raise RuntimeError("crash")


def one_again(folder: Path, saving: dict[str, Any]) -> State:
    callbacks = [TrainingInstruments(**ALL), RunRecorder(folder / "crashed", weights=["init", "last"])]
    return train(*callbacks, max_duration="9ba", **saving)


@pytest.mark.parametrize("recorder_first", [True, False])
def test_readings_reach_loggers_and_archive_at_their_step(tmp_path: Path, recorder_first: bool) -> None:
    log = InMemoryLogger()
    callbacks: list[Callback] = [TrainingInstruments(every="3ba"), RunRecorder(tmp_path, run_name="run")]
    callbacks = callbacks[::-1] if recorder_first else callbacks
    state = train(*callbacks, loggers=[log])
    run = RunArchive(tmp_path).run("run")
    assert run.metric("instruments/norm_test").step.tolist() == [1, 4, 7]
    for name in ("loss", "alpha", "update_size", "gradient_norm", "gradient_sizes/1e-2"):
        logged = [value for _, value in log.data[f"instruments/{name}"]]
        assert run.metric(f"instruments/{name}").value.tolist() == logged
    assert run.metric("instruments/batch_size").value.tolist() == [8, 8, 8]
    assert run.metric("instruments/learning_rate").value.tolist() == [0.05] * 3
    assert run.metric("instruments/distance").value[0] == 0 < run.metric("instruments/distance").value[1]
    assert run.manifest.monitor is None, "readings are not chosen to order runs by"
    assert int(state.timestamp.batch) == 8


def test_the_update_is_the_step_of_the_optimizer() -> None:
    """SGD without momentum on all of the batch, without batch norm: the update is rate times gradient."""
    log = InMemoryLogger()
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    model = ComposerClassifier(net, num_classes=4)
    callback = TrainingInstruments(every="1ba")
    one = trainer(loader(blobs(32)), model, callbacks=[callback], loggers=[log])
    for group in one.state.optimizers[0].param_groups:
        group["momentum"] = 0.0
    one.fit()
    one.close()
    sizes, norms, losses = (
        torch.tensor([float(value) for _, value in log.data[f"instruments/{name}"]])
        for name in ("update_size", "gradient_norm", "loss")
    )
    torch.testing.assert_close(sizes, 0.1 * norms, rtol=1e-4, atol=1e-6)
    trained = torch.tensor([float(value) for _, value in log.data["loss/train/total"]])
    torch.testing.assert_close(losses, trained, rtol=1e-5, atol=1e-6)
    alphas = [float(value) for _, value in log.data["instruments/alpha"]]
    assert all(-1 <= value < 0 for value in alphas)


class Mixed(ComposerClassifier):
    """A model that trains under autocast, and keeps in which type each forward pass computed."""

    def __init__(self, own: bool) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        super().__init__(net, num_classes=4)
        self.own, self.seen = own, []

    def forward(self, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if self.own else contextlib.nullcontext():
            logits = super().forward(batch)
        self.seen.append(logits.dtype)
        return logits.float()


class Around(Callback):
    """Puts all of training under autocast, instruments and all, as a precision context of the Trainer does."""

    def fit_start(self, state: State, logger: Any) -> None:
        self.context = torch.autocast("cpu", torch.bfloat16)
        self.context.__enter__()

    def fit_end(self, state: State, logger: Any) -> None:
        self.context.__exit__(None, None, None)


@pytest.mark.parametrize("where", ["inside the forward pass", "around the step"])
def test_a_run_in_mixed_precision_is_read_in_float32(where: str) -> None:
    own, logs, models = where == "inside the forward pass", {}, {}
    for kind in ("mixed", "float32"):
        log, model = InMemoryLogger(), Mixed(own=own and kind == "mixed")
        around = [Around()] if kind == "mixed" and not own else []
        train(*around, TrainingInstruments(list(SETS), every="4ba"), model=model, loggers=[log], max_duration="1ep")
        logs[kind], models[kind] = log.data, model
    assert set(models["float32"].seen) == {torch.float32}
    assert models["mixed"].seen.count(torch.bfloat16) == 4, "the four steps, and no reading"
    assert torch.float32 in models["mixed"].seen
    names = [name for name in logs["mixed"] if name.startswith("instruments/")]
    # The steps differ; what is read at the weights before the first one does not.
    for name in ("loss", "gradient_norm", "norm_test", "largest_eigenvalue", "trace", "early_stopping", "accuracy"):
        assert "instruments/" + name in names
        first, expected = (logs[kind]["instruments/" + name][0][1] for kind in ("mixed", "float32"))
        assert first == expected or (math.isnan(first) and math.isnan(expected)), name
    assert logs["mixed"]["loss/train/total"][0][1] != logs["float32"]["loss/train/total"][0][1]


def test_once_an_epoch_is_the_first_batch_of_each(tmp_path: Path) -> None:
    train(TrainingInstruments(every="2ep"), RunRecorder(tmp_path, run_name="run"), max_duration="5ep")
    assert RunArchive(tmp_path).run("run").metric("instruments/alpha").step.tolist() == [1, 9, 17]


def test_batches_that_are_dictionaries(tmp_path: Path) -> None:
    data = NumberedDataset(32, as_dict=True)
    callback = TrainingInstruments(["economy", "laziness"])  # finds the targets by their name
    train(callback, RunRecorder(tmp_path, run_name="run"), data=data, model=DictModel(mlp().module, num_classes=4))
    values = RunArchive(tmp_path).run("run").metric("instruments/linearised_accuracy").value
    assert len(values) == 2
    assert ((values >= 0) & (values <= 1)).all()


def test_one_rank_and_two_ranks_read_the_examples_of_rank_zero(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "ranks" / "instruments.py"
    launch(2, str(script), str(tmp_path), check=True)
    two = json.loads((tmp_path / "history.json").read_text())
    one = history(tmp_path / "alone")
    assert two.keys() == one.keys()
    assert two["instruments/batch_size"] == one["instruments/batch_size"] == [8, 8, 8]
    # Rank 0's first two examples of the first step are every second example of one rank's batch.
    assert two["instruments/relative_distance"][0] == one["instruments/relative_distance"][0] == 0
    assert all(value > 0 for value in two["instruments/gradient_norm"])


def test_a_model_that_shares_its_weights_among_losses_of_adam_has_no_stopping() -> None:
    model = dropout_net()
    one = trainer(loader(blobs(32)), model, callbacks=[TrainingInstruments(["stopping"])])
    one.state.optimizers = [torch.optim.Adam(model.parameters())]
    with pytest.raises(TaskError, match="'stopping' is defined for SGD only, and this run has Adam"):
        one.fit()
    one.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sets": ["econmy"]}, "'econmy' is not one. Did you mean 'economy'"),
        ({"sets": []}, "sets is empty"),
        ({"every": "0.1dur"}, "must be epochs or batches such as 1ep or 100ba, not '0.1dur'"),
        ({"every": "banana"}, "must be epochs or batches such as 1ep or 100ba, not 'banana'"),
        ({"every": "0ba"}, "must be epochs or batches"),
        ({"examples": 1}, "examples must be a whole number from 2, not 1"),
        ({"memory_mib": 0}, "memory_mib must be a whole number from 1, not 0"),
        ({"hessian": {"probes": 1}}, "probes from 2"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingInstruments(**settings)


def test_laziness_needs_classes() -> None:
    other = trainer(loader(blobs(32)), callbacks=[TrainingInstruments(["laziness"], target_key=0)])
    with pytest.raises(ModelError, match="Leave 'laziness' out of sets"):
        other.fit()
    other.close()


def test_a_trainer_takes_one_callback() -> None:
    with pytest.raises(ValueError, match="takes one TrainingInstruments"):
        train(TrainingInstruments(), TrainingInstruments(["stopping"]))


def test_a_callback_serves_a_second_trainer(tmp_path: Path) -> None:
    callback = TrainingInstruments(every="3ba")
    for name in ("first", "second"):
        train(callback, RunRecorder(tmp_path, run_name=name))
    first, second = (RunArchive(tmp_path).run(name) for name in ("first", "second"))
    for name in ("instruments/alpha", "instruments/distance"):
        assert first.metric(name).value.tolist() == second.metric(name).value.tolist()


def test_readings_of_a_diverging_run_do_not_stop_it(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        train(TrainingInstruments(**ALL), RunRecorder(tmp_path, run_name="run"), lr=1e30)
    run = RunArchive(tmp_path).run("run")
    assert not torch.isfinite(torch.tensor(run.metric("instruments/gradient_norm").value[-1]))
