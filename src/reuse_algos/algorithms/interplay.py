"""Which of Composer's algorithms stand in the way of attributing outputs to examples and views."""

from __future__ import annotations

from composer import State
from composer.algorithms import AugMix, ColOut, CutMix, CutOut, MixUp, ProgressiveResizing, RandAugment

__all__ = ["changes_inputs", "mixes_examples"]


def mixes_examples(state: State) -> list[str]:
    """Names of the algorithms that make one row out of several examples."""
    return [type(algorithm).__name__ for algorithm in state.algorithms if isinstance(algorithm, (MixUp, CutMix))]


def changes_inputs(state: State) -> list[str]:
    """Names of the algorithms that change single inputs at random, so that a row is no known view any more."""
    changing = (CutOut, ColOut, AugMix, RandAugment, ProgressiveResizing)
    return [type(algorithm).__name__ for algorithm in state.algorithms if isinstance(algorithm, changing)]
