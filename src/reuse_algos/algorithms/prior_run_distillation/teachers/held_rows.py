"""Cached logits of the first batch, held against what the archived model says of these very inputs.

Whatever makes the inputs something else than what was harvested (another normalisation, another size, a transform of
the batch) shows here, and nowhere else before the end. Costs one forward pass.

Shapes: B rows, C classes, R rows that are compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from composer import State
from torch import Tensor, nn

from reuse_algos.algorithms.prior_run_distillation.loss.layout import (
    Microbatch,
    at_smaller_size,
    check_top_k,
    in_layout,
)
from reuse_algos.algorithms.prior_run_distillation.teachers.known_accuracy import odd_answers
from reuse_algos.algorithms.prior_run_distillation.teachers.source_choice import signal_name
from reuse_algos.algorithms.prior_run_distillation.teachers.sources import CachedTeachers, answers
from reuse_algos.archive import PriorRun
from reuse_algos.errors import HarmWarning, PriorRunMismatchError
from reuse_algos.priors.model import archived_model
from reuse_algos.priors.views import age_of_slot
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.first_batch.rows import check_rows
from reuse_algos.training.interplay import clean_rows, hides_inputs

# Of the logits' norm: bfloat16 has three digits, and a deep model makes a few percent of their rounding.
_MOST_OFF = 0.1

# Logits of another input are as far from the model's as this, or farther: its own would be nearer than zeros are.
_UNRELATED = 1.0

# Share of equal answers that is enough where only the largest logits are archived.
_FEWEST_ALIKE = 0.75


def _hold_rows(
    run: PriorRun,
    weights: str,
    cached_BC: Tensor,
    said_BC: Tensor,
    seen_B: Tensor,
    views: Sequence[int],
    kept: int | None,
    odd: str | None,
) -> str:
    """Hold cached logits ``[B, C, ...]`` against the archived model's, and say in words how near they are."""
    rows_R = seen_B.nonzero().flatten()
    if not len(rows_R):
        return "no row of the first batch has cached logits"
    cached, said = (part.index_select(0, rows_R.to(part.device)).float() for part in (cached_BC, said_BC))
    cached = cached.to(said.device)
    # Masked classes are -inf on either side, and would make every norm infinite.
    both = cached.isfinite() & said.isfinite()
    cached, said = cached.where(both, 0.0), said.where(both, 0.0)
    off = float((cached - said).norm() / said.norm().clamp_min(1e-12))
    alike = float((cached.argmax(1) == said.argmax(1)).float().mean()) if cached.shape[1] > 1 else 1.0
    found = (
        f"{len(rows_R)} rows of run {run.id} are {off:.1%} off its weights {weights!r}, and {alike:.0%} have the same "
        "answer"
    )
    signal = run.signal(signal_name(weights))
    seen = sorted({views[row] for row in rows_R.tolist()} & set(signal.slots)) or signal.slots[:1]
    ages = [age_of_slot(run, signal, view) for view in seen]
    # Captured rows are those of earlier weights in training mode: they may differ, and only harvested ones may not.
    if any(age is not None for age in ages):
        oldest = max(age for age in ages if age is not None)
        # Rows of a short training may be far from its end. That the model itself is at a loss here is not by chance.
        if off > _UNRELATED and odd is not None:
            warnings.warn(
                f"PriorRunDistillation: cached logits of the first batch: {found}, and {odd}", HarmWarning, stacklevel=2
            )
        return f"{found}; they were captured in training, {oldest} epochs before its end, so they may differ"
    # Of top_k the smaller logits are spread evenly, so their norm says little: then the answers are compared.
    if (off > _MOST_OFF) if kept is None else (alike < _FEWEST_ALIKE):
        raise PriorRunMismatchError(
            f"cached logits of the first batch: {found}. They were harvested from these weights, so the inputs are not "
            "those that were harvested: another normalisation, size or transform. Harvest again with the data as they "
            "are now, use source: live, or say mismatch: allow."
        )
    return found


class CachedCheck:
    """Checks the cached logits of the first teacher once, in the first microbatch.

    Args:
        run: The first prior run.
        weights: Name of its archived weights.
        student: An untouched copy of the student's model, which may be of the same architecture; None: there is none.
        keys: Where inputs, targets and logits lie.
        mismatch: ``refuse`` what differs, or ``allow`` it and only say so.
    """

    def __init__(self, run: PriorRun, weights: str, student: nn.Module | None, keys: BatchKeys, mismatch: str) -> None:
        self._run, self._weights, self._student = run, weights, student
        self._keys, self._mismatch = keys, mismatch

    def look(self, state: State, microbatch: Microbatch, cached: CachedTeachers, temperature: float) -> str:
        """Return what was checked and found, in words.

        Args:
            state: At the first AFTER_LOSS.
            microbatch: With its examples. It is left alone, and so is the student.
            cached: The teachers.
            temperature: At which the largest logits must be enough, where only these are archived.

        Raises:
            DataError: Rows of the batch are not the examples and views that they are said to be.
            PriorRunMismatchError: Harvested logits are something else than what their model says, or the largest
                logits alone are not enough at the temperature.
        """
        batch, examples, _, _ = microbatch
        assert examples is not None
        used = set(cached.slots_used)
        found, seen_B = cached.targets(state, batch, examples, range(len(cached.names)))
        cached.slots_used.intersection_update(used)  # a check does not count as use of a harvest
        for name, logits_BC in zip(cached.names, found, strict=True):
            if broken := int(logits_BC.isnan().flatten(1).any(1).sum()):
                raise PriorRunMismatchError(
                    f"cached logits of {name} are NaN in {broken} of {len(logits_BC)} rows of the first batch: its run "
                    "diverged. Choose another run, or weights from before it did."
                )
        for name, logits_BC, kept in zip(cached.names, found, cached.kept_classes, strict=True):
            if kept:
                check_top_k(name, logits_BC, kept, temperature)
        if self._mismatch == "refuse":
            same = check_rows(state, batch, examples, clean_rows(state), self._keys, "cached logits")
        else:
            same = "rows not compared with their examples (mismatch: allow)"
        assert seen_B is not None
        return f"{same}; {self._held(state, microbatch, cached, found[0], seen_B)}"

    def _held(
        self, state: State, microbatch: Microbatch, cached: CachedTeachers, cached_BC: Tensor, seen_B: Tensor
    ) -> str:
        batch, examples, task, rows = microbatch
        assert examples is not None
        if hides_inputs(state):
            return "no model compared, as the batch has no inputs"
        try:
            said_BC = in_layout(task, self._answers(state, batch), rows.logits_BCX)
        except Exception as error:  # other people's models fail in any way, and this check is not worth a run
            return f"no model compared: {error}"
        # Where a mismatch is allowed, the run may have other classes, which are matched by name only later.
        rated = self._weights == "last" and self._mismatch == "refuse"
        odd = odd_answers(self._run, said_BC, microbatch) if rated else None
        if not cached.in_layout[0]:
            cached_BC = in_layout(task, cached_BC, rows.logits_BCX)
        said_BC = at_smaller_size(said_BC, cached_BC)
        kept, views = cached.kept_classes[0], examples.views.tolist()
        try:
            return _hold_rows(self._run, self._weights, cached_BC, said_BC, seen_B, views, kept, odd)
        except PriorRunMismatchError as error:
            if self._mismatch == "refuse":
                raise
            return str(error)

    def _answers(self, state: State, batch: Any) -> Tensor:
        """Return what the archived model says of the microbatch: the one extra forward pass."""
        module = state.device.module_to_device(archived_model(self._run, self._weights, like=self._student))
        return answers(module, batch, state, self._keys)
