"""Distillation terms of every task against closed forms: the right axis, masks, and microbatches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer import DataSpec
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from reuse_algos import PriorRunDistillation, RunRecorder
from reuse_algos.algorithms.prior_run_distillation.loss.layout import check_top_k, in_layout
from reuse_algos.algorithms.prior_run_distillation.loss.section import KL, MSE, Strength, Weighing
from reuse_algos.errors import PriorRunMismatchError, TaskError
from reuse_algos.training.tasks.task import Task
from toy import trainer

T = 3.0
NOW = Strength(1.0, T)
TASKS = {
    "multiclass": (Task("multiclass", 5), (6, 5), "classes"),
    "binary": (Task("binary", 1), (6, 1), "numbers"),
    "binary, flat": (Task("binary", 1, 0), (6,), "numbers"),
    "multilabel": (Task("multilabel", 4), (6, 4), "numbers"),
    "regression": (Task("regression", 2), (6, 2), "numbers"),
    "token": (Task("token", 5, -1), (6, 7, 5), "classes"),
    "causal token": (Task("token", 5, -1, shift=True), (6, 7, 5), "classes"),
    "dense": (Task("dense", 3, 1, ignore_index=2), (6, 3, 4, 4), "classes"),
}


def _numbers(*shape: int, seed: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _targets(name: str) -> Tensor:
    """Some are not counted: marks outside the classes, an ignored class, unknown labels; row 1 has no counted one."""
    task, shape, kind = TASKS[name]
    generator = torch.Generator().manual_seed(5)
    if kind == "numbers":
        targets = torch.randint(0, 2, shape, generator=generator).double()
        targets.view(-1)[::4], targets[1] = torch.nan, torch.nan
        return targets
    places = shape[:-1] if task.class_dim == -1 else (shape[0], *shape[2:])
    targets = torch.randint(0, task.num_classes, places, generator=generator)
    targets.view(-1)[::4], targets[1] = 255, -100
    return targets


def _flat(task: Task, outputs: Tensor, counted: Tensor) -> list[Tensor]:
    """``[P, C]`` logits (``[P]`` for one number each) of the counted places of each row, without ``Task.rows``."""
    if task.class_dim == -1:
        outputs = outputs[:, :-1] if task.shift else outputs
        return [row[keep] for row, keep in zip(outputs, counted, strict=True)]
    if task.kind == "dense":
        return [row.permute(1, 2, 0)[keep] for row, keep in zip(outputs, counted, strict=True)]
    if task.kind == "multiclass":
        return [row[None][keep[None]] for row, keep in zip(outputs, counted, strict=True)]
    return [row.reshape(-1)[keep.reshape(-1)] for row, keep in zip(outputs, counted, strict=True)]


def _counted(name: str) -> Tensor:
    task, _, kind = TASKS[name]
    targets = _targets(name)
    if kind == "numbers":
        return ~targets.isnan()
    keep = (targets >= 0) & (targets < task.num_classes) & (targets != (task.ignore_index or -1))
    return keep[:, 1:] if task.shift else keep


def _closed_form(loss: KL | MSE, name: str, student: Tensor, teacher: Tensor) -> Tensor:
    """float64 ``[B]``: the term of each row by the textbook."""
    task, counted = TASKS[name][0], _counted(name)
    rows = []
    for s, t in zip(_flat(task, student, counted), _flat(task, teacher, counted), strict=True):
        if not len(s):
            rows.append(s.new_zeros(()))
        elif isinstance(loss, KL) and task.is_sigmoid:
            p, q = torch.sigmoid(t / T), torch.sigmoid(s / T)
            rows.append(T**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean())
        elif isinstance(loss, KL):
            p, q = (t / T).exp() / (t / T).exp().sum(-1, True), (s / T).exp() / (s / T).exp().sum(-1, True)
            rows.append(T**2 * (p * (p / q).log()).sum(-1).mean())
        else:
            rows.append((s - t).square().mean())
    return torch.stack(rows)


def _term(loss: KL | MSE, name: str, student: Tensor, teacher: Tensor, part: slice = slice(None)) -> Tensor:
    task = TASKS[name][0]
    rows = task.rows(student[part], _targets(name)[part])
    theirs = in_layout(task, teacher[part], rows.logits_BCX)
    target = loss.target([theirs], [1.0], NOW, task)
    return loss.term(rows.logits_BCX, target, NOW, task, Weighing(counted_BX=rows.counted_BX))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("loss", [KL(), MSE()], ids=["kl", "mse"])
def test_closed_form_masks_and_microbatches(loss: KL | MSE, name: str) -> None:
    """float32 to 1e-6, in microbatches as well; NaN where nothing counts stays out, and the gradient there is 0."""
    if isinstance(loss, KL) and name == "regression":
        with pytest.raises(TaskError, match="task is regression .* Set loss: mse"):
            loss.check_task(TASKS[name][0])
        return
    loss.check_task(TASKS[name][0])
    shape = TASKS[name][1]
    student, teacher = _numbers(*shape, seed=1), _numbers(*shape, seed=2)
    expected = _closed_form(loss, name, student, teacher)
    assert expected[1] == 0
    assert float(_term(loss, name, student, teacher)) == pytest.approx(float(expected.mean()), abs=1e-12)
    close = float(_term(loss, name, student.float(), teacher.float()))
    assert close == pytest.approx(float(expected.mean()), rel=1e-6, abs=1e-6)
    for size in (1, 2, 4):
        parts = [
            len(student[at : at + size]) / len(student) * _term(loss, name, student, teacher, slice(at, at + size))
            for at in range(0, len(student), size)
        ]
        assert float(torch.stack(parts).sum()) == pytest.approx(float(expected.mean()), rel=1e-6)

    broken, theirs = student.clone(), teacher.clone()
    broken[1], theirs[1] = torch.nan, torch.nan  # the row in which nothing counts
    broken.requires_grad_()
    term = _term(loss, name, broken, theirs)
    term.backward()
    assert float(term.detach()) == pytest.approx(float(expected.mean()), abs=1e-12)
    assert broken.grad is not None
    assert torch.equal(broken.grad[1], torch.zeros_like(broken.grad[1]))
    assert bool(broken.grad.isfinite().all())
    ignored = broken.grad[[0, 2, 3, 4, 5]][~_places(name)[[0, 2, 3, 4, 5]]]
    assert torch.equal(ignored, torch.zeros_like(ignored))
    assert float(_term(loss, name, student, teacher, slice(1, 2))) == 0


def _places(name: str) -> Tensor:
    """bool like the outputs: which of them count."""
    task, shape, _ = TASKS[name]
    counted = _counted(name)
    if task.shift:
        counted = torch.cat([counted, torch.zeros(len(counted), 1, dtype=torch.bool)], 1)
    if counted.dim() < len(shape):
        counted = counted.unsqueeze(-1 if task.class_dim == -1 else 1)
    return counted.expand(shape)


@pytest.mark.parametrize("name", ["token", "causal token", "dense", "multilabel"])
@pytest.mark.parametrize("loss", [KL(average="targets"), MSE(average="targets")], ids=["kl", "mse"])
def test_mean_over_targets_where_composer_accumulates_on_tokens(loss: KL | MSE, name: str) -> None:
    """Microbatches weighed by their counted targets give the mean over those of the batch."""
    shape, counted = TASKS[name][1], _counted(name)
    student, teacher = _numbers(*shape, seed=1), _numbers(*shape, seed=2)
    numbers = counted.flatten(1).sum(1).double()
    expected = float((_closed_form(loss, name, student, teacher) * numbers).sum() / numbers.sum())
    assert float(_term(loss, name, student, teacher)) == pytest.approx(expected, abs=1e-12)
    parts = [
        float(_term(loss, name, student, teacher, slice(at, at + 2))) * float(numbers[at : at + 2].sum())
        for at in range(0, len(student), 2)
    ]
    assert sum(parts) / float(numbers.sum()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shift", [False, True])
def test_classes_last_are_the_transposed_call_bit_by_bit(shift: bool) -> None:
    """A language model's ``[B, T, C]`` and the same as ``[B, C, T]``."""
    student, teacher = _numbers(4, 7, 5, seed=1).float(), _numbers(4, 7, 5, seed=2).float()
    targets = torch.arange(28).reshape(4, 7) % 6  # 5 is padding
    last = Task("token", 5, -1, shift=shift)
    rows = last.rows(student, targets)
    target = KL().target([in_layout(last, teacher, rows.logits_BCX)], [1.0], NOW, last)
    here = KL().term(rows.logits_BCX, target, NOW, last, Weighing(counted_BX=rows.counted_BX))
    end = 6 if shift else 7
    turned = [z.transpose(1, 2).contiguous()[:, :, :end].contiguous() for z in (student, teacher)]
    first = Task("dense", 5, 1)
    plain = first.rows(turned[0], targets[:, 7 - end :])
    there = KL().term(
        plain.logits_BCX, KL().target([turned[1]], [1.0], NOW, first), NOW, first, Weighing(counted_BX=plain.counted_BX)
    )
    assert torch.equal(here, there)
    assert torch.equal(in_layout(last, turned[1], rows.logits_BCX), turned[1]), "already in the layout"


