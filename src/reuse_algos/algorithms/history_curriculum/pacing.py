"""Pacing functions: how much of the ordered data a curriculum may show at each step.

Wu, Dyer, Neyshabur 2021, "When Do Curricula Work?" (arXiv 2012.03107): the six families of its section on pacing
functions. There are N examples and T steps; ``b`` is the share of the data at the start, and ``a`` the share of
training until all data is in use. Each function is ``g(t) = N b + N (1 - b) f(t / (a T))`` with one of the f below, and
at most N (``step`` in the paper adds N at once, which comes to the same).
"""

from __future__ import annotations

import math
from collections.abc import Callable

_C = 10.0  # the constant of the exponential and the logarithmic function, as in the paper

_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda s: s,
    "quadratic": lambda s: s**2,
    "root": lambda s: math.sqrt(s),
    "step": lambda s: float(math.floor(s)),
    "exponential": lambda s: math.expm1(_C * s) / math.expm1(_C),
    "logarithmic": lambda s: 1 + math.log(s + math.exp(-_C)) / _C,
}

PACINGS = tuple(_SHAPES)
"""Names of the pacing functions."""


def allowed_examples(
    pacing: str, step: int, total_steps: int, num_examples: int, *, start_fraction: float, full_data_at: float
) -> int:
    """Return how many of the ordered examples may be shown at a step, ``floor(g(t))``.

    Args:
        pacing: One of :data:`PACINGS`.
        step: t >= 0, in batches.
        total_steps: T >= 1.
        num_examples: N >= 1.
        start_fraction: b in [0, 1].
        full_data_at: a >= 0; 0 gives all data from the first step, more than 1 never all of it.

    Returns:
        From 0 to N (``floor(N b)`` at step 0 with a > 0).

    >>> allowed_examples("linear", 10, 50, 100, start_fraction=0.2, full_data_at=0.8)
    40
    """
    if full_data_at <= 0 or step >= full_data_at * total_steps:
        return num_examples
    first = num_examples * start_fraction
    grown = first + (num_examples - first) * _SHAPES[pacing](step / (full_data_at * total_steps))
    # The logarithm at step 0 and the shares of N are exact only up to rounding: 0.29 * 100 is 28.999999999999996.
    return min(num_examples, max(0, math.floor(grown + 1e-9 * num_examples)))
