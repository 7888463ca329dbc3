"""The auxiliary batch norms of a trainer's model, from the start of a training to its end."""

from __future__ import annotations

import logging
from typing import Any

from composer import State
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from reuse_algos.algorithms.adversarial_replay.replay.losses import with_idle_parameters
from reuse_algos.errors import ModelError
from reuse_algos.training.parameters.batch_norm import (
    BranchSwitch,
    auxiliary_parameters,
    leave_auxiliary,
    main_parameters,
    put_back,
    restart_auxiliary,
    split_batch_norm,
    take_out,
)

log = logging.getLogger(__name__)


class Branches:
    """Splits the batch norms while the model trains, and puts them aside when it has.

    Args:
        wanted: Whether to split at all.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.switch = BranchSwitch()
        self.layers: list[nn.Module] = []
        self._aside: list[Any] = []

    def forget(self) -> None:
        """Forget the model of another Trainer (INIT)."""
        self.layers, self._aside = [], []

    def split(self, state: State) -> None:
        """Split the batch norms of the trainer's model (BEFORE_LOAD).

        Raises:
            ModelError: The model cannot be split.
        """
        # After the surgery of other algorithms (INIT), and before checkpoint, DDP and torch.compile see the model.
        if not self.wanted:
            return
        if state.fsdp_enabled:
            raise ModelError(
                "split_batch_norm changes the model before it is distributed, which FSDP has done already. Use DDP, or "
                "say split_batch_norm: false."
            )
        self.layers = split_batch_norm(state.model, state.optimizers, self.switch)
        if self.layers:
            log.info("%d batch norm layers have an auxiliary branch for replayed rows", len(self.layers))
        else:
            log.info("the model has no batch norm to split; replayed rows have a forward pass of their own")

    def restart(self, state: State) -> None:
        """Let the auxiliary branches start from where the main ones are by now."""
        restart_auxiliary(self.layers, state.optimizers)

    def put_aside(self, state: State) -> None:
        """Leave the plain model to what is exported or saved from here on (FIT_END)."""
        # Composer has saved its own checkpoints by now, with both branches, and another fit() goes on with both. What
        # Trainer.save_checkpoint saves after this is plain, and only a plain training can go on from it.
        self._aside = take_out(self.layers, state.optimizers)
        self.layers = []

    def take_back(self, state: State) -> None:
        """Undo :meth:`put_aside` (FIT_START)."""
        if self._aside:
            self.layers = put_back(self._aside, state.optimizers)
        self._aside = []

    def with_idle(self, state: State, replayed: bool, main_idle: bool) -> None:
        """Give DDP a gradient of zeros for the branch that no row of this microbatch went through (BEFORE_BACKWARD)."""
        # DDP waits for every parameter's gradient, unless it looks for unused ones by itself.
        if not isinstance(state.model, DistributedDataParallel) or state.model.find_unused_parameters:
            return
        if not replayed:
            state.loss = with_idle_parameters(state.loss, auxiliary_parameters(self.layers))
        elif main_idle:
            state.loss = with_idle_parameters(state.loss, main_parameters(self.layers))

    def leave(self, state: State) -> None:
        """Keep the optimizer off the auxiliary branches in a batch without replayed rows (AFTER_TRAIN_BATCH)."""
        # Momentum and weight decay move a parameter also where its gradient is zero.
        leave_auxiliary(self.layers, state.optimizers, first=int(state.timestamp.batch) == 0)
