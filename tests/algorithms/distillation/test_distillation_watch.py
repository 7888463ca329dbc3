"""The watch that switches a harmful term off, and leaves training alone as long as it does not."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import DataSpec
from composer.models import ComposerClassifier, ComposerModel
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from distilling import Scaled, distil, fit, series, teacher
from reuse_algos.algorithms import PriorRunDistillation
from reuse_algos.algorithms.prior_run_distillation.loss.layout import right_answers
from reuse_algos.algorithms.prior_run_distillation.teachers.known_accuracy import surprise
from reuse_algos.algorithms.prior_run_distillation.watch import Channels, HarmWatch, Look
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.errors import HarmWarning
from reuse_algos.training.tasks.task import Rows, Task
from toy import NUM_CLASSES, trainer, viewed

GOOD = Look(cosine=0.5, right=0.5, taught=0.9, dead=0.1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (GOOD._replace(cosine=-0.2), r"its gradient opposes .*\(cosine -0.20\)"),
        (GOOD._replace(right=0.93), r"the student is right in 93.0% of the training rows, its teachers in 90.0%"),
        (GOOD._replace(dead=0.4), r"40% of the channels in front of the head are dead, 10% at first"),
    ],
)
def test_three_bad_looks_in_a_row(bad: Look, message: str) -> None:
    watch = HarmWatch(on=True)
    looks = [GOOD, bad, bad, GOOD, bad, bad]
    assert [watch.judge(look) for look in looks] == [None] * 6
    later = HarmWatch(on=True)
    later.load_state_dict(watch.state_dict())
    for one in (watch, later):
        assert re.match(message, str(one.judge(bad)))


def test_opposition_at_the_optimum_is_not_harm() -> None:
    """There the gradients of a weighted sum's parts add up to nothing, so that their cosine is -1 by definition."""
    converged = GOOD._replace(cosine=-1.0, own=0.04)
    watch = HarmWatch(on=True)
    assert [watch.judge(GOOD._replace(own=0.1)), *[watch.judge(converged)] * 4] == [None] * 5
    early = GOOD._replace(cosine=-1.0, own=0.06)
    later = HarmWatch(on=True)
    later.load_state_dict(watch.state_dict())
    assert [later.judge(early), later.judge(early)] == [None, None]
    assert "opposes" in str(later.judge(early)), "the loss still pulls, and the teachers hold against it"


def test_what_is_not_known_is_no_sign() -> None:
    watch = HarmWatch(on=True)
    assert [watch.judge(Look()) for _ in range(4)] == [None] * 4


def test_right_answers_of_both() -> None:
    targets = torch.tensor([0, 1, 2, 2])
    student = torch.eye(3)[[0, 1, 1, 2]]
    taught = torch.eye(3)[[0, 0, 1, 2]]
    task = Task("multiclass", 3)
    rows = task.rows(student, targets)
    found = right_answers(task, rows, taught, taught > 0, None)
    assert found is not None
    assert found.tolist() == [4, 3, 2]
    known = right_answers(task, rows, taught, taught > 0, torch.tensor([True, True, False, False]))
    assert known is not None
    assert known.tolist() == [2, 2, 1]
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    task = Task("multilabel", 2)
    yes = torch.tensor([[True, False], [False, True]])
    found = right_answers(task, task.rows(labels - 0.5, labels), yes.float(), yes, None)
    assert found is not None
    assert found.tolist() == [2, 2, 1]
    assert right_answers(Task("regression", 2), Rows(labels, labels, None), labels, yes, None) is None


def test_dead_channels_are_those_without_a_row() -> None:
    model = ComposerClassifier(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), num_classes=4)
    with torch.no_grad():
        model.module[0].bias[:6] = -100.0  # type: ignore[index]
        model.module[0].bias[6:] = 100.0  # type: ignore[index]
    channels = Channels()
    channels.begin(model, 4)
    for _ in range(2):
        model((torch.randn(3, 6), None))
    assert channels.end() == 0.75
    model((torch.randn(3, 6), None))
    assert channels.end() is None
    channels.begin(model, 7)  # no layer has seven outputs
    model((torch.randn(3, 6), None))
    assert channels.end() is None


