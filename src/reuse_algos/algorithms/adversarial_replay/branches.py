"""The auxiliary batch norms of a trainer's model, from the start of a training to its end."""

from __future__ import annotations

import logging
from typing import Any

from composer import State
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from reuse_algos.algorithms.adversarial_replay.losses import with_idle_parameters
from reuse_algos.errors import ModelError
from reuse_algos.training.batch_norm import (
    BranchSwitch,
    auxiliary_parameters,
    leave_auxiliary,
    main_parameters,
    put_back,
    restart_auxiliary,
    split_batch_norm,
    take_out,
)

__all__ = ["Branches"]

log = logging.getLogger(__name__)


class Branches:
    """Splits the batch norms while the model trains, and puts them aside when it has.

    Args:
        wanted: whether to split at all.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.switch = BranchSwitch()
        self.layers: list[nn.Module] = []
        self._aside: list[Any] = []

    def forget(self) -> None:
        """INIT: another model comes; what was put aside of the last one goes."""
        self.layers, self._aside = [], []

    def split(self, state: State) -> None:
        """BEFORE_LOAD: after the surgery of other algorithms, and before checkpoint, DDP and torch.compile.

        Raises:
            ModelError: the model cannot be split.
        """
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
        """FIT_END: what is exported or saved from here on is the plain model; another fit() goes on with the branches.

        Composer has saved its checkpoints by then, with both branches. What ``Trainer.save_checkpoint`` saves later is
        the plain model with the plain optimizer, from which only a plain training can go on.
        """
        self._aside = take_out(self.layers, state.optimizers)
        self.layers = []

    def take_back(self, state: State) -> None:
        """FIT_START: undo :meth:`put_aside`."""
        if self._aside:
            self.layers = put_back(self._aside, state.optimizers)
        self._aside = []

    def with_idle(self, state: State, replayed: bool, main_idle: bool) -> None:
        """BEFORE_BACKWARD: let DDP have a gradient, zeros, of the branch that no row of this microbatch went through.

        One that looks for unused parameters finds these by itself.
        """
        if not isinstance(state.model, DistributedDataParallel) or state.model.find_unused_parameters:
            return
        if not replayed:
            state.loss = with_idle_parameters(state.loss, auxiliary_parameters(self.layers))
        elif main_idle:
            state.loss = with_idle_parameters(state.loss, main_parameters(self.layers))

    def leave(self, state: State) -> None:
        """AFTER_TRAIN_BATCH without replayed rows on any rank: nothing is to move the auxiliary branches."""
        leave_auxiliary(self.layers, state.optimizers, first=int(state.timestamp.batch) == 0)
