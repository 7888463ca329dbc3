"""Short ways to ask, for tests: keyword arguments become a question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reuse_algos.archive import RunArchive
from reuse_algos.compare import (
    Comparison,
    Costs,
    Outcome,
    Outcomes,
    Question,
    Recommendation,
    compare,
    read_outcomes,
    recommend,
)

_COSTS = ("judge_by", "price_per_hour", "later_runs", "count_prior_training")


def question_of(**asked: Any) -> Question:
    costs = {name: asked.pop(name) for name in _COSTS if name in asked}
    return Question(**asked, costs=Costs(**costs))


def select_outcomes(archive: RunArchive, *, tags: Any = None, **asked: Any) -> Outcomes:
    return read_outcomes(archive, Question(**asked), tags)


def compare_runs(
    archive: RunArchive, *, selection: Outcomes | None = None, tags: Any = None, **asked: Any
) -> Comparison:
    question = question_of(**asked)
    return compare(selection or read_outcomes(archive, question, tags), question)


def compare_archive_budgets(archive: RunArchive, **asked: Any) -> Comparison:
    return compare_runs(archive, over="budgets", **asked)


def outcomes_of(runs: Sequence[Outcome], asked: dict[str, Any]) -> Outcomes:
    about = {name: asked.pop(name) for name in ("group_by", "archive", "archive_id", "prior_seconds") if name in asked}
    return Outcomes(runs, asked.pop("metric"), asked.pop("mode"), **about)


def compare_budgets(runs: Sequence[Outcome], **asked: Any) -> Comparison:
    outcomes = outcomes_of(runs, asked)
    return compare(outcomes, question_of(over="budgets", **asked))


def recommend_runs(runs: Sequence[Outcome], **asked: Any) -> Recommendation:
    outcomes = outcomes_of(runs, asked)
    return recommend(outcomes, question_of(**asked))


def recommend_from_archive(archive: RunArchive, *, tags: Any = None, **asked: Any) -> Recommendation:
    question = question_of(**asked)
    return recommend(read_outcomes(archive, question, tags), question)
