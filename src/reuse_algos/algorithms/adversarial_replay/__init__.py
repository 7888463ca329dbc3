"""Earlier models' adversarial examples, replayed."""

from reuse_algos.algorithms.adversarial_replay.adversarial_replay import AdversarialReplay
from reuse_algos.algorithms.adversarial_replay.losses import combined_loss, fooling_rate, row_errors, turned_rows
from reuse_algos.algorithms.adversarial_replay.perturbations import choose_prior_runs
from reuse_algos.algorithms.adversarial_replay.rows import replayed_rows

__all__ = [
    "AdversarialReplay",
    "choose_prior_runs",
    "combined_loss",
    "fooling_rate",
    "replayed_rows",
    "row_errors",
    "turned_rows",
]
