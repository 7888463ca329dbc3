"""The pure functions behind the algorithms, as ``composer.functional`` has them: for a training loop of your own.

Each is documented, with an example that runs, where it is defined. The rooms are distillation (terms and the
combination of teachers), scores of examples, pacing and plans of a curriculum, rows and losses of a replay, initial
weights of a warm start, and attacks.
"""

from __future__ import annotations

from reuse_algos.algorithms.adversarial_replay.perturbations import choose_prior_runs
from reuse_algos.algorithms.adversarial_replay.replay.rows import replayed_rows
from reuse_algos.algorithms.adversarial_replay.sums import fooling_rate, row_errors, turned_rows
from reuse_algos.algorithms.feature_distillation import feature_term
from reuse_algos.algorithms.gradient_interpolation.interpolation import ascend_delta, interpolate
from reuse_algos.algorithms.history_curriculum.pacing import allowed_examples
from reuse_algos.algorithms.history_curriculum.plans import (
    difficulty_order,
    draw_in_proportion,
    merge_losses,
    passes,
    window,
)
from reuse_algos.algorithms.mix_training.boxes import mixed_targets
from reuse_algos.algorithms.prior_run_distillation.loss.channel_wise import channel_wise_term
from reuse_algos.algorithms.prior_run_distillation.loss.terms import (
    bernoulli_kl_term,
    kl_term,
    mean_weights,
    mix_logits,
    mix_probabilities,
    mix_sigmoids,
    mixup_weights,
    mse_term,
    sample_weights,
)
from reuse_algos.algorithms.prior_run_warm_start.initial_weights import (
    average_weights,
    gaussian_noise,
    shrink_and_perturb,
    shuffled_noise,
)
from reuse_algos.priors.scores.formulas import (
    average_ranks,
    cross_entropy,
    el2n,
    entropy,
    forgetting,
    logit_margin,
    loss_mean,
    mutual_information,
    threshold,
    variance,
    variation_ratio,
)
from reuse_algos.training.attacks import ascend, perturb, random_targets

__all__ = [
    "allowed_examples",
    "ascend",
    "ascend_delta",
    "average_ranks",
    "average_weights",
    "bernoulli_kl_term",
    "channel_wise_term",
    "choose_prior_runs",
    "cross_entropy",
    "difficulty_order",
    "draw_in_proportion",
    "el2n",
    "entropy",
    "feature_term",
    "fooling_rate",
    "forgetting",
    "gaussian_noise",
    "interpolate",
    "kl_term",
    "logit_margin",
    "loss_mean",
    "mean_weights",
    "merge_losses",
    "mix_logits",
    "mix_probabilities",
    "mix_sigmoids",
    "mixed_targets",
    "mixup_weights",
    "mse_term",
    "mutual_information",
    "passes",
    "perturb",
    "random_targets",
    "replayed_rows",
    "row_errors",
    "sample_weights",
    "shrink_and_perturb",
    "shuffled_noise",
    "threshold",
    "turned_rows",
    "variance",
    "variation_ratio",
    "window",
]
