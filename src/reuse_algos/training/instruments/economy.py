"""How much a batch says about the gradient, and how far a step goes: numbers from the gradients of single examples.

Collected in Cockpit (Schneider, Dangel and Hennig, NeurIPS 2021, https://arxiv.org/abs/2102.06604), which names the
papers they come from. Legend: N examples, g_i gradient of example i, g their mean, D numbers in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from reuse_algos.training.instruments.moments import GradientMoments

_EPSILON = 1e-5  # of the papers' formulas: parameters without variance must not divide by 0
_SMALLEST_VARIANCE = 1e-10  # examples that agree to the last bit would get infinite weight


def gradient_tests(moments: GradientMoments) -> dict[str, float]:
    """Return the norm test, the inner-product test and the orthogonality test.

    They are the relative standard error of the mean gradient, its part along g, and its part across g, so that
    ``norm_test ** 2 = inner_product_test ** 2 + orthogonality_test ** 2`` (Byrd et al. 2012; Bollapragada et al. 2017).
    A value of 1 means that the error is as long as the gradient itself.

    Returns:
        The three numbers, at least 0; not a number where N is 1 or the mean gradient is 0.
    """
    count, squared = moments.num_examples, moments.squared_norm
    total, inner = float(moments.squared_norms_N.sum()), float(moments.inner_N.square().sum())
    if count < 2 or squared == 0:
        return dict.fromkeys(("norm_test", "inner_product_test", "orthogonality_test"), math.nan)
    scale = (count - 1) * count * squared
    return {
        "norm_test": _root((total - count * squared) / scale),
        "inner_product_test": _root((inner / squared - count * squared) / scale),
        "orthogonality_test": _root((total - inner / squared) / scale),
    }


def noise_scale(moments: GradientMoments) -> float:
    """Return the batch size at which the error of the mean gradient is as long as the gradient.

    It is ``trace(covariance) / |gradient| ** 2`` with both estimated without bias (McCandlish et al. 2018,
    https://arxiv.org/abs/1812.06162, appendix A.1); infinity where the gradient cannot be told from 0.
    """
    count, squared = moments.num_examples, moments.squared_norm
    if count < 2:
        return math.nan
    trace = (float(moments.squared_norms_N.sum()) - count * squared) / (count - 1)
    # The squared norm of a mean over N examples is too large by trace / N on average.
    signal = squared - trace / count
    if math.isnan(signal):
        return math.nan
    return trace / signal if signal > 0 else math.inf


def early_stopping(moments: GradientMoments) -> float:
    """Return the early-stopping criterion ``1 - N mean_d(g_d ** 2 / (var_d + 1e-5))``; above 0 says stop.

    It compares the gradient with its noise and needs no validation data. It was derived for SGD (Mahsereci et al. 2017,
    https://arxiv.org/abs/1703.09580, equation 7). ``var_d`` is the unbiased variance over the examples.
    """
    count = moments.num_examples
    if count < 2:
        return math.nan
    # N / (N - 1) makes the variance unbiased.
    variance_D = (moments.second_D - moments.mean_D.square()) * (count / (count - 1))
    return 1 - count * float((moments.mean_D.square() / (variance_D + _EPSILON)).mean())


def cabs_batch_size(moments: GradientMoments, learning_rate: float) -> float:
    """Return the batch size that CABS suggests: learning rate x variance of the gradient / loss.

    For SGD, and for losses whose minimum is 0 (Balles et al. 2017, https://arxiv.org/abs/1612.05086).

    Args:
        moments: Of one batch.
        learning_rate: The rate of the step, above 0.
    """
    count, loss = moments.num_examples, float(moments.losses_N.mean())
    variance = (float(moments.squared_norms_N.sum()) - count * moments.squared_norm) / count
    return learning_rate * variance / loss if loss > 0 else math.nan


def signal_to_noise(moments: GradientMoments) -> float:
    """Return the mean over the parameters of ``g_d ** 2 / (mean_i g_id ** 2 - g_d ** 2 + 1e-5)``.

    Called gradient signal-to-noise ratio (Liu et al. 2020, https://arxiv.org/abs/2001.07384).
    """
    squared_D = moments.mean_D.square()
    return float((squared_D / (moments.second_D - squared_D + _EPSILON)).mean())


def fit_parabola(
    length: float, values: Sequence[float], slopes: Sequence[float], variances: Sequence[float]
) -> tuple[float, float, float]:
    """Fit ``w0 + w1 s + w2 s ** 2`` to a function's values and slopes at both ends of a step.

    Args:
        length: Length of the step, above 0.
        values: ``f(0), f(length)``.
        slopes: ``f'(0), f'(length)``.
        variances: Of the four, in that order: weighted least squares weighs by their inverse.

    Returns:
        ``w0, w1, w2``.
    """
    design = np.array([[1, 0, 0], [1, length, length**2], [0, 1, 0], [0, 1, 2 * length]], dtype=np.float64)
    weights = 1 / np.sqrt(np.maximum(variances, _SMALLEST_VARIANCE))
    seen = np.array([*values, *slopes], dtype=np.float64)
    # Columns of one scale: a short step would otherwise make the last column vanish in the rounding.
    scale = np.array([1.0, length, length**2])
    found = np.linalg.lstsq(design / scale * weights[:, None], seen * weights, rcond=None)[0] / scale
    return float(found[0]), float(found[1]), float(found[2])


def alpha(length: float, before: tuple[torch.Tensor, torch.Tensor], after: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return where a step ended on the parabola through it: -1 at its start, 0 in its minimum, 1 as high as its start.

    Schneider et al. 2021, section 3.1. Where the parabola opens downwards, the answer is -1: it still goes down.

    Args:
        length: Length of the step.
        before: Losses ``[N]`` and slopes along the step ``[N]`` of the examples at its start.
        after: The same at its end.

    Returns:
        A number from -1; not a number where there was no step, where losses are not finite, or where N is 1.
    """
    columns = (before[0], after[0], before[1], after[1])
    if not length > 0 or len(before[0]) < 2 or not all(bool(column.isfinite().all()) for column in columns):
        return math.nan
    means = [float(column.double().mean()) for column in columns]
    variances = [float(column.double().var()) for column in columns]
    _, linear, square = fit_parabola(length, means[:2], means[2:], variances)
    if square < 0:
        return -1.0
    # The minimum lies at -w1 / (2 w2): a step of that length gives 0, one of twice that length 1.
    return 2 * length / (-linear / square) - 1 if linear != 0 and square != 0 else math.nan


def _root(value: float) -> float:
    """Return the square root; rounding may leave a little less than 0."""
    return math.sqrt(max(value, 0.0)) if not math.isnan(value) else math.nan
