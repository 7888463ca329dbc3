"""Which classes the student and its teachers have in common, where classes were added, removed or reordered.

Shapes: B rows, C classes of the student, J of a teacher, M that all of them know.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reuse_algos.archive import PriorRun
from reuse_algos.data.examples.identity import same_data
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import PriorRunMismatchError
from reuse_algos.priors.choosing import match_classes

_FEWEST = 2  # a distribution over one class says nothing


class KnownClasses:
    """Picks the logits of the common classes, so that columns of student and teachers stand for the same class.

    Args:
        here_M: int64, columns of the student; None where all have the same classes, and nothing is picked.
        there: For each prior run int64 ``[M]``, its columns of the same classes.
        classes: C and, for each prior run, J.
    """

    def __init__(
        self,
        here_M: torch.Tensor | None = None,
        there: Sequence[torch.Tensor] = (),
        classes: tuple[int, Sequence[int]] = (0, ()),
    ) -> None:
        self.here_M, self.there, self._classes = here_M, list(there), classes

    def of_student(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """Return ``[B, M, ...]`` of the student's ``[B, C, ...]``.

        Raises:
            PriorRunMismatchError: There are not as many logits as class names.
        """
        return logits_BC if self.here_M is None else _picked(logits_BC, self.here_M, self._classes[0], "this run")

    def of_teacher(self, run: int, logits_BJ: torch.Tensor) -> torch.Tensor:
        """Return ``[B, M, ...]`` of ``[B, J, ...]``, logits of a teacher from the prior run of this number.

        Raises:
            PriorRunMismatchError: There are not as many logits as class names.
        """
        if self.here_M is None:
            return logits_BJ
        return _picked(logits_BJ, self.there[run], self._classes[1][run], f"the prior run number {run + 1}")


def _picked(logits: torch.Tensor, columns_M: torch.Tensor, classes: int, whose: str) -> torch.Tensor:
    if logits.shape[1] != classes:
        raise PriorRunMismatchError(
            f"{whose} has {classes} class names and logits of shape {tuple(logits.shape)} (dimension 1 is the "
            "classes), so it is not known which column is which class."
        )
    return logits.index_select(1, columns_M.to(logits.device))


def find_known_classes(
    runs: Sequence[PriorRun], num_classes: int | None, info: DatasetInfo | None, mismatch: str
) -> KnownClasses:
    """Return the classes that the current run and all prior runs have, by name.

    Args:
        runs: Prior runs, at least one.
        num_classes: Of the current run.
        info: The current train data; None where they are not known.
        mismatch: ``refuse`` other classes, or ``allow`` them: then the common ones are used.

    Raises:
        PriorRunMismatchError: Classes differ and that is refused, or cannot be told apart by name, or fewer than two
            are common to all.
    """
    ours = list(info.class_names or ()) if info else []
    different = None
    for run in runs:
        try:
            match_classes(run, num_classes, ours)
        except PriorRunMismatchError as error:
            if mismatch != "allow":
                advice = "Or say mismatch: allow, to distil the classes of the same name."
                raise PriorRunMismatchError(f"{error} {advice}") from error
            _refuse_contradiction(run, info, error)
            # The first is reported: one run that differs makes all of them be matched by name.
            different = different or error
    if different is None:
        return KnownClasses()
    theirs = [list(run.manifest.dataset.class_names or ()) if run.manifest.dataset else [] for run in runs]
    if not all(names and len(set(names)) == len(names) for names in (ours, *theirs)):
        raise PriorRunMismatchError(f"{different} They cannot be matched by name: names are missing or not unique.")
    # In the order of the student, whose columns the terms are computed in.
    common = [name for name in ours if all(name in names for names in theirs)]
    if len(common) < _FEWEST:
        raise PriorRunMismatchError(
            f"{different} {len(common)} classes are common to this run and its prior runs, too few to distil."
        )
    here_M, *there = (torch.tensor([names.index(name) for name in common]) for names in (ours, *theirs))
    return KnownClasses(here_M, there, (len(ours), [len(names) for names in theirs]))


def _refuse_contradiction(run: PriorRun, info: DatasetInfo | None, error: PriorRunMismatchError) -> None:
    """Refuse the very same labels of the very same examples under other names: one of the two is wrong."""
    record = run.manifest.dataset
    if record is None or info is None or not same_data(info, record.fingerprint, record.key_fingerprint):
        return
    # Not strict: classes may have been added at the end, which contradicts nothing.
    if any(a != b for a, b in zip(record.class_names or (), info.class_names or (), strict=False)):
        raise PriorRunMismatchError(f"{error} Examples and labels are the same, so the names contradict them.")
