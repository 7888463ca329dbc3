"""Speed over workers, the exchange of gradients, and unseen sizes, against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from reuse_algos.errors import NotEnoughEvidenceError
from reuse_algos.predict.cost.communication import exchange_seconds, strong_scaling
from reuse_algos.predict.cost.speed import SpeedModel, fit_speed
from reuse_algos.predict.loss_curve import LossCurve
from reuse_algos.predict.sizes import SizedRun, curve_misfit, end_interval, leave_one_size_out, predict_size

WORKERS, SERVERS = (grid.ravel() for grid in np.meshgrid(np.arange(1, 17), np.arange(1, 9)))
TERMS = {"synchronous": (0.02, 0.2, 0.3, 0.04, 0.06), "asynchronous": (0.5, 0.06, 0.01, 0.01)}


@pytest.mark.parametrize("scheme", ["synchronous", "asynchronous"])
def test_ten_of_128_settings_predict_the_rest(scheme) -> None:
    true = SpeedModel(scheme, TERMS[scheme], 128, (1, 16), 0.0).steps_per_second(WORKERS, SERVERS)
    errors = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        at = generator.choice(128, 10, replace=False)
        measured = true * (1 + 0.02 * generator.standard_normal(128))
        model = fit_speed(WORKERS[at], measured[at], batch=128, servers=SERVERS[at], scheme=scheme)
        errors.append(np.abs(model.steps_per_second(WORKERS, SERVERS) / true - 1).mean())
    # Ten points at 2 % noise leave 2 % * sqrt(terms / 10), about 1.4 %, on average.
    assert np.mean(errors) < 0.018
    assert np.min(errors) < 0.008


def test_all_reduce_terms_come_back_exactly() -> None:
    workers = np.asarray([1, 2, 4, 8])
    true = 1 / (0.001 * 256 / workers + 0.02 + 0.003 * workers)
    model = fit_speed(workers, true, batch=256)
    assert model.terms == pytest.approx((0.001, 0.02, 0.003))
    assert 1 / model.steps_per_second(16) == pytest.approx(0.016 + 0.02 + 0.048)
    assert model.measured([1, 8, 16]).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("workers", "speeds", "said"),
    [([1, 1], [2.0, 2.1], "two or more numbers"), ([1, 2], [2.0, 0.0], "above 0"), ([1, 2], [2.0], "shapes")],
)
def test_too_few_speeds_are_refused(workers, speeds, said) -> None:
    with pytest.raises(NotEnoughEvidenceError, match=said):
        fit_speed(workers, speeds, batch=8)


@pytest.mark.parametrize(
    ("scheme", "passes"),
    [("tree", 6.0), ("butterfly", 3.0), ("one_to_all", 14.0), ("ring", 1.75), ("parameter_servers", 8.0)],
)
def test_exchange_among_eight(scheme, passes: float) -> None:
    assert exchange_seconds(scheme, 8, 3e6, 1e6, servers=2) == pytest.approx(3 * passes)
    assert exchange_seconds(scheme, 8, 3e6, 1e6, servers=2, percent=0.72) == pytest.approx(3 * passes / 0.72)
    assert exchange_seconds(scheme, 1, 3e6, 1e6) == 0


def test_strong_scaling_by_hand() -> None:
    one, three = strong_scaling(0.01, 100, 3600, 2e6, 1e6, workers=(1, 3), scheme="ring", price_per_hour=2.0)
    assert (one.step_seconds, one.examples_per_second, one.cost) == pytest.approx((1.0, 100.0, 2.0))
    exchange = 2 * 2 / 3 * 2
    assert three.batch_per_worker == 34
    assert three.step_seconds == pytest.approx(0.34 + exchange)
    assert three.overlapped_seconds == pytest.approx(exchange)
    assert three.speedup == pytest.approx(1 / (0.34 + exchange))
    assert three.cost == pytest.approx((0.34 + exchange) * 3 * 2)
    one, three = strong_scaling(
        0.01, 100, 3600, 2e6, 1e6, workers=(1, 3), scheme="parameter_servers", servers=2, price_per_hour=2.0
    )
    assert (one.cost, three.cost) == pytest.approx((2.0, (0.34 + 2 * 2 * 3 / 2) * (3 + 2) * 2)), "servers cost as well"
    with pytest.raises(ValueError, match="8 workers cannot share a batch of 4"):
        strong_scaling(0.01, 4, 1, 1, 1)


def sized(depth: int, hardware: str = "a", factor: float = 1.0) -> SizedRun:
    """A run whose coefficients are powers of its FLOPs."""
    flops = 1e6 * depth
    curve = LossCurve(1e-3 * flops**0.2, 2 * flops**-0.05, 0.5 * flops**-0.1, 4.6)
    return SizedRun(
        flops, curve, factor * 1e-9 * flops**0.9, hardware, 1000, float(curve.loss(1000)), f"ResNet-{depth}"
    )


def test_four_depths_predict_a_fifth() -> None:
    runs = [sized(depth) for depth in (20, 32, 44, 56)]
    found, true = predict_size(runs, 50e6, "a"), sized(50)
    assert found.curve.loss(1000) == pytest.approx(true.end_loss, rel=1e-3)
    assert found.step_seconds == pytest.approx(true.step_seconds, rel=1e-3)
    assert not found.extrapolates
    assert predict_size(runs, 110e6, "a").extrapolates
    errors = leave_one_size_out(runs)
    assert list(errors) == ["ResNet-20", "ResNet-32", "ResNet-44", "ResNet-56"]
    assert max(max(pair) for pair in errors.values()) < 0.01


def test_hardware_shifts_the_time_only() -> None:
    runs = [sized(20), sized(56), sized(20, "b", 3.0), sized(56, "b", 3.0)]
    found = predict_size(runs, 44e6, "b")
    assert found.step_seconds == pytest.approx(3 * sized(44).step_seconds, rel=0.01)
    assert found.curve.loss(1000) == pytest.approx(sized(44).end_loss, rel=0.01)


def test_the_interval_of_an_unseen_size_holds_as_often_as_it_says() -> None:
    """Four sizes that scatter by 10 % around powers of their FLOPs predict a fifth: four of five ends, or more."""
    held = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        runs = []
        for depth in (20, 32, 44, 56, 50):
            true = sized(depth)
            curve = replace(true.curve, b2=true.curve.b2 * math.exp(0.1 * generator.standard_normal()))
            runs.append(replace(true, curve=curve, end_loss=float(curve.loss(true.end_step))))
        *known, unseen = runs
        low, high = end_interval(known, float(predict_size(known, unseen.flops, "a").curve.loss(unseen.end_step)))
        held.append(low <= unseen.end_loss <= high)
    # 0.8, less three standard errors of 200 studies.
    assert np.mean(held) > 0.8 - 3 * (0.8 * 0.2 / 200) ** 0.5


def test_curves_that_miss_their_own_ends_are_noticed() -> None:
    runs = [sized(depth) for depth in (20, 32, 44)]
    assert curve_misfit(runs) == pytest.approx(1)
    off = [replace(run, end_loss=run.end_loss / factor) for run, factor in zip(runs, (2, 30, 9), strict=True)]
    assert curve_misfit(off) == pytest.approx(9)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([sized(20)], "two sizes"),
        ([sized(20, "b"), sized(32, "b")], "no run was trained on 'a'"),
        ([sized(20), sized(32, "b")], "no size in common"),
    ],
)
def test_sizes_that_say_nothing_are_refused(runs, said) -> None:
    with pytest.raises(NotEnoughEvidenceError, match=said):
        predict_size(runs, 44e6, "a")
