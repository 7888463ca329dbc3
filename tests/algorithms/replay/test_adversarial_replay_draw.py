"""Which rows AdversarialReplay replays with whose perturbations: on average, by recency, on every number of ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from replaying import BATCH, conv_net, deltas, fit, perturbed, positions_of, replay, series
from reuse_algos.algorithms.adversarial_replay import choose_prior_runs, replayed_rows
from reuse_algos.archive import RunArchive

ROWS = torch.arange(1, BATCH, 2)  # of fraction 0.5
KEPT = torch.arange(0, BATCH, 2)


def test_rows_are_spread_evenly() -> None:
    assert replayed_rows(0.5, 8).tolist() == [1, 3, 5, 7]
    assert replayed_rows(1.0, 3).tolist() == [0, 1, 2]
    assert replayed_rows(0.29, 100).shape == (29,)
    for fraction in (0.01, 0.1, 0.33, 0.7, 0.99):
        for rows in (0, 1, 7, 100, 1000):
            assert len(replayed_rows(fraction, rows)) == int(fraction * rows + 1e-9)


@pytest.mark.parametrize(("fraction", "rows"), [(0.01, 16), (0.3, 16), (0.5, 1), (0.1, 10), (1.0, 7), (1 / 3, 32)])
def test_fractions_of_a_row_are_carried_over(fraction: float, rows: int) -> None:
    total = 0
    for batch in range(3000):
        total += len(replayed_rows(fraction, rows, batch))
        assert abs(total - fraction * rows * (batch + 1)) <= 1, batch
    late = [len(replayed_rows(fraction, rows, batch)) for batch in range(10**7, 10**7 + 1000)]
    assert sum(late) == pytest.approx(1000 * fraction * rows, abs=1.01)


def test_small_fractions_hold_on_average(archive: RunArchive) -> None:
    _, _, log = fit([replay(archive, fraction=0.05, every_n_batches=2)], conv_net(5, norm=False), max_duration="4ep")
    assert series(log, "rows") == [0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0], "0.8 of a row every second batch"


def test_runs_are_drawn_by_recency_and_only_where_they_have_a_row() -> None:
    keys = torch.arange(20_000)
    everywhere = torch.ones(20_000, 3, dtype=torch.bool)
    drawn = choose_prior_runs(7, keys, 0, everywhere, 0.5)
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([4.0, 2.0, 1.0]) / 7, atol=0.015, rtol=0)
    assert torch.equal(drawn[500:600], choose_prior_runs(7, keys[500:600], 0, everywhere[:100], 0.5))
    for other in ((8, 0), (7, 1)):
        again = choose_prior_runs(other[0], keys, other[1], everywhere, 0.5)
        assert 0.4 < float((again == drawn).float().mean()) < 0.46  # 21 of 49, as independent draws
    some = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) < 0.4
    drawn = choose_prior_runs(7, keys, 0, some, 0.5)
    assert torch.equal(drawn < 0, ~some.any(1))
    assert bool(some[drawn >= 0].gather(1, drawn[drawn >= 0].unsqueeze(1)).all())
    both = some[:, 0] & ~some[:, 1] & some[:, 2]
    assert float((drawn[both] == 0).float().mean()) == pytest.approx(0.8, abs=0.04)


def test_each_example_gets_the_perturbation_of_the_run_that_was_drawn(archive: RunArchive) -> None:
    algorithm = replay(archive, runs=["newer", "older"], recency=0.5, seed=3)
    _, calls, _ = fit([algorithm], max_duration="2ep")
    for batch, (inputs, _) in enumerate(calls.batches):
        view = batch // 3
        clean, positions = inputs[ROWS], positions_of(inputs[ROWS], view)
        drawn = choose_prior_runs(3, positions, view, torch.ones(8, 2, dtype=torch.bool), 0.5)
        both = torch.stack([deltas(2)[view][positions], deltas(1)[view][positions]])
        expected = perturbed(clean, both[drawn, torch.arange(8)])
        torch.testing.assert_close(calls.inputs[2 * batch + 1], expected, atol=1e-6, rtol=0)


def test_perturbations_too_large_for_the_device_are_read_from_the_file(
    archive: RunArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen() -> list[Tensor]:
        return fit([replay(archive, runs=["newer", "older"])])[1].inputs

    resident = seen()
    monkeypatch.setattr("reuse_algos.priors.lookup._RESIDENT_BYTES", 0)
    assert all(torch.equal(a, b) for a, b in zip(resident, seen(), strict=True))
