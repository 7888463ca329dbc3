"""What each strategy can be told, with defaults and checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reuse_algos.algorithms.history_curriculum.pacing import PACINGS
from reuse_algos.algorithms.history_curriculum.plans import Candidates, window
from reuse_algos.algorithms.history_curriculum.strategies import ActiveBias, Curriculum, DynamicPrune, Keep, Strategy
from reuse_algos.errors import nearest

__all__ = ["LOSS_SCORES", "STRATEGIES", "StrategySettings"]

LOSS_SCORES = ("loss", "loss_mean")
"""Scores that losses of the running model can go on from."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "curriculum": {
        "order": "easy_first",
        "pacing": "linear",
        "start_fraction": 0.2,
        "full_data_at": 0.8,
        "class_balance": False,
    },
    "prune": {"keep": 0.7, "examples": None, "end": "hard", "offset": 0.0, "class_balance": False},
    "dynamic_prune": {"prune_rate": 0.5, "easy_share": None, "full_data_from": 0.875, "rescale": True, "update": None},
    "active_bias": {"mode": "sampling", "smoothing": None},
    "focus": {"smoothing": 0.0},
    "subset": {"keep": 0.7, "examples": None, "class_balance": False},
}
_DEFAULT_SCORES = {
    "curriculum": "loss",
    "prune": "el2n",
    "dynamic_prune": "loss",
    "active_bias": "variance",
    "focus": "loss",
    "subset": "variation_ratio",
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "order": ("easy_first", "hard_first", "random"),
    "pacing": PACINGS,
    "end": ("hard", "easy"),
    "mode": ("sampling", "weighting"),
}
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "start_fraction": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "full_data_at": (lambda value: value >= 0, "at least 0"),
    "keep": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "examples": (lambda value: value is None or value >= 1, "at least 1"),
    "offset": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "prune_rate": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "easy_share": (lambda value: value is None or 0 < value <= 1, "above 0 and at most 1"),
    "full_data_from": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "smoothing": (lambda value: value is None or value >= 0, "at least 0"),
}

STRATEGIES = tuple(_DEFAULTS)
"""Names of the strategies."""


@dataclass(frozen=True)
class StrategySettings:
    """One strategy with its settings complete.

    Attributes:
        name: one of :data:`STRATEGIES`.
        values: setting -> value.
    """

    name: str
    values: dict[str, Any]

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any]) -> StrategySettings:
        """Defaults and what is given (None: not given).

        Raises:
            ValueError: the strategy is unknown, a setting does not belong to it, or a value is out of range.
        """
        if name not in _DEFAULTS:
            raise ValueError(f"HistoryCurriculum: there is no strategy {name!r}.{nearest(name, STRATEGIES)}")
        values = dict(_DEFAULTS[name])
        for key, value in given.items():
            if value is None:
                continue
            if key not in values:
                known = ", ".join(values)
                raise ValueError(f"HistoryCurriculum: {key} is no setting of strategy {name}; it has {known}")
            values[key] = value
        if given.get("keep") is not None and values.get("examples") is not None:
            raise ValueError("HistoryCurriculum: give keep (a share) or examples (a number), not both")
        for key, value in values.items():
            if key in _CHOICES and value not in _CHOICES[key]:
                raise ValueError(f"HistoryCurriculum: {key} must be one of {', '.join(_CHOICES[key])}, got {value!r}")
            if key in _RANGES and not _RANGES[key][0](value):
                raise ValueError(f"HistoryCurriculum: {key} must be {_RANGES[key][1]}, got {value}")
        return cls(name, values)

    @property
    def default_score(self) -> str:
        """The score that the strategy goes by where none is named."""
        return _DEFAULT_SCORES[self.name]

    @property
    def weights_losses(self) -> bool:
        """Whether losses of examples may weigh differently."""
        rescales = bool(self.values.get("rescale")) and self.values["prune_rate"] > 0
        return rescales or self.values.get("mode") == "weighting"

    @property
    def in_proportion(self) -> bool:
        """Whether scores are used as weights, and so must not be negative."""
        return self.name in ("active_bias", "focus")

    @property
    def needs_labels(self) -> bool:
        """Whether the class of each example counts."""
        return bool(self.values.get("class_balance"))

    def build(self, found: Candidates, labels_N: np.ndarray | None, *, update: bool = False) -> Strategy:
        """The strategy for these scores.

        Args:
            found: the scores at the start.
            labels_N: int64, needed where :attr:`needs_labels`.
            update: whether the scores will follow the losses of the run.

        Raises:
            ValueError: more examples are to be kept than there are.
        """
        values = dict(self.values)
        labels_N = labels_N if values.pop("class_balance", False) else None
        if self.name == "curriculum":
            return Curriculum(**values, labels_N=labels_N)
        if self.name in ("prune", "subset"):
            pool = len(found.pool)
            examples = values["examples"]
            count = max(1, round(values["keep"] * pool)) if examples is None else int(examples)
            skip, end = round(values.get("offset", 0.0) * pool), values.get("end", "hard")
            if examples is None and values["keep"] + values.get("offset", 0.0) <= 1 + 1e-9:
                skip = min(skip, pool - count)  # both may have been rounded up
            window(found, 0, count, end=end, skip=skip)  # raises where it reaches beyond the data
            return Keep(count, end, skip, labels_N)
        if self.name == "dynamic_prune":
            easy_share = values["easy_share"]
            dropped = DynamicPrune.count_dropped(found, values["prune_rate"], easy_share=easy_share, scores_move=update)
            return DynamicPrune(
                values["prune_rate"], values["full_data_from"], bool(values["rescale"]), dropped, easy_share
            )
        return ActiveBias(values.get("mode", "sampling"), values["smoothing"])
