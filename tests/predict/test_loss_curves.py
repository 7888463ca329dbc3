"""The Optimus form, against scipy's own fit and the numbers of its study."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import curve_fit

from reuse_algos.errors import NotEnoughEvidenceError
from reuse_algos.predict.budget_law import fit_budget_law
from reuse_algos.predict.loss_curve import fit_loss_curve, looks_decayed, replace_outliers

STEPS = np.arange(1, 201.0)
TRUE = (0.21, 1.07, 0.07)


def form(steps, b0, b1, b2):
    return 1 / (b0 * steps + b1) + b2


def noisy(share: float, seed: int) -> np.ndarray:
    return form(STEPS, *TRUE) * (1 + share * np.random.default_rng(seed).standard_normal(len(STEPS)))


def test_coefficients_come_back_without_noise() -> None:
    curve = fit_loss_curve(STEPS, form(STEPS, *TRUE))
    # The fit divides the losses by the largest, so b0 and b1 carry that scale.
    found = (curve.b0 / curve.scale, curve.b1 / curve.scale, curve.b2 * curve.scale)
    assert found == pytest.approx(TRUE, abs=5e-5)
    assert curve.steps_to(0.1) == pytest.approx((1 / 0.03 - 1.07) / 0.21, rel=1e-4)
    assert curve.steps_to(0.05) == math.inf


@pytest.mark.parametrize("seed", range(8))
def test_error_is_scipys(seed: int) -> None:
    losses = noisy(0.01, seed)
    curve = fit_loss_curve(STEPS, losses)
    best, _ = curve_fit(form, STEPS, losses, p0=(0.1, 1, 0.05), bounds=(0, np.inf))
    ours, theirs = ((curve.loss(STEPS) - losses) ** 2).sum(), ((form(STEPS, *best) - losses) ** 2).sum()
    assert ours <= 1.004 * theirs


def test_a_quarter_predicts_the_end() -> None:
    ends = [float(fit_loss_curve(STEPS[:50], noisy(0.02, seed)[:50]).loss(200)) for seed in range(20)]
    true = form(200, *TRUE)
    assert true == pytest.approx(0.0932, abs=5e-5)
    assert np.median(np.abs(np.asarray(ends) / true - 1)) < 0.05
    assert np.max(np.abs(np.asarray(ends) / true - 1)) < 0.15


@pytest.mark.parametrize("seed", range(10))
def test_decay_is_noticed(seed: int) -> None:
    losses = noisy(0.02, seed)
    assert not looks_decayed(STEPS, losses)
    assert looks_decayed(STEPS, losses * np.where(STEPS > 130, 1 - (STEPS - 130) / 200, 1))


def test_outliers_become_the_mean_of_their_neighbours() -> None:
    losses = np.asarray([5.0, 4.0, 30.0, 3.0, 2.0, 1.5])
    assert replace_outliers(losses).tolist() == [5.0, 4.0, 3.5, 3.0, 2.0, 1.5]
    spiked = form(STEPS, *TRUE)
    spiked[[30, 90]] = 3.0
    assert fit_loss_curve(STEPS, spiked, outliers=2).loss(200) == pytest.approx(form(200, *TRUE), rel=1e-3)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([1.0, 0.9, math.nan, 0.7, 0.6, 0.5], "diverged"),
        ([1.0, 0.9, 0.8], "at least 5 points"),
        ([1.0, 0.9, 0.8, 0.0, 0.6, 0.5], "above 0"),
    ],
)
def test_what_is_not_a_curve_is_refused(losses: list[float], said: str) -> None:
    with pytest.raises(NotEnoughEvidenceError, match=said):
        fit_loss_curve(np.arange(len(losses)), losses)


def test_law_over_budgets_and_the_coverage_of_its_limits() -> None:
    steps = np.repeat([100.0, 200.0, 400.0, 800.0], 3)
    exact = fit_budget_law(steps, 5 * steps**-0.4)
    assert exact.steps_to(5 * 3000**-0.4)[0] == pytest.approx(3000)
    assert exact.loss(1600) == pytest.approx(5 * 1600**-0.4)
    assert exact.last_error == pytest.approx(0, abs=1e-9)
    covered = 0
    for seed in range(300):
        noise = 0.05 * np.random.default_rng(seed).standard_normal(12)
        _, low, high = fit_budget_law(steps, 5 * steps**-0.4 * np.exp(noise)).steps_to(5 * 3000**-0.4)
        covered += low <= 3000 <= high
    assert 0.92 <= covered / 300 <= 0.98
    assert fit_budget_law(steps, np.linspace(1, 2, 12)).steps_to(0.5) == (math.inf, 0.0, math.inf)
    with pytest.raises(NotEnoughEvidenceError, match="at least 3 of them, got 2"):
        fit_budget_law(steps[:6], steps[:6])
    with pytest.raises(NotEnoughEvidenceError, match="above 0"):
        fit_budget_law(steps, steps - 100)
