"""Models that say something else in evaluation than in training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reuse_algos.errors import ModelError
from reuse_algos.training.tasks.eval_outputs import are_probabilities, refuse_other_answers
from reuse_algos.training.tasks.task import Task

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
CLASSES, BINARY, LABELS = Task("multiclass", 4), Task("binary", 1), Task("multilabel", 4)
NUMBERS, TOKENS = Task("regression", 4), Task("token", 2, -1)


class Net(nn.Module):
    """Logits in training, and what a function makes of them in evaluation; with dropout and a batch norm."""

    def __init__(self, outputs: int, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, outputs))
        self.then = then
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        if self.training:
            self.passes += 1
            return logits
        return self.then(logits)


def _look(task: Task, then: Callable[[Tensor], Tensor]) -> Net:
    model = Net(task.num_classes * (2 if task.kind == "token" else 1), then).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    with torch.no_grad():
        refuse_other_answers(model, task, model(X), lambda: model(X), "the teacher")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(one.training for one in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    return model


REFUSED: dict[str, tuple[Task, Callable[[Tensor], Tensor], str]] = {
    "softmax": (CLASSES, lambda z: z.softmax(1), "gives probabilities"),
    "the class": (CLASSES, lambda z: F.one_hot(z.argmax(1), 4).float(), "or the class it chooses"),
    "half precision": (CLASSES, lambda z: z.softmax(1).bfloat16(), "gives probabilities"),
    "sigmoid": (BINARY, torch.sigmoid, "gives probabilities"),
    "labels": (LABELS, lambda z: (z > 0).float(), "gives probabilities"),
    "units of the data": (NUMBERS, lambda z: 10 * z + 5, "10 times its training outputs plus 5"),
    "centred": (NUMBERS, lambda z: z + 2, "1 times its training outputs plus 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_answers_in_evaluation_are_refused(case: str) -> None:
    task, then, said = REFUSED[case]
    with pytest.raises(ModelError, match=f"the teacher .*{said}.* while it trains"):
        _look(task, then)


@pytest.mark.parametrize(
    ("task", "then"),
    [
        (CLASSES, lambda z: z),
        (CLASSES, lambda z: z.log_softmax(1)),  # logits of the same softmax
        (LABELS, lambda z: z),
        (NUMBERS, lambda z: z),
        (NUMBERS, lambda z: z.round()),  # no scale and shift
    ],
)
def test_the_same_answers_are_left_alone(task: Task, then: Callable[[Tensor], Tensor]) -> None:
    assert float(_look(task, then).passes) == 0


def test_probabilities_in_both_modes_are_what_the_loss_was_computed_from() -> None:
    model = nn.Sequential(Net(4, lambda z: z), nn.Softmax(1)).eval()
    refuse_other_answers(model, CLASSES, model(X), lambda: model(X), "the teacher")


def test_probabilities_of_tokens_lie_in_the_dimension_of_the_classes() -> None:
    logits = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(2))
    assert are_probabilities(TOKENS, logits.softmax(-1))
    assert not are_probabilities(TOKENS, logits.softmax(1))
    assert not are_probabilities(NUMBERS, logits.softmax(-1))
