"""Callbacks that record runs, forecast their end, read their gradients, and measure their robustness."""

from reuse_algos.callbacks.recorder.run_recorder import RunRecorder
from reuse_algos.callbacks.robust_evaluation import RobustEvaluation
from reuse_algos.callbacks.run_forecast import RunForecast
from reuse_algos.callbacks.training_instruments import TrainingInstruments

__all__ = ["RobustEvaluation", "RunForecast", "RunRecorder", "TrainingInstruments"]
