"""An archived detector decides which boxes strong views keep, lose or gain."""

from reuse_algos.algorithms.mix_training.mix_training import MixTraining

__all__ = ["MixTraining"]
