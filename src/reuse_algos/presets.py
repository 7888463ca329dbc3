"""One setting for each situation in which an archive can help: plain section values, as a recipe writes them.

A preset is used as it is, on every dataset and at every budget. ``benchmarks/studies/do_no_harm_*.yaml`` hold presets
against plain training, and :data:`SHOWN` names those that have passed. Recipes and ``AutoReuse`` take them from here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# At the start of training a term of weight 1 pulls at ten logits two thirds as hard as a cross entropy does, one of
# weight 4 more than twice as hard, and a learning rate that was chosen for plain training is then too high: on
# Fashion-MNIST (5,000 images, two epochs) weight 4 lost 0.6 and 6.9 points in two runs, weight 1 lost 0.8 and 0.9.
_TEACH: dict[str, Any] = {
    "source": "auto",
    "combine": "mean",
    "loss": {"name": "mse", "scale": "teacher", "weight": 1.0},
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
# Fashion-MNIST, on which nothing was tuned. On CIFAR-100, at short budgets and in two architectures, teachers of the
# same model gain 1.95 to 2.70 points and those of another model 1.25 to 2.24. On the three other datasets of the
# do-no-harm studies neither is surely below plain training at any budget.
SHOWN: frozenset[str] = frozenset({"same_data", "grown_data", "other_architecture"})
"""Situations whose preset helped on one dataset and was not surely worse than plain training on any other."""


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


def presets_of(algorithms: Mapping[str, Any]) -> list[str]:
    """Return the situations whose preset a recipe's algorithms have, all of its values unchanged.

    Args:
        algorithms: Algorithm -> its options, as a recipe records them.

    >>> presets_of({"prior_run_warm_start": {"runs": ["a"]}})
    ['grown_data']
    """
    return [
        situation
        for situation, settings in PRESETS.items()
        if all(name in algorithms and _holds(algorithms[name], values) for name, values in settings.items())
    ]


def _holds(options: Any, values: Any) -> bool:
    """Return whether options have all of the values; what else they have is not of the preset."""
    if isinstance(values, Mapping):
        return isinstance(options, Mapping) and all(_holds(options.get(key), value) for key, value in values.items())
    return bool(options == values)
