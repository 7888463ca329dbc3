"""Accuracy under attack: the numbers against closed forms, when they are taken, and what they leave alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback, DataSpec, Evaluator, State
from composer.algorithms import EMA
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics import MetricCollection

from compare.asking import compare_runs
from forked_python import launch
from ranks.attack_while_training import MEAN, SIDE, STD, eval_loader, images, linear, robust_history
from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.callbacks import RobustEvaluation, RunRecorder, train_clock
from reuse_algos.callbacks.recorder import run_recorder
from reuse_algos.cli import main
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.errors import DataError, ModelError, NoEffectWarning, TaskError
from reuse_algos.training.attacks import Attack, perturb
from reuse_algos.training.batch_keys import BatchKeys
from toy import DictModel, blobs, checkpointed, mlp, trainer

ROOT = Path(__file__).parents[2]
FGSM = "metrics/eval/robust/FGSMAccuracy"
CLEAN = "metrics/eval/robust/CleanAccuracy"


def conv_net(seed: int = 0, classes: int = 2) -> ComposerClassifier:
    """Batch norm and dropout: train mode would show in outputs, statistics and generators."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
            nn.Linear(8 * SIDE * SIDE, classes),
        )  # fmt: skip
    return ComposerClassifier(net, num_classes=classes)


def train(
    *callbacks: Callback, model: ComposerClassifier | None = None, evaluation: Any = None, **arguments: Any
) -> State:
    """Train on random images and return the state at the end."""
    one = trainer(
        eval_loader(images(64, seed=1)),
        model or conv_net(),
        eval_dataloader=eval_loader(images()) if evaluation is None else evaluation,
        callbacks=list(callbacks),
        **arguments,
    )
    one.fit()
    one.close()
    return one.state


def recorded(folder: Path, *callbacks: Callback, **arguments: Any) -> PriorRun:
    train(*callbacks, RunRecorder(folder, run_name="run"), **arguments)
    return RunArchive(folder).run("run")


# The numbers --------------------------------------------------------------------------------------------------------


def fgsm_by_hand(epsilon: float, positions: list[int]) -> tuple[float, float]:
    """Clean and FGSM accuracy of the linear model with two classes, without autograd and in float64.

    The loss of class y grows along ``w_other - w_y``, so FGSM moves every pixel by epsilon with its sign.
    """
    dataset, model = images(), linear()
    weight_KD, bias_K = (p.detach().double() for p in model.module[1].parameters())  # type: ignore[index]
    clean = right = 0
    for position in positions:
        inputs, label = dataset[position]
        std = torch.tensor(STD).double().view(2, 1, 1)
        mean = torch.tensor(MEAN).double().view(2, 1, 1)
        pixels = inputs.double() * std + mean
        away = (weight_KD[1 - label] - weight_KD[label]).view(2, SIDE, SIDE)
        moved = (pixels + epsilon * away.sign()).clamp(0, 1)
        for image, counted in ((pixels, "clean"), (moved, "fgsm")):
            logits = weight_KD @ ((image - mean) / std).flatten() + bias_K
            hit = int(logits.argmax() == label)
            clean, right = clean + hit * (counted == "clean"), right + hit * (counted == "fgsm")
    return clean / len(positions), right / len(positions)


