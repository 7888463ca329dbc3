"""HistoryCurriculum: weights in the loss, what it composes with, and what it refuses."""

from __future__ import annotations

import copy
import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer import Algorithm, Event, State
from composer.algorithms import LabelSmoothing, MixUp, SelectiveBackprop
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, WeightedRandomSampler

from curricula import BATCH, N, curriculum, fit
from distilling import Watch, distil, kl, teacher
from reuse_algos.algorithms import HistoryCurriculum
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.example_ids import ExampleIds
from reuse_algos.errors import (
    DataError,
    ExampleIdError,
    ModelError,
    NoEffectWarning,
    PriorRunMismatchError,
    SignalNotFoundError,
)
from toy import NUM_CLASSES, DictModel, epoch_loader, keyed, mlp, record_run, trainer, viewed

SCORES = torch.linspace(0.0, 3.0, N).double()
WEIGHTS = (SCORES + SCORES.mean()) / (2 * SCORES.mean())  # active_bias by hand
WEIGHTING = {"strategy": "active_bias", "mode": "weighting", "score": SCORES}


def _classifier(loss_fn: Any) -> ComposerClassifier:
    return ComposerClassifier(mlp(5).module, num_classes=NUM_CLASSES, loss_fn=loss_fn)


def _first_batch(archive: RunArchive, algorithms: list[Any], model: Any = None, **arguments: Any) -> tuple[Any, Any]:
    """Watch and Seen of a run of one batch."""
    watch = Watch()
    _, seen, _ = fit(algorithms, model=model, callbacks=[watch], max_duration="1ba", **arguments)
    return watch, seen


# The loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss_fn",
    [
        None,
        F.cross_entropy,
        nn.CrossEntropyLoss(),
        functools.partial(F.cross_entropy, label_smoothing=0.1),
        nn.CrossEntropyLoss(label_smoothing=0.1),
    ],
    ids=["composer", "function", "module", "partial", "smoothing module"],
)
def test_the_loss_is_the_weighted_mean(archive: RunArchive, loss_fn: Any) -> None:
    model = mlp(5) if loss_fn is None else _classifier(loss_fn)
    watch, seen = _first_batch(archive, [curriculum(archive, **WEIGHTING)], model)
    positions = torch.tensor(seen.batches[0])
    smoothing = 0.1 if isinstance(loss_fn, functools.partial) else getattr(loss_fn, "label_smoothing", 0.0)
    losses = F.cross_entropy(watch.outputs[0], positions % NUM_CLASSES, reduction="none", label_smoothing=smoothing)
    assert float(watch.losses[0]) == pytest.approx(float((WEIGHTS[positions] * losses).mean()), rel=1e-6)


def test_weights_of_one_leave_the_loss_bit_equal(archive: RunArchive) -> None:
    def losses(per_example: bool) -> list[torch.Tensor]:
        settings: dict[str, Any] = {"strategy": "dynamic_prune", "score": SCORES, "stop": "0ba"}
        watch = Watch()
        fit([curriculum(archive, **settings, update=per_example)], callbacks=[watch], max_duration="2ep")
        return watch.losses

    # Without updates nothing is computed in the full part; with them all losses are, and the weights are 1.
    assert all(torch.equal(a, b) for a, b in zip(losses(True), losses(False), strict=True))


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
def test_label_smoothing_is_weighted_too(archive: RunArchive, first: bool) -> None:
    ours = [curriculum(archive, **WEIGHTING)]
    algorithms = [*ours, LabelSmoothing(0.2)] if first else [LabelSmoothing(0.2), *ours]
    watch, seen = _first_batch(archive, algorithms)
    positions = torch.tensor(seen.batches[0])
    losses = F.cross_entropy(watch.outputs[0], positions % NUM_CLASSES, reduction="none", label_smoothing=0.2)
    assert float(watch.losses[0]) == pytest.approx(float((WEIGHTS[positions] * losses).mean()), rel=1e-6)


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
def test_composes_with_distillation(archive: RunArchive, first: bool) -> None:
    """Both in one recipe: half the weighted cross entropy, half the distillation term with the same weights."""
    both = [curriculum(archive, **WEIGHTING), distil(archive, source="cached", weight=0.5)]
    watch, seen = _first_batch(archive, both if first else both[::-1])
    positions = torch.tensor(seen.batches[0])
    losses = F.cross_entropy(watch.outputs[0], positions % NUM_CLASSES, reduction="none")
    with torch.no_grad():
        logits = [teacher(archive, i)((watch.inputs[0], None)) for i in range(2)]
        term = kl(watch.outputs[0], logits, weights=WEIGHTS[positions])
    assert abs(term / kl(watch.outputs[0], logits) - 1) > 0.01, "the weights make a difference"
    expected = 0.5 * float((WEIGHTS[positions] * losses).mean()) + 0.5 * term
    assert float(watch.losses[0]) == pytest.approx(expected, rel=2e-3)  # cached logits are float16


