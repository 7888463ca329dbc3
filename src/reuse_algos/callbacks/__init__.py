"""Callbacks that record runs, forecast their end, and measure how robust their models are."""

from reuse_algos.callbacks.robust_evaluation import RobustEvaluation
from reuse_algos.callbacks.run_forecast import RunForecast
from reuse_algos.callbacks.run_recorder import RunRecorder

__all__ = ["RobustEvaluation", "RunForecast", "RunRecorder"]
