"""Helpers of the tests of PriorRunDistillation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from composer import Callback, State
from composer.loggers import InMemoryLogger
from torch import nn

from reuse_algos.algorithms import PriorRunDistillation
from reuse_algos.archive import RunArchive
from shorthand import sections
from toy import detached, epoch_loader, mlp, trainer, viewed


class Watch(Callback):
    """Keeps what the forward pass saw and gave, and the loss that went backward."""

    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.losses: list[Any] = []

    def after_forward(self, state: State, logger: Any) -> None:
        self.inputs.append(
            copy.deepcopy(state.batch[0] if isinstance(state.batch, (tuple, list)) else state.batch["x"])
        )
        outputs = state.outputs
        self.outputs.append((outputs["logits"] if isinstance(outputs, dict) else outputs).detach().clone())

    def before_backward(self, state: State, logger: Any) -> None:
        self.losses.append(detached(state.loss))


def distil(archive: RunArchive, **arguments: Any) -> PriorRunDistillation:
    """KL all the time, unless the test says otherwise; the library's own default is that of its preset."""
    runs = arguments.pop("runs", {"tags": {"method": "baseline"}, "order": "first"})
    arguments.setdefault("loss", "kl")
    if "when" not in arguments:
        arguments.setdefault("stop", "1dur")
    return PriorRunDistillation(archive, runs, **sections("distillation", arguments))


def fit(
    algorithms: list[Any], model: Any = None, *, data: Any = None, **arguments: Any
) -> tuple[Any, Watch, InMemoryLogger]:
    watch, log = Watch(), InMemoryLogger()
    one = trainer(
        epoch_loader(data or viewed()),
        model or mlp(5),
        algorithms=algorithms,
        callbacks=[watch, *arguments.pop("callbacks", ())],
        loggers=[log],
        **{"max_duration": "1ep", **arguments},
    )
    one.fit()
    return one, watch, log


def series(log: InMemoryLogger, name: str) -> list[float]:
    return [float(value) for _, value in log.data[name]]


def teacher(archive: RunArchive, index: int, weights: str = "last") -> nn.Module:
    """The archived model, loaded without any code of the algorithm."""
    run = archive.runs(order="first")[index]
    model = mlp()
    model.load_state_dict({name: value.clone() for name, value in run.weights(weights).items()})
    return model.eval()


@torch.no_grad()
def kl(
    student: torch.Tensor,
    teachers: list[torch.Tensor],
    temperature: float = 4.0,
    weights: torch.Tensor | None = None,
) -> float:
    p = torch.stack([torch.softmax(t.double() / temperature, 1) for t in teachers]).mean(0)
    q = torch.log_softmax(student.double() / temperature, 1)
    rows = (p * (p.log() - q)).sum(1) * temperature**2
    return float(rows.mean() if weights is None else (weights * rows).mean())


class Scaled(nn.Module):
    """A model with the names and shapes of :func:`toy.mlp` whose answers are multiplied."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.model = mlp()

    def forward(self, x: Any) -> torch.Tensor:
        return self.factor * self.model((x, None))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.state_dict(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.named_parameters(*args, **kwargs)

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return self.model.load_state_dict(state)
