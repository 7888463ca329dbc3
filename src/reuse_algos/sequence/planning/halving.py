"""Successive halving: all candidates get a small budget, and the best of them a larger one, rung by rung.

Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016,
https://arxiv.org/abs/1502.07943. There a candidate goes on from its checkpoint. Here each rung trains from the start,
for a budget of its own, so that the learning rate decays to the end of each rung: the value of a long run that is read
early does not tell what a run of that length ends at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reuse_algos.sequence.planning.schema import HalvingConfig

_DURATION = re.compile(r"([1-9][0-9]*)(ep|ba|sp|tok|)")


@dataclass(frozen=True)
class Rung:
    """One round of a search.

    Attributes:
        number: From 1.
        share: Of the whole budget, in (0, 1].
        overrides: What is changed in the recipes of its steps.
    """

    number: int
    share: float
    overrides: dict[str, Any]


def rungs_of(config: HalvingConfig) -> list[Rung]:
    """Return the rungs, the smallest budget first; the last one has the whole budget."""
    return [
        # With exponents that end at 0 the last rung trains for exactly the whole budget.
        Rung(k, config.eta ** (k - config.rungs), _previous(config.later, k) if k > 1 else {})
        for k in range(1, config.rungs + 1)
    ]


def _previous(value: Any, rung: int) -> Any:
    """Return overrides in which the tag ``rung: previous`` is the number of the rung before."""
    if isinstance(value, Mapping):
        return {
            key: str(rung - 1) if (key, one) == ("rung", "previous") else _previous(one, rung)
            for key, one in value.items()
        }
    return [_previous(one, rung) for one in value] if isinstance(value, list) else value


def rung_duration(duration: object, rung: Rung) -> str | None:
    """Return a rung's share of a duration such as ``40ep``, rounded up; None where it is not such a duration."""
    found = _DURATION.fullmatch(str(duration))
    if found is None:
        return None
    # Rounding must not add a unit: 40 * 4 ** -1 may be a little more than 10.
    return f"{math.ceil(int(found[1]) * rung.share - 1e-9)}{found[2] or 'ep'}"


def survivors(finals: Mapping[str, Sequence[float]], eta: int, mode: str) -> list[str]:
    """Return the candidates that train on: the best of each ``eta``, at least one.

    Args:
        finals: Candidate -> the last values of its runs. One that is not finite cannot train on.
        eta: One candidate of so many trains on.
        mode: Whether more (``max``) or less of the metric is better.

    Returns:
        The best first, of equals the first one; empty where no candidate is finite.
    """
    sign = 1.0 if mode == "max" else -1.0
    means = {name: sign * float(np.mean(values)) for name, values in finals.items()}
    # Sorting is stable, so of equals the first one goes on.
    ranked = sorted((name for name in means if math.isfinite(means[name])), key=lambda name: -means[name])
    # Of all, diverged ones included: a rung is never larger than was planned.
    return ranked[: max(1, len(finals) // eta)]
