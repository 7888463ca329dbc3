"""What replayed rows add to the loss, and how far they still fool the model.

Legend: B rows, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from composer.utils import dist
from torch import Tensor, nn

from reuse_algos.algorithms.history_curriculum.example_losses import total_of
from reuse_algos.errors import StaleReplayWarning

__all__ = ["ReplaySums", "combined_loss", "fooling_rate", "row_errors", "warn_stale", "with_idle_parameters"]


def combined_loss(loss: Any, adversarial: Tensor | None, clean_share: float, adversarial_share: float) -> Any:
    """``clean_share * L + adversarial_share * L_adv`` in the structure that the model's loss has.

    Args:
        loss: L: a tensor, a mapping (with or without ``total``) or a tuple of tensors.
        adversarial: L_adv, one number; None where there are no replayed rows, and L is only scaled.
        clean_share: at least 0.
        adversarial_share: at least 0.
    """
    if adversarial is None:
        adversarial = total_of(loss).detach().new_zeros(())
    added = adversarial_share * adversarial
    if isinstance(loss, Mapping):
        if "total" in loss:
            total = clean_share * loss["total"] + added.to(loss["total"].dtype)
            return {**loss, "total": total, "adversarial": adversarial}
        return {**{key: clean_share * value for key, value in loss.items()}, "adversarial": added}
    if isinstance(loss, (tuple, list)):
        return (*(clean_share * part for part in loss), added)
    return clean_share * loss + added


def with_idle_parameters(loss: Any, parameters: Iterable[nn.Parameter]) -> Any:
    """The same loss, to which the parameters contribute nothing: their gradients are zeros, not missing.

    DistributedDataParallel waits for every parameter's gradient in every backward pass.

    Args:
        loss: a tensor, a mapping (with or without ``total``) or a tuple of tensors.
        parameters: what had no part in the forward pass.
    """
    flat = [parameter.reshape(-1) for parameter in parameters]
    if not flat:
        return loss
    nothing = torch.cat(flat)[:0].sum()  # not 0 * sum, which is NaN where a parameter is infinite
    if isinstance(loss, Mapping):
        key = "total" if "total" in loss else next(iter(loss))
        return {**loss, key: loss[key] + nothing.to(loss[key].dtype)}
    if isinstance(loss, (tuple, list)):
        return (loss[0] + nothing.to(loss[0].dtype), *loss[1:])
    return loss + nothing.to(loss.dtype)


def row_errors(logits_BK: Tensor, targets_B: Tensor) -> Tensor:
    """1 where the largest logit is not the target's: float32 ``[B]``, a share of the positions of dense outputs.

    Args:
        logits_BK: ``[B, K, ...]``.
        targets_B: class indices ``[B, ...]`` or class probabilities ``[B, K, ...]``.
    """
    if targets_B.dim() == logits_BK.dim():
        targets_B = targets_B.argmax(1)
    wrong = (logits_BK.detach().argmax(1) != targets_B).float()
    return wrong.flatten(1).mean(1) if wrong.dim() > 1 else wrong


def fooling_rate(clean_error: float, adversarial_error: float) -> float | None:
    """Share of the examples the model is right about that perturbations turn: 0 (stale) to 1.

    ``(adversarial_error - clean_error) / (1 - clean_error)``, clamped to that range; None where the model is right
    about nothing.
    """
    if clean_error >= 1:
        return None
    return min(1.0, max(0.0, (adversarial_error - clean_error) / (1 - clean_error)))


def warn_stale(fooling: float, warn_below: float) -> None:
    """Say that replayed perturbations hardly fool the model any more.

    Args:
        fooling: their :func:`fooling_rate` over an epoch.
        warn_below: what it should have been.
    """
    warnings.warn(
        f"AdversarialReplay: the replayed perturbations turned {fooling:.1%} of what the model is right about in this "
        f"epoch, less than warn_below={warn_below:.1%}: they are stale, and cost a forward pass for little. Harvest a "
        "newer run or a stronger attack (`reuse-algos harvest RUN --signals adversarial`), or stop earlier (stop).",
        StaleReplayWarning,
        stacklevel=2,
    )


class ReplaySums:
    """What is logged of a batch, summed on the training device, so that nothing waits before the batch ends.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device) -> None:
        # Loss and rows of clean and of replayed rows, errors and rows of both.
        self._sums_8 = torch.zeros(8, dtype=torch.float32, device=device)

    def add_clean_loss(self, mean: Tensor, num_rows: int) -> None:
        """Add the mean loss over clean rows of one microbatch, and their number."""
        self._add(0, mean * num_rows, num_rows)

    def add_adversarial_loss(self, mean: Tensor, num_rows: int) -> None:
        """Add the mean loss over replayed rows of one microbatch, and their number."""
        self._add(2, mean * num_rows, num_rows)

    def add_errors(self, clean_K: Tensor, adversarial_R: Tensor) -> None:
        """Add the errors of the clean rows that are compared, and of the replayed ones."""
        self._add(4, clean_K.sum(), len(clean_K))
        self._add(6, adversarial_R.sum(), len(adversarial_R))

    def _add(self, place: int, total: Tensor, num_rows: int) -> None:
        self._sums_8[place] += total.detach().float()
        self._sums_8[place + 1] += num_rows

    def over_ranks(self, wanted: int) -> Tensor:
        """The sums of all ranks, and how many rows were to be replayed: float64 ``[9]`` on the CPU."""
        totals_9 = torch.cat([self._sums_8.double(), self._sums_8.new_tensor([wanted]).double()])
        if dist.get_world_size() > 1:
            dist.all_reduce(totals_9)
        return totals_9.cpu()

    @staticmethod
    def read(totals_9: Tensor) -> dict[str, float]:
        """The metrics by name; what has no rows is left out."""
        clean, num_clean, adversarial, replayed, errors, compared, fooled, looked_at, wanted = totals_9.tolist()
        found = {"rows": looked_at, "coverage": looked_at / wanted if wanted else 0.0}
        if num_clean:
            found["clean_loss"] = clean / num_clean
        if replayed:
            found["adversarial_loss"] = adversarial / replayed
            found["adversarial_error"] = fooled / looked_at
        if compared:
            found["clean_error"] = errors / compared
            fooling = fooling_rate(errors / compared, fooled / looked_at) if looked_at else None
            if fooling is not None:
                found["fooling"] = fooling
        return found
