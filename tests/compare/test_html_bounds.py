"""Where a side does not reach the target, pages and W&B say "at most", "at least" or "not known", as the tables do."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from compare.asking import compare_budgets, compare_runs, select_outcomes
from compare.budget_records import records
from compare.synthetic_runs import METRIC, write_run
from reuse_algos.archive import PriorUse, RunArchive
from reuse_algos.compare import Comparison, Outcomes
from reuse_algos.compare.show.dashboard import Bars, dashboard_of
from reuse_algos.compare.show.page import report_page

BUDGETS = (10, 20, 40)
NO_RUNS = Outcomes([], METRIC, "max")  # over budgets the runs only add their provenance


def over_budgets(target: float | None = None) -> Comparison:
    """Plain training, a group 2.5 times as quick with a harvest and a prior run of 60 s, and one 0.8 times as quick."""
    quick = records("quick", BUDGETS, 2.5, prior_run_ids=("prior",), harvest_seconds=9.0)
    return compare_budgets(
        [*records("baseline", BUDGETS), *quick, *records("tardy", BUDGETS, 0.8)],
        metric=METRIC,
        mode="max",
        group_by="tags.method",
        archive="made up",
        target=target,
        prior_seconds={"prior": 60.0},
    )


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'id="report-data"[^>]*>(.*?)</script>', page, flags=re.S)
    assert found is not None
    return json.loads(found[1])


def words_of(markup: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", "", markup)).split())


def bars_of(page: str, title: str) -> list[tuple[str, str | None, int]]:
    """For each bar of a plot its name with the words beside it, what its mark says, and how many bars are drawn."""
    (plot,) = re.findall(rf'aria-label="{title}">\s*<ul class="bars">(.*?)</ul>', page, flags=re.S)
    found = []
    for row in re.findall(r"<li .*?</li>", plot, flags=re.S):
        label = re.search(r"<title>(.*?)</title>", row, flags=re.S)
        (beside,) = re.findall(r'<div class="bar-words">(.*?)</div>', row, flags=re.S)
        beside = words_of(beside.replace("<span", " <span"))
        found.append((beside, label and unescape(label[1]), row.count('class="fill"')))
    return found


def rows_of(page: str, caption: str) -> dict[str, list[str]]:
    """The cells of a table by the name of the row."""
    (table,) = re.findall(rf"<caption>{caption}</caption>.*?<tbody>(.*?)</tbody>", page, flags=re.S)
    rows = [
        re.findall(r"<t[hd][ >].*?</t[hd]>", row, flags=re.S) for row in re.findall(r"<tr>.*?</tr>", table, flags=re.S)
    ]
    return {words_of(first): [words_of(cell) for cell in cells] for first, *cells in rows}


def by_group(bars: Bars) -> dict[str, dict[str, Any]]:
    rows = [dict(zip(bars.table.columns, row, strict=True)) for row in bars.table.rows]
    return {row["group"]: row for row in rows}


def test_a_ratio_of_two_limits_is_no_speed_up_and_one_of_one_limit_is_called_that() -> None:
    """The baseline and the tardy group do not reach 0.63: 40 epochs, 800 steps are less than each of them needs."""
    comparison = over_budgets(0.63)
    quick, tardy = (comparison.group(name).speedups["steps"] for name in ("quick", "tardy"))
    assert (quick.bound, tardy.bound, tardy.estimate) == (">=", "?", 1.0)
    # By hand: the line from 20 to 40 epochs, over log steps, reaches the target after 400 x 2 ** part steps.
    low, high = (0.75 - 0.9 * (2.5 * epochs) ** -0.5 for epochs in (20, 40))
    ratio = 800 / (400 * 2 ** ((0.63 - low) / (high - low)))
    assert quick.estimate == pytest.approx(ratio)
    limits = f"[{quick.low:.2f}, \u221e]"

    page = report_page(comparison, NO_RUNS)
    assert bars_of(page, "Speed-ups in steps") == [
        (
            f"quick at least {ratio:.2f}\u00d7 {limits}",
            f"quick\nspeed-up in steps: at least {ratio:.2f}\u00d7 {limits}",
            1,
        ),
        ("tardy not known", None, 0),
    ]
    rows = rows_of(page, "Cost to reach the target, in steps")
    assert rows["quick"][::2] == ["faster", f"at least {ratio:.2f}\u00d7 {limits}"]
    assert rows["tardy"] == ["no difference", "more than 800 [800, \u221e]", "not known"]
    assert 'data-json="/comparison/groups/2/speedups/steps/estimate"' not in page
    assert data_of(page)["comparison"]["groups"][2]["speedups"]["steps"]["estimate"] == 1.0

    shown = dashboard_of(comparison, NO_RUNS)
    bars = by_group(shown.bars["speedup/steps"])
    assert (bars["tardy"]["value"], bars["tardy"]["bound"], bars["tardy"]["label"]) == (None, "?", "tardy: not known")
    assert bars["quick"]["value"] == quick.estimate
    assert bars["quick"]["label"] == f"quick: at least {ratio:.2f}\u00d7 {limits}"
    assert shown.summary["tardy/speedup_steps"] is None
    assert shown.summary["tardy/speedup_steps_bound"] == "?"
    assert shown.summary["quick/speedup_steps"] == quick.estimate
    groups = {
        row[0]: dict(zip(shown.tables["groups"].columns, row, strict=True)) for row in shown.tables["groups"].rows
    }
    assert [groups[name]["speedup_steps"] for name in ("baseline", "quick", "tardy")] == [None, quick.estimate, None]


def test_a_group_that_falls_short_of_the_baseline_is_at_most_that_fast() -> None:
    comparison = over_budgets()
    assert comparison.group("tardy").speedups["steps"].bound == "<="
    (_, tardy) = bars_of(report_page(comparison, NO_RUNS), "Speed-ups in steps")
    words = "at most 1.00\u00d7 [0, 1.00]"
    assert tardy == (f"tardy {words}", f"tardy\nspeed-up in steps: {words}", 1)
    bars = by_group(dashboard_of(comparison, NO_RUNS).bars["speedup/steps"])
    assert bars["tardy"]["label"] == "tardy: at most 1.00\u00d7 [0, 1.00]"


def test_no_bar_leads_to_a_speed_up_that_is_only_an_upper_limit() -> None:
    """Ten epochs end below what 40 reach from scratch: at most four times less, and perhaps more."""
    runs = [*records("baseline", BUDGETS), *records("short", BUDGETS[:1])]
    comparison = compare_budgets(runs, metric=METRIC, mode="max")
    short = comparison.group("short").speedups["steps"]
    assert (short.bound, short.estimate, short.drawn) == ("<=", pytest.approx(4.0), False)
    words = "at most 4.00\u00d7 [0, 4.00]"
    (bar,) = bars_of(report_page(comparison, NO_RUNS), "Speed-ups in steps")
    assert bar == (f"short {words}", f"short\nspeed-up in steps: {words}", 0)
    shown = by_group(dashboard_of(comparison, NO_RUNS).bars["speedup/steps"])["short"]
    assert (shown["value"], shown["label"]) == (None, "short: at most 4.00\u00d7 [0, 4.00]")


@pytest.mark.parametrize("target", [None, 0.6, 0.63, 0.2])
def test_the_payback_curve_is_there_only_where_the_payback_is_known(target: float | None) -> None:
    """A target that the baseline does not reach (0.63), or that is reached at once (0.2), gives no cost to compare."""
    comparison = over_budgets(target)
    quick = comparison.group("quick")
    page = report_page(comparison, NO_RUNS)
    records = (data_of(page)["amortisation"] or {"series": []})["series"]
    assert quick.break_even is not None
    assert quick.break_even.saving_shown == (quick.verdict == "faster") == (target != 0.2)
    name = "quick" if quick.break_even.saving_shown else "quick (its saving is not shown)"
    told = rows_of(page, "Work done beforehand, in mean seconds per run, and when it is paid back")[name]
    if target in (0.63, 0.2):
        assert data_of(page)["comparison"]["groups"][1]["break_even"]["prior_training_runs"]["estimate"] is None
        assert records == []
        assert told == ["9 s", "not known", "60 s", "not known"]
        assert "as a share of plain runs" not in page
        return
    harvest, both = records
    assert (harvest["name"], both["name"]) == ("quick: harvest", "quick: harvest and prior runs")
    (harvest_low, harvest_high), (both_low, both_high) = (
        (found.low, found.high) for found in (quick.break_even.harvest_runs, quick.break_even.prior_training_runs)
    )
    assert told == [
        "9 s", f"1 later run [{harvest_low:.3g}, {harvest_high:.3g}]",
        "60 s", f"2 later runs [{both_low:.3g}, {both_high:.3g}]",
    ]  # fmt: skip
    # The curve crosses 1 where the table says that it is paid back.
    for record, runs in (
        (harvest, quick.break_even.harvest_runs.estimate),
        (both, quick.break_even.prior_training_runs.estimate),
    ):
        for k, share in zip(record["x"], record["y"], strict=True):
            assert (share <= 1.0) == (k >= runs), k


def test_the_plain_report_and_dashboard_say_the_same(tmp_path: Path) -> None:
    """Target 0.75: the baseline and the slow group end at 0.7 and 0.6, the technique gets there."""
    archive = RunArchive(tmp_path / "archive", create=True)
    prior = write_run(archive, None, 9, [0.5, 0.7])
    use = PriorUse(run_id=prior, algorithm="distillation", harvest_seconds=4.0)
    for seed in (1, 2, 3):
        write_run(archive, "baseline", seed, [0.5, 0.6, 0.7 + 0.001 * seed])
        write_run(archive, "quick", seed, [0.6, 0.8, 0.8 + 0.001 * seed], prior_runs=[use])
        write_run(archive, "slow", seed, [0.4, 0.6 + 0.001 * seed])
    selection = select_outcomes(archive)
    comparison = compare_runs(archive, selection=selection, target=0.75)
    quick, slow = comparison.group("quick"), comparison.group("slow")
    assert quick.speedups.get("steps") is not None
    assert slow.speedups.get("steps") is not None
    # Every baseline run spends its 300 steps and is not there; every quick run is, after 200.
    assert (quick.speedups.get("steps").bound, quick.speedups.get("steps").estimate) == (">=", pytest.approx(1.5))
    assert (slow.speedups.get("steps").bound, slow.speedups.get("steps").estimate) == ("?", pytest.approx(1.5))

    page = report_page(comparison, selection)
    at_least, not_known = bars_of(page, "Speed-ups in steps")
    assert at_least[1] == "quick\nspeed-up in steps: at least 1.50\u00d7 [1.50, \u221e]"
    assert at_least[2] == 1
    assert not_known == ("slow not known", None, 0)
    assert rows_of(page, "Each group: how good it ends.*?")["slow"][-2:] == ["not known", "not known"]
    assert "Nothing can be said about the cost in seconds that slow needs" in words_of(page)

    # The baseline's cost is only a limit, so there is nothing to pay back against.
    assert quick.break_even is not None
    assert data_of(page)["comparison"]["groups"][1]["break_even"]["harvest_runs"]["estimate"] is None
    assert data_of(page)["amortisation"] is None

    shown = dashboard_of(comparison, selection)
    bars = by_group(shown.bars["speedup/steps"])
    assert (bars["slow"]["value"], bars["slow"]["label"]) == (None, "slow: not known")
    assert bars["quick"]["label"] == "quick: at least 1.50\u00d7 [1.50, \u221e]"
    assert shown.summary["slow/speedup_steps"] is None
    assert shown.summary["slow/speedup_cost_seconds"] is None
    assert shown.summary["quick/speedup_steps"] == quick.speedups.get("steps").estimate


def test_the_page_says_how_costs_between_budgets_are_read() -> None:
    words = words_of(report_page(over_budgets(), NO_RUNS))
    assert "joined by straight lines over the logarithm of its steps" in words
    assert "is linear in steps between two budgets" in words
    assert "logarithm of the cost" not in words
