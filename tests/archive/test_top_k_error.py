"""The bound on what top-k logits lose at a temperature holds for whatever the other logits were."""

from __future__ import annotations

import pytest
import torch

from reuse_algos.archive.signals.top_k import decode_top_k, encode_top_k, top_k_error


def _misplaced(logits_BC: torch.Tensor, k: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The kept classes' probability that decoding misplaces, and the bound on it."""
    kept = encode_top_k(logits_BC, k)
    decoded_BC = decode_top_k(kept["values"], kept["indices"], kept["rest"], logits_BC.shape[1])
    true_BC, found_BC = (torch.softmax(values.double() / temperature, 1) for values in (logits_BC, decoded_BC))
    kept_K = kept["indices"].long()
    off_B = (true_BC.gather(1, kept_K).sum(1) - found_BC.gather(1, kept_K).sum(1)).abs()
    return off_B, top_k_error(kept["values"], kept["rest"], logits_BC.shape[1], temperature).double()


@pytest.mark.parametrize("classes", [20, 1000, 10000])
@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 20.0])
def test_the_bound_holds(classes: int, spread: float, temperature: float) -> None:
    logits_BC = spread * torch.randn(64, classes, generator=torch.Generator().manual_seed(classes))
    off_B, bound_B = _misplaced(logits_BC, 16, temperature)
    assert bool((off_B <= bound_B + 2e-3).all())  # kept logits are float16


def test_the_bound_is_reached_by_the_most_uneven_rest() -> None:
    logits_BC = torch.full((1, 100), -60.0)
    logits_BC[0, :20] = 5.0  # 16 are kept, 4 of the others have all of the rest's mass
    off_B, bound_B = _misplaced(logits_BC, 16, 4.0)
    assert float(bound_B) == pytest.approx(float(off_B), rel=1e-3)
    assert float(bound_B) > 0.2


def test_nothing_is_lost_at_temperature_1_nor_where_all_are_kept() -> None:
    logits_BC = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    for k, temperature in ((5, 1.0), (20, 7.0)):
        kept = encode_top_k(logits_BC, k)
        assert float(top_k_error(kept["values"], kept["rest"], 20, temperature).max()) < 1e-6
