"""How far replayed rows still fool the model: errors of rows, sums over batches, and when they are stale.

Legend: B rows, R of them replayed, K classes.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from reuse_algos.errors import StaleReplayWarning
from reuse_algos.training.ranks import sum_over_ranks
from reuse_algos.training.tasks.task import mean_of_counted


def row_errors(logits_BK: Tensor, targets_B: Tensor) -> Tensor:
    """Return 1 where the largest logit is not the target's: float32 ``[B]``, a share of positions of dense outputs.

    Args:
        logits_BK: ``[B, K, ...]``.
        targets_B: Class indices ``[B, ...]`` or class probabilities ``[B, K, ...]``. Indices outside 0 to K-1 do not
            count; a row of nothing else is 0.

    >>> row_errors(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    tensor([0., 1.])
    """
    return _row_means(_wrong(logits_BK, targets_B), logits_BK, targets_B)


def turned_rows(clean_RK: Tensor, adversarial_RK: Tensor, targets_R: Tensor) -> Tensor:
    """Return 1 where the clean row's largest logit is the target's and the perturbed row's is not: float32 ``[R]``.

    Shares of the positions of dense outputs.

    Args:
        clean_RK: ``[R, K, ...]``.
        adversarial_RK: Of the same rows, perturbed.
        targets_R: As for :func:`row_errors`.

    >>> turned_rows(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([0]))
    tensor([1.])
    """
    turned = ~_wrong(clean_RK, targets_R) & _wrong(adversarial_RK, targets_R)
    return _row_means(turned, clean_RK, targets_R)


def _wrong(logits_BK: Tensor, targets_B: Tensor) -> Tensor:
    if targets_B.dim() == logits_BK.dim():
        targets_B = targets_B.argmax(1)
    return logits_BK.detach().argmax(1) != targets_B


def _row_means(wrong_B: Tensor, logits_BK: Tensor, targets_B: Tensor) -> Tensor:
    soft = targets_B.dim() == logits_BK.dim()
    counted_B = None if soft else (targets_B >= 0) & (targets_B < logits_BK.shape[1])
    return mean_of_counted(wrong_B.float(), counted_B, empty=0.0)


def fooling_rate(clean_error: float, adversarial_error: float) -> float | None:
    """Return an estimate of the share of what the model is right about that perturbations turn.

    It comes from errors on *different* rows: ``(adversarial_error - clean_error) / (1 - clean_error)``, clamped to 0
    (stale) to 1; None where the model is right about nothing. Rows that are wrong when clean and right when perturbed
    count against turned ones, so this is too low for a model that is still often wrong. Where the rows are paired,
    count :func:`turned_rows`.

    Args:
        clean_error: Share of wrong rows among clean ones, from 0 to 1.
        adversarial_error: Share of wrong rows among perturbed ones, from 0 to 1.

    >>> fooling_rate(clean_error=0.2, adversarial_error=0.6)
    0.49999999999999994
    """
    if clean_error >= 1:
        return None
    return min(1.0, max(0.0, (adversarial_error - clean_error) / (1 - clean_error)))


def warn_stale(fooling: float, warn_below: float) -> None:
    """Warn that replayed perturbations hardly fool the model any more."""
    warnings.warn(
        f"AdversarialReplay: the replayed perturbations turned {fooling:.1%} of what the model is right about in this "
        f"epoch, less than warn_below={warn_below:.1%}: they are stale, and cost a forward pass for little. Harvest a "
        "newer run or a stronger attack (`reuse-algos harvest RUN --signals adversarial`), or stop earlier (stop).",
        StaleReplayWarning,
        stacklevel=2,
    )


_TOTALS = (
    "clean_loss",
    "clean_rows",
    "adversarial_loss",
    "loss_rows",
    "clean_errors",
    "compared",
    "adversarial_errors",
    "rows",
    "chance",  # rows that a guess among the classes would have right, of those compared
    "turned",
    "paired",  # compared rows whose perturbed form was looked at, too
    "wanted",
)


class ReplaySums:
    """What is logged of a batch, summed on the training device.

    Args:
        device: Of the model.
    """

    def __init__(self, device: torch.device) -> None:
        # One tensor that is read once, when the batch has ended: each number that is read makes a GPU wait.
        self._sums = torch.zeros(len(_TOTALS) - 1, dtype=torch.float32, device=device)

    def add_clean_loss(self, mean: Tensor, num_rows: int) -> None:
        """Add the mean loss over clean rows of one microbatch, and their number."""
        self._add("clean_loss", mean * num_rows, num_rows)

    def add_adversarial_loss(self, mean: Tensor, num_rows: int) -> None:
        """Add the mean loss over replayed rows of one microbatch, and their number."""
        self._add("adversarial_loss", mean * num_rows, num_rows)

    def add_pairs(self, clean_RK: Tensor, adversarial_RK: Tensor, targets_R: Tensor) -> None:
        """Add what became of rows that the model saw both clean and perturbed: logits and targets."""
        self.add_rows(clean_RK, targets_R, adversarial_RK, targets_R)
        self._add("turned", turned_rows(clean_RK, adversarial_RK, targets_R).sum(), len(clean_RK))

    def add_rows(self, clean_KK: Tensor, targets_K: Tensor, adversarial_RK: Tensor, targets_R: Tensor) -> None:
        """Add the errors of the clean rows that are compared, and of replayed ones: logits and targets."""
        self._add("clean_errors", row_errors(clean_KK, targets_K).sum(), len(clean_KK))
        self._add("adversarial_errors", row_errors(adversarial_RK, targets_R).sum(), len(adversarial_RK))
        self._sums[_TOTALS.index("chance")] += len(clean_KK) / clean_KK.shape[1]

    def _add(self, name: str, total: Tensor, num_rows: int) -> None:
        place = _TOTALS.index(name)
        self._sums[place] += total.detach().float()
        self._sums[place + 1] += num_rows

    def over_ranks(self, wanted: int) -> Tensor:
        """Return the sums of all ranks, and how many rows were to be replayed: float64 on the CPU."""
        return sum_over_ranks(torch.cat([self._sums.double(), self._sums.new_tensor([wanted]).double()])).cpu()

    @staticmethod
    def read(totals: Tensor) -> dict[str, float]:
        """Return the metrics by name; what has no rows is left out."""
        of = dict(zip(_TOTALS, totals.tolist(), strict=True))
        found = {"rows": of["rows"], "coverage": of["rows"] / of["wanted"] if of["wanted"] else 0.0}
        if of["clean_rows"]:
            found["clean_loss"] = of["clean_loss"] / of["clean_rows"]
        if of["loss_rows"]:
            found["adversarial_loss"] = of["adversarial_loss"] / of["loss_rows"]
        if of["rows"]:
            found["adversarial_error"] = of["adversarial_errors"] / of["rows"]
        if of["compared"]:
            found["clean_error"] = of["clean_errors"] / of["compared"]
            right = of["compared"] - of["clean_errors"]
            fooling = None
            if of["paired"]:
                fooling = of["turned"] / right if right > 0 else None
            elif of["rows"]:
                fooling = fooling_rate(found["clean_error"], found["adversarial_error"])
            if fooling is not None:
                found["fooling"] = fooling
        return found

    @staticmethod
    def staleness(totals: Tensor) -> float | None:
        """Return the fooling of an epoch; None where the model cannot be judged by it yet, or nothing was replayed."""
        # An untrained model is turned by nothing. It is judged once its accuracy on the clean rows is at least a
        # quarter of the way from chance to 1: 33 % of 10 classes, 26 % of 100.
        of = dict(zip(_TOTALS, totals.tolist(), strict=True))
        right = of["compared"] - of["clean_errors"]
        if right < of["chance"] + (of["compared"] - of["chance"]) / 4:
            return None
        return ReplaySums.read(totals).get("fooling")
