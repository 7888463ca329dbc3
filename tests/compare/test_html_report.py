"""A page of more runs than it lists: a sample is listed and drawn, and every number is still that of all runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compare.asking import compare_budgets, compare_runs, select_outcomes
from compare.budget_records import records
from compare.synthetic_runs import METRIC, write_run
from reuse_algos.archive import RunArchive
from reuse_algos.compare import Comparison, Outcomes
from reuse_algos.compare.show.page import report_page
from reuse_algos.compare.show.page.sample import sampled


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'id="report-data"[^>]*>(.*?)</script>', page, flags=re.S)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def many() -> Comparison:
    """36 runs of a baseline, and 9 of a group that is twice as quick, over three budgets."""
    plain = records("baseline", (10, 20, 40), seeds=range(12))
    quick = records("quick", (10, 20, 40), 2.0, seeds=range(3))
    return compare_budgets([*plain, *quick], metric=METRIC, mode="max", target=0.55)


def test_a_sample_is_spread_evenly_and_said(many: Comparison) -> None:
    few = sampled(many, most=15)
    kept = {group.name: [run.run_id for run in group.runs] for group in few.groups}
    assert {name: len(ids) for name, ids in kept.items()} == {"baseline": 12, "quick": 3}
    for name, ids in kept.items():
        assert ids == [run.run_id for run in many.group(name).runs][::3]
    assert few.notes[-1] == "Of 45 runs, 15 are listed and drawn one by one, evenly spread; all count in every number."
    assert sampled(many, most=1500) is many


def test_the_page_of_a_sample_has_the_numbers_of_all_runs(many: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reuse_algos.compare.show.page.report.sampled", lambda found: sampled(found, most=15))
    data = data_of(report_page(many, Outcomes([], METRIC, "max")))["comparison"]
    for shown, group in zip(data["groups"], many.groups, strict=True):
        assert len(shown["runs"]) == group.n // 3
        assert shown["n"] == group.n
        for point, told in zip(group.points, shown["points"], strict=True):
            assert told["final"]["estimate"] == point.final.estimate
    quick = many.group("quick").speedups["steps"]
    assert data["groups"][1]["speedups"]["steps"]["estimate"] == quick.estimate


def test_curves_of_a_sample_are_drawn_and_the_mean_is_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reuse_algos.compare.show.page.report.sampled", lambda found: sampled(found, most=4))
    archive = RunArchive(tmp_path / "archive", create=True)
    values = {seed: [0.5, 0.6, 0.7 + 0.01 * seed] for seed in range(8)}
    for seed, one in values.items():
        write_run(archive, "baseline", seed, one)
    selection = select_outcomes(archive)
    page = report_page(compare_runs(archive, selection=selection, target=0.6), selection)
    data = data_of(page)
    assert len(data["runs"]) == 4
    series = data["charts"][0]["series"][0]
    assert [len(series["runs"]), series["y"][-1]] == [4, pytest.approx(np.mean([one[-1] for one in values.values()]))]
    assert "Of 8 runs, 4 are listed and drawn one by one" in page
