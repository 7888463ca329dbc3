"""One setting for each situation in which an archive can help: plain section values, as a recipe writes them.

A preset is used as it is, on every dataset and at every budget. ``benchmarks/studies/do_no_harm_*.yaml`` hold presets
against plain training, and :data:`SHOWN` names those that have passed. Recipes and ``AutoReuse`` take them from here.
"""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["PRESETS", "SHOWN", "preset"]

# The best weights of plain MSE were 2.0 where the teachers' logits have a variance of 1.8 (CIFAR-100), and 0.25 where
# it is 18 (Fashion-MNIST). In units of the variance these are 3.7 and 4.5.
_TEACH: dict[str, Any] = {
    "source": "auto",
    "combine": "mean",
    "loss": {"name": "mse", "scale": "teacher", "weight": 4.0},
    "when": {"stop": "0.5dur"},
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "same_data": {"prior_run_distillation": _TEACH},
    "grown_data": {"prior_run_warm_start": {}},
    "other_architecture": {"prior_run_distillation": _TEACH},
    "search": {"prior_run_distillation": _TEACH},
}
"""Situation -> algorithm -> its settings, without the archive and the runs.

``same_data``: earlier runs of the same model on the same data. ``grown_data``: the data have grown since. ``search``: a
setting of the same model is searched for, on the same data. ``other_architecture``: outputs only, of another model.
"""

# A start from the weights of a run on a part of the data saved 1.67 times the examples on CIFAR-100 and 2.65 times on
# Fashion-MNIST, on which nothing was tuned. Teachers have not been shown to do no harm on data like that.
SHOWN: frozenset[str] = frozenset({"grown_data"})
"""Situations whose preset was held against plain training on several datasets and was never worse."""


def preset(situation: str) -> dict[str, dict[str, Any]]:
    """Return a copy of the settings for a situation: algorithm -> section values.

    Args:
        situation: One of :data:`PRESETS`.

    Raises:
        ValueError: There is no such situation.
    """
    if situation not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {situation!r}")
    return copy.deepcopy(PRESETS[situation])
