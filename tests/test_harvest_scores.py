"""Harvested scores: of which weights and views, against the same computed without the library, and what they cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.views import ExampleView, ViewedDataset, ViewPolicy
from reuse_algos.errors import DataError, ModelError
from reuse_algos.harvest import HARVESTABLE, HarvestResult, harvest
from reuse_algos.priors.scores.run_scores import ScoreSpec, prior_scores, score_uses
from toy import blobs, epoch_loader, mlp, record_run, trainer, viewed


def _harvest(archive: Path, run_id: str, *signals: str, **arguments: Any) -> list[HarvestResult]:
    settings = {"dataset": viewed(), "model": mlp, "progress": False, **arguments}
    return harvest(archive, run_id, signals=signals, **settings)


def _model(run: PriorRun, weights: str) -> nn.Module:
    model = mlp()
    model.load_state_dict({name: value.clone() for name, value in run.weights(weights).items()})
    return model.eval().double()


def _view(view: int) -> tuple[Tensor, Tensor]:
    rows = [viewed()[ExampleView(i, view)] for i in range(64)]
    return torch.stack([x for x, _ in rows]).double(), torch.stack([y for _, y in rows])


def _oracle(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, list[float]]:
    """One forward and backward pass for each example."""
    found: dict[str, list[float]] = {"el2n": [], "grand": [], "grand_last_layer": []}
    last = list(model.module[-1].parameters())  # type: ignore[index,union-attr]
    for i in range(len(x)):
        logits = model((x[i : i + 1], None))
        error = torch.softmax(logits, 1)[0] - torch.eye(logits.shape[1])[y[i]]
        found["el2n"].append(float(error.norm()))
        loss = nn.functional.cross_entropy(logits, y[i : i + 1])
        gradients = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
        found["grand"].append(math.sqrt(sum(float((g**2).sum()) for g in gradients)))
        gradients = torch.autograd.grad(loss, last)
        found["grand_last_layer"].append(math.sqrt(sum(float((g**2).sum()) for g in gradients)))
    return found


def _values(run: PriorRun, signal: str, slot: int = 0) -> Tensor:
    values, seen = run.signal(signal).dense(slot)
    assert values.dtype == torch.float32
    assert bool(seen.all())
    return values.double()


def test_scores_are_those_of_the_archived_weights(tmp_path: Path) -> None:
    run_id = record_run(tmp_path, weights=("last", "2ep"))
    names = ["el2n", "grand", "grand_last_layer"]
    assert {*names, "logits", "features", "adversarial", "boxes", "gt_scores"} == {*HARVESTABLE}
    for weights, ending, epoch in (("last", "", 4), ("2ep", ".ep0002", 2)):
        results = _harvest(tmp_path, run_id, *names, weights=weights, batch_size=10, memory_bytes=5000)
        assert [r.signal for r in results] == [name + ending for name in names]
        assert all((r.views, r.computed, r.rows) == ([0], [0], 64) for r in results)
        run = RunArchive(tmp_path).run(run_id)
        expected = _oracle(_model(run, weights), *_view(0))
        for name in names:
            oracle = torch.tensor(expected[name]).double()
            torch.testing.assert_close(_values(run, name + ending), oracle, rtol=1e-5, atol=2e-6)
            meta = run.signal(name + ending).slot_meta(0)
            facts = [meta[key] for key in ("epoch", "view", "source", "transform")]
            assert facts == [epoch, 0, "harvest", "noise(0.3)"]
            assert meta["weights"] == {"2ep": "ep0002"}.get(weights, weights)
            found = prior_scores([run], ScoreSpec(name, epoch=epoch), viewed().info)
            assert torch.equal(found, _values(run, name + ending))
    assert RunArchive(tmp_path).verify().ok
    assert RunArchive(tmp_path).run(run_id).finished


def test_the_cost_of_each_signal_is_recorded_and_spent(tmp_path: Path) -> None:
    run_id = record_run(tmp_path, epochs=2)
    results = _harvest(tmp_path, run_id, "el2n", "grand", "el2n")
    assert [r.signal for r in results] == ["el2n", "grand"]
    run = RunArchive(tmp_path).run(run_id)
    records = {h.signal: h for h in run.manifest.harvests}
    assert {name: (h.views, h.weights) for name, h in records.items()} == {n: ([0], "last") for n in ("el2n", "grand")}
    assert 0 < sum(h.seconds for h in records.values()) <= sum(r.seconds for r in results)
    (use,) = score_uses([run], ScoreSpec("grand"), "me")
    assert (use.signals, use.harvest_seconds) == (["grand"], records["grand"].seconds)
    again = _harvest(tmp_path, run_id, "el2n", "grand", "grand_last_layer")
    assert [r.computed for r in again] == [[], [], [0]]
    assert len(RunArchive(tmp_path).run(run_id).manifest.harvests) == 3


def test_views_that_are_asked_for(tmp_path: Path) -> None:
    run_id = record_run(tmp_path)
    (result,) = _harvest(tmp_path, run_id, "el2n", views=2)
    assert (result.views, result.computed, result.rows) == ([0, 1], [0, 1], 128)
    run = RunArchive(tmp_path).run(run_id)
    expected = [torch.tensor(_oracle(_model(run, "last"), *_view(view))["el2n"]).double() for view in range(2)]
    for view in range(2):
        torch.testing.assert_close(_values(run, "el2n", view), expected[view], rtol=0, atol=1e-6)
    found = prior_scores([run], ScoreSpec("el2n"), viewed().info)
    torch.testing.assert_close(found, (expected[0] + expected[1]) / 2, rtol=0, atol=1e-6)


def test_images_shown_otherwise_replace_the_earlier_ones(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="run")
    trainer(epoch_loader(blobs()), mlp(1), callbacks=[recorder]).fit()
    first, other = (ViewedDataset(blobs(), ViewPolicy(7, count, name)) for name, count in (("none", 1), ("crop", 2)))
    _harvest(tmp_path, "run", "el2n", dataset=first)
    assert _harvest(tmp_path, "run", "el2n", dataset=first)[0].computed == []
    record = RunArchive(tmp_path).run("run").manifest.dataset
    assert record is not None
    assert record.transform == "unknown"  # plain images say nothing of the views of training
    _harvest(tmp_path, "run", "el2n", dataset=other, views=2)
    assert RunArchive(tmp_path).run("run").signal("el2n").slots == [0, 1]
    assert _harvest(tmp_path, "run", "el2n", dataset=first)[0].computed == [0]
    run = RunArchive(tmp_path).run("run")
    assert run.signal("el2n").slots == [0]
    assert run.signal("el2n").slot_meta(0)["transform"] == "none"


def test_best_weights_have_the_epoch_of_their_metric(tmp_path: Path) -> None:
    run_id = record_run(tmp_path, weights=("best",))
    _harvest(tmp_path, run_id, "el2n", weights="best")
    run = RunArchive(tmp_path).run(run_id)
    _, row = run.best_metric()
    epoch = int(run.metric(run.manifest.monitor or "").epoch[row])
    assert run.signal("el2n.best").slot_meta(0)["epoch"] == epoch


def test_logits_of_checkpoints_are_members_of_an_ensemble(tmp_path: Path) -> None:
    run_id = record_run(tmp_path, weights=("last", "1ep"))
    for weights in ("last", "1ep", "2ep"):
        _harvest(tmp_path, run_id, "logits", weights=weights)
    run = RunArchive(tmp_path).run(run_id)
    p = []
    for weights in ("last", "1ep", "2ep"):
        with torch.no_grad():
            logits = [_model(run, weights)((_view(view)[0], None)) for view in range(2)]
        p.append(torch.stack([one.softmax(1) for one in logits]).mean(0))
    mean = torch.stack(p).mean(0)
    each = torch.stack([-(one * one.log()).sum(1) for one in p]).mean(0)
    expected = -(mean * mean.log()).sum(1) - each
    found = prior_scores([run], ScoreSpec("mutual_information"), viewed().info)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # logits are archived as float16
    assert float(found.max()) > 0.05


class Scaled(nn.Module):
    """Logits that are no longer what the linear layer returned."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp().module

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.net(x)


