"""What earlier runs learned about each example decides what the next run sees."""

from reuse_algos.algorithms.history_curriculum.history_curriculum import HistoryCurriculum
from reuse_algos.algorithms.history_curriculum.pacing import PACINGS, allowed_examples

__all__ = ["PACINGS", "HistoryCurriculum", "allowed_examples"]
