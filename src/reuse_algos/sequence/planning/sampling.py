"""Points drawn at random, beside the points of a grid.

Source: Sobol, "On the distribution of points in a cube", 1967; scrambled as in Owen 1998 (``scipy.stats.qmc``).
"""

from __future__ import annotations

import math
from typing import Any

from reuse_algos.recipe.source import leaves
from reuse_algos.sections import Faults, join
from reuse_algos.sequence.planning.schema import SampleConfig

_DIGITS = 4  # of a value: enough to tell values apart, and a step's name stays short


def sampled_points(config: SampleConfig, path: str, faults: Faults) -> list[dict[str, Any]]:
    """Return points of a scrambled Sobol sequence, spread evenly over the logarithms of all values at once.

    The first points of a longer sample are those of a shorter one with the same seed.

    Args:
        config: Keys with their bounds, number of points and seed.
        path: Of the section, for faults.
        faults: Where bounds or a count that make no sense are noted.

    Returns:
        Dotted recipe key -> value, for each point; empty where there are faults.
    """
    from scipy.stats import qmc

    # The caller's faults may be of other sections.
    own = Faults(faults.source)
    bounds = dict(leaves(config.over))
    for key, value in bounds.items():
        numbers = isinstance(value, list) and len(value) == 2 and all(isinstance(one, int | float) for one in value)
        if not numbers or not 0 < value[0] < value[1] < math.inf:
            own.add(join(join(path, "over"), key), f"must be two bounds above 0 such as [0.001, 1.0], not {value!r}")
    if not bounds:
        own.add(join(path, "over"), "missing. Write for example over: {optimizer.lr: [0.001, 1.0]}")
    if config.count < 1:
        own.add(join(path, "count"), f"must be at least 1, not {config.count}")
    faults.extend(own)
    if len(own):
        return []
    low, high = ([math.log(value[end]) for value in bounds.values()] for end in (0, 1))
    # A power of two is balanced, and scipy asks for one; the rest is left out.
    # scipy calls it rng since 1.15, and takes the older name as well.
    sequence = qmc.Sobol(len(bounds), seed=config.seed)  # type: ignore[call-arg]
    drawn = sequence.random_base2(math.ceil(math.log2(config.count)))
    rows = qmc.scale(drawn[: config.count], low, high)
    return [
        {key: float(f"{math.exp(value):.{_DIGITS}g}") for key, value in zip(bounds, row, strict=True)}
        for row in rows.tolist()
    ]
