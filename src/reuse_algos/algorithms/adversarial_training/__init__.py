"""Training on examples that an attack changes at every step."""

from reuse_algos.algorithms.adversarial_training.adversarial_training import AdversarialTraining, adversarial_inputs

__all__ = ["AdversarialTraining", "adversarial_inputs"]
