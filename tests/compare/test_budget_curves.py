"""Crossings and speed-ups of budget curves: worked by hand, against scipy's intervals, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from reuse_algos.compare.estimates.cost import CostCurve, cost_interval, speedup_of_budgets
from reuse_algos.compare.estimates.interval import Speedup
from reuse_algos.compare.estimates.over_budgets import BudgetCrossing, Curve, Sample, crossing, own_level

REPEATS = 100
# 95 % is promised; so few repeats may fall this far short of it by chance (three standard errors).
ENOUGH = 0.95 - 3 * math.sqrt(0.05 * 0.95 / REPEATS)


def curve(steps, values, seeds=None) -> Curve:
    """``values`` holds the runs of each budget."""
    samples = [
        Sample(tuple(range(len(row))) if seeds is None else tuple(seeds[m]), np.asarray(row, dtype=np.float64))
        for m, row in enumerate(values)
    ]
    return Curve(np.asarray(steps, dtype=np.float64), tuple(samples))


def around(means, spread=0.1):
    return [[mean - spread, mean, mean + spread] for mean in means]


def steps_only(found: Curve) -> CostCurve:
    return CostCurve(
        found.steps_M,
        tuple(Sample(s.seeds, np.full(len(s.values), n)) for s, n in zip(found.samples, found.steps_M, strict=True)),
    )


def speedup(baseline: Curve, group: Curve, *, paired: bool = False, target: float | None = None) -> Speedup:
    if target is None:
        ours, theirs = crossing(group, baseline.samples[-1], paired=paired), own_level(baseline)
    else:
        ours, theirs = crossing(group, target), crossing(baseline, target)
    return speedup_of_budgets(theirs, steps_only(baseline), ours, steps_only(group), own_level=target is None)


def test_worked_by_hand() -> None:
    """The baseline ends at 8 after 400 steps; the group has 6 after 100 and 10 after 400: half way in log steps."""
    baseline = curve([100, 400], around([2, 8]))
    group = curve([100, 400], around([6, 10]))
    found = crossing(group, baseline.samples[-1])
    assert (found.estimate, found.bound) == (0.5, "")
    result = speedup(baseline, group)
    assert result.estimate == pytest.approx(400 / 200)
    assert (result.bound, result.verdict) == ("", "faster")
    # By hand: the difference at position p is 4 p - 2, and so are the limits apart: sd 0.1 at each seed (perfectly
    # correlated along the line) and of the baseline: Welch with df = 4, half = t * sqrt(2 * 0.01 / 3) = 0.2267.
    half = stats.t.ppf(0.975, 4) * math.sqrt(2 * 0.01 / 3)
    assert found.low is not None
    assert found.high is not None
    assert found.low == pytest.approx((2 - half) / 4, abs=1e-4)
    assert found.high == pytest.approx((2 + half) / 4, abs=1e-4)
    assert result.low == pytest.approx(4 ** (1 - found.high))
    assert result.high == pytest.approx(4 ** (1 - found.low))


@pytest.mark.parametrize("paired", [True, False])
def test_at_the_limits_the_intervals_of_scipy_just_touch_zero(paired: bool) -> None:
    rng = np.random.default_rng(0)
    checked = 0
    for n in (2, 3, 5):
        for _ in range(10):
            shared = rng.normal(0, 0.02, n)
            low, high = (0.4 + shared + rng.normal(0, 0.005, n) for _ in range(2))
            group = curve([100, 800], [low, high + 0.3])
            final = Sample(tuple(range(n)), 0.55 + shared + rng.normal(0, 0.005, n))
            found = crossing(group, final, paired=paired)

            def interval(position: float):
                values = (1 - position) * group.samples[0].values + position * group.samples[1].values  # noqa: B023
                if paired:
                    return stats.ttest_rel(values, final.values).confidence_interval(0.95)  # noqa: B023
                return stats.ttest_ind(values, final.values, equal_var=False).confidence_interval(0.95)  # noqa: B023

            for limit, name in ((found.low, "high"), (found.high, "low")):
                if limit is None:
                    assert (interval(0.0).high >= 0) if name == "high" else (interval(1.0).low < 0)
                    continue
                touching = getattr(interval(limit), name)
                assert abs(touching) < 3e-4
                assert touching <= 1e-12 if name == "high" else touching >= -1e-12  # rounded outwards
                checked += 1
    assert checked > 30


def test_the_parabolas_enclose_what_the_line_does_not() -> None:
    """A curve that is exactly a parabola in log steps, nearly without noise: the line alone would exclude the truth."""
    steps = np.array([100.0, 200.0, 400.0, 800.0])
    u = np.log2(steps / 100)

    def bent(x):
        return 1.0 + x - 0.15 * x**2

    noise = np.array([-1e-4, 0.0, 1e-4])
    group = curve(steps, [bent(x) + noise for x in u])
    found = crossing(group, float(bent(1.4)))
    assert found.estimate > 1.42  # where the line is, later than the truth
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 1.4 <= found.high
    straight = crossing(curve(steps, [1 + x + noise for x in u]), 2.4)
    assert straight.low is not None
    assert straight.high is not None
    assert straight.high - straight.low < 0.01


def test_a_group_that_does_not_get_there() -> None:
    baseline = curve([100, 200, 400], around([1, 3, 5]))
    low = curve([100, 200, 400], around([1, 2, 3], 0.2))
    found = crossing(low, baseline.samples[-1])
    assert found == BudgetCrossing(2.0, 2.0, None, ">=")
    result = speedup(baseline, low)
    assert (result.estimate, result.low, result.high) == pytest.approx((1.0, 0.0, 1.0))
    assert (result.bound, result.verdict) == ("<=", "slower")
    half = curve([50, 100, 200], around([1, 2, 3], 0.2))  # at half of the budget nothing is known about the rest
    assert speedup(baseline, half).high == pytest.approx(2.0)
    assert (speedup(baseline, half).bound, speedup(baseline, half).verdict) == ("<=", "no difference")


def test_a_group_that_is_there_at_its_smallest_budget() -> None:
    baseline = curve([100, 200, 400], around([1, 3, 5]))
    high = curve([100, 200], around([6, 7]))
    assert crossing(high, baseline.samples[-1]) == BudgetCrossing(0.0, None, 0.0, "<=")
    result = speedup(baseline, high)
    assert (result.estimate, result.low, result.high) == pytest.approx((4.0, 4.0, math.inf))
    assert (result.bound, result.verdict) == (">=", "faster")


def test_a_target_that_neither_reaches_or_both_have_passed() -> None:
    baseline, group = curve([100, 200], around([1, 3])), curve([100, 200], around([2, 4]))
    for target in (9.0, 0.0):
        result = speedup(baseline, group, target=target)
        assert (result.bound, result.low, result.high) == ("?", 0.0, math.inf)
        assert result.verdict == "no difference"
    only_group = speedup(baseline, group, target=3.5)  # half way for the group, never for the baseline
    assert (only_group.bound, only_group.verdict) == (">=", "faster")
    assert only_group.estimate == pytest.approx(200 / (100 * 2**0.75))
    assert only_group.low > 1.0
    assert only_group.high == math.inf


def test_a_baseline_that_was_flat_before_its_largest_budget_flatters_nobody() -> None:
    """Flat from 100 steps on. The group is a little better in the end, and as good as the baseline after 100 steps."""
    flat = curve([50, 100, 200, 400], around([1.0, 5.0, 4.99, 5.01]))
    group = curve([50, 100, 200, 400], around([1.0, 5.0, 5.5, 5.6]))
    found = own_level(flat)
    assert (found.estimate, found.low, found.high) == (3.0, 1.0, 3.0)
    result = speedup(flat, group)
    assert result.estimate > 3.5  # by the means alone
    assert result.low <= 1.0
    assert result.verdict == "no difference"
    falling = own_level(curve([50, 100, 200], around([1.0, 5.0, 4.0])))
    assert falling.estimate == pytest.approx(0.75)
    rising = own_level(curve([50, 100, 200], around([1.0, 3.0, 5.0])))
    assert (rising.estimate, rising.low, rising.high) == (2.0, 2.0, 2.0)


def test_diverged_runs_stay_in() -> None:
    baseline = curve([100, 200, 400], around([1, 3, 5]))
    group = curve([100, 200, 400], [[2, 2.1, 2.2], [4.0, math.nan, 4.2], [6.0, 6.1, 6.2]])
    found = crossing(group, baseline.samples[-1])
    assert (found.estimate, found.bound) == (2.0, "")  # not before the budget at which all three are good
    assert (found.low, found.high) == (0.0, 2.0)  # nothing is known between good budgets
    group = curve([100, 200, 400], [[6, 6.1, 6.2], [6.0, 6.1, 6.2], [6.0, math.inf, 6.2]])
    assert crossing(group, baseline.samples[-1]).high is None
    assert speedup(baseline, group).verdict == "no difference"
    lost = curve([100, 200], [[math.nan] * 3, [math.nan] * 3])
    assert crossing(lost, baseline.samples[-1]) == BudgetCrossing(1.0, None, None, ">=")


def test_copies_of_one_run_are_no_evidence_and_single_runs_neither() -> None:
    baseline, group = curve([100, 200], [[1] * 5, [3] * 5]), curve([100, 200], [[2] * 5, [4] * 5])
    for paired in (True, False):
        result = speedup(baseline, group, paired=paired)
        assert (result.low, result.high, result.verdict) == (0.0, math.inf, "no difference")
    single = speedup(curve([100, 200], [[1], [3]]), curve([100, 200], [[2], [4]]))
    assert single.estimate == pytest.approx(2**0.5)
    assert (single.low, single.high, single.verdict) == (0.0, math.inf, "not enough runs")


def test_seeds_that_are_missing_at_a_budget() -> None:
    final = Sample((0, 1, 2), np.array([5.0, 5.1, 4.9]))
    whole = curve([100, 200, 400], around([2, 4, 6]), seeds=[[0, 1, 2]] * 3)
    # A fourth seed at one budget has no partner: limits are those of the other three, the mean is of all.
    extra = [[*row] for row in around([2, 4, 6])]
    extra[1].append(4.0)
    more = curve([100, 200, 400], extra, seeds=[[0, 1, 2], [0, 1, 2, 7], [0, 1, 2]])
    assert crossing(more, final, paired=True) == crossing(whole, final, paired=True)
    # Other seeds at each budget: independent runs, which a line between them treats as such.
    apart = curve([100, 200], around([4, 6]), seeds=[[0, 1, 2], [3, 4, 5]])
    same = curve([100, 200], around([4, 6]))
    wide, narrow = crossing(same, 5.0), crossing(apart, 5.0)
    assert narrow.low is not None
    assert wide.low is not None
    assert narrow.low > wide.low
    values = [s.values for s in apart.samples]
    assert narrow.high is not None
    at = [(1 - narrow.high) * values[0], narrow.high * values[1]]
    # Welch by scipy: a sum of means is a difference of means with one sign turned.
    limits = stats.ttest_ind(at[0], 5.0 - at[1], equal_var=False).confidence_interval(0.95)
    assert limits.low == pytest.approx(0.0, abs=1e-3)


def test_noise_of_seconds_is_counted() -> None:
    steps = np.array([100.0, 200.0])
    seconds = [np.array([90.0, 100.0, 111.0]), np.array([180.0, 200.0, 222.0])]
    costs = CostCurve(steps, tuple(Sample((0, 1, 2), s) for s in seconds))
    exact = BudgetCrossing(1.0, 1.0, 1.0, "")
    found = cost_interval(exact, costs)
    logs = np.log(seconds[1])
    half = stats.t.ppf(0.975, 2) * stats.sem(logs)
    assert found.estimate == pytest.approx(stats.gmean(seconds[1]))
    assert (found.low, found.high) == pytest.approx((math.exp(logs.mean() - half), math.exp(logs.mean() + half)))
    other = CostCurve(steps, tuple(Sample((5, 6, 7), s * 2) for s in seconds))
    result = speedup_of_budgets(exact, other, exact, costs, own_level=True)
    welch = stats.ttest_ind(np.log(2 * seconds[1]), logs, equal_var=False).confidence_interval(0.95)
    assert (result.estimate, result.low, result.high) == pytest.approx((2.0, math.exp(welch.low), math.exp(welch.high)))


def test_costs_between_budgets_are_linear_in_steps() -> None:
    """Five seconds before the first step and one per step: at the geometric mean of 100 and 400 steps it is 205."""
    costs = CostCurve(np.array([100.0, 400.0]), tuple(Sample((0, 1), np.full(2, 5.0 + n)) for n in (100.0, 400.0)))
    assert cost_interval(BudgetCrossing(0.5, 0.5, 0.5, ""), costs).estimate == pytest.approx(205.0)
    assert cost_interval(BudgetCrossing(0.5, None, None, ""), costs).high == math.inf


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        curve([200, 100], around([1, 2]))
    with pytest.raises(ValueError, match="seeds"):
        Sample((1, 2), np.zeros(3))
    with pytest.raises(ValueError, match="positive"):
        CostCurve(np.array([1.0]), (Sample((0,), np.array([0.0])),))


# A curve that saturates, a - b budget^-c, at four budgets, against one that is k times as quick.
BUDGETS = np.array([10.0, 20.0, 40.0, 80.0])


def saturating(budget: np.ndarray) -> np.ndarray:
    return 0.75 - 0.9 * budget**-0.5


def noise(rng: np.random.Generator, n: int, sd: float, skewed: bool) -> np.ndarray:
    """Normal, or a gamma of skewness -0.7: now and then a run is clearly worse, as runs are."""
    return -(rng.gamma(8.0, 1.0, n) - 8.0) / math.sqrt(8.0) * sd if skewed else rng.normal(0.0, sd, n)


def simulated(
    rng: np.random.Generator, speed: float, n: int, sd: float, *, skewed: bool, shared: np.ndarray
) -> tuple[Curve, CostCurve]:
    values = [saturating(speed * b) + shared + noise(rng, n, sd, skewed) for b in BUDGETS]
    seconds = [b * rng.lognormal(0.0, 0.05, n) for b in BUDGETS]
    seeds = tuple(range(n))
    return curve(BUDGETS, values), CostCurve(BUDGETS, tuple(Sample(seeds, s) for s in seconds))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("speed", [1.0, 1.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("n", [3, 5])
def test_coverage(n: int, speed: float, paired: bool) -> None:
    rng = np.random.default_rng(int(10 * speed) + n)
    covered = faster = undecided = 0
    for number in range(REPEATS):
        sd, skewed = (0.001, 0.004)[number % 2], number % 4 > 1
        shared = rng.normal(0.0, sd, n) if paired else np.zeros(n)
        baseline, seconds = simulated(rng, 1.0, n, sd, skewed=skewed, shared=shared)
        group, costs = simulated(rng, speed, n, sd, skewed=skewed, shared=shared)
        found = crossing(group, baseline.samples[-1], paired=paired)
        result = speedup_of_budgets(own_level(baseline), seconds, found, costs, own_level=True)
        covered += result.low <= speed <= result.high
        faster += result.verdict == "faster"
        undecided += result.verdict == "no difference"
    assert covered / REPEATS >= ENOUGH
    if speed == 1.0:
        assert undecided / REPEATS >= ENOUGH
    if speed >= 2.0:
        assert faster / REPEATS > 0.9  # an interval that never says anything would cover as well
