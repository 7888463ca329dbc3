"""The rows of a classifier's head that belong to classes an earlier run knew.

Shapes: K classes now, J classes of the earlier run, M classes in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reuse_algos.errors import PriorRunMismatchError


def match_rows(theirs: Sequence[str] | None, ours: Sequence[str] | None) -> tuple[Tensor, Tensor]:
    """Return which rows of two heads stand for the same class, by name.

    Args:
        theirs: Class names of the earlier run, J of them.
        ours: Class names now, K of them.

    Returns:
        int64 ``[M]`` and int64 ``[M]``: rows of the head now, ascending, and the rows of the same classes there.

    Raises:
        PriorRunMismatchError: Names are missing or not unique on either side, or no class is common to both.
    """
    advice = "Use head: reset, which leaves the head as it was initialised"
    for whose, names in (("the prior run", theirs), ("this run's train data", ours)):
        if not names:
            raise PriorRunMismatchError(
                f"head: match goes by class names, and {whose} has none. Name them (DatasetInfo(class_names=...)). "
                f"Or: {advice[0].lower()}{advice[1:]}."
            )
        # "crane" is a bird and a machine in ImageNet: a name that stands for two classes names neither.
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise PriorRunMismatchError(
                f"head: match goes by class names, and in {whose} {len(twice)} of them stand for more than one class "
                f"({', '.join(map(repr, twice[:3]))}). {advice}."
            )
    assert theirs is not None
    assert ours is not None
    place = {name: row for row, name in enumerate(theirs)}
    pairs = [(row, place[name]) for row, name in enumerate(ours) if name in place]
    if not pairs:
        raise PriorRunMismatchError(
            f"head: match found no class in common: {', '.join(map(repr, theirs[:3]))} ... there, "
            f"{', '.join(map(repr, ours[:3]))} ... here. {advice}."
        )
    here, there = zip(*pairs, strict=True)
    return torch.tensor(here), torch.tensor(there)


def known_rows(fresh_K: Tensor, archived_J: Tensor, here_M: Tensor, there_M: Tensor) -> Tensor:
    """Return a head's weight or bias with the rows of known classes from an earlier head, and the others as they are.

    Args:
        fresh_K: ``[K, ...]``, the values of a model that was just initialised.
        archived_J: ``[J, ...]``.
        here_M: int64, rows to fill.
        there_M: int64, rows to take.

    Returns:
        A new tensor ``[K, ...]`` of ``fresh_K``'s dtype, on the CPU.
    """
    rows_K = fresh_K.detach().to("cpu", copy=True)
    rows_K[here_M] = archived_J[there_M].to(rows_K.dtype)
    return rows_K
