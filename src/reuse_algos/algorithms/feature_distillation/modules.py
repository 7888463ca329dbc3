"""What named modules of a model gave in one forward pass, and how far a student's are from a teacher's.

Shapes: B rows of a microbatch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reuse_algos.data.nested import tensors_at
from reuse_algos.errors import ModelError, nearest

_PREFIX = "module."  # of a ComposerModel, before the names of its network


def feature_term(student: Tensor, teacher: Tensor, deviation: float, weights_B: Tensor | None = None) -> Tensor:
    """Return the mean squared difference in units of the teacher's variance (Romero et al. 2015, arXiv 1412.6550).

    Args:
        student: Float ``[B, ...]`` with gradient.
        teacher: Float ``[B, ...]``.
        deviation: The teacher's standard deviation, above 0.
        weights_B: Float ``[B]`` of at least 0, the weight of each row. Default: all are 1.

    Returns:
        Float32 (float64 for float64 inputs) scalar of at least 0.

    >>> float(feature_term(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]), deviation=2.0))
    0.5
    """
    full = torch.float64 if student.dtype == torch.float64 else torch.float32
    gap_B = ((student.to(full) - teacher.to(full)) / deviation).square().flatten(1).mean(1)
    return (gap_B if weights_B is None else weights_B.to(gap_B) * gap_B).mean()


def _named(model: nn.Module, names: Sequence[str], whose: str) -> dict[str, nn.Module]:
    """Return modules of a model by their names, with or without the ``module.`` of a ComposerModel."""
    known = dict(model.named_modules())
    found = {}
    for name in names:
        full = name if name in known else _PREFIX + name
        if full not in known:
            ours = [one.removeprefix(_PREFIX) for one in known if one]
            shown = ", ".join(one for one in ours if "." not in one)
            raise ModelError(f"{whose} has no module {name!r}.{nearest(name, ours)} At its top it has: {shown}.")
        found[name] = known[full]
    return found


class Features:
    """Keeps the floating-point tensors that some modules of a model give in its latest forward pass.

    Args:
        model: The model.
        names: Of its modules.
        whose: Of the model, for messages.

    Raises:
        ModelError: The model has no module of a name.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], whose: str) -> None:
        self._model, self._whose = model, whose
        self._modules = _named(model, names, whose)
        self._found: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        self._handles: list[Any] = []

    def follow(self) -> None:
        """Look at the modules until :meth:`taken`."""
        self.forget()
        # Others run the model, too, between two events: to count FLOPs, or to attack it. The latest pass counts.
        self._handles.append(self._model.register_forward_pre_hook(lambda *_: self._begin()))
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))

    def forget(self) -> None:
        """Stop looking, and drop what was found: a forward pass may have run out of memory on its way."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._begin()

    def _begin(self) -> None:
        self._found, self._calls = {}, {}

    def taken(self) -> dict[str, Tensor]:
        """Return what was found, by module and place, and stop looking.

        Raises:
            ModelError: A module gave no tensor of numbers.
        """
        found = self._found
        self.forget()
        for name in self._modules:
            if not any(key == name or key.startswith(name + " ") for key in found):
                raise ModelError(
                    f"module {name!r} of {self._whose} gave no floating-point tensor in the forward pass. Name one "
                    "that is called and gives tensors; inside a compiled model (torch.compile) hooks do not run."
                )
        return found

    @contextmanager
    def of_pass(self) -> Iterator[dict[str, Tensor]]:
        """Fill a mapping with what a forward pass within the ``with`` block gives."""
        found: dict[str, Tensor] = {}
        self.follow()
        try:
            yield found
            found.update(self.taken())
        finally:
            self.forget()

    def _hook(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, outputs: Any) -> None:
            call = self._calls[name] = self._calls.get(name, 0) + 1
            for place, tensor in tensors_at(outputs):
                if tensor.is_floating_point():
                    # A module may be called several times in a pass, as a detector's head may be for each resolution.
                    key = " ".join(part for part in (name, place, f"call {call}" if call > 1 else "") if part)
                    self._found[key] = tensor

        return keep


def refuse_other_features(student: dict[str, Tensor], teacher: dict[str, Tensor], rows: int, whose: str) -> None:
    """Refuse features that cannot be compared.

    Args:
        student: By module and place.
        teacher: By module and place.
        rows: Of the microbatch.
        whose: Of the teacher, for messages.

    Raises:
        ModelError: The two have other tensors or shapes, a tensor has not one entry for each row, or it has no
            gradient.
    """
    if odd := sorted(student.keys() ^ teacher.keys()):
        who = "the student" if odd[0] in student else whose
        raise ModelError(f"{odd[0]!r} is given by {who} only. Name modules that give the same tensors in both models.")
    for key, ours in student.items():
        theirs = teacher[key]
        if ours.shape != theirs.shape:
            raise ModelError(
                f"{key!r} has shape {tuple(ours.shape)} in the student and {tuple(theirs.shape)} in {whose}. Name "
                "modules whose outputs are alike, or take a run of the same width that saw inputs of the same size."
            )
        if not ours.dim() or len(ours) != rows:
            raise ModelError(
                f"{key!r} has shape {tuple(ours.shape)}, and the microbatch {rows} rows. Name modules whose outputs "
                "have one entry for each row in their first dimension."
            )
    if not any(one.requires_grad for one in student.values()):
        raise ModelError(f"no gradient reaches the student's {', '.join(sorted(student))}: these modules are frozen.")
