"""Masks beside the targets of a batch: which of them the model's loss goes by, as its gradient shows.

``attention_mask``, ``loss_mask``, a column of zeros and ones: a loss that is averaged over them has no gradient at what
they leave out. Names are not trusted: a ``token_type_ids`` looks the same, and no loss goes by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from reuse_algos.data.nested import tensors_at
from reuse_algos.errors import TaskError
from reuse_algos.training.batch_keys import part_of
from reuse_algos.training.tasks.task import class_numbers

# Microbatches in which a mask that has left nothing out so far is looked at. Each look waits for the device once.
_LOOKS = 64


class TargetMasks:
    """Finds the masks that a loss goes by, and marks the targets that they leave out.

    A mask of the shape of the targets holds zeros and ones. Where it first leaves a target out, the gradient of the
    loss at the outputs shows whether the loss goes by it. Until then it changes nothing.

    Args:
        key: Where a mask lies in the batch that is to be taken as it is: 1 (or True) counts. Default: none.

    Attributes:
        found: Place in the batch -> the value there, 0 or 1, of targets that do not count.
    """

    def __init__(self, key: str | int | None = None) -> None:
        self._key = key
        self.found: dict[str, int] = {}
        self._rejected: set[str] = set()
        self._open, self._looks = key is None, 0

    @property
    def is_open(self) -> bool:
        """Whether a batch may still show a mask."""
        return self._open

    def learn(self, batch: Any, targets: torch.Tensor, outputs: torch.Tensor, pull: torch.Tensor | None) -> None:
        """Look at one microbatch.

        Args:
            batch: As it was before the forward pass.
            targets: Of it, without any mask.
            outputs: Logits or predictions.
            pull: Gradient of the model's loss with respect to the outputs; None: not known.
        """
        self._looks += 1
        undecided = False
        for place, mask in tensors_at(batch):
            if place in self._rejected or place in self.found or not _may_be_mask(mask, targets):
                continue
            mask = mask.reshape(targets.shape)
            if bool((mask == mask.flatten()[0]).all()):
                undecided = True  # leaves nothing out, or is the inverse of one that does
                continue
            off = None if pull is None else _left_out(mask, targets, outputs, pull)
            if off is None:
                self._rejected.add(place)
            elif off < 0:
                undecided = True
            else:
                self.found[place] = off
        self._open = undecided and self._looks < _LOOKS

    def mark(self, batch: Any, targets: torch.Tensor) -> torch.Tensor:
        """Return targets with the mark of ignored ones (-100, NaN for floats) where a mask leaves them out.

        Raises:
            TaskError: A mask is missing from the batch, or has another shape than the targets.
        """
        if self._key is None and not self.found:
            return targets
        if self._key is not None:
            masks = [(f"keys.mask={self._key!r}", _named(batch, self._key), 0)]
        else:
            placed = dict(tensors_at(batch))
            masks = [(place, placed.get(place), off) for place, off in self.found.items()]
        for place, mask, off in masks:
            if not isinstance(mask, torch.Tensor) or mask.numel() != targets.numel():
                shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else "missing"
                raise TaskError(f"the mask at {place} is {shape}, the targets are {tuple(targets.shape)}")
            out = mask.reshape(targets.shape).to(targets.device) == off
            # What does not count is NaN among numbers, and -100 among classes, as PyTorch's cross entropy has it.
            if targets.is_floating_point():
                targets = targets.masked_fill(out, torch.nan)
            else:
                targets = targets.long().masked_fill(out, -100)
        return targets


def _named(batch: Any, key: str | int) -> Any:
    try:
        return part_of(batch, key)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise TaskError(f"the batch has no mask at keys.mask={key!r}") from error


def _may_be_mask(one: torch.Tensor, targets: torch.Tensor) -> bool:
    """Return whether a tensor has one 0 or 1 for each target, and is not the targets themselves."""
    if not one.dim() or one.numel() != targets.numel() or len(one) != len(targets) or one.is_complex():
        return False
    if [size for size in one.shape if size > 1] != [size for size in targets.shape if size > 1]:
        return False
    same = bool((one.reshape(targets.shape) == targets).all())
    return not same and bool(((one == 0) | (one == 1)).all())


def _left_out(mask: torch.Tensor, targets: torch.Tensor, outputs: torch.Tensor, pull: torch.Tensor) -> int | None:
    """Return the value of a mask where the loss has no gradient; None: it does not go by it; -1: this does not show."""
    # Targets that have a mark anyhow show nothing: Hugging Face's labels are -100 where attention_mask is 0.
    unmarked = ~targets.isnan() if targets.is_floating_point() else targets >= 0
    shown = False
    for off in (0, 1):
        out, kept = (mask == off) & unmarked, (mask != off) & unmarked
        if not bool(out.any()):
            continue
        shown = True
        for still in _stills(targets, outputs, pull):
            if bool(still[out].all()) and float(still[kept].float().mean()) < 0.5:
                return off
    # One side is empty where the marks of the targets cover it.
    return None if shown and bool(((mask == 0) & unmarked).any() and ((mask == 1) & unmarked).any()) else -1


def _stills(targets: torch.Tensor, outputs: torch.Tensor, pull: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield at which targets the loss has no gradient, by every reading of the shapes: bool of the targets' shape."""
    if pull.numel() == targets.numel():
        yield (pull == 0).reshape(targets.shape)
    for dim in (1, -1) if outputs.dim() > 2 else (1,):
        if outputs.dim() < 2:
            continue
        still_BX = (pull.movedim(dim, 1) == 0).all(1)
        if still_BX.shape != class_numbers(targets, outputs, dim).shape:
            continue
        yield still_BX.reshape(targets.shape)
        if still_BX.dim() == 2:
            # Position t is judged by the target at t + 1; no position is judged by the first.
            yield torch.cat([torch.ones_like(still_BX[:, :1]), still_BX[:, :-1]], 1).reshape(targets.shape)
