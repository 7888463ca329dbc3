"""Only a part of a pretrained model trains."""

from reuse_algos.algorithms.freezing.freezing import Freezing

__all__ = ["Freezing"]