class Dense(nn.Module):
    """Logits for each of two positions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp().module

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, :, None].expand(-1, -1, 2)


@pytest.mark.parametrize(
    ("signal", "wrapped", "message"),
    [
        ("grand_last_layer", Scaled, "not what its last torch.nn.Linear returned.*Harvest grand"),
        ("grand_last_layer", Dense, r"grand_last_layer is a score of classifiers with logits \[B, C\]"),
        ("el2n", Dense, r"el2n is a score of classifiers with logits \[B, C\]; these are \(64, 4, 2\)"),
        ("grand", Dense, r"logits \[B, C\]; these have 3 dimensions"),
    ],
)
def test_models_without_the_right_end(tmp_path: Path, signal: str, wrapped: type[nn.Module], message: str) -> None:
    run_id = record_run(tmp_path, epochs=1)
    before = RunArchive(tmp_path).run(run_id).manifest

    class Renamed(wrapped):  # type: ignore[misc,valid-type]
        """Takes the archived names."""

        def load_state_dict(self, state: Any, *arguments: Any, **keywords: Any) -> Any:
            return super().load_state_dict({f"net.{k.removeprefix('module.')}": v for k, v in state.items()})

        def state_dict(self, *arguments: Any, **keywords: Any) -> Any:
            state = super().state_dict(*arguments, **keywords)
            return {f"module.{key.removeprefix('net.')}": value for key, value in state.items()}

    with pytest.raises(ModelError, match=message):
        _harvest(tmp_path, run_id, signal, model=Renamed)
    assert RunArchive(tmp_path).run(run_id).manifest == before


def test_labels_are_needed(tmp_path: Path) -> None:
    info = DatasetInfo("blind", torch.arange(64))
    data = ViewedDataset(blobs(), ViewPolicy(3, 1, "none"), info)
    recorder = RunRecorder(tmp_path, run_name="run", dataset=info)
    trainer(epoch_loader(data), mlp(1), callbacks=[recorder]).fit()
    with pytest.raises(DataError, match="el2n compares outputs with labels"):
        _harvest(tmp_path, "run", "el2n", dataset=data)
    assert _harvest(tmp_path, "run", "logits", dataset=data)[0].rows == 64


def test_captured_margins(tmp_path: Path) -> None:
    signals = {"logits": {"last_epochs": 2}, "logit_margin": {}}
    run_id = record_run(tmp_path, epochs=3, signals=signals)
    run = RunArchive(tmp_path).run(run_id)
    assert run.signal("logit_margin").slots == [0, 1, 2]
    labels = run.labels()
    assert labels is not None
    # Two views: the logits of epoch 1 are in the slot of view 1, those of epoch 2 in that of view 0.
    for epoch in (1, 2):
        logits, _ = run.signal("logits").dense(epoch % 2)
        one_hot = torch.nn.functional.one_hot(labels, 4).bool()
        expected = logits.double()[one_hot] - logits.double().masked_fill(one_hot, -math.inf).max(1).values
        torch.testing.assert_close(_values(run, "logit_margin", epoch), expected, rtol=0, atol=1e-2)
