"""The task is what the shapes and the model's own loss say, and its losses are torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reuse_algos.algorithms.prior_run_distillation import MSE
from reuse_algos.errors import TaskError
from reuse_algos.training.tasks.find_task import find_task
from reuse_algos.training.tasks.task import SUMMED, Task, TaskSettings


def _numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _classes(high: int, *shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def _holes(targets: torch.Tensor, mark: float) -> torch.Tensor:
    """Every third target is not counted."""
    holes = targets.clone()
    holes.view(-1)[::3] = mark
    return holes


def _shifted(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs[:, :-1].transpose(1, 2), targets[:, 1:], ignore_index=-100)


def _last(outputs: torch.Tensor, targets: torch.Tensor, ignore: int = -100) -> torch.Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=ignore)


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
FOUND: dict[str, tuple[torch.Tensor, torch.Tensor, Loss, Task]] = {
    "multiclass": (_numbers(8, 5), _classes(5, 8), F.cross_entropy, Task("multiclass", 5)),
    "soft labels": (_numbers(8, 5), _numbers(8, 5, seed=2).softmax(1), F.cross_entropy, Task("multiclass", 5)),
    "one logit": (
        _numbers(8, 1),
        _classes(2, 8, 1).float(),
        F.binary_cross_entropy_with_logits,
        Task("binary", 1),
    ),
    "one logit, flat, whole labels": (
        _numbers(8),
        _classes(2, 8),
        lambda o, t: F.binary_cross_entropy_with_logits(o, t.float()),
        Task("binary", 1, 0),
    ),
    "one logit per pixel": (
        _numbers(2, 1, 4, 4),
        _classes(2, 2, 4, 4),
        lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t.float()),
        Task("binary", 1),
    ),
    "multilabel": (
        _numbers(8, 4),
        _classes(2, 8, 4).float(),
        F.binary_cross_entropy_with_logits,
        Task("multilabel", 4),
    ),
    "multilabel with missing labels": (
        _numbers(8, 4),
        _holes(_classes(2, 8, 4).float(), -1),
        lambda o, t: F.binary_cross_entropy_with_logits(o[t >= 0], t[t >= 0]),
        Task("multilabel", 4),
    ),
    "regression of 0 and 1": (_numbers(8, 1), _classes(2, 8, 1).float(), F.mse_loss, Task("regression", 1)),
    "regression of several": (_numbers(8, 3), _numbers(8, 3, seed=4), F.mse_loss, Task("regression", 3)),
    "regression by absolute errors": (_numbers(8, 1), 3 * _numbers(8, 1, seed=4), F.l1_loss, Task("regression", 1)),
    "tokens": (_numbers(4, 6, 9), _classes(9, 4, 6), _last, Task("token", 9, -1)),
    "tokens with padding": (_numbers(4, 6, 9), _holes(_classes(9, 4, 6), -100), _last, Task("token", 9, -1)),
    "as many tokens as classes": (_numbers(4, 6, 6), _classes(6, 4, 6), _last, Task("token", 6, -1)),
    "as many positions as classes": (_numbers(4, 6, 6), _classes(6, 4, 6), F.cross_entropy, Task("dense", 6)),
    "tokens padded with class 0": (
        _numbers(4, 6, 9),
        _holes(_classes(9, 4, 6), 0),
        lambda o, t: _last(o, t, 0),
        Task("token", 9, -1, 0),
    ),
    "causal": (_numbers(4, 6, 9), _holes(_classes(9, 4, 6), -100), _shifted, Task("token", 9, -1, None, True)),
    "pixels": (_numbers(2, 3, 4, 4), _classes(3, 2, 4, 4), F.cross_entropy, Task("dense", 3)),
    "pixels, 255 ignored": (
        _numbers(2, 3, 4, 4),
        _holes(_classes(3, 2, 4, 4), 255),
        lambda o, t: F.cross_entropy(o, t, ignore_index=255),
        Task("dense", 3),
    ),
    "class numbers in a column": (
        _numbers(8, 5),
        _classes(5, 8, 1),
        lambda o, t: F.cross_entropy(o, t[:, 0]),
        Task("multiclass", 5),
    ),
    "class numbers as floats": (
        _numbers(8, 5),
        _classes(5, 8).float(),
        lambda o, t: F.cross_entropy(o, t.long()),
        Task("multiclass", 5),
    ),
    "one-hot whole numbers": (
        _numbers(8, 5),
        F.one_hot(_classes(5, 8), 5),
        lambda o, t: F.cross_entropy(o, t.float()),
        Task("multiclass", 5),
    ),
    "masks with one channel": (
        _numbers(2, 3, 4, 4),
        _holes(_classes(3, 2, 1, 4, 4).to(torch.uint8), 255),
        lambda o, t: F.cross_entropy(o, t[:, 0].long(), ignore_index=255),
        Task("dense", 3),
    ),
    "pixels, classes last": (_numbers(2, 4, 4, 3), _classes(3, 2, 4, 4), _last, Task("dense", 3, -1)),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_loss_shows_the_task(case: str) -> None:
    outputs, targets, loss, expected = FOUND[case]
    found = find_task(outputs, targets, float(loss(outputs, targets)), ignore_indices=(0, -100))
    assert (found.kind, found.num_classes, found.class_dim, found.ignore_index, found.shift) == (
        expected.kind,
        expected.num_classes,
        expected.class_dim,
        expected.ignore_index,
        expected.shift,
    )


@pytest.mark.parametrize("case", [case for case in FOUND if "absolute" not in case])
def test_losses_of_examples_are_the_models_own(case: str) -> None:
    outputs, targets, loss, task = FOUND[case]
    losses_B = task.losses(task.rows(outputs, targets))
    for row in range(len(outputs)):
        own = loss(outputs[row : row + 1], targets[row : row + 1])
        assert losses_B[row].isnan() == own.isnan()
        if not own.isnan():
            assert float(losses_B[row]) == pytest.approx(float(own), abs=1e-6)


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_sigmoid_margins_and_correctness_by_hand(kind: str) -> None:
    task = Task(kind, 2 if kind == "multilabel" else 1)  # type: ignore[arg-type]
    logits = torch.tensor([[1.5, -2.0], [0.5, 0.25]])[:, : task.num_classes]
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, : task.num_classes]
    rows = task.rows(logits, labels)
    assert task.correct(rows).tolist() == [1, 0]
    expected = [[1.75, -0.125], [1.5, -0.5]][kind == "binary"]
    assert task.logit_margin(rows).tolist() == pytest.approx(expected)


def test_ignored_targets_count_nowhere() -> None:
    task = Task("dense", 3)
    logits = torch.zeros(3, 3, 1, 2)
    logits[:, 1] = 2.0
    targets = torch.tensor([[[1, 255]], [[1, 0]], [[-1, -100]]])
    logits[0, :, 0, 1] = torch.tensor([torch.nan, torch.inf, 0.0])
    rows = task.rows(logits, targets)
    assert task.correct(rows).tolist() == [1, 0, 0]  # nothing shows that the last one is right
    one = float(F.cross_entropy(torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([1])))
    losses = task.losses(rows)
    assert float(losses[0]) == pytest.approx(one, abs=1e-6)
    assert losses[2].isnan()
    assert task.logit_margin(rows)[:2].tolist() == pytest.approx([2.0, 0.0])


def test_own_losses_that_are_no_plain_ones_leave_the_only_reading() -> None:
    outputs, targets = _numbers(8, 5), _classes(5, 8)
    smoothed = float(F.cross_entropy(outputs, targets, label_smoothing=0.1))
    assert find_task(outputs, targets, smoothed).kind == "multiclass"


def _smoothed(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


def _focal(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logs = outputs.log_softmax(1).gather(1, targets.unsqueeze(1))
    return (-(1 - logs.exp()).square() * logs).mean()


def _dice(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    shares, truth = outputs.softmax(1), F.one_hot(targets, outputs.shape[1]).movedim(-1, 1)
    return 1 - 2 * (shares * truth).sum() / (shares + truth).sum()


def _weighed(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    weight = torch.linspace(1, 3, outputs.shape[1])
    return F.cross_entropy(outputs, targets, weight=weight, ignore_index=0)


def _smoothed_shifted(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return _smoothed(outputs[:, :-1].transpose(1, 2), targets[:, 1:])


def _positives_count_more(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=torch.tensor(3.0))


PULLED: dict[str, tuple[torch.Tensor, torch.Tensor, Loss, Task]] = {
    "label smoothing": (_numbers(8, 5), _classes(5, 8), _smoothed, Task("multiclass", 5)),
    "label smoothing of a sure model": (20 * torch.eye(5), torch.arange(5), _smoothed, Task("multiclass", 5)),
    "focal": (_numbers(8, 5), _classes(5, 8), _focal, Task("multiclass", 5)),
    "hinge": (_numbers(8, 5), _classes(5, 8), F.multi_margin_loss, Task("multiclass", 5)),
    "class weights, one class ignored": (
        _numbers(8, 5),
        _holes(_classes(5, 8), 0),
        _weighed,
        Task("multiclass", 5, 1, 0),
    ),
    "dice": (_numbers(2, 3, 4, 4), _classes(3, 2, 4, 4), _dice, Task("dense", 3)),
    "causal with smoothing": (
        _numbers(4, 9, 9),
        _classes(9, 4, 9),
        _smoothed_shifted,
        Task("token", 9, -1, None, True),
    ),
    "one logit, weighed": (_numbers(8, 1), _classes(2, 8, 1).float(), _positives_count_more, Task("binary", 1)),
    "labels, weighed": (_numbers(8, 4), _classes(2, 8, 4).float(), _positives_count_more, Task("multilabel", 4)),
    "absolute errors of 0 and 1": (3 * _numbers(8, 1), _classes(2, 8, 1).float(), F.l1_loss, Task("regression", 1)),
}


def _pull(outputs: torch.Tensor, targets: torch.Tensor, loss: Loss) -> tuple[float, torch.Tensor]:
    leaf = outputs.clone().requires_grad_()
    value = loss(leaf, targets)
    (pull,) = torch.autograd.grad(value, leaf)
    return float(value), pull


@pytest.mark.parametrize("case", PULLED)
def test_a_loss_of_another_form_shows_the_task_by_its_gradient(case: str) -> None:
    outputs, targets, loss, expected = PULLED[case]
    own, pull = _pull(outputs, targets, loss)
    found = find_task(outputs, targets, own, ignore_indices=(0, -100), pull=pull)
    assert replace(found, evidence="") == expected
    assert not found.is_confirmed


def _ordinal(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    above = (targets.unsqueeze(1) > torch.arange(outputs.shape[1])).float()
    return F.binary_cross_entropy_with_logits(outputs, above)


def _near(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return 1 - F.cosine_similarity(outputs, F.one_hot(targets, outputs.shape[1]).float()).mean()


_COSINES = F.normalize(_numbers(8, 6)) @ F.normalize(_numbers(5, 6)).T

REFUSED: dict[str, tuple[torch.Tensor, torch.Tensor, Loss, str]] = {
    "probabilities": (
        _numbers(8, 5).softmax(1),
        _classes(5, 8),
        lambda o, t: F.nll_loss(o.log(), t),
        "logits of a softmax",
    ),
    "thresholds": (_numbers(8, 4), _classes(4, 8), _ordinal, "logits of a softmax"),
    "embeddings": (_numbers(8, 5), _classes(5, 8), _near, "logits of a softmax"),
    "labels from 1": (
        _numbers(8, 5),
        1 + _classes(5, 8),
        lambda o, t: F.cross_entropy(o, t - 1),
        "class numbers are 0 to 4",
    ),
    "labels that the loss numbers otherwise": (
        _numbers(8, 9),
        _classes(8, 8),
        lambda o, t: F.cross_entropy(o, t + 1),
        "raises other classes",
    ),
    "probabilities of labels": (
        _numbers(8, 4).sigmoid(),
        _classes(2, 8, 4).float(),
        F.binary_cross_entropy,
        "may be probabilities of labels",
    ),
    "cosines with a scale in the loss": (
        _COSINES,
        _classes(5, 8),
        lambda o, t: F.cross_entropy(16 * o, t),
        "about 16 ",
    ),
    "a margin of cosines": (
        _COSINES,
        _classes(5, 8),
        lambda o, t: F.cross_entropy(32 * (o - 0.2 * F.one_hot(t, 5)), t),
        "about 32 ",
    ),
    "a temperature in the loss": (
        _numbers(8, 9),
        _classes(9, 8),
        lambda o, t: F.cross_entropy(o / 0.25, t, weight=torch.arange(1.0, 10.0)),
        "about 4 ",
    ),
    "distances of pairs": (
        1 + _numbers(24, 1).abs(),
        _classes(2, 24, 1).float(),
        lambda o, t: ((1 - t) * o.square() + t * F.relu(4 - o).square()).mean(),
        "label 0 is the square of the output",
    ),
    "logarithms of counts": (
        _numbers(8, 1),
        3 + _classes(5, 8, 1).float(),
        lambda o, t: F.poisson_nll_loss(o + 1.5, t),
        "does not move the outputs to where the targets are",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_outputs_that_a_loss_reads_otherwise_are_refused_and_may_be_overruled(case: str) -> None:
    outputs, targets, loss, said = REFUSED[case]
    own, pull = _pull(outputs, targets, loss)
    with pytest.raises(TaskError, match=said) as caught:
        find_task(outputs, targets, own, pull=pull)
    kind = str(caught.value).split("plain losses. ")[1].split(" of ")[0]
    assert find_task(outputs, targets, own, TaskSettings(kind=kind), pull=pull).kind == kind


def test_a_loss_that_is_a_sum_is_known() -> None:
    outputs, targets = _numbers(8, 5), _classes(5, 8)
    found = find_task(outputs, targets, float(F.cross_entropy(outputs, targets, reduction="sum")))
    assert found == Task("multiclass", 5, evidence=SUMMED)
    with pytest.raises(TaskError, match="sum over the batch"):
        MSE().check_task(found)


def test_what_nothing_tells_apart_is_refused() -> None:
    outputs, targets = _numbers(8, 1), _classes(2, 8, 1).float()
    focal = 0.1234
    with pytest.raises(TaskError, match=r"binary of 1.*regression of 1.*Set keys: \{task: \{kind"):
        find_task(outputs, targets, focal)
    assert find_task(outputs, targets, focal, metrics=["BinaryAccuracy"]).kind == "binary"
    assert find_task(outputs, targets, focal, metrics=["MeanSquaredError"]).kind == "regression"
    assert find_task(outputs, targets, focal, TaskSettings(kind="binary")).kind == "binary"


def test_the_loss_outweighs_the_metrics() -> None:
    outputs, targets = _numbers(8, 1), _classes(2, 8, 1).float()
    found = find_task(outputs, targets, float(F.mse_loss(outputs, targets)), metrics=["BinaryAccuracy"])
    assert found.kind == "regression"


@pytest.mark.parametrize(
    ("outputs", "targets", "settings"),
    [
        ((8, 5), (8, 3), TaskSettings()),
        ((8, 5), (7,), TaskSettings()),
        ((8, 5), (8,), TaskSettings(kind="binary")),
        ((2, 3, 4, 4), (2, 4, 4), TaskSettings(kind="dense", class_dim=-1)),
    ],
)
def test_shapes_that_fit_nothing_are_named(
    outputs: tuple[int, ...], targets: tuple[int, ...], settings: TaskSettings
) -> None:
    with pytest.raises(TaskError, match=rf"outputs \({outputs[0]}, .*targets \({targets[0]},"):
        find_task(_numbers(*outputs), _classes(3, *targets), None, settings)


def test_what_is_not_defined_is_refused_by_name() -> None:
    task = Task("regression", 1)
    with pytest.raises(TaskError, match="'correct' is not defined for the task 'regression'"):
        task.correct(task.rows(_numbers(4, 1), _numbers(4, 1)))


def test_tasks_of_two_runs_are_compared() -> None:
    assert Task("token", 9, -1).difference(Task("token", 9, 1)) is None  # the axis is the model's own affair
    assert (
        Task("token", 9, -1).difference(Task("dense", 8))
        == "kind 'token' here and 'dense' there, num_classes 9 here and 8 there"
    )


@pytest.mark.parametrize("bad", [{"kind": "multi-class"}, {"class_dim": 2}, {"kind": "dense", "shift": True}])
def test_settings_that_cannot_be(bad: dict) -> None:
    with pytest.raises(TaskError, match="task"):
        TaskSettings(**bad)


@pytest.mark.parametrize("case", ["tokens", "causal", "as many tokens as classes", "as many positions as classes"])
def test_outputs_that_are_all_alike_are_read_by_the_gradient(case: str) -> None:
    # A head that is initialised with zeros gives every reading the loss log C.
    outputs, targets, loss, expected = FOUND[case]
    outputs = torch.zeros_like(outputs).requires_grad_()
    own = loss(outputs, targets)
    found = find_task(outputs, targets, float(own), pull=torch.autograd.grad(own, outputs)[0])
    assert (found.kind, found.class_dim, found.shift) == (expected.kind, expected.class_dim, expected.shift)
    assert found.is_confirmed


@pytest.mark.parametrize(
    ("targets", "loss", "ignored"),
    [
        (_holes(_classes(9, 4, 6), 2), lambda o, t: _last(o, t, 2), 2),
        (
            _holes(_classes(9, 4, 6), 0),
            lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten(), torch.tensor([0.0] + 8 * [2.0])).sqrt(),
            0,
        ),
        (_holes(_numbers(4, 6, seed=4), 0), lambda o, t: (o[..., 0] - t)[t != 0].square().mean(), 0),
    ],
    ids=["in the loss function", "a weight of 0", "missing numbers"],
)
def test_a_value_that_only_the_loss_knows_as_ignored_shows_in_its_gradient(
    targets: torch.Tensor, loss: Loss, ignored: int
) -> None:
    outputs = _numbers(4, 6, 1 if targets.is_floating_point() else 9).requires_grad_()
    own = loss(outputs, targets)
    found = find_task(
        outputs[..., 0] if targets.is_floating_point() else outputs,
        targets,
        float(own),
        pull=torch.autograd.grad(own, outputs)[0].reshape(
            targets.shape if targets.is_floating_point() else outputs.shape
        ),
    )
    assert found.ignore_index == ignored
    counted = found.rows(outputs[..., 0] if targets.is_floating_point() else outputs, targets).counted_BX
    assert counted is not None
    assert torch.equal(counted, targets != ignored)


def test_marks_of_ignored_targets_do_not_wrap_in_narrow_types() -> None:
    # -100 and -1 are 156 and 255 in uint8.
    targets = torch.tensor([156, 255, 3], dtype=torch.uint8)
    rows = Task("multiclass", 300, ignore_index=-100).rows(torch.zeros(3, 300), targets)
    assert rows.targets is not None
    assert rows.counted_BX is not None
    assert rows.targets.tolist() == [156, 255, 3]
    assert rows.counted_BX.all()
