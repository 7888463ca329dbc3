"""Steps over batch sizes and accuracy over attack strengths, against synthetic truths and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize

from reuse_algos.errors import NotEnoughEvidenceError
from reuse_algos.predict.sweeps.attack_strength import find_transition
from reuse_algos.predict.sweeps.batch_size import Trial, batch_sweep, effective_rate, noise_scale, regime
from reuse_algos.predict.sweeps.best_values import Attempt, best_values

DIGITS = {4: 375, 16: 136, 64: 79, 256: 56, 1024: 61}


def regression_shrinkage(strength):
    """The optimum ``theta = a theta0`` of adversarial linear regression, known in closed form (Xing et al. 2022).

    ``y = x . theta0``, x ~ N(0, I), l2 attack of strength e in units of |theta0|, risk E (|y - x.theta| + e |theta|)^2.
    """
    e, c = np.asarray(strength, dtype=np.float64), math.sqrt(2 / math.pi)
    between = (1 - e * c) / (1 - 2 * e * c + e**2)
    return np.where(e <= c, 1.0, np.where(e >= 1 / c, 0.0, between))


def trials(steps: dict[int, float], values=(0.01, 0.1, 1.0), worse: float = 1.001) -> list[Trial]:
    """For each batch size a best value in the middle and two others that need a little longer."""
    made = []
    for batch, needed in steps.items():
        for at, value in enumerate(values):
            reach = round(needed if at == len(values) // 2 else needed * worse + 1)
            made.append(Trial(batch, value, list(range(1, reach + 1)), [0.0] * (reach - 1) + [0.96], name=f"{at}"))
    return made


def test_regimes_of_the_digits() -> None:
    sweep = batch_sweep(trials(DIGITS), 0.95, num_examples=1500)
    assert [point.steps for point in sweep.points] == list(DIGITS.values())
    assert [point.perfect for point in sweep.points][1:3] == [375 / 4, 375 / 16]
    assert [slope for slope, _, _ in sweep.slopes] == pytest.approx([-0.732, -0.392, -0.248, 0.062], abs=1e-3)
    assert sweep.regimes == [*["diminishing returns"] * 3, "maximal parallelism"]
    assert not sweep.flags


def test_rules_start_from_the_smallest_batch_and_momentum_makes_the_rate_effective() -> None:
    made = [
        Trial(b, v, [9], [0.96 if v == best else 0.1], momentum=0.9)
        for b, best in ((4, 0.1), (64, 1.0))
        for v in (0.1, 1.0)
    ]
    small, large = batch_sweep(made, 0.95).points
    # Goyal et al. 2017: k times the batch, k times the rate; Krizhevsky 2014: the root of k.
    assert (small.linear, small.square_root, large.linear, large.square_root) == pytest.approx((0.1, 0.1, 1.6, 0.4))
    assert (small.effective, large.effective) == pytest.approx((1.0, 10.0))
    assert batch_sweep(trials(DIGITS), 0.95).points[0].effective is None


def test_best_value_is_that_of_the_best_mean_over_seeds() -> None:
    made = [Attempt(at, tuned, outcome) for at, tuned, outcome in (
        (1, 0.1, 0.5), (1, 0.1, 0.7), (1, 0.2, 0.9), (1, 0.2, math.nan), (1, 0.05, 0.1), (2, 0.1, 0.8), (2, 0.2, 0.4),
    )]  # fmt: skip
    first, second = best_values(made, "max")
    # One seed of 0.2 diverged, so its 0.9 does not count.
    assert (first.tuned, first.outcome, first.num_runs, first.num_tried, first.flags) == (0.1, 0.6, 2, 3, ())
    assert first.spread == pytest.approx(math.sqrt(0.02))
    assert (second.tuned, second.outcome) == (0.1, 0.8)
    assert "lower edge" in second.flags[0]
    assert [one.tuned for one in best_values(made, "min")] == [0.05, 0.2]
    for refused, said in (
        (made[:3], "two or more values"),
        ([Attempt(1, None, math.inf), Attempt(2, None, math.nan)], "reached"),
    ):
        with pytest.raises(NotEnoughEvidenceError, match=said):
            best_values(refused, "min")


def test_flags_forbid_a_claim() -> None:
    edge = [*trials({4: 100}, (0.1, 1.0, 2.0)), *trials({8: 50}, (0.1, 1.0))]
    sweep = batch_sweep(edge, 0.95)
    assert "different numbers of trials: [2, 3]" in sweep.flags[0]
    assert "upper edge" in sweep.points[1].flags[0]
    assert sweep.regimes == ["not claimed"]
    coarse = [Trial(4, v, [10, 20], [0.1, 0.99]) for v in (1, 2, 3)] + [
        Trial(8, v, [5, 10], [0.1, 0.99]) for v in (1, 2, 3)
    ]
    assert any("more than 5 %" in flag for flag in batch_sweep(coarse, 0.95).points[0].flags)
    lone = [
        *trials({4: 100}),
        Trial(8, 0.1, [50], [0.99]),
        Trial(8, 1.0, [50], [0.2]),
        Trial(8, 0.01, [50], [0.9], True),
    ]
    assert "1 of 3 trials reached" in batch_sweep(lone, 0.95).points[1].flags[-1]


def test_what_makes_no_study_is_refused() -> None:
    with pytest.raises(NotEnoughEvidenceError, match="batch size 1024 is larger than the 500 training examples"):
        batch_sweep(trials(DIGITS), 0.95, num_examples=500)
    with pytest.raises(NotEnoughEvidenceError, match="none of 15 runs reached the goal 0.97"):
        batch_sweep(trials(DIGITS), 0.97)
    with pytest.raises(NotEnoughEvidenceError, match=r"at least two of them, got \[4\]"):
        batch_sweep(trials({4: 10}), 0.95)


def test_goal_is_strict_and_divergence_infeasible() -> None:
    assert Trial(4, 1, [1, 2, 3], [0.5, 0.9, 0.91]).steps_to(0.9) == 3
    assert Trial(4, 1, [1, 2, 3], [0.5, 0.4, 0.3]).steps_to(0.4, "min") == 3
    assert Trial(4, 1, [1], [0.99], diverged=True).steps_to(0.9) == math.inf


@pytest.mark.parametrize(
    ("slope", "low", "high", "said"),
    [
        (-0.95, -1.0, -0.91, "perfect scaling"),
        (-0.95, -1.0, -0.89, "undecided"),
        (-0.5, -0.6, -0.4, "diminishing returns"),
        (0.0, -0.05, 0.05, "maximal parallelism"),
        (0.0, -0.2, 0.2, "undecided"),
    ],
)
def test_regime_of_an_interval(slope, low, high, said) -> None:
    assert regime(slope, low, high) == said


def test_bad_sweeps_are_refused() -> None:
    for runs, goal, said in (
        (trials({4: 10}), 0.95, "at least two"),
        (trials({4: 10, 2000: 5}), 0.95, "larger than the 1500"),
        (trials({4: 10, 8: 5}), 0.99, "none of 6 runs reached"),
    ):
        with pytest.raises(NotEnoughEvidenceError, match=said):
            batch_sweep(runs, goal, num_examples=1500)
    with pytest.raises(ValueError, match="momentum"):
        effective_rate(0.1, 1.0)
    assert effective_rate(0.1, 0.9) == pytest.approx(1.0)


def test_noise_scale_comes_back_and_intervals_cover() -> None:
    batch = 2.0 ** np.arange(2, 11)
    found = [
        noise_scale(batch, 100 * (1 + 64 / batch) * (1 + 0.03 * np.random.default_rng(seed).standard_normal(9)))
        for seed in range(100)
    ]
    assert max(abs(one.noise / 64 - 1) for one in found) < 0.1
    assert sum(one.low <= 64 <= one.high for one in found) >= 90
    with pytest.raises(NotEnoughEvidenceError, match="no bend"):
        noise_scale(batch, 1000 / batch)
    with pytest.raises(NotEnoughEvidenceError, match="four or more"):
        noise_scale([4, 8, 16], [3, 2, 1])


def test_closed_form_is_what_minimises_the_risk() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((60_000, 3))
    truth = np.asarray([1.0, 0.0, 0.0])

    def risk(theta, e):
        return np.mean((np.abs(x @ (truth - theta)) + e * np.linalg.norm(theta)) ** 2)

    for e, known in ((0.5, 1.0), (0.85, 0.879), (1.0, 0.5), (1.15, 0.169), (1.4, 0.0)):
        best = optimize.minimize(risk, 0.5 * truth + 0.01, args=(e,), method="Nelder-Mead").x
        assert float(regression_shrinkage(e)) == pytest.approx(known, abs=5e-4)
        assert best[0] == pytest.approx(known, abs=0.03)


def test_transition_of_the_regression_is_found() -> None:
    strength = np.linspace(0.3, 1.8, 16)
    noise = np.random.default_rng(0).standard_normal(16)
    found = find_transition(strength, regression_shrinkage(strength) + 0.01 * noise)
    assert found.shown
    assert (found.start, found.stop) == pytest.approx((0.798, 1.253), abs=0.06)
    assert (found.before, found.after) == pytest.approx((1, 0), abs=0.02)


def test_a_line_is_no_transition() -> None:
    strength = np.linspace(0.3, 1.8, 16)
    shown = 0
    for seed in range(30):
        noise = np.random.default_rng(seed).standard_normal(16)
        shown += find_transition(strength, 1 - 0.3 * strength + 0.02 * noise).shown
    assert shown <= 2
    with pytest.raises(NotEnoughEvidenceError, match="at least 7"):
        find_transition([1, 2, 3], [3, 2, 1])


def test_a_plateau_of_one_strength_is_not_shown() -> None:
    strength = [0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3]
    accuracy = [0.961, 0.967, 0.956, 0.95, 0.956, 0.956, 0.914, 0.836, 0.378]
    # Only the last strength lies beyond the slope, so nothing shows that the fall has ended there.
    assert not find_transition(strength, accuracy).after < 0.6
    found = find_transition([*strength, 0.4, 0.5], [*accuracy, 0.38, 0.379])
    assert found.shown
    assert found.stop <= 0.3 + 1e-6
    assert found.after == pytest.approx(0.379, abs=0.01)
