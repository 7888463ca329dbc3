"""A comparison as one HTML file that explains itself: no network, light and dark, on a phone and on paper.

selection = select_outcomes(archive)
page = report_page(compare_runs(archive, selection=selection), selection)
write_report(page, Path("report.html"))
"""

from __future__ import annotations

from reuse_algos.compare.budgets import BudgetComparison
from reuse_algos.compare.html.budget import budget_report
from reuse_algos.compare.html.document import check_report_path, write_report
from reuse_algos.compare.html.plain import comparison_report
from reuse_algos.compare.results import Comparison
from reuse_algos.compare.table import Selection

__all__ = ["budget_report", "check_report_path", "comparison_report", "report_page", "write_report"]


def report_page(comparison: Comparison | BudgetComparison, selection: Selection) -> str:
    """The page of a comparison of either kind.

    Args:
        comparison: what to show.
        selection: the runs that it was made from.
    """
    if isinstance(comparison, Comparison):
        return comparison_report(comparison, selection)
    manifests = {outcome.run_id: outcome.manifest for group in selection.groups.values() for outcome in group}
    return budget_report(comparison, manifests)
