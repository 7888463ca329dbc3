"""What algorithms of one run must know of each other.

Some of Composer's stand in the way of attributing outputs to examples and views, and some of ours weigh examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from composer import State
from composer.algorithms import AugMix, ColOut, CutMix, CutOut, MixUp, ProgressiveResizing, RandAugment, SeqLengthWarmup

ExampleLosses = Callable[[Any, Any], torch.Tensor]
"""(outputs, batch) -> the loss of each example, float ``[B]``, whose mean is the model's loss."""


class Replayed(NamedTuple):
    """Rows that went through the model once more in another form, and count in the loss beside their clean ones.

    A term that is a mean over rows becomes ``clean_share * mean(all rows) + share * mean(replayed rows)``.

    Attributes:
        outputs: The model's outputs of the R replayed rows; None where R is 0, as all that the batch has are in other
            microbatches.
        rows_R: int64 on the outputs' device: which rows of the microbatch they are.
        clean_share: Weight of the microbatch's own mean.
        share: Weight of the mean over the replayed rows.
    """

    outputs: Any
    rows_R: torch.Tensor
    clean_share: float
    share: float


class BatchEffects:
    """What an algorithm of this library does to the rows of a batch and to their losses; by default nothing.

    The functions of this module ask all algorithms of a run at once.
    """

    def example_weights(self, state: State, positions_B: torch.Tensor | None = None) -> torch.Tensor | None:
        """Return the weights of single examples, for every term that is a mean over them.

        Ask :func:`example_weights`, which knows all algorithms of a run.

        Args:
            state: During an epoch.
            positions_B: int64, of which examples; None: those of the current microbatch, from BEFORE_FORWARD on.

        Returns:
            float64 ``[B]`` >= 0 on the CPU; None where all are 1.
        """
        return None

    def example_losses(self) -> ExampleLosses | None:
        """Return how to get the losses of single examples, from an algorithm that weighs them; None from the others."""
        return None

    def replaced_rows(self, state: State) -> torch.Tensor | None:
        """Return the rows of the current microbatch whose outputs are no longer those of the clean view.

        Ask :func:`clean_rows`, which knows all algorithms of a run.

        Returns:
            bool ``[B]`` on the CPU from AFTER_FORWARD on; None where there are none.
        """
        return None

    def replayed_outputs(self, state: State) -> Replayed | None:
        """Return the outputs of rows that this algorithm adds to the microbatch, from AFTER_FORWARD on; or None."""
        return None

    def extra_flops(self, flops_per_example: int) -> float | None:
        """Return the FLOPs of training so far, over all ranks, beyond the passes of the examples that the loader gave.

        Args:
            flops_per_example: Of a forward pass of the model that is trained.

        Returns:
            None where they are not known.
        """
        return 0.0

    @property
    def hides_inputs(self) -> bool:
        """Whether training batches hold something else than the inputs of the examples, because of this algorithm.

        Ask :func:`hides_inputs`, which knows all algorithms of a run.
        """
        return False

    @property
    def perturbs_inputs(self) -> bool:
        """Whether this algorithm attacks the inputs of every batch.

        Ask :func:`perturbs_inputs`, which knows all algorithms of a run.
        """
        return False


def mixes_examples(state: State) -> list[str]:
    """Return the names of the algorithms that make one row out of several examples."""
    return [type(algorithm).__name__ for algorithm in state.algorithms if isinstance(algorithm, (MixUp, CutMix))]


def changes_inputs(state: State) -> list[str]:
    """Return the names of the algorithms that change or cut single inputs, so that rows are not known views."""
    changing = (CutOut, ColOut, AugMix, RandAugment, ProgressiveResizing, SeqLengthWarmup)
    return [type(algorithm).__name__ for algorithm in state.algorithms if isinstance(algorithm, changing)]


def hides_inputs(state: State) -> list[str]:
    """Return the names of the algorithms that put features in place of the examples' inputs into the batches.

    Nothing that needs the images themselves can work beside them.
    """
    ours = [algorithm for algorithm in state.algorithms if isinstance(algorithm, BatchEffects)]
    return [type(algorithm).__name__ for algorithm in ours if algorithm.hides_inputs]


def perturbs_inputs(state: State) -> list[str]:
    """Return the names of the algorithms that attack the inputs of every batch."""
    ours = [algorithm for algorithm in state.algorithms if isinstance(algorithm, BatchEffects)]
    return [type(algorithm).__name__ for algorithm in ours if algorithm.perturbs_inputs]


def example_weights(state: State, positions_B: torch.Tensor | None = None) -> torch.Tensor | None:
    """Return the weights that the algorithms of this run give to the losses of examples, multiplied with each other.

    A mean over examples that is added to the loss must be weighed with them.

    Args:
        state: During an epoch.
        positions_B: int64, of which examples; None: those of the current microbatch, from BEFORE_FORWARD on.

    Returns:
        float64 ``[B]`` >= 0 on the CPU; None where all are 1.
    """
    # A curriculum that shows some examples less often and weighs them more would otherwise correct the model's own loss
    # and not the term that was added.
    # None where no algorithm weighs: a product with ones would cost a copy to the device in every batch.
    product_B: torch.Tensor | None = None
    for algorithm in state.algorithms:
        weights_B = algorithm.example_weights(state, positions_B) if isinstance(algorithm, BatchEffects) else None
        if weights_B is not None:
            product_B = weights_B if product_B is None else product_B * weights_B
    return product_B


def example_losses(state: State) -> ExampleLosses | None:
    """Return how the algorithm that weighs examples gets their losses; None where no algorithm weighs them."""
    found = (one.example_losses() for one in state.algorithms if isinstance(one, BatchEffects))
    return next((losses for losses in found if losses is not None), None)


def clean_rows(state: State) -> torch.Tensor | None:
    """Return, from AFTER_FORWARD on, the rows of the microbatch whose outputs are those of the loaded view.

    Code that keeps outputs as those of a view must leave the other rows out.

    Returns:
        int64 row numbers on the CPU; None where all rows are.
    """
    replaced_B: torch.Tensor | None = None
    for algorithm in state.algorithms:
        rows_B = algorithm.replaced_rows(state) if isinstance(algorithm, BatchEffects) else None
        if rows_B is not None:
            replaced_B = rows_B if replaced_B is None else replaced_B | rows_B
    return None if replaced_B is None else (~replaced_B).nonzero().flatten()


def replayed_outputs(state: State) -> Replayed | None:
    """Return, from AFTER_FORWARD on, the outputs of rows that an algorithm added to the microbatch, or None.

    A mean over rows that is added to the loss must hold these rows in the same proportion.
    """
    found = (one.replayed_outputs(state) for one in state.algorithms if isinstance(one, BatchEffects))
    return next((replayed for replayed in found if replayed is not None), None)
