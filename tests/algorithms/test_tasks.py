"""Every algorithm with every task: it trains by the right numbers, or refuses before the first step by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer import Callback, State
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from reuse_algos.algorithms import (
    AdversarialReplay,
    AdversarialTraining,
    HistoryCurriculum,
    MixTraining,
    PriorRunDistillation,
)
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.views import ViewedDataset, ViewPolicy
from reuse_algos.errors import ReuseAlgosError, TaskError
from toy import trainer

N, B = 16, 8
X = torch.randn(N, 3, 2, 2, generator=torch.Generator().manual_seed(0)).sigmoid()
CLASSES = torch.arange(N) % 3
ROWS = torch.arange(N * 4).reshape(N, 4) % 3
HOLES = ROWS.masked_fill(torch.arange(4) >= (1 + torch.arange(N) % 4)[:, None], -100)


def _token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.transpose(1, 2), targets)


Loss = Callable[[Tensor, Tensor], Tensor]
TASKS: dict[str, tuple[tuple[int, ...], Tensor, Loss]] = {
    "multiclass": ((3,), CLASSES, F.cross_entropy),
    "binary": ((1,), (CLASSES[:, None] > 0).float(), F.binary_cross_entropy_with_logits),
    "multilabel": ((4,), (ROWS > 0).float(), F.binary_cross_entropy_with_logits),
    "regression": ((2,), X.flatten(1)[:, :2] * 3 - 1, F.mse_loss),
    "token": ((4, 3), HOLES, _token_loss),
    "as many tokens as classes": ((4, 4), HOLES, _token_loss),
    "dense": ((3, 2, 2), HOLES.reshape(N, 2, 2), F.cross_entropy),
}


class _Net(ComposerModel):
    def __init__(self, name: str, seed: int) -> None:
        super().__init__()
        shape, _, self.fn = TASKS[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, int(torch.Size(shape).numel())))
        self.net.append(nn.Unflatten(1, shape))

    def forward(self, batch: Any) -> Tensor:
        return self.net(batch[0])

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        del args, kwargs
        return self.fn(outputs, batch[1])


def _loader(name: str) -> DataLoader:
    data = TensorDataset(X, TASKS[name][1])
    labels = {"multiclass": CLASSES, "binary": (CLASSES > 0).long()}.get(name)
    return DataLoader(
        ViewedDataset(data, ViewPolicy(seed=0, num_views=1), DatasetInfo(name, torch.arange(N), labels)), batch_size=B
    )


class _Losses(Callback):
    """The losses that went backward."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.inputs: list[Tensor] = []

    def before_backward(self, state: State, logger: Any) -> None:
        del logger
        self.values.append(float(state.loss))  # type: ignore[arg-type]
        self.inputs.append(state.batch[0])


