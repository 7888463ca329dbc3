"""Callbacks that record runs, say how robust their models are, and read their gradients."""

from reuse_algos.callbacks.robust_evaluation import RobustEvaluation
from reuse_algos.callbacks.run_recorder import RunRecorder
from reuse_algos.callbacks.training_instruments import TrainingInstruments

__all__ = ["RobustEvaluation", "RunRecorder", "TrainingInstruments"]