class _Wrong(Scaled):
    """A teacher that is never right: its logits are turned against what it learned."""

    factor = -1.0


SETTINGS = {"source": "live", "loss": "mse", "weight": 0.05}


def test_a_teacher_that_is_always_wrong_is_switched_off(archive: RunArchive, tmp_path: Path) -> None:
    """After the third look, and from a checkpoint in between as well."""

    def one(folder: str, **settings: Any) -> Any:
        algorithm = distil(archive, teacher_model=_Wrong, **SETTINGS)
        with pytest.warns(HarmWarning) as warned:
            found, _, log = fit([algorithm], max_duration="7ep", save_folder=str(tmp_path / folder), **settings)
        off = "switched off after batch 24, since it does harm: .*stop_when_harmful"
        assert [bool(re.search(off, str(one.message))) for one in warned].count(True) == 1
        return algorithm, found.state.model.state_dict(), log

    algorithm, weights, log = one("a", save_interval="10ba")
    assert algorithm.harm is not None
    assert series(log, "reuse/distillation/active") == [1.0] * 24 + [0.0] * 4
    assert len(series(log, "reuse/distillation/cosine")) == 3
    resumed, theirs, _ = one("b", save_interval="10ba", load_path=str(tmp_path / "a" / "ep2-ba10-rank0.pt"))
    assert resumed.harm == algorithm.harm
    for name, value in weights.items():
        assert torch.equal(value, theirs[name]), name


def test_a_live_teacher_that_answers_otherwise_than_its_run_is_named(archive: RunArchive) -> None:
    """Before the first step, as where inputs are normalised otherwise behind the transforms."""
    run = archive.runs(order="first")[0]
    words = rf"teacher {run.id} is right in \d of the 16 rows .*MulticlassAccuracy {run.final_metric():.3f}"
    with pytest.warns(HarmWarning) as warned:
        fit([distil(archive, teacher_model=_Wrong, **SETTINGS)], max_duration="1ba")
    assert re.search(words, str(warned[0].message))
    assert len(warned) == 2, "one for each teacher"


def test_a_surprise_is_one_in_a_million(archive: RunArchive) -> None:
    run = archive.runs(order="first")[0]
    accuracy = run.final_metric()
    for right in range(65):
        chance = sum(math.comb(64, k) * accuracy**k * (1 - accuracy) ** (64 - k) for k in range(right + 1))
        assert (surprise(run, right, 64) is not None) == (chance < 1e-6), right


def test_as_long_as_it_does_not_fire_training_is_the_same(archive: RunArchive) -> None:
    """Bit by bit, with looks at a third of the batches."""
    weights = []
    for watched in (True, False):
        algorithm = distil(archive, source="live", loss="mse", when={"stop_when_harmful": watched})
        one, _, log = fit([algorithm], max_duration="4ep")
        assert ("reuse/distillation/cosine" in log.data) == watched
        weights.append(one.state.model.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_cosine_and_shares_in_closed_form(archive: RunArchive) -> None:
    algorithm = distil(archive, source="live", loss="mse")
    _, watch, log = fit([algorithm], max_duration="8ba", lr=0.0)
    z, x = watch.outputs[7], watch.inputs[7]
    with torch.no_grad():
        taught = sum(teacher(archive, i)((x, None)) for i in range(2)) / 2
    assert series(log, "reuse/distillation/taught")[0] >= 0.5
    y = _labels(x)
    own, term = torch.softmax(z, 1) - nn.functional.one_hot(y, NUM_CLASSES), z - taught
    cosine = float((own * term).sum() / own.norm() / term.norm())
    assert series(log, "reuse/distillation/cosine") == [pytest.approx(cosine, abs=1e-5)]
    assert series(log, "reuse/distillation/own") == [pytest.approx(float(own.square().sum(1).mean().sqrt()), rel=1e-5)]
    assert series(log, "reuse/distillation/right") == [float((z.argmax(1) == y).float().mean())]
    assert series(log, "reuse/distillation/taught") == [float((taught.argmax(1) == y).float().mean())]


def _labels(x: torch.Tensor) -> torch.Tensor:
    """Labels of the examples whose views these are: the view's noise is small beside the distance of two examples."""
    data = viewed()
    known = torch.stack([data[i][0] for i in range(64)])
    return torch.cdist(x, known).argmin(1) % NUM_CLASSES


# What live teachers say of inputs that they were not trained on ------------------------------------------------------

_PLACES, _TOKENS = 5, 7


class _Texts(Dataset):
    """Words that follow each other in one order; their numbers are given in the ``collate_fn``."""

    def __len__(self) -> int:
        return 28

    def __getitem__(self, index: int) -> str:
        return " ".join(str((index + place) % _TOKENS) for place in range(_PLACES))


def _numbered(numbers: list[int]) -> Any:
    def collate(rows: list[str]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[numbers[int(word)] for word in row.split()] for row in rows])
        return {"input_ids": ids, "labels": ids.clone()}

    return collate


