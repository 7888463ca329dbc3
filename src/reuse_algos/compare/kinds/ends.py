"""Read groups whose last values alone are compared: no target and no costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from reuse_algos.compare.kinds.reader import Reading
from reuse_algos.compare.kinds.training import pairs_by_seed
from reuse_algos.compare.outcomes import Outcome
from reuse_algos.compare.question import Question

__all__ = ["Ends"]


class Ends:
    """The reader of a question over ends.

    Args:
        question: What is asked.
        baseline: The baseline's runs.
    """

    method: Literal["ends"] = "ends"
    target = math.nan

    def __init__(self, question: Question, baseline: Sequence[Outcome]) -> None:
        self._question, self._baseline = question, baseline

    def read(self, group: Sequence[Outcome]) -> Reading:
        """Read one group.

        Args:
            group: Its runs; the baseline's own for the baseline.
        """
        own = group is self._baseline
        paired = None if own else pairs_by_seed(self._baseline, group, self._question)
        return Reading(runs=group, basis=f"n = {len(group)}", paired=paired, bound="", speedups={})
