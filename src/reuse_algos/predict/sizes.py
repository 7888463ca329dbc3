"""An unseen size of a model, from the fitted curves of other sizes.

The coefficients of the loss curve (:mod:`reuse_algos.predict.loss_curve`) and the seconds of a step are powers of the
FLOPs of an example: ``ln b_j = a_j + c_j ln(FLOPs)``, with one more constant for each kind of hardware in the time.

Legend: N runs, H kinds of hardware, F features of the regression.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reuse_algos.errors import NotEnoughEvidenceError
from reuse_algos.predict.loss_curve import LossCurve

RIDGE = 1e-3
"""Penalty of the regression on standardised features; the constant is not penalised."""

MISFIT = 2.0
"""Factor by which fitted curves may miss the ends of their own runs. Beyond it the form does not describe the runs:
ResNets that learn 1,437 digits by heart end 30 times below it (benchmarks/layers.py)."""

_LEAST = 1e-9


@dataclass(frozen=True)
class SizedRun:
    """What is known of one archived run of some size.

    Attributes:
        flops: Of the forward pass of one example, above 0.
        curve: Fitted to the losses of the run.
        step_seconds: Seconds of a training step, above 0.
        hardware: Name of the hardware.
        end_step: Last step, at which forecasts of the loss are compared.
        end_loss: Measured loss there.
        name: Of the size, such as ``"ResNet-20"``. Runs of one name are left out together. Default: the FLOPs.
    """

    flops: float
    curve: LossCurve
    step_seconds: float
    hardware: str
    end_step: float
    end_loss: float
    name: str = ""

    @property
    def size(self) -> str:
        """Name of the size, or else its FLOPs."""
        return self.name or f"{self.flops:g} FLOPs"


@dataclass(frozen=True)
class SizeForecast:
    """The predicted curve and speed of a size that was not trained.

    Attributes:
        flops: Of the forward pass of one example.
        hardware: On which the step is timed.
        curve: Predicted loss curve.
        step_seconds: Predicted seconds of a step.
        extrapolates: Whether the FLOPs lie outside those of the runs.
    """

    flops: float
    hardware: str
    curve: LossCurve
    step_seconds: float
    extrapolates: bool


def predict_size(runs: Sequence[SizedRun], flops: float, hardware: str) -> SizeForecast:
    """Predict the loss curve and the step time of an unseen size.

    Args:
        runs: Of at least two sizes, trained with one recipe on one dataset.
        flops: Of the forward pass of one example of the unseen size, above 0.
        hardware: On which the unseen size would be trained; at least one run must have been.

    Raises:
        NotEnoughEvidenceError: The runs have fewer than two sizes or none on this hardware, or two kinds of hardware
            that have no size in common, so that the effects of size and hardware cannot be told apart.
    """
    if not flops > 0 or any(not run.flops > 0 or not run.step_seconds > 0 for run in runs):
        raise NotEnoughEvidenceError("FLOPs and step times must be above 0")
    sizes = {run.flops for run in runs}
    if len(sizes) < 2:
        raise NotEnoughEvidenceError(
            f"an unseen size needs runs of at least two sizes, got {len(runs)} runs of {len(sizes)}"
        )
    names = sorted({run.hardware for run in runs})
    if hardware not in names:
        raise NotEnoughEvidenceError(
            f"no run was trained on {hardware!r}, only on {', '.join(map(repr, names))}: its speed is not known"
        )
    if len(names) > 1 and not _connected(runs):
        raise NotEnoughEvidenceError(
            f"runs on {', '.join(map(repr, names))} have no size in common, so the effects of size and hardware cannot "
            "be told apart. Train one size on both, or give the runs of one hardware."
        )
    x_N = np.log([run.flops for run in runs])
    hardware_NH = np.asarray([[run.hardware == name for name in names[1:]] for run in runs], dtype=float)
    at_H = np.asarray([hardware == name for name in names[1:]], dtype=float)
    # Steps and losses do not depend on the hardware, only the seconds do.
    plain_NF, features_NF = x_N[:, None], np.column_stack([x_N, hardware_NH])
    at, both = np.asarray([math.log(flops)]), np.concatenate([[math.log(flops)], at_H])

    def regress(values: list[float]) -> float:
        # Least squares may give 0, whose logarithm is minus infinity.
        return _floored(_ridge(plain_NF, np.log(np.maximum(values, _LEAST)), at))

    # On logarithms, as losses and times are powers of the size.
    scale = math.exp(_ridge(plain_NF, np.log([run.curve.scale for run in runs]), at))
    curve = LossCurve(
        regress([run.curve.b0 for run in runs]),
        regress([run.curve.b1 for run in runs]),
        regress([run.curve.b2 for run in runs]),
        scale,
        float(np.mean([run.curve.residual for run in runs])),
        sum(run.curve.num_points for run in runs),
    )
    seconds = math.exp(_ridge(features_NF, np.log([run.step_seconds for run in runs]), both))
    return SizeForecast(flops, hardware, curve, seconds, not min(sizes) <= flops <= max(sizes))


def leave_one_size_out(runs: Sequence[SizedRun]) -> dict[str, tuple[float, float]]:
    """Return, for each size, the relative errors with which the other sizes predict it.

    Args:
        runs: Of at least three sizes.

    Returns:
        From the name of the size to the mean of ``|predicted / measured - 1|`` of the end loss and of the step time.

    Raises:
        NotEnoughEvidenceError: There are fewer than three sizes, or what remains without one is not enough.
    """
    sizes = list(dict.fromkeys(run.size for run in runs))
    if len({run.flops for run in runs}) < 3:
        raise NotEnoughEvidenceError(
            f"the error of a forecast needs runs of at least three sizes, of which one is left out; got {sizes}"
        )
    errors: dict[str, tuple[float, float]] = {}
    for size in sizes:
        others, left = [run for run in runs if run.size != size], [run for run in runs if run.size == size]
        pairs = []
        for run in left:
            found = predict_size(others, run.flops, run.hardware)
            loss = float(found.curve.loss(run.end_step))
            pairs.append((abs(loss / run.end_loss - 1), abs(found.step_seconds / run.step_seconds - 1)))
        errors[size] = tuple(np.mean(pairs, axis=0).tolist())  # type: ignore[assignment]  # two numbers
    return errors


def curve_misfit(runs: Sequence[SizedRun]) -> float:
    """Return the median factor, from 1, by which the curves miss the measured ends of the runs they were fitted to.

    Args:
        runs: At least one.
    """
    return float(np.exp(np.median([abs(_log_ratio(run.curve.loss(run.end_step), run.end_loss)) for run in runs])))


def end_interval(runs: Sequence[SizedRun], value: float) -> tuple[float, float]:
    """Return limits of a predicted end loss: the largest factor by which one size was missed by the others.

    They hold the end of one more size like the n sizes of the runs with a probability of at least n / (n + 1), as all
    n + 1 are equally likely to be missed the most. A size beyond the others is not like them.

    Args:
        runs: Of at least three sizes.
        value: The prediction.

    Returns:
        Lower and upper limit.

    Raises:
        NotEnoughEvidenceError: There are fewer than three sizes, or what remains without one is not enough.
    """
    # Refuses too few sizes.
    leave_one_size_out(runs)
    sizes = []
    for run in runs:
        others = [one for one in runs if one.size != run.size]
        found = predict_size(others, run.flops, run.hardware)
        sizes.append(abs(_log_ratio(found.curve.loss(run.end_step), run.end_loss)))
    factor = math.exp(max(sizes))
    return value / factor, value * factor


def _log_ratio(predicted: ArrayLike, measured: float) -> float:
    return math.log(max(float(np.asarray(predicted)), 1e-300) / max(measured, 1e-300))


def _ridge(features_NF: NDArray[np.float64], values_N: NDArray[np.float64], at_F: NDArray[np.float64]) -> float:
    """Return the value of a ridge regression at a point, with features standardised."""
    mean_F, std_F = features_NF.mean(axis=0), features_NF.std(axis=0)
    # A feature that is the same in all runs has a deviation of 0.
    std_F = np.where(std_F > 0, std_F, 1.0)
    # Standardised, so that one penalty suits FLOPs and hardware.
    rows_NF = (features_NF - mean_F) / std_F
    gram_FF = rows_NF.T @ rows_NF + RIDGE * np.eye(rows_NF.shape[1])
    slope_F = np.linalg.solve(gram_FF, rows_NF.T @ (values_N - values_N.mean()))
    return float(values_N.mean() + ((at_F - mean_F) / std_F) @ slope_F)


def _floored(logarithm: float) -> float:
    """Return the coefficient of a logarithm; what was fitted as 0 comes back as 0."""
    value = math.exp(logarithm)
    return 0.0 if value <= 2 * _LEAST else value


def _connected(runs: Sequence[SizedRun]) -> bool:
    """Check whether all kinds of hardware are linked by sizes that two of them have in common."""
    linked, left = {runs[0].hardware}, list(runs)
    while True:
        sizes = {run.flops for run in left if run.hardware in linked}
        more = {run.hardware for run in left if run.flops in sizes}
        if more == linked:
            return len(linked) == len({run.hardware for run in runs})
        linked = more
