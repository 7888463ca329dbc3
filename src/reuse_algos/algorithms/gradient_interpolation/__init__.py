"""Training on data that drift so that the model extrapolates to the time after them."""

from reuse_algos.algorithms.gradient_interpolation.gradient_interpolation import GradientInterpolation
from reuse_algos.algorithms.gradient_interpolation.interpolation import ascend_delta, interpolate
from reuse_algos.algorithms.gradient_interpolation.period_order import PeriodOrder

__all__ = ["GradientInterpolation", "PeriodOrder", "ascend_delta", "interpolate"]
