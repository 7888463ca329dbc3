"""Training a part of a pretrained model."""

from reuse_algos.algorithms.freezing.freezing import Freezing

__all__ = ["Freezing"]
