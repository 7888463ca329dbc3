"""Compare archived runs: what does it cost to be as good as the baseline? The answer can be "no difference".

    comparison = compare_runs(RunArchive("archive"), group_by="tags.method", baseline="baseline")
    comparison.group("distilled").verdict  # "faster", "slower", "no difference" or "not enough runs"

How the intervals are made, and where they stop being true, is in :mod:`reuse_algos.compare.curves` (default target) and
:func:`reuse_algos.compare.statistics.speedup_of_runs` (declared target).
"""

from reuse_algos.compare.outcomes import RunOutcome
from reuse_algos.compare.plot import plot_comparison
from reuse_algos.compare.render import comparison_table, runs_table
from reuse_algos.compare.results import Comparison, CostToTarget, GroupResult, RunResult
from reuse_algos.compare.statistics import Interval, Speedup
from reuse_algos.compare.table import Selection, compare_runs, select_outcomes

__all__ = [
    "Comparison",
    "CostToTarget",
    "GroupResult",
    "Interval",
    "RunOutcome",
    "RunResult",
    "Selection",
    "Speedup",
    "compare_runs",
    "comparison_table",
    "plot_comparison",
    "runs_table",
    "select_outcomes",
]
