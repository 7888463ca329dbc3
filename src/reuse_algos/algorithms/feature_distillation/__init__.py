"""Archived models teach what goes on inside: the outputs of named modules."""

from reuse_algos.algorithms.feature_distillation.feature_distillation import FeatureDistillation
from reuse_algos.algorithms.feature_distillation.modules import feature_term

__all__ = ["FeatureDistillation", "feature_term"]
