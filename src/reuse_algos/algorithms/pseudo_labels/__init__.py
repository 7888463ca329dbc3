"""Training on labels that archived teachers gave to an unlabelled pool."""

from reuse_algos.algorithms.pseudo_labels.pool_use import PoolUse

__all__ = ["PoolUse"]