def test_composes_with_distillation_of_known_examples_only(archive: RunArchive) -> None:
    """Rows that no teacher knows keep their own loss: the share of the others is that of their weights."""
    grown = viewed(96)
    scores = torch.linspace(0.0, 3.0, 96).double()
    weights = (scores + scores.mean()) / (2 * scores.mean())
    both = [
        curriculum(archive, **{**WEIGHTING, "score": scores}),
        distil(archive, source="cached", weight=0.5, mismatch="allow"),
    ]
    watch, seen = _first_batch(archive, both, data=grown)
    positions = torch.tensor(seen.batches[0])
    w, known = weights[positions], positions < 64
    assert 0 < int(known.sum()) < BATCH
    losses = F.cross_entropy(watch.outputs[0], positions % NUM_CLASSES, reduction="none")
    with torch.no_grad():
        logits = [teacher(archive, i)((watch.inputs[0], None)) for i in range(2)]
        term = kl(watch.outputs[0], logits, weights=w * known)
    share = float(w[known].sum() / w.sum())
    assert abs(share - float(known.double().mean())) > 0.02
    expected = (1 - 0.5 * share) * float((w * losses).mean()) + 0.5 * term
    assert float(watch.losses[0]) == pytest.approx(expected, rel=2e-3)  # cached logits are float16


@pytest.mark.parametrize("term", [{}, {"source": "cached"}, {"source": "live", "loss": "mse", "teacher_model": mlp}])
def test_pruned_distillation_has_the_gradient_of_all_data(archive: RunArchive, term: dict[str, Any]) -> None:
    """The gradient of an epoch of dynamic_prune, mean of 30 seeds, is that of all data: each number within 4.5 standard
    errors, and 0.96 to 1.04 of it along it. Without weights in the term it is half of it."""
    torch.manual_seed(2)
    layer = nn.Linear(6, NUM_CLASSES)

    def gradient(seed: int, rate: float) -> torch.Tensor:
        # Of the dataset's positions: a score that the teachers' errors go with, so that weights matter.
        settings = {"strategy": "dynamic_prune", "score": SCORES**2, "prune_rate": rate, "stop": "1dur"}
        algorithms: list[Any] = [curriculum(archive, **settings, seed=seed), _Gradient()]
        if term:
            algorithms.append(distil(archive, weight=0.5, **term))
        model = ComposerClassifier(copy.deepcopy(layer), num_classes=NUM_CLASSES)
        fit(algorithms, data=viewed(num_views=2), model=model, max_duration="1ep", lr=0.0)
        return algorithms[1].total

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        full = gradient(0, 0.0)
    sums = torch.stack([gradient(seed, 0.6) for seed in range(30)])
    deviation, error = sums.mean(0) - full, sums.std(0) / 30**0.5
    assert float((deviation / error).abs().max()) < 4.5
    assert 0.96 < float(sums.mean(0) @ full / (full @ full)) < 1.04


