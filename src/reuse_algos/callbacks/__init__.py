"""Callbacks that record runs, forecast their end, read or compress their gradients, and measure their robustness."""

from reuse_algos.callbacks.gradient_compression import GradientCompression
from reuse_algos.callbacks.recorder.run_recorder import RunRecorder
from reuse_algos.callbacks.robust_evaluation import RobustEvaluation
from reuse_algos.callbacks.run_forecast import RunForecast
from reuse_algos.callbacks.training_instruments import TrainingInstruments

__all__ = ["GradientCompression", "RobustEvaluation", "RunForecast", "RunRecorder", "TrainingInstruments"]
