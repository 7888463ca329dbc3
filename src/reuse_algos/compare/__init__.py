"""Compare runs: what does it cost to be as good as the baseline? The answer can be "no difference".

    question = Question(group_by="tags.method", baseline="baseline")
    comparison = compare(read_outcomes(RunArchive("archive"), question), question)
    comparison.group("distilled").verdict  # "faster", "slower", "no difference" or "not enough runs"

``Question(over="budgets")`` compares groups that were trained at several budgets each. How the intervals are made, and
where they stop being true, is in :mod:`reuse_algos.compare.estimates.within_runs` and
:mod:`reuse_algos.compare.estimates.over_budgets`.
"""

from reuse_algos.compare.advice.recommend import Recommendation, recommend
from reuse_algos.compare.engine import compare
from reuse_algos.compare.estimates.interval import Interval, Speedup
from reuse_algos.compare.outcomes import Outcome, Outcomes
from reuse_algos.compare.question import Costs, Question
from reuse_algos.compare.reading import read_outcomes
from reuse_algos.compare.result import Comparison, Group, Point, Run

__all__ = [
    "Comparison",
    "Costs",
    "Group",
    "Interval",
    "Outcome",
    "Outcomes",
    "Point",
    "Question",
    "Recommendation",
    "Run",
    "Speedup",
    "compare",
    "read_outcomes",
    "recommend",
]
