"""The distillation terms against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from reuse_algos.algorithms.prior_run_distillation import Mean, Mixup, Sample
from reuse_algos.algorithms.prior_run_distillation.loss.terms import kl_term, mix_logits, mix_probabilities, mse_term

STUDENT = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 0.0, 4.0, -1.0], [2.0, 2.0, -3.0, 0.1]])
TEACHER = torch.tensor([[0.3, 1.0, -0.5, 2.0], [1.0, -1.0, 2.5, 0.0], [-2.0, 1.5, 0.0, 0.7]])
OTHER = TEACHER.flip(0) * 1.7


def _kl_by_hand(student: np.ndarray, probabilities: np.ndarray, temperature: float) -> float:
    """T^2 / B * sum_b sum_c p (log p - log q), in float64 numpy."""
    z = student / temperature
    log_q = z - np.log(np.exp(z).sum(1, keepdims=True))
    terms = np.where(probabilities > 0, probabilities * (np.log(np.maximum(probabilities, 1e-300)) - log_q), 0.0)
    return float(temperature**2 * terms.sum(1).mean())


def _softmax(logits: torch.Tensor, temperature: float) -> np.ndarray:
    z = np.exp(logits.double().numpy() / temperature)
    return z / z.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
def test_kl_is_timm_s(temperature: float) -> None:
    from timm.task.distillation import LogitDistillationTask  # here: every worker collects, and one of them runs this

    class Fixed(nn.Module):
        """A net whose logits are a parameter."""

        def __init__(self, logits: torch.Tensor) -> None:
            super().__init__()
            self.num_classes, self.in_chans = 4, 3
            self.pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
            self.logits = nn.Parameter(logits.clone())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.logits

    student = Fixed(STUDENT.double())
    task = LogitDistillationTask(
        student,
        Fixed(TEACHER.double()),
        criterion=lambda out, target: out.sum() * 0,
        temperature=temperature,
        distill_loss_weight=1.0,
        task_loss_weight=0.0,
        verbose=False,
    )
    theirs = task(torch.zeros(3, 3, 2, 2), torch.zeros(3).long())["loss"]
    (their_gradient,) = torch.autograd.grad(theirs, student.logits)

    logits = STUDENT.double().requires_grad_()
    ours = kl_term(logits, mix_probabilities([TEACHER.double()], [1.0], temperature), temperature)
    (our_gradient,) = torch.autograd.grad(ours, logits)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    torch.testing.assert_close(our_gradient, their_gradient, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.9, 0.1], [0.0, 1.0]])
def test_mixed_kl_in_closed_form(weights: list[float]) -> None:
    temperature = 4.0
    mixed = weights[0] * _softmax(TEACHER, temperature) + weights[1] * _softmax(OTHER, temperature)
    expected = _kl_by_hand(STUDENT.double().numpy(), mixed, temperature)
    for cast, tolerance in ((torch.Tensor.double, 1e-12), (torch.Tensor.float, 1e-6 * temperature)):
        target = mix_probabilities([cast(TEACHER), cast(OTHER)], weights, temperature)
        assert kl_term(cast(STUDENT), target, temperature).item() == pytest.approx(expected, abs=tolerance)


def test_mse_and_mixed_mse_in_closed_form() -> None:
    mixed = 0.3 * TEACHER.double() + 0.7 * OTHER.double()
    expected = float(((STUDENT.double() - mixed) ** 2).mean())
    assert mse_term(STUDENT, mix_logits([TEACHER, OTHER], [0.3, 0.7])).item() == pytest.approx(expected, abs=1e-6)
    assert mse_term(STUDENT, TEACHER).item() == pytest.approx(nn.functional.mse_loss(STUDENT, TEACHER).item(), abs=1e-6)


def test_dense_outputs_average_over_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    student_BCHW = torch.randn(2, 4, 3, 5, generator=generator)
    teacher_BCHW = torch.randn(2, 4, 3, 5, generator=generator)
    flat = [t.permute(0, 2, 3, 1).reshape(-1, 4) for t in (student_BCHW, teacher_BCHW)]
    dense = kl_term(student_BCHW, mix_probabilities([teacher_BCHW], [1.0], 4.0), 4.0)
    assert dense.item() == pytest.approx(_kl_by_hand(flat[0].double().numpy(), _softmax(flat[1], 4.0), 4.0), abs=1e-6)
    assert mse_term(student_BCHW, teacher_BCHW).item() == pytest.approx(mse_term(*flat).item(), abs=1e-6)


def test_rows_without_target_add_nothing_not_even_nan() -> None:
    seen_B = torch.tensor([True, False, True])
    broken = TEACHER.clone()
    broken[1] = torch.nan
    logits = STUDENT.clone().requires_grad_()
    rows = [0, 2]
    kl = kl_term(logits, mix_probabilities([broken], [1.0], 2.0), 2.0, seen_B)
    expected = kl_term(STUDENT[rows], mix_probabilities([TEACHER[rows]], [1.0], 2.0), 2.0) * 2 / 3
    assert kl.item() == pytest.approx(expected.item(), abs=1e-6)
    mse = mse_term(logits, broken, seen_B)
    assert mse.item() == pytest.approx(mse_term(STUDENT[rows], TEACHER[rows]).item() * 2 / 3, abs=1e-6)


def test_kl_of_itself_is_zero_and_half_precision_is_upcast() -> None:
    assert kl_term(STUDENT, mix_probabilities([STUDENT], [1.0], 4.0), 4.0).item() == pytest.approx(0.0, abs=1e-6)
    term = kl_term(STUDENT.bfloat16(), mix_probabilities([TEACHER.half()], [1.0], 4.0), 4.0)
    assert term.dtype == torch.float32


def test_combination_weights() -> None:
    def draw(combine: Mean | Mixup | Sample, seed: int) -> np.ndarray:
        return combine.weights(5, np.random.default_rng(seed))

    assert draw(Mean(), 0).tolist() == [0.2] * 5
    assert Mixup().weights(1, np.random.default_rng(0)).tolist() == [1.0]
    mixups = np.stack([draw(Mixup(), seed) for seed in range(4000)])
    np.testing.assert_allclose(mixups.sum(1), 1.0, atol=1e-12)
    # Symmetric Dirichlet with concentration a over M: mean 1/M, variance (M - 1) / (M^2 (M a + 1)).
    np.testing.assert_allclose(mixups.mean(0), 0.2, atol=0.01)
    np.testing.assert_allclose(mixups.var(0), 4 / 25 / 6, atol=0.003)
    sharp = np.stack([draw(Mixup(alpha=10.0), seed) for seed in range(4000)])
    np.testing.assert_allclose(sharp.var(0), 4 / 25 / 51, atol=0.0005)
    samples = np.stack([draw(Sample(size=2), seed) for seed in range(4000)])
    assert {tuple(sorted(row, reverse=True)) for row in samples.tolist()} == {(0.5, 0.5, 0.0, 0.0, 0.0)}
    np.testing.assert_allclose(samples.mean(0), 0.2, atol=0.015)
    assert draw(Sample(size=9), 0).tolist() == [0.2] * 5


def test_rows_are_weighed() -> None:
    """mean(w * row); rows without a teacher stay out of it, and weights of 1 leave the very bits."""
    target = mix_probabilities([TEACHER], [1.0], 2.0)
    weights_B, seen_B = torch.tensor([0.5, 2.0, 3.0][: len(STUDENT)]), torch.tensor([True, False, True][: len(STUDENT)])
    kl_B = torch.stack([kl_term(STUDENT[i : i + 1], target[i : i + 1], 2.0) for i in range(len(STUDENT))])
    mse_B = torch.stack([mse_term(STUDENT[i : i + 1], TEACHER[i : i + 1]) for i in range(len(STUDENT))])
    for term, rows_B in ((lambda *a: kl_term(STUDENT, target, 2.0, *a), kl_B), (_mse, mse_B)):
        assert term(None, weights_B).item() == pytest.approx((weights_B * rows_B).mean().item(), rel=1e-6)
        expected = (weights_B * rows_B * seen_B).mean().item()
        assert term(seen_B, weights_B).item() == pytest.approx(expected, rel=1e-6)
        assert torch.equal(term(seen_B, torch.ones(len(STUDENT))), term(seen_B))


def _mse(*arguments: torch.Tensor | None) -> torch.Tensor:
    return mse_term(STUDENT, TEACHER, *arguments)