class _Gradient(Algorithm):
    """The sum over an epoch of (rows of the batch times its mean gradient)."""

    def __init__(self) -> None:
        self.ids = ExampleIds()
        self.total = torch.zeros(0)

    def match(self, event: Event, state: State) -> bool:
        return event in ExampleIds.EVENTS

    def apply(self, event: Event, state: State, logger: Any) -> None:
        self.ids.handle(event, state)
        if event == Event.AFTER_TRAIN_BATCH:
            gradient = torch.cat([p.grad.flatten() for p in state.model.parameters() if p.grad is not None]).double()
            gradient = gradient * len(self.ids.batch.positions)
            self.total = gradient if not len(self.total) else self.total + gradient


def test_microbatches_give_the_same_gradient_beside_distillation(archive: RunArchive) -> None:
    def weights(size: int) -> torch.Tensor:
        layer = nn.Linear(6, NUM_CLASSES)
        nn.init.constant_(layer.weight, 0.1)
        nn.init.zeros_(layer.bias)
        model = ComposerClassifier(layer, num_classes=NUM_CLASSES)
        settings = {"strategy": "dynamic_prune", "score": SCORES, "update": True}
        both = [curriculum(archive, **settings), distil(archive, source="cached", weight=0.5)]
        fit(both, model=model, device_train_microbatch_size=size)
        return layer.weight.detach()

    torch.testing.assert_close(weights(16), weights(5), atol=1e-6, rtol=0)


