"""Earlier models' adversarial examples, replayed."""

from reuse_algos.algorithms.adversarial_replay.adversarial_replay import AdversarialReplay
from reuse_algos.algorithms.adversarial_replay.perturbations import choose_prior_runs
from reuse_algos.algorithms.adversarial_replay.replay.rows import replayed_rows
from reuse_algos.algorithms.adversarial_replay.settings import Append, AsIs, Replace, Replayable, Start
from reuse_algos.algorithms.adversarial_replay.sums import fooling_rate, row_errors, turned_rows

__all__ = [
    "AdversarialReplay",
    "Append",
    "AsIs",
    "Replace",
    "Replayable",
    "Start",
    "choose_prior_runs",
    "fooling_rate",
    "replayed_rows",
    "row_errors",
    "turned_rows",
]