class _Language(ComposerModel):
    """Predicts the next token."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Embedding(_TOKENS, 8), nn.Linear(8, _TOKENS))

    def forward(self, batch: Any) -> torch.Tensor:
        return self.net(batch["input_ids"])

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


@pytest.mark.parametrize("source", ["live", "cached"])
@pytest.mark.parametrize("other", [False, True])
def test_a_teacher_of_other_tokens_is_named(tmp_path: Path, source: str, other: bool) -> None:
    """The texts are the same and the vocabularies equally large, and yet the numbers are those of other words."""

    def run(seed: int, shift: int, **arguments: Any) -> None:
        collate = _numbered([(number * 3 + shift) % _TOKENS if shift else number for number in range(_TOKENS)])
        loader = DataLoader(_Texts(), batch_size=14, collate_fn=collate)
        trainer(loader, _Language(seed), **arguments).fit()  # type: ignore[arg-type]

    recorder = RunRecorder(tmp_path, run_name="prior", signals={"logits": {"last_epochs": 1}})
    run(1, 0, max_duration="20ep", lr=1.0, callbacks=[recorder])
    teach = PriorRunDistillation(tmp_path, "prior", source=source, loss="kl", when={})
    arguments: dict[str, Any] = {"max_duration": "1ba", "lr": 0.0, "algorithms": [teach]}
    if other:
        said = r"cached logits of the first batch: .* off its weights 'last'.* and " if source == "cached" else ""
        with pytest.warns(HarmWarning, match=said + r"teacher prior-.* where one who knows nothing has 1\.946"):
            run(5, 2, **arguments)
    else:
        run(5, 0, **arguments)


class _Numbers(ComposerModel):
    """Predicts one number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 1)

    def forward(self, batch: Any) -> torch.Tensor:
        return self.net(batch[0])

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return nn.functional.mse_loss(outputs, batch[1])


@pytest.mark.parametrize("unit", [1.0, 30.0, -1.0])
def test_a_teacher_of_numbers_that_gets_other_units_is_named(tmp_path: Path, unit: float) -> None:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x @ torch.arange(1.0, 7.0)[:, None])

    def run(scale: float, **arguments: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = _Numbers()
        loader = DataSpec(DataLoader(data, batch_size=32), batch_transforms=lambda batch: (batch[0] * scale, batch[1]))
        trainer(loader, model, **arguments).fit()  # type: ignore[arg-type]

    run(1.0, max_duration="30ep", callbacks=[RunRecorder(tmp_path, run_name="prior")])
    teach = PriorRunDistillation(tmp_path, "prior", source="live", loss="mse", when={})
    arguments: dict[str, Any] = {"max_duration": "1ba", "lr": 0.0, "algorithms": [teach]}
    if unit == 1.0:
        run(unit, **arguments)
    else:
        with pytest.warns(HarmWarning, match="It may get other inputs than it was trained on"):
            run(unit, **arguments)
