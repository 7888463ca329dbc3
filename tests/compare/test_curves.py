"""The speed-up of mean curves: worked by hand, against scipy's tests, and its coverage by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from reuse_algos.compare.estimates.within_runs import Crossing, MeanCurves, crossing_of, own_crossing, speedup_of_curves

REPEATS = 300
ALLOWED = 0.05 + 3 * math.sqrt(0.05 * 0.95 / REPEATS)
K = 40
STEPS = 50.0 * np.arange(1, K + 1)


def curves(values, steps=STEPS, costs=None) -> MeanCurves:
    values_RK = np.asarray(values, dtype=np.float64)
    if costs is None:
        costs = np.tile(np.asarray(steps, dtype=np.float64), (len(values_RK), 1))
    return MeanCurves(values_RK, np.asarray(costs, dtype=np.float64), np.zeros(len(values_RK)))


def test_worked_by_hand() -> None:
    """Baseline ends at 10 (9.9, 10, 10.1); the group climbs 2 per evaluation, and has no noise beyond +-0.1."""
    baseline = curves([[2, 4, 6, 8, 9.9], [2, 4, 6, 8, 10.0], [2, 4, 6, 8, 10.1]], steps=[1, 2, 3, 4, 5])
    up = np.array([5.0, 9.0, 11.0, 12.0, 13.0])
    group = curves([up - 0.1, up, up + 0.1], steps=[1, 2, 3, 4, 5])
    # At step 2 the mean is 9, surely below 10; at step 3 it is 11, surely above: the crossing is after step 2 and not
    # after step 3, and it is seen at step 3 (index 2).
    assert crossing_of(baseline, group, paired=False) == Crossing(estimate=2, earliest=2, latest=2)
    speedup = speedup_of_curves(baseline, group, paired=False)
    assert (speedup.estimate, speedup.low, speedup.high) == pytest.approx((5 / 3, 5 / 3, 5 / 2))
    assert (speedup.bound, speedup.verdict) == ("", "faster")


def test_the_baseline_reaches_its_own_level_at_its_end_or_where_it_flattened_out() -> None:
    assert own_crossing(curves([[1, 2, 3], [1, 3, 5]], steps=[1, 2, 3])) == 2
    assert own_crossing(curves([[1, 3, 3], [1, 6, 5]], steps=[1, 2, 3])) == 1
    assert own_crossing(curves([[1, math.nan, 3], [1, 9, 5]], steps=[1, 2, 3])) == 2


@pytest.mark.parametrize("paired", [True, False])
def test_limits_are_those_of_scipys_tests_at_each_evaluation(paired: bool) -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 5):
        for _ in range(12):
            baseline = curves(STEPS / 2000 + rng.normal(0, 0.1, (n, 1)) + rng.normal(0, 0.05, (n, K)))
            group = curves(STEPS / 1200 + rng.normal(0, 0.1, (n, 1)) + rng.normal(0, 0.05, (n, K)))
            final = baseline.values_RK[:, -1]
            low, high = [], []
            for k in range(K):
                if paired:
                    test = stats.ttest_rel(group.values_RK[:, k], final)
                else:
                    test = stats.ttest_ind(group.values_RK[:, k], final, equal_var=False)
                interval = test.confidence_interval(0.95)
                low.append(interval.low)
                high.append(interval.high)
            crossing = crossing_of(baseline, group, paired=paired)
            not_above = [k for k in range(K) if low[k] < 0]
            assert crossing.latest == (not_above[-1] + 1 if not_above else 0)
            below = [k for k in range(K) if high[k] < 0]
            first = next((k for k in range(K) if k not in below), K)
            if K - 1 in below:  # both budgets are the same: the last evaluation decides alone
                first = K
            assert crossing.earliest == first
            reached = np.flatnonzero(group.values_RK.mean(axis=0) >= final.mean())
            assert crossing.estimate == (reached[0] if len(reached) else K)


def test_a_group_that_does_not_get_there_is_a_bound() -> None:
    baseline = curves([[1, 2, 3.0], [1, 2, 3.1], [1, 2, 3.2]], steps=[1, 2, 3])
    low = [[1, 1.5, 2.0], [1, 1.5, 2.1], [1, 1.5, 2.2]]
    same_budget = speedup_of_curves(baseline, curves(low, steps=[1, 2, 3]), paired=True)
    # Differences are -1 for each seed: no spread, so no test, so no verdict.
    assert (same_budget.bound, same_budget.low, same_budget.verdict) == ("<=", 0.0, "no difference")
    noisy = [[1, 1.5, 2.0], [1, 1.4, 2.2], [1, 1.5, 2.2]]
    slower = speedup_of_curves(baseline, curves(noisy, steps=[1, 2, 3]), paired=True)
    assert slower.high == pytest.approx(1.0)
    assert (slower.bound, slower.low, slower.verdict) == ("<=", 0.0, "slower")
    half_budget = speedup_of_curves(baseline, curves([row[:2] for row in noisy], steps=[0.5, 1]), paired=True)
    assert half_budget.estimate == pytest.approx(3.0)
    assert (half_budget.bound, half_budget.verdict) == ("<=", "no difference")


def test_a_spike_in_one_run_early_on_does_not_hide_that_the_end_is_too_low() -> None:
    baseline = curves([[1, 2, 3.0], [1, 2, 3.1], [1, 2, 3.2]], steps=[1, 2, 3])
    group = curves([[1, 5, 2.0], [1, 1.4, 2.2], [1, 1.5, 2.2]], steps=[1, 2, 3])
    crossing = crossing_of(baseline, group, paired=False)
    assert (crossing.earliest, crossing.latest) == (3, 3)  # neither: at the same budget it is surely below
    assert speedup_of_curves(baseline, group, paired=False).verdict == "slower"
    # With twice the budget the end says nothing about the evaluation at which the baseline ended.
    longer = curves([[1, 5, 4.0], [1, 1.4, 4.2], [1, 1.5, 4.2]], steps=[2, 4, 6])
    assert crossing_of(baseline, longer, paired=False).earliest == 1


def test_nan_never_reaches_anything() -> None:
    baseline = curves([[1, 2, 3.0], [1, 2, 3.1], [1, 2, 3.2]], steps=[1, 2, 3])
    good = [[3.5, 4.0, 5.0], [3.4, 4.0, 5.1], [3.6, 4.1, 5.2]]
    assert speedup_of_curves(baseline, curves(good, steps=[1, 2, 3]), paired=False).verdict == "faster"
    good[1][2] = math.nan
    speedup = speedup_of_curves(baseline, curves(good, steps=[1, 2, 3]), paired=False)
    assert (speedup.low, speedup.verdict) == (0.0, "no difference")
    good[1] = [math.nan] * 3
    assert speedup_of_curves(baseline, curves(good, steps=[1, 2, 3]), paired=False).bound == "<="


def test_one_run_each_gives_an_estimate_and_no_verdict() -> None:
    speedup = speedup_of_curves(
        curves([[1, 2, 3, 4.0]], [1, 2, 3, 4]), curves([[2, 4, 6, 8.0]], [1, 2, 3, 4]), paired=True
    )
    assert (speedup.estimate, speedup.low, speedup.high) == (2.0, 0.0, math.inf)
    assert speedup.verdict == "not enough runs"


def test_copies_of_one_run_are_no_evidence() -> None:
    baseline, group = curves([[1, 2, 3, 4.0]] * 5, [1, 2, 3, 4]), curves([[2, 4, 6, 8.0]] * 5, [1, 2, 3, 4])
    for paired in (True, False):
        speedup = speedup_of_curves(baseline, group, paired=paired)
        assert (speedup.low, speedup.verdict) == (0.0, "no difference")


def test_a_group_that_is_there_before_its_first_step() -> None:
    baseline = curves([[1, 2, 3.0], [1, 2, 3.1], [1, 2, 3.2]], steps=[1, 2, 3])
    warm = curves([[5, 6, 7.0], [5.1, 6, 7.1], [5.2, 6, 7.3]], steps=[0, 1, 2])
    speedup = speedup_of_curves(baseline, warm, paired=False)
    assert (speedup.estimate, speedup.low, speedup.verdict) == (math.inf, math.inf, "faster")


def test_costs_before_the_first_step_count() -> None:
    baseline = curves([[1, 2, 3.0], [1, 2, 3.1], [1, 2, 3.2]], costs=[[10, 20, 30.0]] * 3)
    values = np.array([[5, 6, 7.0], [5.1, 6, 7.1], [5.2, 6, 7.3]])
    group = MeanCurves(
        values, np.array([[35, 45, 55.0]] * 3), np.full(3, 25.0)
    )  # 25 s of harvest, then 10 s per evaluation
    speedup = speedup_of_curves(baseline, group, paired=False)
    assert speedup.estimate == pytest.approx(30 / 35)
    # It may have been there right after the harvest: nothing is known before the first evaluation.
    assert speedup.high == pytest.approx(30 / 25)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="shapes"):
        MeanCurves(np.zeros((2, 3)), np.zeros((2, 4)), np.zeros(2))
    with pytest.raises(ValueError, match="shapes"):
        MeanCurves(np.zeros((2, 0)), np.zeros((2, 0)), np.zeros(2))


def rising(x: np.ndarray) -> np.ndarray:
    return 0.3 + 0.4 * x


def flattening(x: np.ndarray) -> np.ndarray:
    return 0.9 * (1 - np.exp(-8 * x))


def late(x: np.ndarray) -> np.ndarray:
    """As under a cosine schedule: much of the gain comes late, and it levels out."""
    return 0.4 + 0.1 * (1 - np.exp(-20 * x)) + 0.2 * (1 - np.cos(np.pi * np.minimum(x, 1.0))) / 2


def simulated(
    rng: np.random.Generator, mean_K: np.ndarray, n: int, *, run_sd: float, step_sd: float, time_sd: float, shared=0.0
) -> MeanCurves:
    values = mean_K + shared + rng.normal(0, run_sd, (n, 1)) + rng.normal(0, step_sd, (n, K))
    return curves(values, costs=STEPS * rng.lognormal(0, time_sd, (n, 1)) if time_sd else None)


@pytest.mark.parametrize("time_sd", [0.0, 0.05])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [3, 5])
def test_coverage_of_a_known_speedup(n: int, paired: bool, time_sd: float) -> None:
    """The group runs along the baseline's curve at 1.6 times the speed, between evaluations as well."""
    rng = np.random.default_rng(100 * n + paired)
    x = STEPS / STEPS[-1]
    for curve, run_sd in ((rising, 0.02), (late, 0.002)):
        beyond = curve(np.minimum(1.6 * x, 1.0)) + 0.4 * np.maximum(0.0, 1.6 * x - 1.0)
        missed = faster = 0
        for _ in range(REPEATS):
            shared = rng.normal(0, 0.01, (n, 1)) if paired else 0.0
            noise = {"run_sd": run_sd, "step_sd": run_sd / 4, "time_sd": time_sd, "shared": shared}
            speedup = speedup_of_curves(
                simulated(rng, curve(x), n, **noise), simulated(rng, beyond, n, **noise), paired=paired
            )
            missed += not speedup.low <= 1.6 <= speedup.high
            faster += speedup.verdict == "faster"
        assert missed / REPEATS < ALLOWED
        assert faster / REPEATS > 0.9


