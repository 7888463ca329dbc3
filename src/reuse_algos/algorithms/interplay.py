"""What algorithms of one run must know of each other.

Some of Composer's stand in the way of attributing outputs to examples and views, and some of ours weigh examples.
"""

from __future__ import annotations

import torch
from composer import State
from composer.algorithms import AugMix, ColOut, CutMix, CutOut, MixUp, ProgressiveResizing, RandAugment

from reuse_algos.algorithms.reusing_algorithm import ReusingAlgorithm

__all__ = ["changes_inputs", "example_weights", "mixes_examples"]


def mixes_examples(state: State) -> list[str]:
    """Names of the algorithms that make one row out of several examples."""
    return [type(algorithm).__name__ for algorithm in state.algorithms if isinstance(algorithm, (MixUp, CutMix))]


def changes_inputs(state: State) -> list[str]:
    """Names of the algorithms that change single inputs at random, so that a row is no known view any more."""
    changing = (CutOut, ColOut, AugMix, RandAugment, ProgressiveResizing)
    return [type(algorithm).__name__ for algorithm in state.algorithms if isinstance(algorithm, changing)]


def example_weights(state: State, positions_B: torch.Tensor | None = None) -> torch.Tensor | None:
    """The weights that the algorithms of this run give to the losses of examples, multiplied with each other.

    Whoever adds a mean over examples to the loss must weigh it with them: otherwise a curriculum that shows some
    examples less often and weighs them more corrects the model's own loss and not the term that was added.

    Args:
        state: during an epoch.
        positions_B: int64, of which examples; None: those of the current microbatch, from BEFORE_FORWARD on.

    Returns:
        float64 ``[B]`` >= 0 on the CPU; None where all are 1.
    """
    product_B: torch.Tensor | None = None
    for algorithm in state.algorithms:
        weights_B = algorithm.example_weights(state, positions_B) if isinstance(algorithm, ReusingAlgorithm) else None
        if weights_B is not None:
            product_B = weights_B if product_B is None else product_B * weights_B
    return product_B
