"""How far a training is, as lines: what a log file shows in place of a progress bar."""

from __future__ import annotations

import math
import sys

from composer import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from reuse_algos.training.window import elapsed_share


class ProgressLines(Callback):
    """Print epoch, batch and loss from time to time, on stderr and on rank 0.

    A bar that is drawn again for every batch makes a log file that nobody can read.

    Args:
        lines: About how many lines a training prints. Default: 20.
    """

    def __init__(self, lines: int = 20) -> None:
        self.lines = lines
        self._printed = -1

    def init(self, state: State, logger: Logger) -> None:
        """Begin with the first line for each Trainer."""
        self._printed = -1

    def batch_end(self, state: State, logger: Logger) -> None:
        """Print a line where the next part of training has begun."""
        part = math.floor(self.lines * elapsed_share(state))
        if part == self._printed or dist.get_global_rank() != 0:
            return
        self._printed = part
        now = state.timestamp
        # Reading the loss waits for a GPU, so it is read for these few lines only.
        loss = (state.total_loss_dict or {}).get("loss/train/total", math.nan)
        print(
            f"reuse_algos: {state.run_name}: epoch {int(now.epoch)}, batch {int(now.batch)} of {state.max_duration}, "
            f"loss {float(loss):.4f}",
            file=sys.stderr,
            flush=True,
        )
