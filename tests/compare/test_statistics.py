"""Intervals against scipy, and their coverage at the numbers of runs that people have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from reuse_algos.compare.estimates.interval import (
    Interval,
    Speedup,
    difference_interval,
    mean_interval,
    ratio_interval,
    verdict_of,
)
from reuse_algos.compare.estimates.within_runs import Crossing, Hit, MeanCurves, crossing_of, speedup_of_runs

REPEATS = 1000
# Three standard errors of a simulated coverage of 95 %.
SLACK = 3 * math.sqrt(0.05 * 0.95 / REPEATS)


def samples(count: int = 20, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(1, 2, rng.integers(2, 7)), rng.normal(0, 0.5, rng.integers(2, 7))) for _ in range(count)]


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_intervals_are_scipys(confidence: float) -> None:
    for a, b in samples():
        ours = mean_interval(a, confidence)
        theirs = stats.ttest_1samp(a, 0.0).confidence_interval(confidence)
        np.testing.assert_allclose([ours.estimate, ours.low, ours.high], [a.mean(), *theirs])
        ours = difference_interval(a, b, confidence=confidence, paired=False)
        theirs = stats.ttest_ind(a, b, equal_var=False).confidence_interval(confidence)
        np.testing.assert_allclose([ours.estimate, ours.low, ours.high], [a.mean() - b.mean(), *theirs])
        n = min(len(a), len(b))
        ours = difference_interval(a[:n], b[:n], confidence=confidence, paired=True)
        theirs = stats.ttest_rel(a[:n], b[:n]).confidence_interval(confidence)
        np.testing.assert_allclose([ours.low, ours.high], theirs)


def test_ratio_interval_is_scipys_on_logs() -> None:
    for a, b in samples(seed=1):
        x, y = np.exp(a), np.exp(b)
        ours = ratio_interval(x, y, paired=False)
        theirs = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
        np.testing.assert_allclose(
            [ours.estimate, ours.low, ours.high], [stats.gmean(x) / stats.gmean(y), *np.exp(theirs)]
        )


def test_where_nothing_is_known_the_interval_is_infinite() -> None:
    assert mean_interval([3.0]) == Interval(3.0, -math.inf, math.inf)
    assert difference_interval([3.0], [1.0, 2.0], paired=False) == Interval(1.5, -math.inf, math.inf)
    bad = mean_interval([1.0, math.nan, 2.0])
    assert math.isnan(bad.estimate)
    assert (bad.low, bad.high) == (-math.inf, math.inf)
    assert math.isnan(difference_interval([1.0, math.inf], [1.0, 2.0], paired=False).estimate)
    assert ratio_interval([1.0], [2.0], paired=True) == Interval(0.5, 0.0, math.inf)


def test_groups_without_spread_have_one_interval() -> None:
    """Equal values are copies of a run or a ceiling: no limits. Equal costs are exact: no width."""
    values, finals = [0.6, 0.6, 0.6], [0.5, 0.5]
    difference = difference_interval(values, finals, paired=False)
    assert difference == Interval(pytest.approx(0.1), -math.inf, math.inf)
    assert mean_interval([0.1, 0.1]) == Interval(0.1, -math.inf, math.inf)
    assert difference_interval([0.6, 0.7], [0.5, 0.6], paired=True).high == math.inf  # equal but for rounding
    # The crossing of mean curves uses the same interval: nothing is sure there, either.
    group = MeanCurves(np.array([values]).T, np.full((3, 1), 5.0), np.zeros(3))
    baseline = MeanCurves(np.array([finals]).T, np.full((2, 1), 9.0), np.zeros(2))
    assert crossing_of(baseline, group, paired=False) == Crossing(0, 0, 1)
    assert ratio_interval([800.0, 800.0], [400.0, 400.0], paired=False) == Interval(*(3 * (pytest.approx(2.0),)))


def test_costs_of_zero() -> None:
    assert ratio_interval([1.0, 2.0], [0.0, 1.0], paired=True) == Interval(math.inf, 0.0, math.inf)
    assert ratio_interval([0.0, 2.0], [1.0, 1.0], paired=True) == Interval(0.0, 0.0, math.inf)
    assert math.isnan(ratio_interval([0.0], [0.0], paired=True).estimate)


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_interval([]),
        lambda: mean_interval([1.0], 1.0),
        lambda: difference_interval([], [1.0], paired=False),
        lambda: difference_interval([1.0, 2.0], [1.0], paired=True),
        lambda: ratio_interval([-1.0], [1.0], paired=True),
        lambda: ratio_interval([math.nan], [1.0], paired=True),
        lambda: speedup_of_runs([], [Hit(1, 2, True)], paired=False),
    ],
)
def test_nonsense_is_refused(call) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        call()


@pytest.mark.parametrize("n", [3, 5])
def test_coverage_of_means_and_differences(n: int) -> None:
    rng = np.random.default_rng(n)
    one = paired = welch = unequal = 0
    for _ in range(REPEATS):
        a, b, shared = rng.normal(5, 1, n), rng.normal(3, 1, n), rng.normal(0, 3, n)
        wide = rng.normal(3, 4, n + 2)
        interval = mean_interval(a)
        one += interval.low <= 5 <= interval.high
        interval = difference_interval(a + shared, b + shared, paired=True)
        paired += interval.low <= 2 <= interval.high
        interval = difference_interval(a, b, paired=False)
        welch += interval.low <= 2 <= interval.high
        interval = difference_interval(a, wide, paired=False)
        unequal += interval.low <= 2 <= interval.high
    assert abs(one / REPEATS - 0.95) < SLACK
    assert abs(paired / REPEATS - 0.95) < SLACK
    # Welch's approximation is conservative for equal variances of so few values.
    assert 0.95 - SLACK < welch / REPEATS < 0.98
    assert 0.95 - SLACK < unequal / REPEATS < 0.98


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [3, 5])
def test_coverage_of_ratios(n: int, paired: bool) -> None:
    rng = np.random.default_rng(10 + n)
    covered = 0
    for _ in range(REPEATS):
        machine = rng.normal(0, 0.5, n) if paired else np.zeros(n)
        top = 200 * np.exp(machine + rng.normal(0, 0.1, n))
        bottom = 100 * np.exp(machine + rng.normal(0, 0.2, n))
        interval = ratio_interval(top, bottom, paired=paired)
        covered += interval.low <= 2 <= interval.high
    assert 0.95 - SLACK < covered / REPEATS < (0.95 + SLACK if paired else 0.985)


def on_grid(cost: float, grid: float, budget: float) -> Hit:
    """What is seen of a true cost to the target with an evaluation every ``grid``."""
    at = grid * math.ceil(cost / grid)
    return Hit(at - grid, at, True) if at <= budget else Hit(budget, budget, False)


@pytest.mark.parametrize("grid", [0.5, 10.0, 40.0])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [3, 5])
def test_coverage_of_speedups_over_runs_on_any_evaluation_grid(n: int, paired: bool, grid: float) -> None:
    rng = np.random.default_rng(20 + n)
    repeats = REPEATS // 2
    covered = 0
    for _ in range(repeats):
        theirs = [on_grid(c, grid, 1e9) for c in 200 * rng.lognormal(0, 0.08, n)]
        ours = [on_grid(c, grid, 1e9) for c in 100 * rng.lognormal(0, 0.08, n)]
        speedup = speedup_of_runs(theirs, ours, paired=paired)
        covered += speedup.low <= 2 <= speedup.high
    assert covered / repeats > 0.95 - 3 * math.sqrt(0.05 * 0.95 / repeats)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [3, 5])
def test_without_a_difference_verdicts_are_wrong_at_most_at_the_nominal_rate(n: int, paired: bool) -> None:
    """Also where half of the runs are censored, and where hits fall on two evaluations only."""
    rng = np.random.default_rng(30 + n)
    for grid, budget in ((0.5, 1e9), (10.0, 200.0), (100.0, 1e9)):
        wrong = 0
        for _ in range(REPEATS // 2):
            groups = [[on_grid(c, grid, budget) for c in 200 * rng.lognormal(0, 0.08, n)] for _ in range(2)]
            wrong += speedup_of_runs(groups[0], groups[1], paired=paired).verdict != "no difference"
        assert wrong / (REPEATS // 2) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / (REPEATS // 2))


def hits(*costs: float, every: float = 1.0, reached: bool = True) -> list[Hit]:
    return [Hit(c - every, c, True) if reached else Hit(c, c, False) for c in costs]


def test_speedup_of_runs_worked_by_hand() -> None:
    # log(4/2) = log 2 for each pair: no spread, so only the evaluation grid widens the interval.
    speedup = speedup_of_runs(hits(4, 8), hits(2, 4), paired=True)
    assert speedup.estimate == pytest.approx(2.0)
    # Lower: baseline one evaluation earlier, ln(3/2), ln(7/4): mean .4825, sd .1090, t(1 df) = 12.7062.
    assert speedup.low == pytest.approx(math.exp(0.482540 - 12.7062 * 0.109001 / math.sqrt(2)), rel=1e-4)
    # Upper: group one evaluation earlier, ln(4/1), ln(8/3).
    logs = np.log([4.0, 8 / 3])
    assert speedup.high == pytest.approx(math.exp(logs.mean() + 12.7062 * logs.std(ddof=1) / math.sqrt(2)), rel=1e-4)
    assert speedup.verdict == "no difference"


def test_a_hit_at_the_first_evaluation_has_no_upper_limit() -> None:
    speedup = speedup_of_runs(hits(4, 4.1, 4), hits(1, 1, 1), paired=False)
    assert speedup.high == math.inf
    assert speedup.low > 1
    assert speedup.verdict == "faster"


def test_a_censored_run_of_the_group_makes_it_a_bound_and_never_faster() -> None:
    baseline = hits(100, 101, 102)
    group = [*hits(20, 20), *hits(50, reached=False)]
    speedup = speedup_of_runs(baseline, group, paired=False)
    assert speedup.bound == "<="
    # The censored run counts at its total cost: it is not dropped.
    assert speedup.estimate == pytest.approx(stats.gmean([100, 101, 102]) / stats.gmean([20, 20, 50]))
    assert speedup.low == 0.0
    assert speedup.verdict == "no difference"


def test_a_group_censored_beyond_the_cost_of_the_baseline_is_slower() -> None:
    speedup = speedup_of_runs(hits(50, 51, 52), hits(100, 100, 100, reached=False), paired=False)
    assert (speedup.bound, speedup.verdict) == ("<=", "slower")
    assert 0.5 < speedup.high < 1


def test_a_censored_baseline_makes_it_a_bound_from_below() -> None:
    baseline = [*hits(90, 95), *hits(100, reached=False)]
    speedup = speedup_of_runs(baseline, hits(20, 21, 22), paired=False)
    assert (speedup.bound, speedup.high) == (">=", math.inf)
    assert 3.5 < speedup.low < speedup.estimate
    assert speedup.verdict == "faster"
    slow = speedup_of_runs(baseline, hits(200, 210, 220), paired=False)
    assert slow.verdict == "no difference"


def test_both_censored_says_nothing() -> None:
    speedup = speedup_of_runs(hits(10, 10, reached=False), hits(5, 5, reached=False), paired=True)
    assert speedup == Speedup(pytest.approx(2.0), 0.0, math.inf, "?", "no difference")


def test_two_identical_runs_on_a_coarse_grid_are_no_certainty() -> None:
    """All runs hit at the same evaluation in both groups: the spread is hidden by the grid."""
    speedup = speedup_of_runs(hits(5, 5, 5), hits(5, 5, 5), paired=True)
    assert (speedup.low, speedup.high) == (pytest.approx(0.8), pytest.approx(1.25))


@pytest.mark.parametrize(
    ("low", "high", "runs", "expected"),
    [
        (1.01, 2.0, (3, 3), "faster"),
        (1.0, 2.0, (3, 3), "no difference"),
        (0.5, 0.99, (3, 3), "slower"),
        (0.5, 1.0, (3, 3), "slower"),  # the upper limit itself is excluded
        (0.5, 1.01, (3, 3), "no difference"),
        (5.0, 6.0, (3, 1), "not enough runs"),
        (5.0, 6.0, (1, 3), "not enough runs"),
        (5.0, 6.0, (2, 2), "faster"),
    ],
)
def test_verdicts(low: float, high: float, runs: tuple[int, int], expected: str) -> None:
    assert verdict_of(low, high, *runs) == expected
