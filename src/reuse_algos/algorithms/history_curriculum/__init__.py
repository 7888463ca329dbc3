"""What earlier runs learned about each example decides what the next run sees."""

from reuse_algos.algorithms.history_curriculum.history_curriculum import HistoryCurriculum
from reuse_algos.algorithms.history_curriculum.scores import Score
from reuse_algos.algorithms.history_curriculum.strategies import (
    ActiveBias,
    Curriculum,
    DynamicPrune,
    Focus,
    Prune,
    Subset,
)

__all__ = ["ActiveBias", "Curriculum", "DynamicPrune", "Focus", "HistoryCurriculum", "Prune", "Score", "Subset"]