def test_models_of_another_kind_say_their_losses(archive: RunArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(outputs: Any, batch: Any) -> torch.Tensor:
        return F.cross_entropy(outputs["logits"], batch["y"], reduction="none")

    def run(**settings: Any) -> tuple[Any, Any]:
        model = DictModel(mlp(5).module, num_classes=NUM_CLASSES)
        loader = epoch_loader(viewed(), BATCH, collate_fn=keyed)
        return _first_batch(archive, [curriculum(archive, **WEIGHTING, **settings)], model, loader=loader)

    for given in ({}, {"per_example_loss": losses}):  # without, the task's plain loss turns out to be the model's own
        watch, seen = run(**given)
        positions = torch.tensor(seen.batches[0])
        each = F.cross_entropy(watch.outputs[0], positions % NUM_CLASSES, reduction="none")
        assert float(watch.losses[0]["total"]) == pytest.approx(float((WEIGHTS[positions] * each).mean()), rel=1e-6)
    with pytest.raises(ModelError, match=r"tensor of shape \(\) for 16 examples"):
        run(per_example_loss=lambda outputs, batch: losses(outputs, batch).mean())
    with pytest.raises(ModelError, match="but the mean of its per-example losses is"):
        run(per_example_loss=lambda outputs, batch: 2 * losses(outputs, batch))
    monkeypatch.setattr(
        DictModel, "loss", lambda self, z, batch: F.cross_entropy(z["logits"], batch["y"], label_smoothing=0.1)
    )
    with pytest.raises(ModelError, match="DictModel has a loss.. of its own.*per_example_loss=lambda"):
        run()


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1), "loss function <lambda> has no 'reduction'"),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0])), "class weights"),
    ],
)
def test_losses_that_cannot_be_weighted_are_refused(archive: RunArchive, loss_fn: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fit([curriculum(archive, **WEIGHTING)], model=_classifier(loss_fn))
    fit([curriculum(archive, strategy="prune", keep=0.5)], model=_classifier(loss_fn), max_duration="1ba")


def test_mixed_examples_have_no_losses_of_their_own(archive: RunArchive) -> None:
    with pytest.raises(ExampleIdError, match="MixUp mixes examples, .* needs for its updates"):
        fit([curriculum(archive, strategy="dynamic_prune"), MixUp()])
    with pytest.raises(ExampleIdError, match="needs for its weights"):
        fit([curriculum(archive, **WEIGHTING), MixUp()])
    fit([curriculum(archive, strategy="curriculum"), MixUp()], max_duration="1ba")


# Updates -------------------------------------------------------------------------------------------------------------


def test_scores_follow_this_run(archive: RunArchive) -> None:
    """With the learning rate 0 and no batch norm the own losses are known, and the second epoch must go by them."""
    torch.manual_seed(1)
    layer = nn.Linear(6, NUM_CLASSES)
    data = viewed(num_views=1)
    prior = torch.linspace(0.1, 0.2, N).double()
    settings = {"strategy": "dynamic_prune", "prune_rate": 0.5, "stop": "1dur", "score": prior}
    model = ComposerClassifier(layer, num_classes=NUM_CLASSES)
    _, seen, log = fit([curriculum(archive, **settings, update=True)], data=data, model=model, lr=0.0)
    with torch.no_grad():
        x, y = map(torch.stack, zip(*((data[i][0], data[i][1]) for i in range(N)), strict=True))
        own = F.cross_entropy(layer(x), y, reduction="none").double()
    first = sorted(i for batch in seen.batches[:3] for i in batch)
    assert len(first) == 48
    scale = own[first].mean() / prior[first].mean()
    current = torch.where(torch.isin(torch.arange(N), torch.tensor(first)), own, scale * prior)
    means = [float(current[batch].mean()) for batch in seen.batches[3:6]]
    logged = [float(value) for _, value in log.data["reuse/history_curriculum/mean_score"]]
    assert logged[3:6] == pytest.approx(means, rel=1e-5)
    easy = {int(i) for i in torch.argsort(current)[: max(32, int((current < current.mean()).sum()))]}
    dropped = set(range(N)) - {i for batch in seen.batches[3:6] for i in batch}
    assert len(dropped) == 16
    assert dropped <= easy


@pytest.mark.parametrize("score", ["entropy", "random", {"name": "loss", "aggregate": "rank"}])
def test_only_losses_can_be_updated(archive: RunArchive, score: Any) -> None:
    with pytest.raises(ValueError, match="update: true goes on with this run's losses"):
        curriculum(archive, strategy="dynamic_prune", score=score, update=True)
    assert not curriculum(archive, strategy="dynamic_prune", score=score).update
    assert curriculum(archive, strategy="dynamic_prune").update


# Unknown examples, other data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unknown", "expected"), [("keep", 48), ("drop", 32), ("median", 48)])
def test_grown_data(archive: RunArchive, unknown: str, expected: int) -> None:
    """Prior runs knew 64 of 96 examples."""
    grown = viewed(96)
    settings: dict[str, Any] = {"strategy": "prune", "keep": 0.5, "score": "loss", "unknown": unknown}
    with pytest.raises(PriorRunMismatchError, match="64 examples are common by key"):
        fit([curriculum(archive, **settings)], data=grown)
    _, seen, _ = fit([curriculum(archive, **settings, mismatch="allow")], data=grown, max_duration="1ep")
    shown = {i for batch in seen.batches for i in batch}
    assert len(shown) == expected
    new = {i for i in shown if i >= 64}
    assert len(new) == {"keep": 32, "drop": 0}.get(unknown, len(new))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"strategy": "focus", "score": "margin"}, DataError, "some scores are negative"),
        ({"strategy": "focus", "score": torch.ones(5)}, DataError, r"shape \(5,\) were given for 64"),
        ({"strategy": "focus", "score": torch.full((N,), torch.inf)}, DataError, "infinite"),
        ({"strategy": "prune", "score": torch.full((N,), torch.nan), "unknown": "drop"}, DataError, "no example has"),
        ({"strategy": "prune", "score": "grand"}, SignalNotFoundError, "harvest"),
        ({"strategy": "subset", "examples": 100}, ValueError, "only 64 have a score"),
    ],
)
def test_scores_that_do_not_fit(archive: RunArchive, settings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit([curriculum(archive, **settings)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "prune", "score": "lenght"}, "no score 'lenght'. Did you mean 'length'"),
        (
            {"strategy": "prune", "score": {"name": "length", "shuffled": True}},
            "length reads no run.* write score: length",
        ),
        ({"strategy": "prune", "score": "el3n"}, "no score 'el3n'. Did you mean 'el2n'"),
        ({"strategy": "prune", "score": {"nam": "loss"}}, "score.nam: there is no such key"),
        ({"strategy": "prune", "unknown": "skip"}, "unknown must be keep, drop or median"),
        ({"strategy": "prune", "score": {"name": "loss", "shufled": True}}, "score.shufled: there is no such key"),
        ({"strategy": "prune", "runs": None}, "name the prior runs"),
        ({"strategy": "prune", "every_n_batches": 2}, "decides whole epochs, so when has no every_n_batches"),
    ],
)
def test_arguments_are_checked(archive: RunArchive, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curriculum(archive, **arguments)


# Loaders that cannot be steered --------------------------------------------------------------------------------------


class _Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from (viewed()[i] for i in range(32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataLoader(viewed(), 16, sampler=WeightedRandomSampler([1.0] * N, N)), "by a WeightedRandomSampler"),
        (lambda: DataLoader(viewed(), 16, sampler=RandomSampler(range(N), replacement=True)), "with replacement"),
        (lambda: DataLoader(viewed(), batch_sampler=[[0, 1], [2, 3]]), "made by a list"),
        (lambda: DataLoader(viewed(), 16, shuffle=True, drop_last=True), "no full batch of 16"),
        (lambda: DataLoader(_Stream(), 16), "_Stream is a stream, .* a map-style dataset"),
    ],
    ids=["weighted", "replacement", "batch sampler", "nothing left", "iterable"],
)
def test_loaders_that_cannot_be_steered(archive: RunArchive, make: Any, message: str) -> None:
    algorithm = curriculum(archive, strategy="prune", keep=0.1)
    one = trainer(make(), mlp(5), algorithms=[algorithm], max_duration="20ba")
    with pytest.raises(ExampleIdError, match=message):
        one.fit()