@pytest.mark.parametrize("epsilon", [0.03, 0.06, 0.12])
def test_fgsm_accuracy_of_a_linear_model_is_the_closed_form(tmp_path: Path, epsilon: float) -> None:
    callback = RobustEvaluation(attacks={"fgsm": {"epsilon": epsilon}}, examples=20)
    run = recorded(tmp_path, callback, model=linear(), lr=0.0, max_duration="1ep")
    clean, fgsm = fgsm_by_hand(epsilon, [i * 50 // 20 for i in range(20)])
    assert run.metric(CLEAN).value.tolist() == [pytest.approx(clean)]
    assert run.metric(FGSM).value.tolist() == [pytest.approx(fgsm)]
    assert fgsm < clean, "an attack that changes nothing would prove nothing"


def _binary(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(outputs.flatten(), targets.float())


@pytest.mark.parametrize("epsilon", [0.03, 0.12])
@pytest.mark.parametrize("columns", [True, False])
def test_one_logit_is_attacked_as_the_difference_of_two(tmp_path: Path, epsilon: float, columns: bool) -> None:
    """The same weights as a binary model, with outputs [B, 1] or [B]: the same numbers as with two classes."""
    two = linear()
    one = nn.Linear(2 * SIDE * SIDE, 1)
    with torch.no_grad():
        weight_KD, bias_K = two.module[1].parameters()  # type: ignore[index]
        one.weight.copy_(weight_KD[1:] - weight_KD[:1])
        one.bias.copy_(bias_K[1:] - bias_K[:1])
    net = nn.Sequential(nn.Flatten(), one) if columns else nn.Sequential(nn.Flatten(), one, nn.Flatten(0))
    model = ComposerClassifier(net, num_classes=2, loss_fn=_binary)
    model.train_metrics = model.val_metrics = MetricCollection([])
    callback = RobustEvaluation(attacks={"fgsm": {"epsilon": epsilon}}, examples=20)
    run = recorded(tmp_path, callback, model=model, lr=0.0, max_duration="1ep")
    clean, fgsm = fgsm_by_hand(epsilon, [i * 50 // 20 for i in range(20)])
    assert (run.metric(CLEAN).value.tolist(), run.metric(FGSM).value.tolist()) == (
        [pytest.approx(clean)],
        [pytest.approx(fgsm)],
    )


class Many(Dataset):
    """Images with a row of targets each: labels of a multilabel task, or numbers."""

    def __init__(self, targets: Tensor) -> None:
        self.images, self.targets_N = images(), targets
        self.pixel_space = self.images.pixel_space

    def __len__(self) -> int:
        return len(self.targets_N)

    def __getitem__(self, index: int) -> Any:
        return self.images[index][0], self.targets_N[index]


@pytest.mark.parametrize(
    ("loss", "kind", "targets"),
    [
        (
            nn.functional.binary_cross_entropy_with_logits,
            "multilabel",
            (torch.arange(40).reshape(20, 2) % 3 > 0).float(),
        ),
        (nn.functional.mse_loss, "regression", torch.arange(40).reshape(20, 2) / 7),
    ],
)
def test_what_has_no_classes_is_refused_by_name(loss: Any, kind: str, targets: Tensor) -> None:
    """Twice as many targets as rows: the index of the largest output was once compared with them."""
    model = ComposerClassifier(linear().module, num_classes=2, loss_fn=loss)
    model.train_metrics = model.val_metrics = MetricCollection([])
    data = DataLoader(Many(targets), batch_size=10)
    one = trainer(data, model, eval_dataloader=data, callbacks=[RobustEvaluation()], max_duration="1ep")
    with pytest.raises(TaskError, match=f"RobustEvaluation is not defined for the task '{kind}'"):
        one.fit()


def test_probabilities_in_evaluation_are_refused() -> None:
    """A loss of probabilities has hardly any slope, so that every attack would look weak."""

    class Deployed(ComposerClassifier):
        def forward(self, batch: Any) -> Tensor:
            logits = super().forward(batch)
            return logits if self.training else logits.softmax(1)

    with pytest.raises(TaskError, match="the model gives probabilities in evaluation"):
        train(RobustEvaluation(), model=Deployed(linear().module, num_classes=2), max_duration="1ep")


def test_every_example_clean_is_the_trainer_s_own_accuracy_also_of_averaged_weights(tmp_path: Path) -> None:
    """EMA has put back the weights of training when an evaluation ends; attacked are those that were evaluated."""
    average = EMA(half_life="20ba", update_interval="1ba")
    callback = RobustEvaluation(attacks={"fgsm": {}}, examples=1000)
    run = recorded(tmp_path, callback, algorithms=[average], max_duration="3ep")
    own = run.metric("metrics/eval/MulticlassAccuracy")
    assert run.metric(CLEAN).value.tolist() == pytest.approx(own.value.tolist())
    assert len(own.value) == 3


def test_pgd_by_hand(tmp_path: Path) -> None:
    """The callback's PGD is that of attacks.perturb on the same inputs in one batch, whatever its own batches are."""
    fields = {"epsilon": 0.05, "steps": 4, "norm": "l2", "seed": 3}
    model = conv_net()
    run = recorded(
        tmp_path,
        RobustEvaluation(attacks={"pgd4": fields}, examples=30, batch_size=7),
        model=model,
        lr=0.0,
        max_duration="1ep",
    )
    dataset, pixels = images(), PixelSpace(MEAN, STD)
    positions = torch.arange(30) * 50 // 30
    inputs_BCHW, labels_B = dataset.__getitems__(positions.tolist())
    module = model.module.eval()
    attack = Attack(method="pgd", **fields)  # type: ignore[arg-type]
    delta_BCHW = perturb(module, inputs_BCHW, labels_B, attack, pixels, keys_B=positions)
    right = (module(pixels.add(inputs_BCHW, delta_BCHW)).argmax(1) == labels_B).float().mean()
    assert run.metric("metrics/eval/robust/PGD4Accuracy").value.tolist() == [pytest.approx(float(right))]


@pytest.mark.ranks
def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    script = ROOT / "tests" / "ranks" / "attack_while_training.py"
    launch(2, str(script), str(tmp_path), check=True)
    found = json.loads((tmp_path / "history.json").read_text())
    assert found == robust_history(tmp_path / "one")
    assert {name.rsplit("/", 1)[1] for name in found} == {"CleanAccuracy", "FGSMAccuracy", "PGDAccuracy"}
    assert all(len(values) == 2 and values[0] == values[1] for values in found.values())


def test_more_ranks_than_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    callback = RobustEvaluation(examples=2)
    state = train(callback, max_duration="1ba")
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    totals = []
    for rank in range(3):
        monkeypatch.setattr(dist, "get_global_rank", lambda rank=rank: rank)
        totals.append(callback._count(state, state.evaluators[0])[-1])
    assert totals == [1.0, 1.0, 0.0]


def test_examples_that_are_random_in_evaluation_are_the_same_every_time(tmp_path: Path) -> None:
    class Noisy(Dataset[Any]):
        """Draws from the global generator, as torchvision's transforms do."""

        def __init__(self) -> None:
            self.images = images()

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            inputs, label = self.images[index]
            return inputs * torch.rand(()), int(label)

    # The noise moves values towards 0, which is the mean: still valid pixels.
    callback = RobustEvaluation(attacks={"fgsm": {"epsilon": 0.05}}, pixels=PixelSpace(MEAN, STD))
    evaluation = DataLoader(Noisy(), batch_size=16)
    run = recorded(tmp_path, callback, model=linear(), evaluation=evaluation, lr=0.0, max_duration="3ep")
    values = run.metric(FGSM).value
    assert len(values) == 3
    assert len(set(values.tolist())) == 1


# When, and what it costs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "epochs"),
    [("1ep", [1, 2, 3, 4, 5]), ("2ep", [2, 4, 5]), ("9ba", [3, 5]), ("0.4dur", [2, 4, 5]), ("7ep", [5]), (3, [3, 5])],
)
def test_interval(tmp_path: Path, interval: Any, epochs: list[int]) -> None:
    """Five epochs of four batches, evaluated after each; the end is always in."""
    callback = RobustEvaluation(attacks={"fgsm": {}}, examples=5, interval=interval)
    run = recorded(tmp_path, callback, max_duration="5ep")
    history = run.metric(FGSM)
    assert history.epoch.tolist() == epochs
    assert history.step.tolist() == [4 * epoch for epoch in epochs]
    assert run.metric("metrics/eval/MulticlassAccuracy").epoch.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("count", [16, 50, 200])
@pytest.mark.parametrize(
    ("every", "interval", "steps"),
    [("1dur", "1dur", [20]), ("0.4dur", "2ep", [8, 16, 20]), ("2ba", "0.5dur", [10, 20])],
)
def test_evaluations_by_shares_of_the_training(
    tmp_path: Path, every: str, interval: str, steps: list[int], count: int
) -> None:
    """Composer makes them after the last batch of an epoch, before it counts the epoch.

    An epoch has 4 batches, and the evaluation 1, 4 or 13, which must not be taken for the epoch.
    """
    callback = RobustEvaluation(attacks={"fgsm": {}}, examples=5, interval=interval)
    evaluation = eval_loader(images(count))
    run = recorded(tmp_path, callback, max_duration="5ep", eval_interval=every, evaluation=evaluation)
    assert run.metric(FGSM).step.tolist() == steps


def test_a_second_trainer_begins_the_interval_from_its_start(tmp_path: Path) -> None:
    callback = RobustEvaluation(attacks={"fgsm": {}}, examples=5, interval="2ep")
    for name in ("first", "second"):
        run = recorded(tmp_path / name, callback, max_duration="5ep")
        assert run.metric(FGSM).epoch.tolist() == [2, 4, 5]


def test_a_resumed_run_goes_on_with_the_interval(tmp_path: Path) -> None:
    def one(folder: str, max_duration: str) -> None:
        callbacks = [RobustEvaluation(attacks={"fgsm": {}}, interval="9ba"), RunRecorder(tmp_path / folder)]
        saving = checkpointed(tmp_path / f"checkpoints-{folder}", save_interval="1ep")
        train(*callbacks, max_duration=max_duration, **saving)

    class Crash(Callback):
        """Ends the process's training in the fourth epoch."""

        def batch_start(self, state: State, logger: Any) -> None:
            if int(state.timestamp.batch) == 13:
                raise RuntimeError("crash")

    one("straight", "6ep")
    saving = checkpointed(tmp_path / "checkpoints", save_interval="1ep")
    for crash in ([Crash()], []):
        callbacks = [RobustEvaluation(attacks={"fgsm": {}}, interval="9ba"), RunRecorder(tmp_path / "broken"), *crash]
        if crash:
            with pytest.raises(RuntimeError, match="crash"):
                train(*callbacks, max_duration="6ep", **saving)
        else:
            train(*callbacks, max_duration="6ep", **saving)
    straight, broken = (RunArchive(tmp_path / name).run("resumable") for name in ("straight", "broken"))
    assert straight.metric(FGSM).step.tolist() == broken.metric(FGSM).step.tolist() == [12, 20, 24]
    assert np.array_equal(straight.metric(FGSM).value, broken.metric(FGSM).value)
    assert broken.manifest.monitor == straight.manifest.monitor == "metrics/eval/MulticlassAccuracy"


def test_it_counts_as_evaluation_and_not_as_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(train_clock, "perf_counter", lambda: now[0])
    monkeypatch.setattr(run_recorder, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(RobustEvaluation):
        """Takes 1,000 seconds of a clock that stands still otherwise."""

        def eval_start(self, state: State, logger: Any) -> None:
            super().eval_start(state, logger)
            now[0] += 1000.0

    run = recorded(tmp_path, Slow(attacks={"fgsm": {}}, examples=5), max_duration="3ep")
    cost = run.manifest.cost
    assert (cost.train_seconds, cost.eval_seconds) == (0.0, 3000.0)
    assert cost.overhead_seconds == 0.0
    assert run.metric(FGSM).eval_seconds.tolist() == [0.0, 1000.0, 2000.0], "a row counts the evaluations before it"


def test_loggers_and_compare_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method, width in (("baseline", 0.2), ("other", 0.05)):
        for seed in (1, 2, 3):
            log = InMemoryLogger()
            tags = {"method": method}
            recorder = RunRecorder(tmp_path, run_name=f"{method}-{seed}", tags=tags)
            train(RobustEvaluation(), recorder, model=conv_net(seed), lr=width, seed=seed, loggers=[log])
            run = RunArchive(tmp_path).run(f"{method}-{seed}")
            logged = [float(value) for _, value in log.data["metrics/eval/robust/PGDAccuracy"]]
            assert logged == run.metric("PGDAccuracy").value.tolist()
            assert run.manifest.monitor == "metrics/eval/MulticlassAccuracy", "nobody asked to be ordered by attacks"
    assert main(["compare", str(tmp_path), "--metric", "PGDAccuracy"]) == 0
    assert "metrics/eval/robust/PGDAccuracy" in capsys.readouterr().out
    comparison = compare_runs(RunArchive(tmp_path), metric="PGDAccuracy")
    assert comparison.metric == "metrics/eval/robust/PGDAccuracy"
    finals = [run.final_metric("PGDAccuracy") for run in RunArchive(tmp_path).runs(tags={"method": "baseline"})]
    assert comparison.target == pytest.approx(np.mean(finals))


def test_the_best_weights_may_be_the_most_robust_ones(tmp_path: Path) -> None:
    callback = RobustEvaluation(attacks={"fgsm": {}}, interval="2ep")
    kept: dict[int, dict[str, Tensor]] = {}

    class Keep(Callback):
        """The weights after each epoch."""

        def epoch_end(self, state: State, logger: Any) -> None:
            kept[int(state.timestamp.epoch)] = {k: v.clone() for k, v in state.model.state_dict().items()}

    recorder = RunRecorder(tmp_path, run_name="run", weights=("best",), monitor="FGSMAccuracy")
    train(callback, recorder, Keep(), max_duration="5ep")
    run = RunArchive(tmp_path).run("run")
    history = run.metric(FGSM)
    best = int(history.epoch[history.value.argmax()])
    assert run.manifest.monitor == FGSM
    for name, value in run.weights("best").items():
        assert torch.equal(value, kept[best][name]), name


def test_a_standalone_evaluation_is_always_a_robust_one(tmp_path: Path) -> None:
    log = InMemoryLogger()
    callback = RobustEvaluation(attacks={"fgsm": {}}, interval="100ep")
    one = trainer(
        eval_loader(images(64, seed=1)), conv_net(), eval_dataloader=eval_loader(images()), callbacks=[callback],
        loggers=[log],
    )  # fmt: skip
    one.eval()
    assert len(log.data[FGSM]) == 1
    with pytest.warns(UserWarning, match="label 'eval' was already provided"):
        one.eval(eval_dataloader=eval_loader(images(31, seed=5)))
    assert len(log.data[FGSM]) == 2
    right = 31 * float(log.data[CLEAN][1][1])
    assert right == pytest.approx(round(right)), "the accuracy of the 31 examples that were given, not of the first 50"
    own = float(log.data["metrics/eval/MulticlassAccuracy"][1][1])
    assert float(log.data[CLEAN][1][1]) == pytest.approx(own)
    one.close()


def test_it_says_so_when_it_never_ran() -> None:
    with pytest.warns(NoEffectWarning, match="never evaluated. Give the Trainer an eval_interval"):
        train(RobustEvaluation(), max_duration="1ep", eval_interval=0)


# What it leaves alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_training_goes_on_as_if_it_were_not_there(compiled: bool) -> None:
    options = {"compile_config": {"backend": "aot_eager"}} if compiled else {}

    seen: list[Any] = []

    class Watch(Callback):
        """What an attack might move, kept right before it and right after it."""

        def eval_start(self, state: State, logger: Any) -> None:
            generators = torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64))
            tensors = [value.clone() for value in state.model.state_dict().values()]
            flags = [module.training for module in state.model.modules()]
            gradients = [None if p.grad is None else p.grad.clone() for p in state.model.parameters()]
            needed = [p.requires_grad for p in state.model.parameters()]
            seen.append(([*generators, *tensors], gradients, flags, needed))

    attacks = {"pgd": {"steps": 2}, "pgd_l2": {"norm": "l2", "targeted": "random"}, "fgsm": None}
    attacked = train(Watch(), RobustEvaluation(attacks=attacks), Watch(), max_duration="3ep", **options)
    plain = train(max_duration="3ep", **options)
    assert len(seen) == 6
    for before, after in zip(seen[::2], seen[1::2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
        for first, then in zip(before[1], after[1], strict=True):
            assert first is then is None or torch.equal(first, then)
        assert before[2:] == after[2:]
    for name, value in attacked.model.state_dict().items():
        assert torch.equal(value, plain.model.state_dict()[name]), name


def test_batches_of_other_shapes_and_transforms(tmp_path: Path) -> None:
    """A dictionary with a normalisation on the device, of a second evaluator, in bfloat16."""

    class Images(Dataset[Any]):
        """Pixels from 0 to 1, which the DataSpec normalises."""

        def __init__(self) -> None:
            self.images = images()

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> dict[str, Any]:
            inputs, label = self.images[index]
            return {"x": PixelSpace(MEAN, STD).to_pixels(inputs), "y": int(label)}

    class Model(DictModel):
        """Linear, under an autocast of its own."""

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                return {"logits": self.module(batch["x"]).float()}

    def normalise(batch: dict[str, Any]) -> dict[str, Any]:
        mean = torch.tensor(MEAN).view(2, 1, 1)
        return {**batch, "x": PixelSpace(MEAN, STD).delta_to_inputs(batch["x"] - mean)}

    model = Model(linear().module, num_classes=2)
    spec = DataSpec(DataLoader(Images(), batch_size=16), microbatch_transforms=normalise)
    evaluators = [
        Evaluator(label="other", dataloader=spec, metric_names=["MulticlassAccuracy"]),
        Evaluator(label="pixels", dataloader=spec, metric_names=["MulticlassAccuracy"]),
    ]
    callback = RobustEvaluation(
        attacks={"fgsm": {"epsilon": "8/255"}},
        evaluator="pixels",
        pixels=PixelSpace(MEAN, STD),
        keys=BatchKeys("x", "y"),
    )
    train_spec = DataSpec(DataLoader(Images(), batch_size=16), microbatch_transforms=normalise)
    recorder = RunRecorder(tmp_path, run_name="run", keys=BatchKeys(target="y"))
    one = trainer(train_spec, model, eval_dataloader=evaluators, callbacks=[recorder, callback], lr=0.0)
    one.fit()
    one.close()
    run = RunArchive(tmp_path).run("run")
    assert [name for name in run.metric_names if "robust" in name] == [
        "metrics/pixels/robust/CleanAccuracy",
        "metrics/pixels/robust/FGSMAccuracy",
    ]
    clean, fgsm = fgsm_by_hand(8 / 255, list(range(50)))
    assert run.metric("FGSMAccuracy").value.tolist() == pytest.approx([fgsm] * 2, abs=0.05)  # bfloat16
    assert run.metric("CleanAccuracy").value.tolist() == pytest.approx([clean] * 2, abs=0.05)


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"examples": 0}, "examples must be a whole number from 1, not 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number from 1, not 2.5"),
        ({"interval": "0ep"}, "interval must be above 0"),
        ({"pixels": {"mean": [0.5]}}, "std"),
        ({"pixels": {"mean": [0.5], "std": [0.0]}}, "every std above 0"),
        ({"attacks": {}}, "attacks is empty"),
        ({"attacks": {"strong": {}}}, "attacks.strong: say its method (fgsm or pgd)"),
        ({"attacks": {"clean": {"method": "fgsm"}}}, "'clean' cannot be the name of an attack"),
        ({"attacks": {"a/b": {"method": "fgsm"}}}, "'a/b' cannot be the name"),
        ({"attacks": {"pgd": 10}}, "attacks.pgd must be a section of fields, not 10"),
        ({"attacks": {"pgd": {"step": 10}}}, "attacks.pgd: no field 'step'. Did you mean 'steps'"),
        ({"attacks": {"pgd": {"epsilon": "8/0"}}}, "attacks.pgd: '8/0' is not a number above 0, such as 0.03 or 8/255"),
        ({"attacks": {"pgd": {"epsilon": 8}}}, "attacks.pgd: attack epsilon must be above 0 and at most 1"),
        ({"attacks": {"x": {"method": "cw"}}}, "attacks.x: attack method: unknown value 'cw'"),
    ],
)
def test_wrong_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RobustEvaluation(**arguments)


def test_wrong_evaluations_are_refused_before_the_training() -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from images()

    class Empty(Dataset[Any]):
        def __len__(self) -> int:
            return 0

    def refused(callback: RobustEvaluation, error: type[Exception], message: str, **arguments: Any) -> None:
        with pytest.raises(error, match=message):
            train(callback, **arguments)

    evaluation = Evaluator(
        label="stream", dataloader=DataLoader(Endless()), metric_names=["MulticlassAccuracy"], subset_num_batches=1
    )
    refused(RobustEvaluation(), DataError, "evaluator 'stream' are iterable", evaluation=evaluation)
    refused(RobustEvaluation(), DataError, "'eval' does not say how", evaluation=DataLoader(blobs(8)), model=mlp())
    refused(RobustEvaluation(evaluator="evil"), ValueError, "no evaluator 'evil'. Did you mean 'eval'")
    refused(RobustEvaluation(), ValueError, "takes one RobustEvaluation", algorithms=[], loggers=[RobustEvaluation()])
    space = {"pixels": PixelSpace((0.0,), (1.0,))}
    refused(RobustEvaluation(**space), DataError, "is empty", evaluation=DataLoader(Empty(), sampler=[]))
    with pytest.raises(ValueError, match="give the Trainer an eval_dataloader"):
        trainer(eval_loader(images()), conv_net(), callbacks=[RobustEvaluation()]).fit()


def test_a_model_that_is_flat_or_diverged_stops_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A head of zeros, as many recipes begin with, and weights that are no numbers any more."""
    for name, value in (("flat", 0.0), ("diverged", float("nan"))):
        model = linear()
        with torch.no_grad():
            model.module[1].weight.fill_(value)  # type: ignore[index,operator,union-attr]
        caplog.clear()
        run = recorded(tmp_path / name, RobustEvaluation(examples=20), model=model, lr=0.0, max_duration="1ep")
        clean = run.metric(CLEAN).value.tolist()
        assert run.metric(FGSM).value.tolist() == run.metric(f"{FGSM[:-12]}PGDAccuracy").value.tolist() == clean
        assert "fgsm had no direction for 20 of 20 examples of evaluator 'eval'" in caplog.text
    caplog.clear()
    train(RobustEvaluation(examples=20), max_duration="1ep")
    assert "no direction" not in caplog.text


def test_what_cannot_be_attacked() -> None:
    class Rounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(2 * SIDE * SIDE, 2))

        def forward(self, inputs_BCHW: Tensor) -> Tensor:
            return self.net(inputs_BCHW.detach())

    with pytest.raises(ModelError, match="no gradient with respect to its inputs"):
        train(RobustEvaluation(), model=ComposerClassifier(Rounds(), num_classes=2))
    with pytest.raises(DataError, match="Give the mean and std with which they were normalised"):
        train(RobustEvaluation(pixels=PixelSpace((0.0, 0.0), (1.0, 1.0))))
    with pytest.raises(ValueError, match="beyond the range"):
        train(RobustEvaluation(attacks={"fgsm": {"norm": "l2", "epsilon": 100.0}}))
