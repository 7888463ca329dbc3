"""Earlier runs teach this one."""

from reuse_algos.algorithms.prior_run_distillation.losses import (
    combination_weights,
    kl_term,
    mix_logits,
    mix_probabilities,
    mse_term,
)
from reuse_algos.algorithms.prior_run_distillation.prior_run_distillation import PriorRunDistillation

__all__ = ["PriorRunDistillation", "combination_weights", "kl_term", "mix_logits", "mix_probabilities", "mse_term"]
