"""Whether a model says in evaluation what it says in training.

Many models return logits while they train and something else afterwards: probabilities, the class they choose, numbers
in the units of the data. Archived models run in evaluation mode, so what they say is then not a logit of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from reuse_algos.data.seeding import seeded_rng
from reuse_algos.errors import ModelError
from reuse_algos.training.tasks.task import Task

_SUMS = 1e-2  # bfloat16 keeps three digits of a probability
_SAME = 1e-3  # of the spread: sums in another order
_FEWEST = 3  # through two numbers a line can always be drawn


def refuse_other_answers(module: nn.Module, task: Task, said: Tensor, again: Callable[[], Tensor], who: str) -> None:
    """Refuse a model that gives probabilities, or numbers in other units, in evaluation only.

    What is told by the outputs alone is held against a second pass in which the model's own code is in training mode.
    Dropout and batch norms stay as they are, and buffers, modes and generators are put back.

    Args:
        module: An archived model in evaluation mode. It is not the one that trains.
        task: How its outputs are read.
        said: Its outputs in evaluation.
        again: Runs it once more on the same batch, without gradients.
        who: The model, for the message.

    Raises:
        ModelError: It says something else in evaluation than in training.
    """
    said = said.detach().float()
    if not (task.kind == "regression" or are_probabilities(task, said)):
        return
    try:
        with _own_code_trains(module), seeded_rng(0), torch.no_grad():
            trained = again().detach().float()
    except Exception:  # a user's forward may need a whole batch, or labels, to train
        return
    if trained.shape != said.shape:
        return
    if task.kind == "regression":
        what = _units(said.flatten(), trained.flatten())
    else:
        what = None if are_probabilities(task, trained) else "probabilities (or the class it chooses) and not logits"
    if what is not None:
        raise ModelError(
            f"{who} gives {what} in evaluation mode, and something else while it trains, which is what its loss was "
            "computed from. Let its forward pass return the same in both modes (and give its architecture where the "
            "algorithm takes one), since archived models run in evaluation mode."
        )


def are_probabilities(task: Task, outputs: Tensor) -> bool:
    """Return whether all outputs look like probabilities of a task, which logits do by chance only.

    Args:
        task: How they are read. Regression has none.
        outputs: As the model gives them.

    >>> are_probabilities(Task("multiclass", 2), torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    True
    """
    if task.kind == "regression" or not outputs.numel() or not bool(((outputs >= 0) & (outputs <= 1 + _SUMS)).all()):
        return False
    if task.is_sigmoid:
        return True
    return outputs.dim() > 1 and bool(((outputs.sum(task.class_dim) - 1).abs() <= _SUMS).all())


@contextmanager
def _own_code_trains(module: nn.Module) -> Iterator[None]:
    """Put the modules of other people's code into training mode, and everything back afterwards."""
    modes = {one: one.training for one in module.modules()}
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        for one in modes:
            # torch's own modules draw numbers or move statistics in training, and return the same kind of outputs.
            if not type(one).__module__.startswith("torch.") and not isinstance(one, (_NormBase, _DropoutNd)):
                one.training = True
        yield
    finally:
        for one, mode in modes.items():
            one.training = mode
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in kept:
                    buffer.copy_(kept[name])


def _units(said: Tensor, trained: Tensor) -> str | None:
    """Return the scale and shift between predictions of both modes, in words; None where there is no exact one."""
    x, y = trained - trained.mean(), said - said.mean()
    spread = float(x.square().sum())
    if len(said) < _FEWEST or spread <= 0:
        return None
    scale = float((x * y).sum()) / spread
    shift = float(said.mean() - scale * trained.mean())
    deviation = float(trained.std())
    exact = float((y - scale * x).norm()) <= _SAME * float(y.norm())
    same = abs(scale - 1) <= _SAME and abs(shift) <= _SAME * max(deviation, float(trained.abs().mean()))
    return None if same or not exact else f"{scale:.3g} times its training outputs plus {shift:.3g}"
