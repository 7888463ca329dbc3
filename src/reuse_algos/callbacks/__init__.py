"""Callbacks that record runs, and that say how robust their models are."""

from reuse_algos.callbacks.robust_evaluation import RobustEvaluation
from reuse_algos.callbacks.run_recorder import RunRecorder

__all__ = ["RobustEvaluation", "RunRecorder"]
