"""The losses that the running model has had on each example, the same on every rank.

Shapes: N examples, B rows of a microbatch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from composer.utils import dist

from reuse_algos.errors import DataError
from reuse_algos.training.ranks import sum_over_ranks


class OwnLosses:
    """Latest loss of each example, collected during an epoch and valid from its end on.

    An example that is shown twice in an epoch counts with its mean.

    Args:
        num_examples: N.
        device: Of the model.
    """

    def __init__(self, num_examples: int, device: torch.device) -> None:
        self._known_N = torch.full((num_examples,), torch.nan, dtype=torch.float32)
        # Sums and counts, on the training device until the epoch ends: nothing waits for them.
        self._sums_2N = torch.zeros(2, num_examples, dtype=torch.float32, device=device)

    @property
    def known(self) -> np.ndarray:
        """float64 ``[N]`` as of the end of the last epoch, NaN for what was not shown yet."""
        return self._known_N.double().numpy()

    def add(self, positions_B: torch.Tensor, losses_B: torch.Tensor) -> None:
        """Keep the losses of one microbatch; NaN, where no target of an example counts, is left out."""
        positions_B = positions_B.to(self._sums_2N.device, non_blocking=True)
        losses_B = losses_B.detach().float()
        known_B = ~losses_B.isnan()
        rows_2B = torch.stack([losses_B.where(known_B, 0.0), known_B.float()])
        self._sums_2N.index_add_(1, positions_B, rows_2B)

    def end_epoch(self) -> None:
        """Make the epoch's losses the latest ones, over all ranks. Every rank must call this."""
        sums_N, counts_N = self._over_ranks().cpu()
        self._known_N = torch.where(counts_N > 0, sums_N / counts_N.clamp_min(1), self._known_N)
        self._sums_2N.zero_()

    def _over_ranks(self) -> torch.Tensor:
        return sum_over_ranks(self._sums_2N.clone())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return everything so far, of all ranks; every rank must call this, as Composer's checkpoints do."""
        # Of all ranks, as a resumed run may have another number of them.
        return {"known": self._known_N.clone(), "sums": self._over_ranks().cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            DataError: They are losses of another number of examples.
        """
        num_then, num_now = len(state["known"]), len(self._known_N)
        if num_then != num_now:
            raise DataError(
                f"the checkpoint has losses of {num_then} training examples, and the train data has {num_now}. Go on "
                "with the data that it was made with, or start from its weights alone (load_weights_only)."
            )
        self._known_N = torch.as_tensor(state["known"]).cpu().clone()
        sums_2N = torch.as_tensor(state["sums"]).to(self._sums_2N.device)
        # Those of all ranks become rank 0's, so that they count once.
        self._sums_2N = sums_2N.clone() if dist.get_global_rank() == 0 else torch.zeros_like(sums_2N)
