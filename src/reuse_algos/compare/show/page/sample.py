"""A page of very many runs lists and draws a sample of them; every mean and limit is still that of all runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from reuse_algos.compare.result import Comparison, Group, Run
from reuse_algos.compare.show.drawing import Chart

MAX_RUNS = 500
"""The most runs that a page lists one by one: with their curves and recipes, about 2 MB."""


class _Sampled(Group):
    """A group whose ``runs`` are some of its runs, and whose numbers are those of all."""

    def __init__(self, whole: Group, runs: list[Run]) -> None:
        fields = {field.name: getattr(whole, field.name) for field in dataclasses.fields(whole)}
        super().__init__(**{**fields, "runs": runs})
        object.__setattr__(self, "_whole", whole)

    def __getattribute__(self, name: str) -> object:
        if name in ("n", "reached", "run_ids", "seeds", "setup_seconds", "harvest_seconds"):
            return getattr(object.__getattribute__(self, "_whole"), name)
        return super().__getattribute__(name)


def sampled(comparison: Comparison, most: int = MAX_RUNS) -> Comparison:
    """Return a comparison that lists at most about so many runs, evenly spread over each group, and says so.

    Args:
        comparison: The comparison of all runs.
        most: The most runs; of each group at least one is kept. Default: 500.
    """
    total = sum(group.n for group in comparison.groups)
    if total <= most:
        return comparison
    groups: list[Group] = []
    for group in comparison.groups:
        count = max(1, most * group.n // total)
        groups.append(_Sampled(group, [group.runs[k * group.n // count] for k in range(count)]))
    kept = sum(len(group.runs) for group in groups)
    note = f"Of {total:,} runs, {kept:,} are listed and drawn one by one, evenly spread; all count in every number."
    return dataclasses.replace(comparison, groups=groups, notes=[*comparison.notes, note])


def only_runs(charts: list[Chart], run_ids: Collection[str]) -> list[Chart]:
    """Return charts in which only these runs have lines of their own."""

    def thinned(chart: Chart) -> Chart:
        series = [
            dataclasses.replace(one, runs=[run for run in one.runs if run["run_id"] in run_ids]) for one in chart.series
        ]
        return dataclasses.replace(chart, series=series)

    return [thinned(chart) for chart in charts]