def test_selective_backprop_is_refused(archive: RunArchive) -> None:
    with pytest.raises(ExampleIdError, match="SelectiveBackprop removes rows"):
        fit([curriculum(archive, strategy="prune"), SelectiveBackprop(start=0.0, interrupt=0)])


def test_a_duration_without_batches_is_refused(archive: RunArchive) -> None:
    with pytest.raises(ValueError, match="max_duration=100tok does not give the number of batches"):
        fit([curriculum(archive, strategy="prune")], max_duration="100tok")


# The record ----------------------------------------------------------------------------------------------------------


def test_the_record_says_what_was_spent_and_keeps_what_an_epoch_did_not_show(tmp_path: Path) -> None:
    prior = record_run(tmp_path, seed=1, epochs=3)
    recorder = RunRecorder(tmp_path, run_name="pruned", signals={"logits": {}, "loss": {}})
    scores = torch.linspace(1, 2, N).double()
    algorithm = HistoryCurriculum(
        tmp_path, prior, strategy={"name": "dynamic_prune", "prune_rate": 0.6}, when={"stop": "1dur"}
    )
    one, seen, _ = fit([algorithm], callbacks=[recorder], max_duration="4ep")
    archive = RunArchive(tmp_path, create=True)
    run = archive.run("pruned")
    (use,) = run.manifest.prior_runs
    assert (use.run_id, use.algorithm, use.signals, use.harvest_seconds) == (prior, "history_curriculum", ["loss"], 0.0)
    assert run.manifest.progress.sample == sum(len(batch) for batch in seen.batches)
    assert "reuse/history_curriculum/data_in_use" in run.metric_names
    del scores, one
    per_epoch = len(seen.batches) // 4
    shown = [{i for batch in seen.batches[k * per_epoch :][:per_epoch] for i in batch} for k in range(4)]
    for epoch in range(4):
        assert set(run.signal("loss").seen(epoch).nonzero().flatten().tolist()) == shown[epoch]
    # A view keeps the rows of its earlier epochs for what the later one left out.
    for view in range(2):
        known = set(run.signal("logits").seen(view).nonzero().flatten().tolist())
        assert known == shown[view] | shown[view + 2]
        assert known > shown[view + 2]