@pytest.mark.parametrize("name", ["multiclass", "token", "dense", "binary", "multilabel"])
def test_certain_teachers_give_the_cross_entropy(name: str) -> None:
    """At temperature 1 the divergence from a certain teacher is the model's own loss of each row."""
    task, shape, _ = TASKS[name]
    rows = task.rows(_numbers(*shape, seed=1), _targets(name))
    assert rows.targets is not None
    if name in ("binary", "multilabel"):
        certain = torch.where(rows.targets > 0.5, torch.inf, -torch.inf)  # labels as logits
    else:
        certain = F.one_hot(rows.targets, task.num_classes).movedim(-1, 1).double().log()  # 0 and -inf
    now = Strength(1.0, 1.0)
    target = KL().target([certain], [1.0], now, task)
    term = KL().term(rows.logits_BCX, target, now, task, Weighing(counted_BX=rows.counted_BX))
    assert float(term) == pytest.approx(float(task.losses(rows).nan_to_num(0.0).mean()), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("loss", [KL(), MSE()], ids=["kl", "mse"])
def test_classes_that_both_mask_add_nothing(loss: KL | MSE, dtype: torch.dtype) -> None:
    """-inf for what may not be chosen, also as archived in float16."""
    student = torch.tensor([[2.0, -1.0, -torch.inf], [0.5, 0.0, -torch.inf]], dtype=dtype).requires_grad_()
    teacher = torch.tensor([[1.0, 0.5, -torch.inf], [-1.0, 0.0, -torch.inf]], dtype=dtype)
    task, two = Task("multiclass", 3), Task("multiclass", 2)
    term = loss.term(student, loss.target([teacher], [1.0], NOW, task), NOW, task, Weighing())
    term.backward()
    kept = loss.term(student[:, :2], loss.target([teacher[:, :2]], [1.0], NOW, two), NOW, two, Weighing())
    factor = 1.0 if isinstance(loss, KL) else 2 / 3  # the mean is over three classes
    assert float(term.detach()) == pytest.approx(factor * float(kept.detach()), rel=1e-6)
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    assert student.grad[:, 2].tolist() == [0.0, 0.0]


def test_largest_logits_must_be_enough_at_the_temperature() -> None:
    """Two of a hundred: exact at 1, and far too little at 4, where the rest's mass could be anywhere."""
    logits = torch.zeros(8, 100)
    logits[:, 0], logits[:, 1] = 4.0, 3.0
    check_top_k("t", logits, 2, 1.0)
    with pytest.raises(PriorRunMismatchError, match=r"teacher t has its 2 largest logits of 100 .* source: live"):
        check_top_k("t", logits, 2, 4.0)
    logits[:, 2:] = -30.0
    check_top_k("t", logits, 2, 4.0)


def test_settings_of_the_average() -> None:
    """A mistyped one is named."""
    with pytest.raises(ValueError, match="average must be examples or targets"):
        KL(average="tokens")  # type: ignore[arg-type]


class Tagger(ComposerModel):
    """Gives each of seven words one of five tags; 5 is padding."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Linear(3, 5)

    def forward(self, batch: Any) -> Tensor:
        return self.net(batch[0])

    def loss(self, outputs: Tensor, batch: Any, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return F.cross_entropy(outputs.flatten(0, 1), batch[1].flatten(), ignore_index=5)


@pytest.mark.parametrize("on_tokens", [True, False])
def test_weights_do_not_depend_on_the_number_of_microbatches(tmp_path: Path, on_tokens: bool) -> None:
    """The average is the one that Composer weighs microbatches by, without a setting."""
    words, tags = _numbers(12, 7, 3, seed=1).float(), torch.arange(84).reshape(12, 7) % 5
    for row in range(12):
        tags[row, 1 + row % 7 :] = 5

    def count(batch: Any) -> dict[str, int]:
        return {"total": batch[1].numel(), "loss_generating": int((batch[1] != 5).sum())}

    def train(model: Tagger, **arguments: Any) -> Tensor:
        data = DataSpec(DataLoader(TensorDataset(words, tags), batch_size=12), get_num_tokens_in_batch=count)
        trainer(data, model, max_duration="2ep", **arguments).fit()
        return model.net.weight.detach()

    train(Tagger(1), callbacks=[RunRecorder(tmp_path, run_name="teacher")])
    weights = []
    for size in (12, 3):
        teach = PriorRunDistillation(tmp_path, "teacher", source="live", loss={"name": "kl", "weight": 1.0}, when={})
        settings = {"accumulate_train_batch_on_tokens": on_tokens, "device_train_microbatch_size": size}
        weights.append(train(Tagger(2), algorithms=[teach], **settings))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(weights[0], Tagger(2).net.weight, atol=1e-3)
