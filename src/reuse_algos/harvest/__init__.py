"""Filling a run's signals after the fact: its archived model looks at its training data once more."""

from __future__ import annotations

from reuse_algos.harvest.computations import HARVESTABLE
from reuse_algos.harvest.label import LabelConfig, LabelResult, label_pool
from reuse_algos.harvest.passes import HarvestResult, harvest
from reuse_algos.harvest.shards import Shards
from reuse_algos.harvest.training_data import load_run_data

__all__ = [
    "HARVESTABLE",
    "HarvestResult",
    "LabelConfig",
    "LabelResult",
    "Shards",
    "harvest",
    "label_pool",
    "load_run_data",
]