@pytest.mark.parametrize("curve", [rising, flattening, late])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [3, 5])
def test_no_difference_is_found_where_there_is_none(n: int, paired: bool, curve: Callable) -> None:
    rng = np.random.default_rng(200 * n + paired)
    x = STEPS / STEPS[-1]
    for time_sd in (0.0, 0.05):
        verdicts = []
        for _ in range(REPEATS // 2):
            noise = {"run_sd": 0.004, "step_sd": 0.003, "time_sd": time_sd}
            verdicts.append(
                speedup_of_curves(
                    simulated(rng, curve(x), n, **noise), simulated(rng, curve(x), n, **noise), paired=paired
                ).verdict
            )
        wrong = sum(verdict != "no difference" for verdict in verdicts) / len(verdicts)
        assert wrong < 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(verdicts))
        # And "faster", the claim that matters, on one side only.
        assert verdicts.count("faster") / len(verdicts) < 0.025 + 3 * math.sqrt(0.025 * 0.975 / len(verdicts))


@pytest.mark.parametrize("n", [3, 5])
def test_a_slower_group_is_found_slower(n: int) -> None:
    rng = np.random.default_rng(n)
    x = STEPS / STEPS[-1]
    noise = {"run_sd": 0.004, "step_sd": 0.003, "time_sd": 0.0}
    slower = sum(
        speedup_of_curves(
            simulated(rng, rising(x), n, **noise), simulated(rng, rising(0.8 * x), n, **noise), paired=False
        ).verdict
        == "slower"
        for _ in range(100)
    )
    assert slower > 90
