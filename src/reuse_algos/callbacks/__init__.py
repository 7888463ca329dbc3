"""Callbacks that record runs."""

from reuse_algos.callbacks.run_recorder import RunRecorder

__all__ = ["RunRecorder"]
