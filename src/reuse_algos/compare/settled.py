"""What the runs themselves say about a question: which group is the baseline, and what a printed target is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from reuse_algos.compare.outcomes import Outcome, Outcomes
from reuse_algos.compare.question import Mode, Question
from reuse_algos.compare.show.words import format_number


def settled(question: Question, outcomes: Outcomes) -> Question:
    """Return the question with its baseline named and its target unrounded.

    Args:
        question: What is asked. Where it names no baseline, that is the group whose runs all have the tag ``role:
            baseline``, else the one that is called ``baseline``.
        outcomes: The runs.
    """
    groups = outcomes.groups
    said = [name for name, runs in groups.items() if all(run.role == "baseline" for run in runs)]
    # Two groups that both say so leave it to the name.
    baseline = question.baseline or (said[0] if len(said) == 1 else "baseline")
    target = None if question.target is None else _unrounded(question.target, groups, outcomes.mode)
    return replace(question, baseline=baseline, target=target)


def _unrounded(target: float, groups: Mapping[str, Sequence[Outcome]], mode: Mode) -> float:
    """Return the target, or the value that a table prints as the target and that just misses it."""
    printed = format_number(target)
    if float(printed) != target:  # it was not read off a table
        return target
    values = [run.final for group in groups.values() for run in group]
    for group in groups.values():
        budgets = {run.budget: [one.final for one in group if one.budget == run.budget] for run in group}
        values += [math.fsum(finals) / len(finals) for finals in (*budgets.values(), [run.final for run in group])]
    # 0.8463 is typed for 0.846267, which is how tables print it; its own rounding must not make it miss.
    alike = [value for value in values if format_number(value) == printed]
    near = [value for value in alike if (value < target if mode == "max" else value > target)]
    if not near:
        return target
    return min(near) if mode == "max" else max(near)
