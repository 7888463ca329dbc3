"""Compare archived runs: what does it cost to be as good as the baseline? The answer can be "no difference".

    comparison = compare_runs(RunArchive("archive"), group_by="tags.method", baseline="baseline")
    comparison.group("distilled").verdict  # "faster", "slower", "no difference" or "not enough runs"

    curves = compare_archive_budgets(RunArchive("archive"))  # groups that were trained at several budgets each
    print(curves.group("distilled").sentence)

How the intervals are made, and where they stop being true, is in :mod:`reuse_algos.compare.curves` (default target),
:func:`reuse_algos.compare.statistics.speedup_of_runs` (declared target) and :mod:`reuse_algos.compare.budget_curves`.
"""

from reuse_algos.compare.budget_render import budget_comparison_table
from reuse_algos.compare.budget_table import BudgetRun, compare_archive_budgets, compare_budgets
from reuse_algos.compare.budgets import BudgetComparison, BudgetGroup, BudgetPoint
from reuse_algos.compare.outcomes import RunOutcome
from reuse_algos.compare.plot import plot_comparison
from reuse_algos.compare.recommend import Recommendation, recommend_from_archive, recommend_runs
from reuse_algos.compare.recommend_render import recommendation_table
from reuse_algos.compare.render import comparison_table, runs_table
from reuse_algos.compare.results import Comparison, CostToTarget, GroupResult, RunResult
from reuse_algos.compare.statistics import Interval, Speedup
from reuse_algos.compare.table import Selection, compare_runs, select_outcomes

__all__ = [
    "BudgetComparison",
    "BudgetGroup",
    "BudgetPoint",
    "BudgetRun",
    "Comparison",
    "CostToTarget",
    "GroupResult",
    "Interval",
    "Recommendation",
    "RunOutcome",
    "RunResult",
    "Selection",
    "Speedup",
    "budget_comparison_table",
    "compare_archive_budgets",
    "compare_budgets",
    "compare_runs",
    "comparison_table",
    "plot_comparison",
    "recommend_from_archive",
    "recommend_runs",
    "recommendation_table",
    "runs_table",
    "select_outcomes",
]
