"""Training goes on from the weights of earlier runs."""

from reuse_algos.algorithms.prior_run_warm_start.class_rows import known_rows, match_rows
from reuse_algos.algorithms.prior_run_warm_start.initial_weights import (
    average_weights,
    gaussian_noise,
    shrink_and_perturb,
    shuffled_noise,
)
from reuse_algos.algorithms.prior_run_warm_start.prior_run_warm_start import PriorRunWarmStart
from reuse_algos.algorithms.prior_run_warm_start.settings import Average, Change, Keep, Match, Reset, Trainable

__all__ = [
    "Average",
    "Change",
    "Keep",
    "Match",
    "PriorRunWarmStart",
    "Reset",
    "Trainable",
    "average_weights",
    "gaussian_noise",
    "known_rows",
    "match_rows",
    "shrink_and_perturb",
    "shuffled_noise",
]
