"""What the microbatches of one batch add up to, over all ranks.

Shapes: B rows, C classes or labels, X positions of an example.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reuse_algos.algorithms.prior_run_distillation.loss.layout import agreement
from reuse_algos.algorithms.prior_run_distillation.loss.section import Weighing
from reuse_algos.training.ranks import sum_over_ranks
from reuse_algos.training.tasks.task import Task


class Totals(NamedTuple):
    """Sums over the rows of a batch.

    Attributes:
        term: Of the terms.
        agree: Of the agreement with the teachers.
        compared: Rows whose answer can be compared.
        seen: Rows with a target.
        rows: All rows.
        own: Squared norm of the gradient of the model's own loss with respect to the logits; 0 where not measured.
        of_term: That of the term.
        inner: The inner product of the two.
        judged: Rows whose answers were held against the labels; 0 where not looked at.
        right: Of these, the student's right answers.
        taught: And the teachers'.
    """

    term: float
    agree: float
    compared: float
    seen: float
    rows: float
    own: float
    of_term: float
    inner: float
    judged: float
    right: float
    taught: float

    def ratio(self, base: float, weight: float) -> float | None:
        """Return the norm of the weighed term's gradient over that of the weighed loss; None where not measured."""
        if self.own <= 0 or self.of_term <= 0 or base <= 0:
            return None
        # The sums hold squares of norms over the same rows, so their number cancels.
        return weight * self.of_term**0.5 / (base * self.own**0.5)

    def metrics(self) -> dict[str, float]:
        """Return the means over the rows, for the log."""
        found = {"loss": self.term / self.rows, "coverage": self.seen / self.rows}
        if self.compared:  # of regression, and of rows without a counted target, no answer can be compared
            found["agreement"] = self.agree / self.compared
        return found

    @property
    def own_per_row(self) -> float | None:
        """Root mean square over the rows of the gradient of the model's own loss; None where not measured."""
        return (self.own / self.rows) ** 0.5 if self.own > 0 else None

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two gradients, -1 to 1; None where not measured."""
        norms = (self.own * self.of_term) ** 0.5
        return self.inner / norms if norms > 0 else None


class Tally:
    """Adds up the microbatches of the running batch."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._sums)

    def clear(self) -> None:
        """Forget the batch."""
        self._sums = []

    @torch.no_grad()
    def add(
        self,
        term: Tensor,
        task: Task,
        student_BC: Tensor,
        target_BC: Tensor,
        yes_BC: Tensor,
        weighing: Weighing,
        pulled: Tensor | None,
        judged: Tensor | None = None,
    ) -> None:
        """Add a microbatch.

        Args:
            term: D.
            task: The task.
            student_BC: The student's logits.
            target_BC: What the term compares them with.
            yes_BC: Labels that the teachers say yes to, for binary and multilabel tasks.
            weighing: What counts.
            pulled: Of :func:`~reuse_algos.algorithms.prior_run_distillation.loss.strength.pulls`; None: not measured.
            judged: Number of rows whose answers were judged, and of right ones of the student and of its teachers,
                float ``[3]``. Default: not looked at.
        """
        seen = torch.ones(len(student_BC), device=term.device) if weighing.seen_B is None else weighing.seen_B.float()
        agree = agreement(task, student_BC, target_BC, yes_BC, weighing.counted_BX)
        compared = torch.zeros_like(seen) if agree is None else seen * ~agree.isnan()
        agree = compared if agree is None else agree.nan_to_num(0.0)
        rows = torch.full_like(term, len(seen))
        # A microbatch's loss is the mean over its own rows: times their number, its gradients are those of the batch.
        squares = torch.zeros(3, device=term.device) if pulled is None else pulled.to(term.device) * len(seen) ** 2
        answers = torch.zeros(3, device=term.device) if judged is None else judged.to(term.device)
        parts = [term.detach() * rows, (agree * seen).sum(), compared.sum(), seen.sum(), rows, *squares, *answers]
        # On the device, unread: a number asked for here would make the GPU wait at every microbatch.
        self._sums.append(torch.stack([part.float() for part in parts]))

    def read(self) -> Totals:
        """Return the sums over all ranks, and forget them; every rank must call this, after :meth:`add`."""
        sums = sum_over_ranks(torch.stack(self._sums).sum(0))
        self.clear()
        return Totals(*sums.tolist())
