"""The pure part of HistoryCurriculum: pacing functions, orders, windows, draws, and what each epoch shows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from reuse_algos.algorithms import HistoryCurriculum
from reuse_algos.algorithms.history_curriculum.durations import epochs_of
from reuse_algos.algorithms.history_curriculum.pacing import PACINGS, allowed_examples
from reuse_algos.algorithms.history_curriculum.plans import (
    Candidates,
    candidates,
    difficulty_order,
    draw_in_proportion,
    merge_losses,
    plan_of_all,
    window,
)
from reuse_algos.algorithms.history_curriculum.strategies import ActiveBias, Clock, Curriculum, DynamicPrune, Prune
from reuse_algos.archive import RunArchive
from reuse_algos.training.window import Window

NAN = float("nan")

# Pacing --------------------------------------------------------------------------------------------------------------

# N = 100 examples, T = 50 steps, a = 0.8 (so all data from step 40), b = 0.2; worked by hand from the paper's table.
HAND = {
    "linear": {0: 20, 10: 40, 20: 60, 39: 98, 40: 100, 50: 100},
    "quadratic": {0: 20, 10: 25, 20: 40, 39: 96, 40: 100},
    "root": {0: 20, 10: 60, 40: 100},
    "step": {0: 20, 39: 20, 40: 100, 50: 100},
    "exponential": {0: 20, 20: 20, 30: 26, 40: 100},
    "logarithmic": {0: 20, 4: 81, 20: 94, 40: 100},
}


@pytest.mark.parametrize("pacing", PACINGS)
def test_pacing_by_hand(pacing: str) -> None:
    found = {t: allowed_examples(pacing, t, 50, 100, start_fraction=0.2, full_data_at=0.8) for t in HAND[pacing]}
    assert found == HAND[pacing]


@pytest.mark.parametrize("pacing", PACINGS)
@pytest.mark.parametrize(("a", "b"), [(0.8, 0.2), (0.1, 0.0025), (1.6, 0.5), (0.4, 1.0)])
def test_pacing_is_the_formula_of_the_paper(pacing: str, a: float, b: float) -> None:
    n, total = 4500, 391
    end = a * total

    def paper(t: int) -> float:
        if pacing == "linear":
            return n * b + n * (1 - b) / end * t
        if pacing == "quadratic":
            return n * b + n * (1 - b) / end**2 * t**2
        if pacing == "root":
            return n * b + n * (1 - b) / math.sqrt(end) * math.sqrt(t)
        if pacing == "step":
            return n * b + n * (t // end)
        if pacing == "exponential":
            return n * b + n * (1 - b) / (math.exp(10) - 1) * (math.exp(10 * t / end) - 1)
        return n * b + n * (1 - b) * (1 + 0.1 * math.log(t / end + math.exp(-10)))

    for t in range(total):
        size = allowed_examples(pacing, t, total, n, start_fraction=b, full_data_at=a)
        # Beyond the end the exponential grows past any bound; all of them stop at N.
        expected = n if t >= end else min(paper(t), n)
        assert abs(size - expected) <= 1 + 1e-6, t
        assert size <= expected + 1e-3


def test_pacing_at_its_ends() -> None:
    for pacing in PACINGS:
        assert allowed_examples(pacing, 0, 10, 7, start_fraction=0.5, full_data_at=0.0) == 7
        assert allowed_examples(pacing, 0, 10, 100, start_fraction=0.29, full_data_at=1.0) == 29
        sizes = [allowed_examples(pacing, t, 10, 100, start_fraction=0.1, full_data_at=0.7) for t in range(10)]
        assert sizes == sorted(sizes)
        assert sizes[-1] == 100


# Orders, windows, draws ----------------------------------------------------------------------------------------------


def test_unknown_examples() -> None:
    scores = np.array([3.0, NAN, 1.0, 2.0])
    assert difficulty_order(candidates(scores, "keep"), 0).tolist() == [2, 3, 0, 1]
    assert difficulty_order(candidates(scores, "drop"), 0).tolist() == [2, 3, 0]
    assert candidates(scores, "median").scores_N.tolist() == [3.0, 2.0, 1.0, 2.0]
    assert candidates(scores, "keep").finite.tolist() == [3.0, 3.0, 1.0, 2.0]
    assert window(candidates(scores, "keep"), 0, 2).tolist() == [0, 1]
    assert window(candidates(scores, "drop"), 0, 2).tolist() == [0, 3]


def test_ties_are_drawn_from_the_seed_and_not_from_the_position() -> None:
    found = candidates(np.array([1.0] * 20 + [0.0]), "keep")
    first, again, other = (difficulty_order(found, seed).tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert first[0] == 20
    assert first[1:] != sorted(first[1:])


def test_balanced_orders_hold_every_class_in_proportion() -> None:
    labels = np.array([0] * 30 + [1] * 10)
    found = candidates(np.arange(40.0), "keep")  # class 1 is the harder one
    order = difficulty_order(found, 0, labels)
    for size in (4, 8, 20, 32):
        assert abs(int(labels[order[:size]].sum()) - size / 4) <= 1
        assert abs(int(labels[order[-size:]].sum()) - size / 4) <= 1
    assert [int(i) for i in order if i < 30] == list(range(30)), "within a class the order is that of the score"
    kept = window(found, 0, 20, labels_N=labels)
    assert int(labels[kept].sum()) == 5
    assert set(kept) == {*range(15, 30), *range(35, 40)}


def test_window() -> None:
    found = candidates(np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0]), "keep")
    assert window(found, 0, 2).tolist() == [0, 1]
    assert window(found, 0, 2, skip=1).tolist() == [1, 2]
    assert window(found, 0, 2, end="easy").tolist() == [4, 5]
    assert window(found, 0, 2, end="easy", skip=3).tolist() == [1, 2]
    with pytest.raises(ValueError, match="4 examples after the first 3 .* only 6 have a score"):
        window(found, 0, 4, skip=3)


def test_draws_are_in_proportion() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([0.0, 1.0, 2.0, 3.0, 10.0])
    expected = weights / weights.sum() * 37
    counts = np.stack([np.bincount(draw_in_proportion(weights, 37, rng), minlength=5) for _ in range(4000)])
    assert counts.sum(1).tolist() == [37] * 4000
    assert (np.abs(counts - expected) < 1 + 1e-9).all(), "each count is the floor or the ceiling of its expectation"
    # The share of ceilings has a standard error of at most 0.5 / sqrt(4000) = 0.008.
    assert np.abs(counts.mean(0) - expected).max() < 0.03
    assert sorted(draw_in_proportion(np.full(50, 0.1), 50, rng).tolist()) == list(range(50))


def test_prior_losses_are_brought_to_the_scale_of_this_run() -> None:
    prior, own = np.array([0.1, 0.2, 0.3, NAN, NAN]), np.array([2.0, 4.0, NAN, 5.0, NAN])
    # Both are known of the first two: 6.0 against 0.3, a factor of 20.
    np.testing.assert_allclose(merge_losses(prior, own), [2.0, 4.0, 6.0, 5.0, NAN])
    np.testing.assert_array_equal(merge_losses(prior, np.full(5, NAN)), prior)


# What each epoch shows -----------------------------------------------------------------------------------------------


def test_curriculum_shows_what_the_pacing_allows() -> None:
    n, batch = 96, 8
    clock = Clock(batch, 12, 48)
    found = candidates(np.random.default_rng(0).permutation(n).astype(float), "keep")
    strategy = Curriculum("easy_first", "linear", 0.25, 0.5)
    assert strategy.length(found) == n
    for epoch in range(4):
        plan = strategy.plan(epoch, found, n, clock, seed=3)
        assert len(plan.order_M) == n
        start, sizes = 0, []
        while start < n:  # each pass shows the easiest g(t) examples once, with t the step at which it begins
            step = epoch * 12 + start // batch
            size = allowed_examples("linear", step, 48, n, start_fraction=0.25, full_data_at=0.5)
            part = plan.order_M[start : start + size]
            assert len(set(part)) == len(part)
            assert found.scores_N[part].max() < size
            assert (plan.in_use_M[start : start + size] == size / n).all()
            if len(part) == size:
                assert set(found.scores_N[part]) == set(range(size))
            sizes.append(size)
            start += size
        assert sizes == [[24, 33, 45], [60, 81], [96], [96]][epoch]
        assert plan.changes(n) == (epoch < 2)


def test_curriculum_orders() -> None:
    found = candidates(np.arange(64.0), "keep")
    clock = Clock(8, 8, 80)

    def first(order: str, seed: int = 0) -> set[int]:
        return set(Curriculum(order, "step", 0.25, 0.9).plan(0, found, 64, clock, seed).order_M.tolist())

    assert first("easy_first") == set(range(16))
    assert first("hard_first") == set(range(48, 64))
    assert first("random") != first("random", 1)
    assert len(first("random")) == 16
    tiny = Curriculum("easy_first", "step", 0.0, 0.9).plan(0, found, 64, clock, 0)
    assert set(tiny.order_M.tolist()) == set(range(8)), "at least one batch of examples is allowed"


def test_dynamic_prune_counts_and_weights() -> None:
    scores = np.concatenate([np.full(60, 1.0), np.full(40, 5.0)]) + np.linspace(0, 0.1, 100)
    found = candidates(scores, "keep")
    strategy = DynamicPrune(prune_rate=0.5)
    clock = Clock(10, 7, 70)
    assert strategy.length(found) == 70
    shown = []
    for epoch in range(8):
        plan = strategy.plan(epoch, found, 70, clock, seed=1)
        assert len(set(plan.order_M)) == 70
        assert set(range(60, 100)) <= set(plan.order_M), "hard examples are never dropped"
        assert plan.weights_N is not None
        assert plan.weights_N[:60].tolist() == [2.0] * 60
        assert plan.weights_N[60:].tolist() == [1.0] * 40
        assert plan.weights_N[plan.order_M].sum() == 100
        shown.append(frozenset(plan.order_M.tolist()))
    assert len(set(shown)) == 8
    last = [plan_of_all(found, turn, 70, seed=1) for turn in (0, 1)]
    together = np.concatenate([plan.order_M for plan in last])
    assert [plan.weights_N for plan in last] == [None, None]
    assert sorted(together[:100].tolist()) == list(range(100)), "the first pass ends in the second epoch"
    assert len(set(together[100:].tolist())) == 40
    assert all(plan.changes(100) for plan in last)


def test_dynamic_prune_keeps_its_length_when_the_scores_move() -> None:
    start = candidates(np.concatenate([np.full(60, 1.0), np.full(40, 5.0)]), "keep")
    strategy = DynamicPrune(prune_rate=0.5)
    for easy in (1, 20, 45, 80, 99):
        scores = np.full(100, 5.0)
        scores[:easy] = 1.0
        plan = strategy.plan(3, candidates(scores, "keep"), 70, Clock(10, 7, 70), seed=1)
        assert len(set(plan.order_M)) == 70
        assert plan.weights_N is not None
        # At least 60 count as easy, so that no more than half of them is dropped.
        assert int((plan.weights_N > 1).sum()) == max(60, easy)
        assert plan.weights_N[plan.order_M].sum() == pytest.approx(100) or easy < 60
    assert strategy.length(start) == 70


def test_no_more_than_half_count_as_easy_where_scores_move() -> None:
    skewed = candidates(np.concatenate([np.full(90, 0.1), np.full(10, 5.0), np.full(20, NAN)]), "keep")
    few = candidates(np.concatenate([np.full(30, 0.1), np.full(70, 5.0)]), "keep")
    for update, of_skewed, of_few in ((False, 63, 21), (True, 35, 21)):
        assert DynamicPrune(prune_rate=0.7).length(skewed, update=update) == 120 - of_skewed
        assert DynamicPrune(prune_rate=0.7).length(few, update=update) == 100 - of_few


def test_dynamic_prune_with_a_share_of_easy_examples(tmp_path: Path) -> None:
    RunArchive(tmp_path, create=True)
    scores = np.concatenate([np.arange(100) / 100, np.full(20, np.nan)])  # 20 unknown ones, which are kept
    found = candidates(np.random.default_rng(3).permutation(scores), "keep")
    strategy = DynamicPrune(prune_rate=0.5, easy_share=0.75)
    assert strategy.length(found, update=True) == 120 - 38  # round(0.5 * 75)
    easiest = np.flatnonzero(found.scores_N < 0.75)
    for epoch in (0, 5):
        plan = strategy.plan(epoch, found, 82, Clock(10, 9, 82), seed=1)
        assert plan.weights_N is not None
        assert np.flatnonzero(plan.weights_N > 1).tolist() == easiest.tolist()
        assert set(np.setdiff1d(np.arange(120), plan.order_M)) <= set(easiest.tolist())
        np.testing.assert_allclose(plan.weights_N[easiest], 75 / 37)
        assert plan.weights_N[plan.order_M].sum() == pytest.approx(120)
    with pytest.raises(ValueError, match="easy_share must be above 0 and at most 1"):
        DynamicPrune(easy_share=0.0)
    with pytest.raises(ValueError, match="easy_share"):
        HistoryCurriculum(tmp_path, strategy={"name": "prune", "easy_share": 0.5}, score="random")


def test_dynamic_prune_says_what_it_drops_above_the_mean() -> None:
    scores = np.concatenate([np.zeros(10), np.full(90, 1.0)])
    plan = DynamicPrune(prune_rate=0.5).plan(0, candidates(scores, "keep"), 70, Clock(10, 7, 70), seed=1)
    dropped = np.setdiff1d(np.arange(100), plan.order_M)
    assert plan.dropped_above_mean == pytest.approx(np.mean(dropped >= 10))
    assert plan.dropped_above_mean > 0.5


@pytest.mark.parametrize(
    ("batches", "share", "first"),
    # 7 batches in an epoch: the last pruned epoch and one of all data are there, however short the training is.
    [
        (7, 0.875, 0),
        (14, 0.875, 1),
        (28, 0.875, 3),
        (35, 0.875, 4),
        (56, 0.875, 7),
        (70, 0.875, 8),
        (140, 0.875, 17),
        (25, 0.875, 2),
        (70, 0.8, 8),
        (70, 1.0, 10),
        (25, 1.0, 4),
        (7, 1.0, 1),
        (70, 0.0, 0),
        (70, 0.01, 1),
    ],
)
def test_the_last_part_has_a_whole_epoch(batches: int, share: float, first: int) -> None:
    assert epochs_of(Window(stop=f"{share}dur"), batches / 7, 7, 7) == (0, first)


@pytest.mark.parametrize(
    ("when", "on"),
    [
        ({"start": "2ep"}, (2, 10)),
        ({"start": "0.25dur", "stop": "5ep"}, (2, 5)),
        ({"start": "15ba", "stop": "29ba"}, (2, 4)),
        ({"stop": "140sp"}, (0, 2)),
        ({"start": "3ep", "stop": "3ep"}, (3, 3)),
        ({"start": "3ep", "stop": "22ba"}, (3, 4)),
    ],
)
def test_times_of_any_kind_become_whole_epochs(when: dict[str, str], on: tuple[int, int]) -> None:
    """10 epochs of 7 batches and 70 examples; a strategy that is on at all is on for an epoch."""
    assert epochs_of(Window(**when), 10, 7, 70) == on
    with pytest.raises(ValueError, match="in dur, ep, ba or sp, got"):
        epochs_of(Window(stop="5tok"), 10, 7, 70)


def test_keep_and_offset_may_be_everything() -> None:
    """Both are rounded: 0.5 and 0.5 of 11 would be 6 and 6."""
    for count in range(10, 120):
        found = candidates(np.random.default_rng(0).random(count), "keep")
        for keep in (0.5, 0.6, 0.7, 0.75, 0.85, 0.9):
            strategy = Prune(keep=keep, offset=round(1 - keep, 3))
            plan = strategy.plan(0, found, strategy.length(found), Clock(1, 1, 1), 0)
            assert len(set(plan.order_M)) == max(1, round(keep * count))


@pytest.mark.parametrize(("rate", "easy_share"), [(0.3, None), (0.7, None), (0.5, 0.75), (0.4, 1.0)])
def test_expected_gradient_of_dynamic_prune_is_the_full_one(rate: float, easy_share: float | None) -> None:
    """The weighted sum over an epoch against the sum over all data: the mean of 400 epochs within 4 standard errors."""
    rng = np.random.default_rng(5)
    scores, gradients_NP = rng.exponential(size=120), rng.normal(size=(120, 7)) + 1.0
    found = candidates(scores, "keep")
    strategy = DynamicPrune(prune_rate=rate, easy_share=easy_share)
    length = strategy.length(found)
    sums = []
    for seed in range(400):
        plan = strategy.plan(seed % 7, found, length, Clock(10, 9, 90), seed)
        assert plan.weights_N is not None
        sums.append((plan.weights_N[plan.order_M, None] * gradients_NP[plan.order_M]).sum(0))
    deviation = np.mean(sums, axis=0) - gradients_NP.sum(0)
    standard_error = np.std(sums, axis=0, ddof=1) / math.sqrt(400)
    assert (np.abs(deviation) < 4 * standard_error).all()
    # The bound would notice missing weights: the kept easy examples alone would fall short by many standard errors.
    unweighted = DynamicPrune(prune_rate=rate, easy_share=easy_share, rescale=False)
    plain = [gradients_NP[unweighted.plan(0, found, length, Clock(10, 9, 90), s).order_M].sum(0) for s in range(400)]
    assert (np.abs(np.mean(plain, axis=0) - gradients_NP.sum(0)) > 4 * standard_error).any()


def test_active_bias_and_focus() -> None:
    statistic = np.array([0.0, 0.1, 0.2, 0.5])  # mean 0.2, so the emphasis is [.2, .3, .4, .7] with mean 0.4
    found = candidates(statistic, "keep")
    plan = ActiveBias("weighting").plan(0, found, 4, Clock(2, 2, 4), 0)
    assert plan.weights_N is not None
    np.testing.assert_allclose(plan.weights_N, [0.5, 0.75, 1.0, 1.75])
    assert sorted(plan.order_M.tolist()) == [0, 1, 2, 3]
    many = candidates(np.tile(statistic, 250), "keep")
    # Expected counts: s + mean over their mean, and s over its mean; each example within one of it.
    for smoothing, expected in ((None, [0.5, 0.75, 1.0, 1.75]), (0.0, [0.0, 0.5, 1.0, 2.5])):
        order = ActiveBias("sampling", smoothing).plan(0, many, 1000, Clock(10, 100, 100), 0).order_M
        counts = np.bincount(order, minlength=1000).reshape(250, 4)
        assert len(order) == 1000
        assert (np.abs(counts - np.array(expected)) < 1).all()
        assert np.abs(counts.mean(0) - expected).max() < 0.05
    flat = ActiveBias("weighting").plan(0, candidates(np.zeros(4), "keep"), 4, Clock(2, 2, 4), 0)
    assert not flat.changes(4)


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "given", "message"),
    [
        ("curiculum", {}, "there is no 'curiculum'. Did you mean 'curriculum'"),
        ("focus", {"keep": 0.5}, "strategy.keep: there is no such key"),
        ("curriculum", {"pacing": "cubic"}, "pacing must be one of linear, quadratic"),
        ("curriculum", {"start_fraction": 1.5}, "start_fraction must be from 0 to 1, got 1.5"),
        ("prune", {"keep": 0.0}, "keep must be above 0 and at most 1"),
        ("prune", {"keep": 0.5, "examples": 10}, "keep .* or examples .*, not both"),
        ("dynamic_prune", {"prune_rate": 1.0}, "prune_rate must be at least 0 and below 1"),
        ("active_bias", {"mode": "both"}, "mode must be one of sampling, weighting"),
    ],
)
def test_settings_are_checked(tmp_path: Path, strategy: str, given: dict[str, object], message: str) -> None:
    RunArchive(tmp_path, create=True)
    with pytest.raises(ValueError, match=message):
        HistoryCurriculum(tmp_path, strategy={"name": strategy, **given}, score="random")


@pytest.mark.parametrize(("sizes", "count"), [((197, 2, 1), 40), ((50, 1, 1, 1), 4), ((3, 97), 10)])
@pytest.mark.parametrize("end", ["easy", "hard"])
def test_balance_keeps_one_of_each_class(sizes: tuple[int, ...], count: int, end: str) -> None:
    labels_N = np.repeat(np.arange(len(sizes)), sizes)
    scores_N = np.random.default_rng(0).random(len(labels_N))
    kept = window(Candidates(scores_N), 0, count, end=end, labels_N=labels_N)
    assert len(kept) == len(set(kept.tolist())) == count
    assert set(labels_N[kept].tolist()) == set(range(len(sizes)))


def test_balance_says_when_there_are_too_many_classes() -> None:
    with pytest.raises(ValueError, match="4 classes cannot all be kept in 3 examples"):
        window(Candidates(np.arange(8.0)), 0, 3, labels_N=np.arange(8) % 4)
