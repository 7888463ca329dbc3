"""Earlier runs teach this one."""

from reuse_algos.algorithms.prior_run_distillation.loss.channel_wise import ChannelWise
from reuse_algos.algorithms.prior_run_distillation.loss.section import KL, MSE
from reuse_algos.algorithms.prior_run_distillation.prior_run_distillation import PriorRunDistillation
from reuse_algos.algorithms.prior_run_distillation.settings import (
    Auto,
    Cached,
    Live,
    Mean,
    Mixup,
    Sample,
    TeachingWindow,
)

__all__ = [
    "KL",
    "MSE",
    "Auto",
    "Cached",
    "ChannelWise",
    "Live",
    "Mean",
    "Mixup",
    "PriorRunDistillation",
    "Sample",
    "TeachingWindow",
]
