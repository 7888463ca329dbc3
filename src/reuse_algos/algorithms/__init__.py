"""The Composer algorithms: those that read the archive, and two beside them that need none."""

from reuse_algos.algorithms.adversarial_replay import AdversarialReplay
from reuse_algos.algorithms.adversarial_training import AdversarialTraining
from reuse_algos.algorithms.auto_reuse import AutoReuse
from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.algorithms.feature_distillation import FeatureDistillation
from reuse_algos.algorithms.freezing import Freezing
from reuse_algos.algorithms.gradient_interpolation import GradientInterpolation
from reuse_algos.algorithms.history_curriculum import HistoryCurriculum
from reuse_algos.algorithms.mix_training import MixTraining
from reuse_algos.algorithms.prior_run_distillation import PriorRunDistillation
from reuse_algos.algorithms.prior_run_warm_start import PriorRunWarmStart

__all__ = [
    "AdversarialReplay",
    "AdversarialTraining",
    "AutoReuse",
    "FeatureDistillation",
    "Freezing",
    "GradientInterpolation",
    "HistoryCurriculum",
    "MixTraining",
    "PriorRunDistillation",
    "PriorRunWarmStart",
    "ReusingAlgorithm",
]