def _fit(name: str, *algorithms: Any, seed: int = 2, callbacks: Any = (), **arguments: Any) -> tuple[_Net, _Losses]:
    model, losses = _Net(name, seed), _Losses()
    arguments = {"max_duration": "1ep", "lr": 0.0, **arguments}
    one = trainer(_loader(name), model, algorithms=list(algorithms), callbacks=[losses, *callbacks], **arguments)  # type: ignore[arg-type]
    one.fit()
    return model, losses


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each task with its logits."""
    found = {}
    for name in TASKS:
        found[name] = tmp_path_factory.mktemp(name)
        _fit(
            name,
            seed=1,
            callbacks=[RunRecorder(found[name], run_name="prior", signals={"logits": {}, "loss": {}})],
            lr=0.1,
        )
    return found


@pytest.mark.parametrize(("source", "loss"), [("live", "kl"), ("cached", "kl"), ("cached", "mse")])
@pytest.mark.parametrize("name", TASKS)
def test_distillation(archives: dict[str, Path], name: str, source: str, loss: str) -> None:
    """The same whatever the microbatches; of regression only as a mean squared difference."""

    def run(microbatch: int) -> dict[str, float]:
        teach = PriorRunDistillation(archives[name], "prior", source=source, loss=loss, when={})
        _fit(name, teach, device_train_microbatch_size=microbatch)
        return teach.latest_metrics

    if (name, loss) == ("regression", "kl"):
        with pytest.raises(TaskError, match="loss: kl needs logits, and the task is regression .* Set loss: mse"):
            run(B)
        return
    whole, parts = run(B), run(B // 4)
    term = "reuse/distillation/loss"
    assert whole[term] > 0
    assert parts[term] == pytest.approx(whole[term], rel=1e-6, abs=1e-6)
    assert ("reuse/distillation/agreement" in whole) == (name != "regression")


@pytest.mark.parametrize("name", TASKS)
def test_cached_logits_teach_what_live_ones_do(tmp_path: Path, name: str) -> None:
    """Logits of a model that did not change while they were captured, float16, are those of the live teacher."""
    _fit(name, seed=1, callbacks=[RunRecorder(tmp_path, run_name="prior", signals={"logits": {}})])
    terms = {}
    for source in ("live", "cached"):
        teach = PriorRunDistillation(tmp_path, "prior", source=source, loss="mse", when={})
        _fit(name, teach)
        terms[source] = teach.latest_metrics["reuse/distillation/loss"]
    assert terms["cached"] == pytest.approx(terms["live"], rel=2e-3)
    assert terms["live"] > 0


@pytest.mark.parametrize("name", TASKS)
def test_curriculum_weighs_the_model_s_own_losses(tmp_path: Path, name: str) -> None:
    """The model has a loss() of its own: each example's share of it is that of its counted targets."""
    RunArchive(tmp_path, create=True)
    scores = torch.linspace(1, 2, N)
    weigh = HistoryCurriculum(tmp_path, strategy={"name": "active_bias", "mode": "weighting"}, score=scores)
    model, losses = _fit(name, weigh)
    _, targets, fn = TASKS[name]
    weights = weigh.epochs.plan(0).plan.weights_N
    assert weights is not None
    rows = [int((x == X).flatten(1).all(1).nonzero()) for x in losses.inputs[0]]  # the order is the curriculum's
    with torch.no_grad():
        own = [fn(model.net(X[row : row + 1]), targets[row : row + 1]) for row in rows]
    counted = (targets[rows] != -100).reshape(B, -1).sum(1)
    shares = counted / counted.sum()
    total = sum(float(weights[row]) * float(share * loss) for row, share, loss in zip(rows, shares, own, strict=True))
    assert losses.values[0] == pytest.approx(total, rel=1e-5)
    assert losses.values[0] != pytest.approx(float((shares * torch.stack(own)).sum()), rel=1e-4)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("multiclass", "binary")])
def test_scores_of_one_answer_are_refused_for_other_tasks(archives: dict[str, Path], name: str) -> None:
    """EL2N of positions, of several labels or of numbers is not defined."""
    with pytest.raises(ReuseAlgosError, match="el2n|recorded no labels"):
        _fit(name, HistoryCurriculum(archives[name], "prior", strategy="prune", score="el2n"))


@pytest.mark.parametrize("name", TASKS)
def test_adversarial_training(name: str) -> None:
    """Only whole images with one label are attacked."""
    if name == "multiclass":
        attack = AdversarialTraining(0.03, steps=1, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
        assert _fit(name, attack)[1].values[0] > _fit(name)[1].values[0], "the attack raises the loss"
    else:
        with pytest.raises(TaskError, match="AdversarialTraining is (not )?defined for the task"):
            _fit(name, AdversarialTraining(0.03, steps=1))


@pytest.mark.parametrize("name", ["token", "regression"])
def test_a_run_of_another_task_is_refused_before_it_is_asked_for_signals(archives: dict[str, Path], name: str) -> None:
    with pytest.raises(TaskError, match=f"AdversarialReplay is defined for multiclass and dense.*task '{name}'"):
        _fit(name, AdversarialReplay(archives[name], "prior"))
    with pytest.raises(TaskError, match=f"MixTraining is defined for detection.*task '{name}'"):
        _fit(name, MixTraining(archives[name], "prior"))
